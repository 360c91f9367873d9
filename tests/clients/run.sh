#!/usr/bin/env bash
# Runs every fenced block of docs/clients.md, as written and in order, against the server at $LODESTONE_ADDRESS (default
# 127.0.0.1:50051), and checks what came out.
#
#   tests/clients/run.sh [--stubs-only]
#
# --stubs-only needs no server: it makes the stubs and loads the Python client.
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
    fail "a block of docs/clients.md failed; its words are above"
fi

passed=0
says() {
    grep -qE -- "$2" "$out/answers" || { cat "$out/answers" >&2; fail "$1"; }
    passed=$((passed + 1))
    echo "ok   $1"
}
says "the server lists its services" '^lodestone\.v1\.RankingService$'
says "grpcurl describes a request" 'message SearchRequest'
says "a search answers with a token" '"attributionToken": "..*"'
says "the next page goes on with the ranks" '"rank": 6'
says "the click is accepted" '"status": "EVENT_STATUS_ACCEPTED"'
says "the Python client finds products" "^[1-9][0-9]* products for 'heart holder'"
says "the Python client shows the next page" '^The next page'
says "the Python client clicks" '^Clicked on .'
says "the Python client shows what is like it" '^Like it'
echo "clients: $passed passed, 0 failed"
