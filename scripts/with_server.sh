#!/usr/bin/env bash
# Starts a server of the example shop on a free port, waits until it is healthy, runs a command with LODESTONE_ADDRESS
# set, and stops the server. Exits with the code of the command.
#
#   scripts/with_server.sh COMMAND [ARGUMENTS]
#
# The server uses a copy of the data, so that the command may write and `make run` may run at the same time.
# LODESTONE_BUNDLE and LODESTONE_DATA name another bundle and other data. LODESTONE_SECOND_CATALOG is the name of a second
# catalogue of the same bundle, for docs/catalogs.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bundle=${LODESTONE_BUNDLE:-target/demo/bundle}
data=${LODESTONE_DATA:-target/demo/data}
lodestone=target/release/lodestone
grpcurl=target/tools/bin/grpcurl
start_seconds_max=120
stop_seconds_max=30
export ORT_DYLIB_PATH=${ORT_DYLIB_PATH:-$PWD/target/tools/onnxruntime/libonnxruntime.so}

fail() {
    echo "with_server.sh: $*" >&2
    exit 1
}

[ $# -gt 0 ] || fail "a command is missing; usage: with_server.sh COMMAND [ARGUMENTS]"
for needed in "$lodestone" "$grpcurl" "$bundle" "$data"; do
    [ -e "$needed" ] || fail "$needed is missing; 'make demo' builds it."
done

work=$(mktemp -d)
log=$work/server.log
server=

stop() {
    local waited=0
    if [ -n "$server" ] && kill -TERM "$server" 2>/dev/null; then
        while kill -0 "$server" 2>/dev/null; do
            if [ $((waited += 1)) -gt $((stop_seconds_max * 10)) ]; then
                echo "with_server.sh: the server did not stop within $stop_seconds_max s after SIGTERM and is killed." >&2
                kill -KILL "$server" 2>/dev/null || true
            fi
            sleep 0.1
        done
    fi
    rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

cp -R "$data" "$work/data"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export LODESTONE_ADDRESS=127.0.0.1:$port

if [ -n "${LODESTONE_SECOND_CATALOG:-}" ]; then
    export LODESTONE_CATALOGS=$work/catalogs.toml
    printf '[catalogs.%s]\nbundle = "%s"\ndata = "%s"\nworkers = 1\n' \
        "$LODESTONE_SECOND_CATALOG" "$bundle" "$work/second-data" >"$LODESTONE_CATALOGS"
fi

"$lodestone" serve --bundle "$bundle" --data "$work/data" --history-ends-now --listen "$LODESTONE_ADDRESS" >"$log" 2>&1 &
server=$!

is_healthy() {
    "$grpcurl" -plaintext -max-time 2 -d '{}' "$LODESTONE_ADDRESS" grpc.health.v1.Health/Check 2>"$work/health.err" |
        grep -q '"SERVING"'
}

deadline=$((SECONDS + start_seconds_max))
until is_healthy; do
    if ! kill -0 "$server" 2>/dev/null; then
        server=
        tail -n 50 "$log" >&2
        fail "the server ended before it was healthy; the end of its log is above."
    fi
    if [ "$SECONDS" -ge "$deadline" ]; then
        tail -n 50 "$log" "$work/health.err" >&2
        fail "the server was not healthy within $start_seconds_max s; the end of its log is above."
    fi
    sleep 0.2
done

status=0
"$@" || status=$?
if [ "$status" -ne 0 ]; then
    echo "with_server.sh: the command failed ($status); the end of the server's log follows:" >&2
    tail -n 30 "$log" >&2
fi
exit "$status"
