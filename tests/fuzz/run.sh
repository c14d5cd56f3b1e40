#!/bin/bash
# Builds the fuzz targets and runs them. Stops at the first finding, and says how to repeat it.
#
#     tests/fuzz/run.sh check [TARGET...]                what CI does: the same inputs every time
#     tests/fuzz/run.sh explore [SECONDS [TARGET...]]    others each time, a minute for each target, or so many seconds
#     tests/fuzz/run.sh repeat TARGET FILE               one input
#
# What cargo-fuzz does with a nightly compiler, without both: libFuzzer, and LLVM's coverage for it, which stable Rust has
# too. (Rust's own checks, with overflow and debug assertions on, take the place of a sanitizer.) A run begins with the seeds
# of seeds/TARGET; one that explores, with what earlier ones on this machine found of interest too, in target/fuzz. A check
# is as long as its inputs are many, and its random numbers have a fixed start: a commit passes or not, whatever the machine
# and the day (but for the kernel's sockets of user_net and virtio_vsock, and the threads of vhost_user, which are nearly the
# same). What is new is found by exploring.
set -euo pipefail

usage() {
    sed -n '/^#  /s/^# *//p' "$0" >&2
    exit 2
}

mode=${1:-check}
[ $# -eq 0 ] || shift
input= seconds=60
case $mode in
check) ;;
explore)
    [ $# -eq 0 ] || { seconds=$1 && shift; }
    [[ $seconds =~ ^[1-9][0-9]*$ ]] || usage
    ;;
repeat)
    [ $# -eq 2 ] || usage
    input=$(realpath "$2")
    set -- "$1"
    ;;
*) usage ;;
esac

cd "$(dirname "$0")"
export PATH=$PATH:$HOME/.cargo/bin
mapfile -t all < <(sed -n 's|^path = "targets/\(.*\)\.rs"$|\1|p' Cargo.toml)
[ $# -gt 0 ] || set -- "${all[@]}"
work=$(realpath ../..)/target/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
coverage+=" -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
coverage+=" -Cllvm-args=-sanitizer-coverage-trace-compares"
binaries=()
for target in "$@"; do
    binaries+=(--bin "$target")
done
# With --target the flags do not reach build scripts and macros.
RUSTFLAGS="--cfg fuzzing $coverage" cargo build --release --quiet --target "$host" --target-dir "$work/build" "${binaries[@]}"
bin=$work/build/$host/release

# Overlays' files, in memory.
[ ! -w /dev/shm ] || export TMPDIR=/dev/shm
# A minute for one input is a hang, on the busiest machine too.
limits=(-timeout=60 -rss_limit_mb=1024 -max_len=8192 -len_control=0)
[ -z "$input" ] || exec "$bin/$1" "${limits[@]}" "$input"

# Inputs of a check: some seconds' worth. Where things lie in memory must not decide what is tried next.
inputs=8000
fixed=()
if [ "$mode" = check ] && setarch -R true 2>/dev/null; then
    fixed=(setarch -R)
fi
mkdir -p "$work/found"
for target in "$@"; do
    seeds=()
    [ ! -d "seeds/$target" ] || seeds=(seeds/"$target"/*)
    how=()
    if [ "$mode" = check ]; then
        how=(-runs="$inputs" -seed=1)
        [ ${#seeds[@]} -eq 0 ] || how+=(-seed_inputs="$(IFS=, && echo "${seeds[*]}")")
    else
        mkdir -p "$work/corpus/$target"
        how=(-max_total_time="$seconds" "$work/corpus/$target")
        [ ${#seeds[@]} -eq 0 ] || how+=("seeds/$target")
    fi
    if [ "$target" = options ]; then
        # The words that the parser knows.
        grep -rhoE '"[a-zA-Z][a-zA-Z0-9_.-]{1,24}"' ../../src/options ../../src/options.rs | sort -u >"$work/options.dict"
        how+=(-dict="$work/options.dict")
    fi
    log=$work/$target.log begun=$SECONDS
    "${fixed[@]}" "$bin/$target" "${limits[@]}" -artifact_prefix="$work/found/$target-" -print_final_stats=1 "${how[@]}" >"$log" 2>&1 || {
        tail -n 40 "$log"
        found=$(sed -n 's/^artifact_prefix=.*Test unit written to //p' "$log")
        printf '%s: a finding; to repeat it: tests/fuzz/run.sh repeat %s %s\n' "$target" "$target" "${found:-FILE}" >&2
        exit 1
    }
    reached=$(sed -n 's/.*\(cov: [0-9]*\).*/\1/p' "$log" | tail -n 1)
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    peak=$(sed -n 's/^stat::peak_rss_mb: *//p' "$log")
    printf '%s: %s inputs in %s s, %s, %s MiB at most\n' "$target" "$runs" $((SECONDS - begun)) "$reached" "$peak"
done
