#!/bin/bash
# Runs every test of the project: formatting, lints, unit and layering tests, the lifecycle's model checks, the
# differential tester and the fuzz targets for a bounded number of inputs, micro-kernels, and Linux booting under both engines (KVM: nested, in an emulated host).
# Installs what it needs first. CI runs exactly this. It stops at the first failure.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:$HOME/.cargo/bin

# Tests of what must fail print no backtraces between the results.
export RUST_BACKTRACE=0
started=$SECONDS
step() {
    local name=$1 begun=$SECONDS
    shift
    printf '\n=== %s: %s\n' "$name" "$*"
    "$@" || {
        printf '=== FAILED after %d s: %s\n' "$((SECONDS - begun))" "$name"
        exit 1
    }
    printf '=== %s: ok, %d s\n' "$name" "$((SECONDS - begun))"
}

step "tools" resources/prepare.sh --tests
step "format" cargo fmt --all --check
step "format of the fuzz targets" cargo fmt --manifest-path tests/fuzz/Cargo.toml --check
step "lints" cargo clippy --workspace --all-targets --quiet -- -D warnings
# The Debian of linux_debian needs root, and its test says so where there is none.
step "guests" resources/guests/fetch.sh cloud generic shell boot-test programs smp disk net console board pci shares virtiofs vhost durable
# With debug assertions (lock ranks among them), all but the longest.
step "tests" cargo test --workspace --quiet -- --skip programs_print_the_same --skip linux_boots_ \
    --skip under_nested_kvm --skip under_stress --skip on_four_cpus --skip a_debian_lives --skip what_was_synced \
    --skip linux_is_told
# A folder of its own: the flag rebuilds everything. The filter keeps to the models.
step "model checks" env RUSTFLAGS="--cfg loom" cargo test --package accel --package devices --release --lib \
    --target-dir target/loom --quiet loom_
# libFuzzer on every parser of what guests and users say, with the same inputs every time.
step "fuzzing" tests/fuzz/run.sh check
# Whole machines, in the build that users run.
step "whole machines" cargo test --release --package bivisor --test linux_boot --test linux_smp --test linux_threads \
    --test linux_pause --test linux_errors --test linux_debian --test linux_durable \
    --test icount --test nested_kvm -- --nocapture
printf '\nall tests passed, %d s\n' "$((SECONDS - started))"
