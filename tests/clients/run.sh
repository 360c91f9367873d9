#!/usr/bin/env bash
# Runs every fenced block of docs/clients.md, unchanged and in order, against the server at $LODESTONE_ADDRESS (default
# 127.0.0.1:50051), and checks the output.
#
#   tests/clients/run.sh [--stubs-only]
#
# --stubs-only needs no server: it generates the stubs and loads the Python client.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
scripts/tools.sh grpcurl python
python=target/tools/venv/bin/python
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

fail() {
    echo "FAIL $1" >&2
    exit 1
}

mkdir -p target/client
"$python" tests/clients/extract.py docs/clients.md "$out" target/client/search_page.py

if [ "${1:-}" = --stubs-only ]; then
    PATH="$PWD/target/tools/venv/bin:$PATH" bash -euo pipefail "$out/stubs.sh"
    "$python" target/client/search_page.py >"$out/usage" 2>&1 && fail "the client ran without a query"
    grep -q "usage: search_page.py QUERY" "$out/usage" || { cat "$out/usage" >&2; fail "the client does not load"; }
    echo "clients: 1 passed, 0 failed"
    exit 0
fi

if ! bash -euo pipefail "$out/all.sh" >"$out/answers" 2>"$out/errors"; then
    cat "$out/answers" "$out/errors" >&2
    fail "a block of docs/clients.md failed; its output is above"
fi

passed=0
# prints TITLE PATTERN: the output must match the extended regular expression PATTERN.
prints() {
    grep -qE -- "$2" "$out/answers" || { cat "$out/answers" >&2; fail "$1"; }
    passed=$((passed + 1))
    echo "ok   $1"
}
prints "the server lists its services" '^lodestone\.v1\.RankingService$'
prints "grpcurl describes a request" 'message SearchRequest'
prints "a search returns an attribution token" '"attributionToken": "..*"'
prints "the next page continues the ranks" '"rank": 6'
prints "the click is accepted" '"status": "EVENT_STATUS_ACCEPTED"'
prints "the Python client finds products" "^[1-9][0-9]* products for 'heart holder'"
prints "the Python client shows the next page" '^The next page'
prints "the Python client clicks" '^Clicked on .'
prints "the Python client shows similar products" '^Like it'
echo "clients: $passed passed, 0 failed"
