#!/bin/bash
# Builds the fuzz targets and runs each for a bounded time. Stops at the first finding, and says how to repeat it.
#
#     tests/fuzz/run.sh [SECONDS [TARGET...]]
#     tests/fuzz/run.sh repeat TARGET FILE
#
# What cargo-fuzz does with a nightly compiler, without both: libFuzzer, and LLVM's coverage for it, which stable Rust has
# too. (Rust's own checks, with overflow and debug assertions on, take the place of a sanitizer.) A run begins with the seeds
# of seeds/TARGET and with what earlier runs on this machine found of interest, in target/fuzz.
set -euo pipefail
input=
[ "${1:-}" != repeat ] || input=$(realpath "$3")
cd "$(dirname "$0")"
export PATH=$PATH:$HOME/.cargo/bin
mapfile -t all < <(sed -n 's|^path = "targets/\(.*\)\.rs"$|\1|p' Cargo.toml)
work=$(realpath ../..)/target/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
coverage+=" -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
coverage+=" -Cllvm-args=-sanitizer-coverage-trace-compares"
# Ten seconds for one input are a hang.
limits=(-timeout=10 -rss_limit_mb=1024 -max_len=8192 -len_control=0)

if [ "${1:-}" = repeat ]; then
    set -- 0 "$2"
fi
seconds=${1:-10}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- "${all[@]}"
binaries=()
for target in "$@"; do
    binaries+=(--bin "$target")
done
# With --target the flags do not reach build scripts and macros.
RUSTFLAGS="--cfg fuzzing $coverage" cargo build --release --quiet --target "$host" --target-dir "$work/build" "${binaries[@]}"
bin=$work/build/$host/release
if [ -n "$input" ]; then
    exec "$bin/$1" "${limits[@]}" "$input"
fi

mkdir -p "$work/found"
for target in "$@"; do
    corpus=("$work/corpus/$target")
    mkdir -p "${corpus[0]}"
    [ ! -d "seeds/$target" ] || corpus+=("seeds/$target")
    words=()
    if [ "$target" = options ]; then
        # The words that the parser knows.
        grep -rhoE '"[a-zA-Z][a-zA-Z0-9_.-]{1,24}"' ../../src/options ../../src/options.rs | sort -u >"$work/options.dict"
        words=(-dict="$work/options.dict")
    fi
    log=$work/$target.log
    "$bin/$target" "${limits[@]}" "${words[@]}" -max_total_time="$seconds" -artifact_prefix="$work/found/$target-" \
        -print_final_stats=1 "${corpus[@]}" >"$log" 2>&1 || {
        tail -n 40 "$log"
        found=$(sed -n 's/^artifact_prefix=.*Test unit written to //p' "$log")
        printf '%s: a finding; to repeat it: tests/fuzz/run.sh repeat %s %s\n' "$target" "$target" "${found:-FILE}" >&2
        exit 1
    }
    reached=$(sed -n 's/.*\(cov: [0-9]*\).*/\1/p' "$log" | tail -n 1)
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    peak=$(sed -n 's/^stat::peak_rss_mb: *//p' "$log")
    printf '%s: %s inputs in %s s, %s, %s MiB at most\n' "$target" "$runs" "$seconds" "$reached" "$peak"
done
