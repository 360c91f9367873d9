"""Measures category pages, sorting, facets and updates of prices, and the same queries on tantivy: `make bench-catalog`.

Writes BENCH_ITEMS=200000 generated items, 100,000 of them in the category Shelves, to a server with the example shop's
bundle, and to a tantivy index in this process. Each query is sent BENCH_QUERIES=200 times, one after the other. The times
of Lodestone include gRPC; those of tantivy do not, and its index takes no writes meanwhile. Then 1,000 prices and stocks
per message are set over 4 connections for BENCH_SECONDS=5, and again while category pages are requested. Last, every item
gets a price and a stock at one place, and pages are requested with and without the place. All results are also written to
target/bench/catalog.json.
"""
import json
import os
import random
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import tantivy

from process import ServerProcess, free_port

TOP = Path(__file__).resolve().parent.parent
LODESTONE = TOP / "target/release/lodestone"
BUNDLE = TOP / "target/demo/bundle"
OUT = TOP / "target/bench"
ITEMS = int(os.environ.get("BENCH_ITEMS", "200000"))
# One of this many items is in the category.
SHARE = max(2, ITEMS // 100_000)
QUERIES = int(os.environ.get("BENCH_QUERIES", "200"))
SECONDS = float(os.environ.get("BENCH_SECONDS", "5"))
PAGE = 24
# A page that is deep in a category of 100,000 items; smaller benchmarks have a smaller one.
DEEP = min(500, ITEMS // SHARE // PAGE // 2)
BATCH, CONNECTIONS = 1000, 4
FACETS = ["brand", "color", "size", "price", "weight"]

sys.path.insert(0, str(OUT / "stubs"))
from lodestone.v1 import catalog_service_pb2 as catalog, catalog_service_pb2_grpc as catalog_grpc  # noqa: E402
from lodestone.v1 import ranking_service_pb2 as ranking, ranking_service_pb2_grpc as ranking_grpc  # noqa: E402


def items():
    """Yields the generated items: brands and words as frequent as in Zipf's law, prices as a log-normal law."""
    draw = random.Random(1)
    words = ["".join(draw.choice("bdfgklmnprst") + draw.choice("aeiou") for _ in range(draw.randrange(2, 5)))
             for _ in range(5000)]
    word_weights = [1 / (1 + n) for n in range(len(words))]
    brands = [f"{word.title()} & Co" for word in words[:2000]]
    brand_weights = [1 / (1 + n) for n in range(len(brands))]
    colors, sizes = ["red", "blue", "green", "black", "white", "oak", "beech", "grey"], ["S", "M", "L", "XL"]
    for number in range(ITEMS):
        is_shelf = number % SHARE == 0
        yield {
            "item_id": f"item-{number}",
            "title": " ".join(draw.choices(words, word_weights, k=4)) + (" shelf" if is_shelf else ""),
            "categories": ["Home > " + ("Shelves" if is_shelf else f"Things {number % 9}")],
            "brand": draw.choices(brands, brand_weights)[0],
            "price_micros": int(draw.lognormvariate(3, 1) * 100) * 10_000,
            "stock_quantity": draw.randrange(1, 100),
            "color": draw.choice(colors),
            "size": draw.choice(sizes),
            "weight": round(draw.random() * 30, 1),
        }


def proto_item(item):
    attributes = {"color": {"text": item["color"]}, "size": {"text": item["size"]}, "weight": {"number": item["weight"]}}
    sent = {name: value for name, value in item.items() if name not in attributes}
    return catalog.UpsertItemsRequest(items=[{**sent, "attributes": attributes}]).items[0]


class Server(ServerProcess):
    """A server process over an empty data directory."""

    def __init__(self, data):
        self.address = f"127.0.0.1:{free_port()}"
        self.channel = grpc.insecure_channel(self.address)
        command = [LODESTONE, "serve", "--bundle", BUNDLE, "--data", data, "--listen", self.address]
        self.start(command, OUT / "catalog-server.log")

    def is_ready(self):
        try:
            grpc.channel_ready_future(self.channel).result(timeout=1)
            return True
        except grpc.FutureTimeoutError:
            return False

    def __exit__(self, *_):
        self.channel.close()
        super().__exit__()

    def wait_until_idle(self):
        """Waits until the server does nothing, such as build vector indexes of the items that were written."""
        busy, ticks = True, 0
        while busy:
            time.sleep(2)
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            before, ticks = ticks, int(fields[11]) + int(fields[12])
            busy = ticks - before > 10

    def resident_mb(self):
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def percentiles(call):
    """Returns the median and the 99th percentile in ms of a call."""
    call(), call()
    times = []
    for _ in range(QUERIES):
        begun = time.perf_counter()
        call()
        times.append((time.perf_counter() - begun) * 1000)
    times.sort()
    return statistics.median(times), times[min(len(times) - 1, int(len(times) * 0.99))]


def search(server, query="", order_by="", page=None, facets=(), follow=False, place=""):
    """Returns a call of a page at a place; with `follow` of the page after it, by its token."""
    # Each facet counts without its own condition, so there is one for two of them.
    filters = 'category = "Shelves"' + (' AND attributes.color IN ("red", "blue", "green") AND price < 100' if facets else "")
    request = ranking.SearchRequest(
        viewer={"visitor_id": "v", "place_id": place}, query=query, filter=filters, page_size=PAGE, page_number=page,
        options={"order_by": order_by},
        facet_specs=[{"field": name if name in ("brand", "price") else f"attributes.{name}", "multi_select": True}
                     for name in facets])
    stub = ranking_grpc.RankingServiceStub(server.channel)
    answer = stub.Search(request)
    assert answer.results, "a page is empty"
    if follow:
        request.ClearField("page_number")
        request.page_token = answer.next_page_token
    return lambda: stub.Search(request)


class Tantivy:
    """The items in an index with fast fields."""

    def __init__(self):
        schema = tantivy.SchemaBuilder()
        schema.add_text_field("title", tokenizer_name="en_stem")
        for name in ("category", "brand", "color", "size"):
            schema.add_text_field(name, tokenizer_name="raw", fast=True)
        for name in ("price", "weight"):
            schema.add_float_field(name, indexed=True, fast=True)
        self.index = tantivy.Index(schema.build())
        writer = self.index.writer(heap_size=500_000_000, num_threads=2)
        for item in items():
            document = tantivy.Document()
            document.add_text("title", item["title"])
            document.add_text("category", item["categories"][0].removeprefix("Home > "))
            for name in ("brand", "color", "size"):
                document.add_text(name, item[name])
            document.add_float("price", item["price_micros"] / 1e6)
            document.add_float("weight", item["weight"])
            writer.add_document(document)
        writer.commit()
        writer.wait_merging_threads()
        self.index.reload()
        self.searcher = self.index.searcher()

    def query(self, text):
        return self.index.parse_query(text, ["title"])

    def sorted(self, text, field, page):
        query, offset = self.query(text), (page - 1) * PAGE
        assert self.searcher.search(query, PAGE, offset=offset, order_by_field=field, order=tantivy.Order.Asc).hits
        return lambda: self.searcher.search(query, PAGE, offset=offset, order_by_field=field, order=tantivy.Order.Asc)

    def facets(self, text):
        """One aggregation for each facet, because each has another query: the condition on its own field is left out."""
        conditions = {"color": "color:IN [red blue green]", "price": "price:[0 TO 100}"}
        requests = []
        for name in FACETS:
            others = [condition for field, condition in conditions.items() if field != name]
            query = self.query(" AND ".join([text, *others]))
            if name in ("price", "weight"):
                counted = {"range": {"field": name, "ranges": [{"to": 10}, {"from": 10, "to": 30}, {"from": 30}]}}
            else:
                counted = {"terms": {"field": name, "size": 20}}
            requests.append((query, {"values": counted}))

        def run():
            for query, counted in requests:
                self.searcher.aggregate(query, counted)
        run()
        return run


def set_inventory(server, seconds, seed):
    """Sets prices and stocks for some seconds, others with another seed. Returns the number of updates per second."""
    end, counts = time.monotonic() + seconds, [0] * CONNECTIONS

    def run(at):
        draw = random.Random(seed * CONNECTIONS + at)
        with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = catalog_grpc.CatalogServiceStub(channel)
            requests = [catalog.SetInventoryRequest(inventories=[
                {"item_id": f"item-{draw.randrange(ITEMS)}", "price_micros": draw.randrange(10**8),
                 "stock_quantity": 1 + draw.randrange(99)} for _ in range(BATCH)]) for _ in range(20)]
            while time.monotonic() < end:
                request = requests[counts[at] % len(requests)]
                results = stub.SetInventory(request).results
                assert all(result.status == catalog.ITEM_STATUS_UPDATED for result in results)
                counts[at] += 1
                # The same prices again would be no change, which costs less.
                for inventory in request.inventories:
                    inventory.price_micros += 10_000
    begun = time.monotonic()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(run, range(CONNECTIONS)))
    return sum(counts) * BATCH / (time.monotonic() - begun)


def set_offers(server, place):
    """Sets a price and a stock of every item at a place. Returns the number of offers per second."""
    draw = random.Random(2)
    requests = [catalog.SetInventoryRequest(inventories=[
        {"item_id": f"item-{number}", "offer_key": {"place_id": place}, "price_micros": draw.randrange(10**8),
         "stock_quantity": draw.randrange(9)} for number in range(first, min(first + BATCH, ITEMS))])
        for first in range(0, ITEMS, BATCH)]
    stub = catalog_grpc.CatalogServiceStub(server.channel)

    def send(request):
        assert all(result.status == catalog.ITEM_STATUS_UPDATED for result in stub.SetInventory(request).results)
    begun = time.monotonic()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(send, requests))
    return ITEMS / (time.monotonic() - begun)


def places(server):
    """Measures pages with and without a place, and the first page at a place after writes. Returns rows of times in ms."""
    stub = catalog_grpc.CatalogServiceStub(server.channel)

    def after(count, place):
        """Times of the first page at a place after a write of so many offers of random items."""
        draw, call, times = random.Random(3), search(server, order_by="price", place=place), []
        for _ in range(max(1, QUERIES // 10)):
            stub.SetInventory(catalog.SetInventoryRequest(inventories=[
                {"item_id": f"item-{draw.randrange(ITEMS)}", "offer_key": {"place_id": "zurich"},
                 "price_micros": draw.randrange(10**8)} for _ in range(count)]))
            begun = time.perf_counter()
            call()
            times.append((time.perf_counter() - begun) * 1000)
        times.sort()
        return statistics.median(times), times[-1]
    yield "by price", percentiles(search(server, order_by="price"))
    yield "by price, at a place without offers", percentiles(search(server, order_by="price", place="nowhere"))
    call = search(server, order_by="price", place="zurich")
    begun = time.perf_counter()
    call()
    first = (time.perf_counter() - begun) * 1000
    yield "by price, at the place, the first time", (first, first)
    yield "by price, at the place", percentiles(call)
    yield "by price, at the place, page by token", percentiles(
        search(server, order_by="price", place="zurich", page=DEEP // 2, follow=True))
    yield "ranked", percentiles(search(server))
    yield "ranked, at the place", percentiles(search(server, place="zurich"))
    for count in (1, 1000):
        yield f"by price, after {count} writes", after(count, "")
        yield f"by price, at the place, after {count} writes", after(count, "zurich")


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    report = {"items": ITEMS}
    with tempfile.TemporaryDirectory() as work, Server(work) as server:
        begun = time.monotonic()

        def upsert(batch):
            stub = catalog_grpc.CatalogServiceStub(server.channel)
            results = stub.UpsertItems(catalog.UpsertItemsRequest(items=batch)).results
            assert all(result.status == catalog.ITEM_STATUS_CREATED for result in results)
        with ThreadPoolExecutor(2) as pool:
            batch, pending = [], []
            for item in items():
                batch.append(proto_item(item))
                if len(batch) == BATCH or len(batch) == ITEMS:
                    pending.append(pool.submit(upsert, batch))
                    batch = []
                    if len(pending) > 8:
                        pending.pop(0).result()
            if batch:
                pending.append(pool.submit(upsert, batch))
            for submitted in pending:
                submitted.result()
        seconds = time.monotonic() - begun
        print(f"{ITEMS:,} items written and encoded in {seconds:.0f} s, {server.resident_mb():.0f} MB", flush=True)
        peer = Tantivy()
        server.wait_until_idle()
        shelves = "category:Shelves"
        rows = [
            ("category page, first", search(server), None, 10),
            (f"category page {DEEP}", search(server, page=DEEP), None, None),
            ("by price, first", search(server, order_by="price"), peer.sorted(shelves, "price", 1), 5),
            (f"by price, page {DEEP}", search(server, order_by="price", page=DEEP),
             peer.sorted(shelves, "price", DEEP), 5),
            ("the page after it, by token", search(server, order_by="price", page=DEEP, follow=True), None, 5),
            ("by brand, title desc", search(server, order_by="brand, title desc"), None, 5),
            (f"the same, page {DEEP}", search(server, order_by="brand, title desc", page=DEEP), None, 5),
            ("the page after it, by token", search(server, order_by="brand, title desc", page=DEEP, follow=True), None, 5),
            ("query `shelf` by price", search(server, "shelf", "price"), peer.sorted("title:shelf", "price", 1), None),
            ("query `shelf`, ranked", search(server, "shelf"), None, None),
            ("category, five facets", search(server, facets=FACETS), peer.facets(shelves), 10),
            ("query, five facets", search(server, "shelf", facets=FACETS), peer.facets("title:shelf"), 10),
        ]
        print(f"\n{'ms':<28} {'p50':>7} {'p99':>7} {'target':>7}   {'tantivy p50':>11} {'p99':>7}", flush=True)
        report["queries"] = []
        for name, ours, theirs, target in rows:
            median, p99 = percentiles(ours)
            other = percentiles(theirs) if theirs else None
            report["queries"].append({"name": name, "p50_ms": median, "p99_ms": p99, "target_p99_ms": target,
                                      "tantivy_p50_ms": other and other[0], "tantivy_p99_ms": other and other[1]})
            print(f"{name:<28} {median:>7.2f} {p99:>7.2f} {target or '':>7}   "
                  + (f"{other[0]:>11.2f} {other[1]:>7.2f}" if other else ""), flush=True)
        del peer
        server.wait_until_idle()
        before = server.resident_mb()
        rate = set_inventory(server, SECONDS, 1)
        grown = server.resident_mb() - before
        report["inventory_updates_per_s"], report["inventory_grown_mb"] = rate, grown
        print(f"\nSetInventory, acknowledged after fsync, messages of {BATCH:,}, {CONNECTIONS} connections: {rate:,.0f} "
              f"updates/s (target 50,000); memory {grown:+.0f} MB")
        call = search(server)
        times = []
        with ThreadPoolExecutor(1) as pool:
            written = pool.submit(set_inventory, server, SECONDS, 2)
            while not written.done():
                begun = time.perf_counter()
                call()
                times.append((time.perf_counter() - begun) * 1000)
            written.result()
        times.sort()
        during = statistics.median(times), times[int(len(times) * 0.99)]
        report["first_page_during_updates_ms"] = during
        print(f"category page during updates: p50 {during[0]:.2f} ms, p99 {during[1]:.2f} ms")
        server.wait_until_idle()
        before = server.resident_mb()
        rate = set_offers(server, "zurich")
        grown = server.resident_mb() - before
        report["offers_per_s"], report["offers_grown_mb"] = rate, grown
        print(f"\n{ITEMS:,} offers at a place: {rate:,.0f} per second; memory {grown:+.0f} MB\n"
              f"{'ms':<44} {'p50':>7} {'p99':>7}")
        report["places"] = []
        for name, (median, p99) in places(server):
            report["places"].append({"name": name, "p50_ms": median, "p99_ms": p99})
            print(f"{name:<44} {median:>7.2f} {p99:>7.2f}", flush=True)
    (OUT / "catalog.json").write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
