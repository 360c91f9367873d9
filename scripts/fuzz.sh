#!/usr/bin/env bash
# Searches inputs that make a parser panic: scripts/fuzz.sh SECONDS [TARGET...]. Each target runs for SECONDS. libFuzzer keeps
# the inputs that reach new code in target/fuzz/TARGET/corpus and starts from them the next time. An input that fails is
# minimized and stays in target/fuzz/TARGET/crashes.
#
# The crates of the workspace are compiled again, by scripts/fuzz_rustc.sh, and their dependencies are those of
# `cargo build --release`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds=${1:?usage: scripts/fuzz.sh SECONDS [TARGET...]}
shift

# With --workspace the dependencies have the features of the tests; only what the binary needs is compiled.
RUSTC_WORKSPACE_WRAPPER=$PWD/scripts/fuzz_rustc.sh \
    cargo build --release --locked --workspace --features lodestone-fuzz/libfuzzer --bin fuzz
fuzz=target/release/fuzz

# Parsers of files read them from here; memory is faster than a disk that syncs.
if [ -w /dev/shm ]; then TMPDIR=$(mktemp -d /dev/shm/lodestone-fuzz.XXXXXX); else TMPDIR=$(mktemp -d); fi
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT

targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <("$fuzz")
failed=()
for target in "${targets[@]}"; do
    directory=target/fuzz/$target
    mkdir -p "$directory"/{corpus,seeds,crashes}
    run=(env FUZZ_TARGET="$target" "$fuzz" -timeout=10 -rss_limit_mb=2048 -artifact_prefix="$directory/crashes/")
    log=$directory/log
    if FUZZ_SEEDS=$directory/seeds "${run[@]}" -max_total_time="$seconds" -print_final_stats=1 \
        "$directory/corpus" "$directory/seeds" >"$log" 2>&1; then
        executed=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        reached=$(sed -n 's/.*cov: \([0-9]*\).*/\1/p' "$log" | tail -n 1)
        printf '%-16s %9s inputs, %6s places of the code reached\n' "$target" "$executed" "$reached"
        continue
    fi
    failed+=("$target")
    input=$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)
    grep -v '^#' "$log" | tail -n 40
    if [ -n "$input" ]; then
        "${run[@]}" -minimize_crash=1 -max_total_time=20 -exact_artifact_path="$input.min" "$input" >>"$log" 2>&1 || true
        echo "$target fails: $fuzz with FUZZ_TARGET=$target and $input; minimized: $input.min, if it exists." \
            "Copy the input to crates/fuzz/crashes/$target/, so that a test keeps it."
    fi
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "targets that failed: ${failed[*]}" >&2
    exit 1
fi
