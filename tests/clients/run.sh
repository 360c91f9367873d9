#!/usr/bin/env bash
# Runs every fenced block of the guides docs/clients.md, docs/shop-pages.md, docs/rules.md, docs/serving.md, docs/places.md,
# docs/loyalty.md, docs/objectives.md and docs/incentives.md, unchanged and in order, against the server at
# $LODESTONE_ADDRESS (default 127.0.0.1:50051), and checks the output.
#
#   tests/clients/run.sh [--stubs-only]
#
# --stubs-only needs no server: it generates the stubs and loads the Python clients.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
scripts/tools.sh grpcurl python
python=target/tools/venv/bin/python
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
passed=0

fail() {
    echo "FAIL $1" >&2
    exit 1
}

# guide MARKDOWN CLIENT: extracts the blocks, and runs them unless only the stubs are wanted. CLIENT is - for a guide without
# a Python client.
guide() {
    local document=$1 client=target/client/$2
    mkdir -p target/client
    "$python" tests/clients/extract.py "$document" "$out" "$client"
    if [ -n "$stubs_only" ]; then
        [ "$2" != - ] || return 0
        PATH="$PWD/target/tools/venv/bin:$PATH" bash -euo pipefail "$out/stubs.sh"
        "$python" "$client" >"$out/usage" 2>&1 && fail "$client ran without an argument"
        grep -q "usage: $2 " "$out/usage" || { cat "$out/usage" >&2; fail "$client does not load"; }
        passed=$((passed + 1))
    elif ! bash -euo pipefail "$out/all.sh" >"$out/answers" 2>"$out/errors"; then
        cat "$out/answers" "$out/errors" >&2
        fail "a block of $document failed; its output is above"
    fi
}

# prints TITLE PATTERN: the output must match the extended regular expression PATTERN.
prints() {
    [ -z "$stubs_only" ] || return 0
    grep -qE -- "$2" "$out/answers" || { cat "$out/answers" >&2; fail "$1"; }
    passed=$((passed + 1))
    echo "ok   $1"
}

stubs_only=
[ "${1:-}" != --stubs-only ] || stubs_only=yes

guide docs/clients.md search_page.py
prints "the server lists its services" '^lodestone\.v1\.RankingService$'
prints "grpcurl describes a request" 'message SearchRequest'
prints "a search returns an attribution token" '"attributionToken": "..*"'
prints "the next page continues the ranks" '"rank": 6'
prints "the click is accepted" '"status": "EVENT_STATUS_ACCEPTED"'
prints "the Python client finds products" "^[1-9][0-9]* products for 'heart holder'"
prints "the Python client shows the next page" '^The next page'
prints "the Python client clicks" '^Clicked on .'
prints "the Python client shows similar products" '^Like it'

guide docs/shop-pages.md shop_pages.py
prints "a list has reasons" '"code": "REASON_CODE_'
prints "a category page counts its items" '"facetItemCount": "[1-9]'
prints "a page by its number has its ranks" '"rank": 25'
prints "completions begin with the prefix" '"text": "[^"]*[Hh][Ee][Aa]'
prints "an answer explains its scores" '"scoreParts": '
prints "the Python client fills the home page" '^FOR_YOU: 4 products'
prints "the Python client shows a category" '^[1-9][0-9]* products with price <= 5: 4 products'
prints "the Python client shows facets" '^  facet price: '
prints "the Python client shows what is similar" '^SIMILAR: 4 products'

guide docs/rules.md careful_rule.py
prints "an answer names its rule" '"ruleId": "valentine"'
prints "an answer has the banner of its rule" '"payload": ".*valentine'
prints "a preview estimates rewards" '"reward": "REWARD_TYPE_RETURN_VISIT"'
prints "the Python client previews a rule" '^[0-9]+ of [0-9]+ slots would change'

guide docs/serving.md set_weight.py
prints "an answer names its serving configuration" '"servingConfig": "margin"'
prints "a configuration has its source" '"source": "SERVING_CONFIG_SOURCE_API"'
prints "the Python client sets a weight" '^purchases has the weights .*1\.25'

guide docs/places.md store_pages.py
prints "a store has a price of its own" '"priceMicros": "24000000"'
prints "a region has a currency of its own" '"currencyCode": "CHF"'
prints "the Python client sets the stock of a store" '^lamp-2 ITEM_STATUS_UPDATED'
prints "the Python client shows the stock of a store" '^leeds: Brass floor lamp, 75.00 GBP, 3 in stock'
guide docs/loyalty.md -
prints "a score has its drivers" '"driver": "LOYALTY_DRIVER_LAST_PURCHASE"'
prints "a user without events is new" '"segment": "LOYALTY_SEGMENT_NEW"'
prints "users at risk have a value" '"valueAtRisk": [0-9]'
guide docs/objectives.md -
prints "an answer has the effect of its objectives" '"ndcgLoss": [0-9]|"share": [0-9]'
prints "an answer has the user's risk" '"returnRisk": [0-9]'
prints "a preview counts answers" '"answerCount": [1-9]'

guide docs/incentives.md -
prints "a campaign has an etag" '"etag": "[0-9a-f]{16}"'
prints "a decision has a propensity" '"propensity": 0\.[0-9]'
prints "a campaign counts its decisions" '"decisionCount": "[1-9]'

echo "clients: $passed passed, 0 failed"
