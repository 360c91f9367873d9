#!/usr/bin/env bash
# Makes every kind of call to the server at $LODESTONE_ADDRESS once and checks the answers. If the variable is not set,
# it starts a server of the example shop.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -n "${LODESTONE_ADDRESS:-}" ] || exec scripts/with_server.sh scripts/demo.sh
exec python3 scripts/demo.py "$LODESTONE_ADDRESS" target/tools/bin/grpcurl
