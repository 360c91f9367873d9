#!/usr/bin/env bash
# Asks a server every call once and checks the answers. Without LODESTONE_ADDRESS it starts one for the example shop.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -n "${LODESTONE_ADDRESS:-}" ] || exec scripts/with_server.sh scripts/demo.sh
exec python3 scripts/demo.py "$LODESTONE_ADDRESS" target/tools/bin/grpcurl
