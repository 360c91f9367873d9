"""Imports feeds and event exports in the formats that shops have, pushes feeds to a server, and runs docs/feeds.md.

Usage: feeds.py LODESTONE GRPCURL BUNDLE. Needs ORT_DYLIB_PATH. Prints each check; exits with 1 if one is wrong.
"""
import gzip
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time

from styles import check, wrong

LODESTONE, GRPCURL, BUNDLE = (str(pathlib.Path(path).resolve()) for path in sys.argv[1:4])
DOCUMENT = pathlib.Path("docs/feeds.md").resolve()
SUCCESS, ERROR = 0, 2
START_SECONDS_MAX = 60


def run(*arguments):
    return subprocess.run([LODESTONE, *map(str, arguments)], capture_output=True, text=True, timeout=300)


def report(*arguments):
    ran = run(*arguments, "--format", "json")
    check(ran.returncode == SUCCESS, f"{' '.join(map(str, arguments[:3]))} succeeds", ran.stderr)
    return json.loads(ran.stdout) if ran.stdout else {}


def refused(parts, *arguments):
    ran = run(*arguments)
    missing = [part for part in parts if part not in ran.stderr]
    check(ran.returncode == ERROR and not missing, f"{' '.join(map(str, arguments[:2]))} is refused and names {parts}",
          f"exit code {ran.returncode}, without {missing}: {ran.stderr}")


def feed(count, price="12.99 EUR"):
    rows = [f"m{number}\tMug {number}\t{price}\tHome > Mugs\tin_stock" for number in range(count)]
    return "\n".join(["id\ttitle\tprice\tproduct_type\tavailability", *rows]) + "\n"


def formats(work):
    """Each shipped mapping reads a file of its format."""
    (work / "feed.tsv.gz").write_bytes(gzip.compress(feed(50).encode()))
    google = ["import", "--mapping", "google-merchant-center", "--out", work / "google"]
    found = report(*google, "--items", work / "feed.tsv.gz")
    check(found["item_count"] == 50 and found["items_time_ms"] > 0, "a compressed Google feed as TSV", found)
    items = "".join(f"<item><g:id>m{number}</g:id><title>Mug &amp;amp; {number}</title><g:price>12.99 EUR</g:price></item>\n"
                    for number in range(50))
    xml = f"<?xml version='1.0'?>\n<rss xmlns:g='http://base.google.com/ns/1.0'><channel>{items}</channel></rss>\n"
    (work / "feed.xml").write_text(xml)
    found = report(*google, "--items", work / "feed.xml")
    check((found["item_count"], found["item_count_before"]) == (50, 50), "a Google feed as XML", found)

    (work / "shopify.toml").write_text('extends = "shopify"\n[constants]\ncurrency = "EUR"\n')
    (work / "products.csv").write_text("Handle,Title,Option1 Name,Option1 Value,Variant SKU,Variant Price,Image Src\n"
                                       "mug,Mug,Color,Red,R,12.99,\nmug,,,Blue,B,13.99,\nmug,,,,,,https://cdn.test/2.jpg\n")
    found = report("import", "--mapping", work / "shopify.toml", "--items", work / "products.csv", "--out", work / "shopify")
    check(found["item_count"] == 2 and found["dropped_items"]["row that is no item"]["count"] == 1, "a Shopify export", found)

    event = {"event_name": "purchase", "event_timestamp": "1700000000000000", "user_pseudo_id": "p",
             "ecommerce": {"transaction_id": "T1"}, "items": [{"item_id": "R", "price": 12.99}, {"item_id": "B", "price": 13.99}]}
    (work / "ga4.json").write_text(json.dumps(event) + "\n" + json.dumps({**event, "event_name": "page_view"}) + "\n")
    found = report("import", "--mapping", "ga4", "--events", work / "ga4.json", "--out", work / "ga4")
    check(found["kept_by_type"] == {"purchase": 2} and found["dropped"]["ignored event type"]["count"] == 2,
          "an export of Google Analytics 4", found)
    found = report("import", "--mapping", work / "shopify.toml", "--items", work / "products.csv", "--mapping", "ga4",
                   "--events", work / "ga4.json", "--out", work / "both")
    check((found["item_count"], found["kept_count"]) == (2, 2), "items and events with different mappings", found)

    (work / "ubi_queries.jsonl").write_text(json.dumps({"query_id": "q", "client_id": "c", "user_query": "mug",
                                                        "timestamp": "2024-05-30T01:30:32.259Z"}) + "\n")
    click = {"action_name": "item_click", "query_id": "q", "client_id": "c", "timestamp": "2024-05-30T01:30:40Z",
             "event_attributes": {"object": {"object_id": "R"}}}
    (work / "ubi_events.jsonl").write_text(json.dumps(click) + "\n")
    found = report("import", "--mapping", "opensearch-ubi", "--events", work / "ubi_queries.jsonl", "--events",
                   work / "ubi_events.jsonl", "--out", work / "ubi")
    check(found["kept_by_type"] == {"click": 1, "search": 1}, "queries and events of OpenSearch UBI", found)

    rows = ["timestamp,event,itemid,visitorid,transactionid", "1433221332117,view,1,v,", "1433221999827,addtocart,1,v,",
            "1433222276276,transaction,1,v,7", "1433222276277,teleport,1,v,"]
    (work / "clicks.csv").write_text("\n".join(rows) + "\n")
    found = report("import", "--mapping", "clickstream", "--events", work / "clicks.csv", "--out", work / "clicks")
    check(found["kept_by_type"] == {"add_to_cart": 1, "purchase": 1, "view": 1} and found["unknown_event_types"] == {"teleport": 1},
          "a plain clickstream", found)

    (work / "icecat.jsonl").write_text(json.dumps({"id": "1", "title": "Ink", "supplier": "HP", "price": 1295, "attr_t_type": "x"}))
    found = report("import", "--mapping", "icecat", "--items", work / "icecat.jsonl", "--out", work / "icecat")
    check(found["item_count"] == 1, "products of Icecat", found)

    (work / "own.toml").write_text('[events]\nitem = "@sku"\ntime = "@at"\nvisitor = "@user"\nevent_type = "@kind"\n'
                                   '[file]\nrows = "event"\n')
    event = '<event sku="R" at="2025-01-01T10:00:00Z" user="{}" kind="{}"/>'
    (work / "events.xml").write_text(f"<events>{event.format('a', 'view')}{event.format('a', 'purchase')}{event.format('b', 'view')}</events>")
    found = report("import", "--mapping", work / "own.toml", "--events", work / "events.xml", "--out", work / "own")
    check((found["kept_by_type"], found["user_count"]) == ({"purchase": 1, "view": 2}, 2), "events in one line of XML", found)
    entry = ('<entry><g:id>A</g:id><title type="html">Mug &amp;amp; cup</title><link href="https://shop.test/?a=1&amp;b=2"/>'
             "<g:price>1 EUR</g:price></entry>")
    (work / "atom.xml").write_text(f'<feed xmlns:g="http://base.google.com/ns/1.0">{entry}</feed>')
    found = report(*google[:-1], work / "atom", "--items", work / "atom.xml")
    check((found["item_count"], found["dropped_items"]) == (1, {}), "a Google feed as Atom", found)


def refusals(work):
    google = ["import", "--mapping", "google-merchant-center", "--out", work / "refused"]
    (work / "feed.tsv").write_text(feed(100))
    report(*google, "--items", work / "feed.tsv")
    before = (work / "refused" / "items.parquet").read_bytes()
    (work / "cut.tsv").write_text(feed(100)[:-20])
    refused(["cut.tsv", "ends in the middle of a record, in line 101", "line 100, `m98`"], *google, "--items", work / "cut.tsv")
    (work / "cut.tsv.gz").write_bytes(gzip.compress(feed(5000).encode())[:-2000])
    refused(["cut.tsv.gz", "ends in the middle", "the last whole record"], *google, "--items", work / "cut.tsv.gz")
    (work / "small.tsv").write_text(feed(70))
    small = [*google, "--items", work / "small.tsv"]
    refused(["small.tsv", "70 items", "has 100", "30 % fewer", "20 %", "--allow-shrink"], *small)
    (work / "free.tsv").write_text(feed(3, "12.99"))
    (work / "own.toml").write_text('[items]\nid = "id"\ntitle = "title"\nprice = "price"\n')
    refused(["free.tsv", "line 2", "`price`", "`12.99`", "without a currency"], "import", "--mapping", work / "own.toml",
            "--items", work / "free.tsv", "--out", work / "refused")
    refused(["--items-time", "in the future"], *google, "--items", work / "feed.tsv", "--items-time", "2999-01-01")
    refused(["--items-time", "`soon`"], *google, "--items", work / "feed.tsv", "--items-time", "soon")
    refused(["magento", "google-merchant-center", "shopify"], "import", "--mapping", "magento", *google[3:], "--items", work / "feed.tsv")
    refused(["both have the table `items`"], *google, "--mapping", "icecat", "--items", work / "feed.tsv")
    refused(["no mapping has the table `events`"], *google, "--events", work / "feed.tsv")
    (work / "short.tsv").write_text("name\tcost\nMug\t5\n")
    refused(["`id`", "`title`", "found: name, cost"], *google, "--items", work / "short.tsv")
    (work / "bytes.toml").write_text('[items]\nid = "id"\ntitle = "title"\n[file]\nencoding = "shift_jis"\n')
    (work / "bytes.csv").write_bytes(b"id,title\n1,Mug\n2,Mug \xff\n")
    refused(["bytes.csv", "line 3", "Shift_JIS", "file.encoding"], "import", "--mapping", work / "bytes.toml", "--items",
            work / "bytes.csv", "--out", work / "refused")
    (work / "rows.toml").write_text('extends = "google-merchant-center"\n[file]\nrows = "product"\n')
    refused(["feed.tsv", "file.rows `product`"], "import", "--mapping", work / "rows.toml", *google[3:], "--items", work / "feed.tsv")
    check((work / "refused" / "items.parquet").read_bytes() == before, "a refused file changes nothing")
    check(report(*small, "--allow-shrink")["item_count"] == 70, "--allow-shrink imports the smaller feed")


class Server:
    """A server of a bundle, by default a copy of the example shop's, with an empty data directory."""

    def __init__(self, work, bundle=BUNDLE, *flags):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        command = [LODESTONE, "serve", "--bundle", bundle, "--data", work / "serve", "--listen", self.address,
                   "--metrics-listen", "127.0.0.1:0", *flags]
        self.log = open(work / "serve.log", "w")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        until = time.monotonic() + START_SECONDS_MAX
        while self.call("ListItems", {"page_size": 1}) is None and time.monotonic() < until:
            time.sleep(0.2)

    def call(self, method, request, service="CatalogService", catalog="default"):
        ran = subprocess.run([GRPCURL, "-plaintext", "-H", f"lodestone-catalog: {catalog}", "-d", json.dumps(request), self.address,
                              f"lodestone.v1.{service}/{method}"], capture_output=True, text=True, timeout=60)
        return json.loads(ran.stdout) if ran.returncode == 0 else None

    def price(self, item):
        found = self.call("GetItem", {"item_id": item})
        return int(found["item"]["priceMicros"]) if found else None

    def count(self, catalog="default"):
        return int(self.call("ListItems", {"page_size": 1}, catalog=catalog)["totalSize"])

    def stop(self):
        self.process.terminate()
        self.process.wait(60)
        self.log.close()


def push(work, server):
    """A feed reaches a server, and the newest value of each field wins."""
    file = work / "feed.tsv"
    command = ["items", "push", "--mapping", "google-merchant-center", "--items", file, "--address", server.address]
    before = server.count()
    file.write_text(feed(3, "9.00 EUR"))
    found = report(*command, "--dry-run")
    check((found["created_count"], found["deleted_count"], server.count()) == (3, None, before), "--dry-run writes nothing", found)
    found = report(*command, "--dry-run", "--delete-missing")
    check((found["deleted_count"], server.count()) == (before, before), "--dry-run counts the missing items", found)
    found = report(*command, "--items-time", "3h")
    check((found["created_count"], found["stale_count"]) == (3, 0) and server.price("m1") == 9_000_000, "new items are created", found)
    found = report(*command, "--items-time", "3h")
    counts = [found[f"{name}_count"] for name in ["created", "replaced", "unchanged"]]
    check(counts == [0, 0, 3] and server.count() == before + 3, "a repeated push changes nothing", found)
    file.write_text(feed(2, "9.00 EUR") + feed(3, "9.50 EUR").splitlines()[-1] + "\n")
    found = report(*command, "--items-time", "3h", "--dry-run")
    check((found["replaced_count"], found["unchanged_count"]) == (1, 2), "--dry-run knows what would change", found)
    server.call("SetInventory", {"inventories": [{"item_id": "m1", "price_micros": 5_000_000}]})
    file.write_text(feed(3, "8.00 EUR"))
    found = report(*command, "--items-time", "2h")
    check((server.price("m0"), server.price("m1")) == (8_000_000, 5_000_000), "a price that was written after the feed stays", found)
    server.call("SetInventory", {"inventories": [{"item_id": "m1", "stock_quantity": 3}]})
    file.write_text("id\ttitle\nm1\tMug without stock and price\n")
    report(*command)
    found = server.call("GetItem", {"item_id": "m1"})["item"]
    check((found["title"], found["stockQuantity"], found["priceMicros"]) == ("Mug without stock and price", "3", "5000000"),
          "fields without a column stay", found)
    file.write_text(feed(3, "8.00 EUR"))
    found = report(*command, "--items-time", "4h")
    check((found["replaced_count"], found["stale_count"]) == (0, 3), "an older feed changes nothing", found)
    # The clock of files is coarser than that of prices.
    priced = time.time()
    while file.stat().st_mtime <= priced:
        file.write_text(feed(3, "7.00 EUR"))
    found = report(*command)
    check(server.price("m1") == 7_000_000, "a later feed wins over the price", found)

    refused([f"lacks {before} of {before + 3} items", "none is deleted", "--allow-shrink"], *command, "--delete-missing")
    check(server.count() == before + 3, "a refused push deletes nothing")
    found = report(*command, "--delete-missing", "--allow-shrink")
    check(found["deleted_count"] == before and server.count() == 3, "--allow-shrink deletes the missing items", found)
    refused(["no server answers at 127.0.0.1:1"], *command[:-1], "127.0.0.1:1")
    refused(["--allow-shrink", "--delete-missing"], *command, "--allow-shrink")


def push_inventory(work, server):
    """Stock and prices of stores reach a server as offers, and the newest value of each wins."""
    file = work / "stores.tsv"
    command = ["items", "push-inventory", "--mapping", "google-local-inventory", "--inventory", file, "--address", server.address]
    file.write_text("store_code\tid\tquantity\tprice\tsale_price\tavailability\n"
                    "leeds\tm1\t4\t6.00 EUR\t5.00 EUR\tin_stock\n"
                    "york\tm1\t\t\t\tout_of_stock\n"
                    "york\tnone\t3\t\t\tin_stock\n"
                    "york\tm2\tmany\t\t\tin_stock\n")

    def offers():
        found = server.call("GetItem", {"item_id": "m1"})["item"].get("offers", [])
        return {(offer["key"]["placeId"], offer["key"].get("currencyCode", "")): offer for offer in found}

    found = report(*command, "--dry-run")
    check((found["entry_count"], found["feed"]["kept_count"], offers()) == (4, 3, {}), "--dry-run writes nothing", found)
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 7200))
    found = report(*command, "--items-time", at)
    check((found["updated_count"], found["unknown_count"], found["rejected_count"]) == (3, 1, 0), "offers are written", found)
    check(found["feed"]["dropped"]["not a number"]["count"] == 1, "a bad row is counted", found)
    found = report(*command, "--items-time", at)
    counts = found["entry_count"], found["updated_count"], found["unchanged_count"], found["unknown_count"]
    check(counts == (4, 0, 3, 1), "a repeated push changes nothing", found)
    text = run(*command, "--items-time", at).stdout
    check("4 entries of 3 rows sent" in text and "3 unchanged" in text, "entries are counted apart from rows", text)
    written = offers()
    check(written["leeds", ""]["stockQuantity"] == "4" and written["york", ""]["stockQuantity"] == "0", "stock of stores", written)
    priced = written["leeds", "EUR"]
    check((priced["priceMicros"], priced["salePriceMicros"]) == ("6000000", "5000000"), "price and sale of a store", written)
    server.call("SetInventory", {"inventories": [{"item_id": "m1", "offer_key": {"place_id": "leeds"}, "stock_quantity": 9}]})
    file.write_text("store_code\tid\tquantity\tprice\tsale_price\nleeds\tm1\t1\t6.00 EUR\t\n")
    found = report(*command, "--items-time", "1h")
    check((found["updated_count"], found["stale_count"]) == (1, 1), "a stock that was written after the feed stays", found)
    written = offers()
    check(written["leeds", ""]["stockQuantity"] == "9" and "saleEndTime" in written["leeds", "EUR"], "a sale ends", written)
    file.write_text("id\tquantity\nm1\t1\n")
    refused(["stores.tsv", "`store_code`", "inventory.place"], *command)


def catalogs(work):
    """Commands reach the catalogue that --catalog names."""
    (work / "catalogs").mkdir()
    (work / "catalogs" / "feed.tsv").write_text(feed(3))
    file = work / "catalogs" / "catalogs.toml"
    file.write_text(f'[catalogs.outlet]\nbundle = "{BUNDLE}"\ndata = "{work}/outlet"\n')
    server = Server(work / "catalogs", BUNDLE, "--catalogs", file)
    try:
        before = server.count()
        push = ["items", "push", "--mapping", "google-merchant-center", "--items", work / "catalogs" / "feed.tsv", "--address", server.address]
        found = report(*push, "--catalog", "outlet")
        check((found["created_count"], server.count(), server.count("outlet")) == (3, before, before + 3), "--catalog names the catalogue", found)
        refused(["--catalog", "nosuch"], *push, "--catalog", "nosuch")
        refused(["--catalog", "not a name"], *push, "--catalog", "no such")
        found = report("load-test", "--data", work / "new" / "data", "--rpc", "browse", "--address", server.address, "--catalog", "outlet",
                       "--connections", "1", "--seconds", "0.2")
        check(found["runs"][0]["failed"] == 0 and found["runs"][0]["capacity_per_s"] > 0, "load-test needs no events", found)
    finally:
        server.stop()


def without_events(work):
    """A shop without events is trained and served, and a later training has its events."""
    work = work / "new"
    work.mkdir()
    kinds = ["red mug", "blue mug", "oak lamp", "steel pan", "linen shirt"]
    rows = [f"n{number}\t{kinds[number % 5]} {number}\t{number + 1}.00 EUR\tHome > {kinds[number % 5].split()[1]}\tin_stock" for number in range(60)]
    (work / "feed.tsv").write_text("\n".join(["id\ttitle\tprice\tproduct_type\tavailability", *rows]) + "\n")
    report("import", "--mapping", "google-merchant-center", "--items", work / "feed.tsv", "--out", work / "data")
    trained = report("train", "--data", work / "data", "--out", work / "bundle")
    check("0 positive interactions" in trained["missing_user_encoder"] and "no ranking model" in trained["missing_ranker"],
          "a training without events says what is missing", trained)
    shown = report("bundle", "show", "--bundle", work / "bundle")
    check((shown["has_user_encoder"], shown["has_ranker"]) == (False, False), "the bundle says what it lacks", shown)
    server = Server(work, work / "bundle")
    try:
        viewer = {"viewer": {"visitor_id": "v"}}
        ask = lambda method, request: server.call(method, {**viewer, **request}, "RankingService") or {}
        found = ask("Search", {"query": "blue mug", "facet_specs": [{"field": "category"}]})
        check(found.get("results", [{}])[0].get("itemId") in {f"n{number}" for number in range(1, 60, 5)} and found.get("facets"), "a search", found)
        found = ask("Search", {"filter": "category = \"Home > lamp\"", "options": {"order_by": "price desc"}})
        check([result["itemId"] for result in found.get("results", [])][:2] == ["n57", "n52"], "a category page", found)
        check(ask("Suggest", {"prefix": "lin"}).get("completions"), "suggestions")
        for kind in ["FOR_YOU", "TRENDING", "NEW_ARRIVALS"]:
            found = ask("Recommend", {"type": f"RECOMMEND_TYPE_{kind}", "page_size": 12})
            check(len(found.get("results", [])) == 12, f"recommendations {kind} are filled from the catalogue", found)
        found = ask("Recommend", {"type": "RECOMMEND_TYPE_SIMILAR", "anchor_item_ids": ["n0"], "page_size": 4})
        names = [result["itemId"] for result in found.get("results", [])]
        check(len(names) == 4 and all(int(name[1:]) % 5 in (0, 1) for name in names), "similar items are those of similar texts", found)
        events = [{"event_id": f"e{user}-{step}", "type": "EVENT_TYPE_VIEW", "viewer": {"visitor_id": f"v{user}"},
                   "occurred_time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 90000 + 300 * user + 10 * step)),
                   "lines": [{"item_id": f"n{(7 * user + 5 * step) % 60}"}]} for user in range(60) for step in range(6)]
        found = server.call("WriteEvents", {"events": events}, "EventService") or {}
        check({result["status"] for result in found.get("results", [])} == {"EVENT_STATUS_ACCEPTED"}, "events are accepted")
    finally:
        server.stop()
    (work / "serve" / "items.parquet").write_bytes((work / "data" / "items.parquet").read_bytes())
    found = report("retrain", "--data", work / "serve", "--store", work / "store")
    check(found["gathered"]["logged_event_count"] == 360 and found["trained"]["missing_user_encoder"] is None and found["published"],
          "a later retrain learns from the events", found)


def document(work, server):
    """The bash blocks of docs/feeds.md, in order, with the address of this server."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (work / "document").mkdir()
    text = "\n".join(blocks).replace("127.0.0.1:50051", server.address)
    environment = {**os.environ, "PATH": f"{pathlib.Path(LODESTONE).parent}:{os.environ['PATH']}"}
    ran = subprocess.run(["bash", "-euo", "pipefail", "-c", text], cwd=work / "document", env=environment, capture_output=True,
                         text=True, timeout=300)
    check(ran.returncode == SUCCESS and len(blocks) >= 3, "the commands of docs/feeds.md run", ran.stdout + ran.stderr)
    for shown in ["1 dropped, not a number", "first at line 4, column `price`: `free` is not a number", "1 add_to_cart lines",
                  "2 items, 1 users", "2 items, 0 users"]:
        check(shown in ran.stdout, f"the document shows `{shown}`", ran.stdout)


with tempfile.TemporaryDirectory() as directory:
    work = pathlib.Path(directory)
    formats(work)
    refusals(work)
    server = Server(work)
    try:
        document(work, server)
        push(work, server)
        push_inventory(work, server)
    finally:
        server.stop()
    without_events(work)
    catalogs(work)
print(f"feeds: {len(wrong)} wrong")
sys.exit(1 if wrong else 0)
