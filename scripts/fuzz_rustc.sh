#!/bin/sh
# rustc for the crates of this workspace when scripts/fuzz.sh builds them: with the checks of overflow and assertions that a
# release build leaves out, and with counters of edges and comparisons for libFuzzer. These flags are stable; the address
# sanitizer would need a nightly compiler. Cargo keeps what a wrapper compiles apart from other builds.
case " $* " in
# A build script runs without libFuzzer.
*" --crate-name build_script_"*) exec "$@" ;;
esac
set -- "$@" -Copt-level=1 -Cdebug-assertions=on -Coverflow-checks=on
case " $* " in
# They parse nothing, and libFuzzer reads all counters after each input.
*" --crate-name lodestone_training "* | *" --crate-name lodestone_telemetry "*) exec "$@" ;;
esac
exec "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares
