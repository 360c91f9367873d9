"""Runs the shell and Python blocks of the documents, as written and in order, against a server, and checks their output.

usage: run.py [--without-server]

The server is the one at $LODESTONE_ADDRESS, which replaces the documents' 127.0.0.1:50051; scripts/with_server.sh starts one.
The blocks of docs/clients.md run first: its setup generates the stubs that all Python blocks import. Blocks of one document
share their variables, as in one terminal. A block marked `bash` is run; one marked `sh` or `console` is not.

--without-server only generates the stubs, resolves the imports of all Python blocks, and parses each JSON request of a
grpcurl line in any document as the message of its method.
"""
import ast
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
PYTHON = TOP / "target/tools/venv/bin/python"
STUBS = TOP / "target/client"
ADDRESS = "127.0.0.1:50051"
SECONDS_MAX = 180

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# The body of a request, its variables replaced, and the method to which it is sent.
REQUEST = re.compile(r"grpcurl(?:(?!grpcurl)[^\n])*? -d '((?:[^']|'\"[^\n']*\"')*)'\s(?:(?!grpcurl).)*?(lodestone\.v1\.\w+)/(\w+)",
                     re.DOTALL)

# Of each document that is run: a title and a regular expression that the output must match.
EXPECTED = {
    "docs/clients.md": [
        ("the server lists its services", r"^lodestone\.v1\.RankingService$"),
        ("a request is described", r"message SearchRequest"),
        ("an error names its field", r"^INVALID_ARGUMENT: .*filter"),
    ],
    "docs/getting-started.md": [
        ("a search finds the product", r'"title": ".*HEART T-LIGHT HOLDER'),
        ("the click is stored", r'"status": "EVENT_STATUS_(ACCEPTED|DUPLICATE)"'),
        ("a list for the viewer who clicked", r'"userKnown": true'),
        ("completions", r'"text": "[^"]*[Hh][Ee][Aa][Rr]'),
    ],
    "docs/guides/search-page.md": [
        ("grpcurl: the next page continues the ranks", r'"rank": 6'),
        ("grpcurl: an answer has an attribution token", r'"attributionToken": "..*"'),
        ("Python: the second page", r"^[1-9]\d* products for 'heart holder', page 2\n +6\. +\d"),
        ("Python: a facet", r"^price 2\.0-5\.0: [1-9]\d* products"),
    ],
    "docs/guides/category-page.md": [
        ("grpcurl: a page counts its items", r'"facetItemCount": "[1-9]'),
        ("grpcurl: a page by its number has its ranks", r'"rank": 25'),
        ("Python: a page counts its items", r"^[1-9]\d* products with price <= 5\n  price -1\.0: [1-9]"),
        ("Python: a page by its number", r"^  25\. +\d"),
    ],
    "docs/guides/product-page.md": [
        ("grpcurl: a product", r'"title": "WHITE HANGING HEART'),
        ("grpcurl: the view is accepted", r'"status": "EVENT_STATUS_ACCEPTED"'),
        ("Python: a product with its price", r"^WHITE HANGING HEART.*, [1-9]\.\d\d GBP"),
        ("Python: similar products", r"^SIMILAR: \['\w"),
        ("Python: products that are bought together", r"^BOUGHT_TOGETHER: \['\w"),
    ],
    "docs/guides/home-page.md": [
        ("grpcurl: a list has reasons", r'"code": "REASON_CODE_'),
        ("Python: a list for the viewer", r"^FOR_YOU: 4 products\n  \w.* \([A-Z_, ]+\)"),
        ("Python: a list of new products", r"^NEW_ARRIVALS: 4 products"),
    ],
    "docs/guides/cart-and-account.md": [
        ("grpcurl: the purchase is accepted", r'"status": "EVENT_STATUS_ACCEPTED"'),
        ("Python: products that go with the cart", r"^BOUGHT_TOGETHER: \['\w"),
        ("Python: products to buy again", r"^BUY_AGAIN: \['WHITE HANGING HEART"),
        ("Python: products that were viewed", r"^RECENTLY_VIEWED: \['REGENCY CAKESTAND"),
    ],
    "docs/guides/type-ahead.md": [
        ("grpcurl: completions", r'"text": "[^"]*[Hh][Ee][Aa]'),
        ("grpcurl: an accepted completion", r'"status": "EVENT_STATUS_ACCEPTED"'),
        ("Python: completions", r"^[^\n]*[Hh][Ee][Aa].* \(COMPLETION_SOURCE_"),
        ("Python: an accepted completion", r"^EVENT_STATUS_ACCEPTED$"),
    ],
    "docs/guides/live-events.md": [
        ("grpcurl: events are accepted", r'"status": "EVENT_STATUS_ACCEPTED"'),
        ("Python: the search is accepted, without a warning", r"^EVENT_TYPE_SEARCH: EVENT_STATUS_ACCEPTED $"),
        ("Python: the click is accepted, without a warning", r"^EVENT_TYPE_CLICK: EVENT_STATUS_ACCEPTED $"),
        ("Python: a list for the viewer", r"^3\. \w"),
    ],
    "docs/guides/prices-and-stock.md": [
        ("grpcurl: the item is created", r'"status": "ITEM_STATUS_CREATED"'),
        ("grpcurl: the search has the new price", r'"priceMicros": "24000000"'),
        ("Python: the price is updated", r"^guide-lamp ITEM_STATUS_UPDATED$"),
        ("Python: the search has the new price", r"^Brass reading lamp: 24\.00 instead of 30\.00 GBP, 3 in stock"),
        ("Python: the item is deleted", r"^guide-lamp ITEM_STATUS_DELETED$"),
    ],
    "docs/guides/rules.md": [
        ("grpcurl: an answer names its rule", r'"ruleId": "guide-hearts"'),
        ("grpcurl: a preview counts slots", r'"slotCount": '),
        ("Python: a preview counts slots", r"^\d+ of \d+ slots would change"),
        ("Python: an answer names its rule and its banner", r"^rules: \['guide-hearts'\], banners: .*valentine"),
        ("Python: the rule is updated", r"^updated to 'Hearts'"),
    ],
    "docs/guides/why-this-item.md": [
        ("grpcurl: an answer explains its scores", r'"scoreParts": '),
        ("grpcurl: the answer is repeated", r'"identical": true'),
        ("Python: a score is the sum of its parts", r"^   score [\d.]+ = \([\d.]+ \+ [\d.]+\) x 1$"),
        ("Python: the answer is repeated", r"^replayed, identical: True"),
    ],
    "docs/guides/loyalty.md": [
        ("grpcurl: a score has its drivers", r'"driver": "LOYALTY_DRIVER_LAST_PURCHASE"'),
        ("grpcurl: a user without events is new", r'"segment": "LOYALTY_SEGMENT_NEW"'),
        ("grpcurl: users at risk have a value", r'"valueAtRisk": [0-9]'),
        ("Python: a score has an interval", r"^  within 90 days: purchases with [01]\.\d\d \[[01]\.\d\d, [01]\.\d\d\], for \d+ GBP"),
        ("Python: a score has drivers", r"^  because of LOYALTY_DRIVER_"),
        ("Python: users at risk", r"^\d+: \d+ GBP at risk"),
    ],
    "docs/rules.md": [
        ("an answer names its rule", r'"ruleId": "valentine"'),
        ("an answer has the banner of its rule", r'"payload": ".*valentine'),
        ("a preview estimates rewards", r'"reward": "REWARD_TYPE_RETURN_VISIT"'),
    ],
    "docs/serving.md": [
        ("grpcurl: an answer names its serving configuration", r'"servingConfig": "margin"'),
        ("grpcurl: a configuration has its source", r'"source": "SERVING_CONFIG_SOURCE_API"'),
        ("Python: an answer names its serving configuration", r"^answered by margin, etag \w"),
        ("Python: a weight is set", r"^margin has the weights \{'purchase': 1\.5\}"),
    ],
    "docs/variants.md": [
        ("grpcurl: a result has its variants", r'"variantCount": 2'),
        ("Python: a result has its variants", r"^Linen tee \w+ M \[tee\], 2 variants in stock\n  tee-\w+-m: 1\d\.90, \d in stock"),
        ("Python: a facet counts products", r"^red: 1 products"),
    ],
    "docs/places.md": [
        ("grpcurl: a store has a price of its own", r'"priceMicros": "24000000"'),
        ("grpcurl: a region has a currency of its own", r'"currencyCode": "CHF"'),
        ("Python: the stock of a store is set", r"^lamp-2 ITEM_STATUS_UPDATED"),
        ("Python: the stock of a store is shown", r"^leeds: Brass floor lamp, 75\.00 GBP, 3 in stock"),
    ],
    "docs/browse.md": [("a page counts its items", r'"totalSize": [1-9]')],
    "docs/search.md": [("a facet has ranges", r'"max": 2')],
    "docs/filters.md": [("a search has results", r'"itemId": "')],
    "docs/feeds.md": [
        ("an import keeps two items and one user", r"^ +2 items, 1 users"),
        ("a mapping that extends another one", r"^ +2 items, 0 users"),
        ("a push writes the items to the server", r"^ +(2 created|2 replaced)"),
    ],
    # The last of the default catalogue, because it changes items of the example shop.
    "docs/guides/incentives.md": [
        ("grpcurl: a decision has a propensity", r'"propensity": 0\.[0-9]'),
        ("grpcurl: a campaign counts its decisions", r'"decisionCount": "[1-9]'),
        ("Python: a decision has a reason", r"^\w+: INCENTIVE_REASON_(RANDOMISED|HOLDOUT), with probability 0\.\d\d"),
        ("Python: the campaign counts it", r"^\d+\.\d\d GBP used by [1-9]\d* decisions"),
    ],
    "docs/incentives.md": [
        ("a campaign has an etag", r'"etag": "[0-9a-f]{16}"'),
        ("a decision has a propensity", r'"propensity": 0\.[0-9]'),
        ("a campaign counts its decisions", r'"decisionCount": "[1-9]'),
    ],
    "docs/guides/objectives.md": [
        ("grpcurl: an answer has the effect of its objectives", r'"ndcgLoss": [0-9]|"share": [0-9]'),
        ("Python: an answer has the effect of its objectives", r"^share of the weights [01]\.\d\d, loss of NDCG 0\.\d+"),
        ("Python: a preview counts slots", r"^\d+ of \d+ slots of [1-9]\d* logged answers would change"),
    ],
    "docs/objectives.md": [
        ("an answer has the effect of its objectives", r'"ndcgLoss": [0-9]|"share": [0-9]'),
        ("an answer has the user's risk", r'"returnRisk": [0-9]'),
        ("a preview counts answers", r'"answerCount": [1-9]'),
    ],
    "docs/catalog.md": [
        ("items are updated", r'"status": "ITEM_STATUS_UPDATED"'),
        ("attributes have kinds", r'"kind": "ATTRIBUTE_KIND_GEO_POINT"'),
        ("an import reports what it would delete", r'"deletions": '),
    ],
    "docs/catalogs.md": [
        ("grpcurl: the second catalogue answers", r'"servingConfig": "default"'),
        ("Python: the second catalogue answers", r"^[1-9]\d* products of the outlet"),
    ],
}


def blocks(document):
    return BLOCK.findall((TOP / document).read_text(encoding="utf-8"))


def script(document):
    """The bash and python blocks of a document, without the setup, as one shell script."""
    parts = []
    for language, text in blocks(document):
        if language == "bash" and text != setup():
            parts.append(text)
        elif language == "python":
            parts.append(f"python - <<'END_OF_PYTHON'\n{text}END_OF_PYTHON\n")
    return "".join(parts).replace(ADDRESS, os.environ.get("LODESTONE_ADDRESS", ADDRESS))


def setup():
    """The first block of docs/clients.md, which generates the stubs."""
    return next(text for language, text in blocks("docs/clients.md") if language == "bash")


def run(text):
    """Returns the output of the setup, at the top of the repository, and then of a script, in a directory of its own."""
    environment = {**os.environ, "PATH": f"{TOP / 'target/release'}:{os.environ['PATH']}"}
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", f"{setup()}cd {directory}\n{text}"], cwd=TOP,
                              env=environment, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\n{done.stderr}\nFAIL a block failed ({done.returncode}); its output is above")
    return done.stdout


def check_against_server():
    passed = 0
    for document, expected in EXPECTED.items():
        print(f"# {document}")
        output = run(script(document))
        for title, pattern in expected:
            if not re.search(pattern, output, re.MULTILINE):
                sys.exit(f"{output}\nFAIL {document}: {title}: the output above does not match {pattern}")
            print(f"ok   {title}")
            passed += 1
    print(f"clients: {passed} passed, 0 failed")


def check_imports(document, text):
    """Imports the modules of a Python block, and the stubs' names that it imports from them."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module == "lodestone.v1":
            for name in node.names:
                importlib.import_module(f"lodestone.v1.{name.name}")
                yield f"{document}: {name.name}"


def with_masks(value):
    """JSON with field masks as the texts of the protobuf JSON mapping; grpcurl takes them as messages."""
    if isinstance(value, dict):
        if set(value) == {"paths"}:
            return ",".join(re.sub(r"_(\w)", lambda match: match[1].upper(), path) for path in value["paths"] if path != "*")
        return {name: with_masks(part) for name, part in value.items()}
    return [with_masks(part) for part in value] if isinstance(value, list) else value


def check_requests(document):
    """Parses each request of a grpcurl line, also of several lines, as the message of its method."""
    from google.protobuf import descriptor_pool, json_format, message_factory

    text = (TOP / document).read_text(encoding="utf-8")
    for body, service, method in REQUEST.findall(text):
        # Variables within a text become a part of it, those that are a whole message an empty one.
        body = re.sub(r"\"'\"\$.*?\"'\"", '""', body)
        body = re.sub(r"'\"\$.*?\"'", "{}", body)
        body = re.sub(r"RECOMMEND_TYPE_'\$\w+'", "RECOMMEND_TYPE_SIMILAR", body)
        kind = descriptor_pool.Default().FindServiceByName(service).methods_by_name[method].input_type
        try:
            json_format.ParseDict(with_masks(json.loads(body)), message_factory.GetMessageClass(kind)())
        except (json_format.ParseError, ValueError) as error:
            sys.exit(f"FAIL {document}: the request is no {kind.full_name}: {error}\n{body}")
        yield f"{document}: {method}"


def check_without_server():
    run("")
    sys.path.insert(0, str(STUBS))
    for stub in STUBS.glob("lodestone/v1/*_pb2.py"):
        importlib.import_module(f"lodestone.v1.{stub.stem}")
    documents = [str(path.relative_to(TOP)) for path in [*TOP.glob("docs/**/*.md"), TOP / "README.md"]]
    imports = [name for document in documents for language, text in blocks(document) if language == "python"
               for name in check_imports(document, text)]
    requests = [name for document in documents for name in check_requests(document)]
    for document in documents:
        if document.startswith("docs/guides/") and document not in EXPECTED:
            sys.exit(f"FAIL {document} is not run; add it to EXPECTED of {__file__}")
    print(f"clients: {len(imports)} imports and {len(requests)} requests of the documents are valid")


if os.path.realpath(sys.prefix) != os.path.realpath(PYTHON.parent.parent):
    os.execv(PYTHON, [str(PYTHON), *sys.argv])
check_without_server() if sys.argv[1:] == ["--without-server"] else check_against_server()
