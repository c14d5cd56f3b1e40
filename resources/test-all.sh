#!/bin/bash
# Runs every test of the project: formatting, lints, unit and layering tests, the lifecycle's model checks, the
# differential tester for a bounded time, micro-kernels, and Linux booting under both engines (KVM: nested, in an emulated host).
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
step "lints" cargo clippy --workspace --all-targets --quiet -- -D warnings
step "guests" resources/guests/fetch.sh cloud generic shell boot-test programs
# Unit tests keep debug assertions; whole machines run the build that users run.
step "unit and contract tests" cargo test --workspace --exclude bivisor --quiet
# A folder of its own: the flag rebuilds everything.
step "model checks" env RUSTFLAGS="--cfg loom" cargo test --package accel --package devices --release --lib \
    --target-dir target/loom --quiet loom_
step "command line and layering" cargo test --package bivisor --lib --bins --test layering --test cli --quiet
# A build of its own: with cfg(loom) every crate is another one. The filter keeps to the models.
step "model checks" env RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/loom" \
    cargo test --release --package devices --package accel --lib --quiet loom_
step "whole machines" cargo test --release --package bivisor --test linux_boot --test nested_kvm -- --nocapture
printf '\nall tests passed, %d s\n' "$((SECONDS - started))"
