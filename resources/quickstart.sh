#!/bin/bash
# From a fresh machine to a Linux shell: installs what is missing, fetches Debian's current cloud kernel, builds
# bivisor and boots the kernel to a busybox shell on this terminal, on KVM where that works, else translated.
#
#     resources/quickstart.sh [BIVISOR'S OPTIONS...]        e.g. resources/quickstart.sh -accel tcg -m 1G
#
# `poweroff -f` in the guest ends it with exit code 0; Ctrl-A x kills it, Ctrl-A h helps.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:$HOME/.cargo/bin

resources/prepare.sh
resources/guests/fetch.sh cloud shell
cargo build --release --bin bivisor
guests=${BIVISOR_GUESTS:-target/guests}
vmm=${CARGO_TARGET_DIR:-target}/release/bivisor
exec "$vmm" -M microvm -m 512 -kernel "$guests/vmlinuz-cloud" -initrd "$guests/shell.gz" \
    -append "console=ttyS0 reboot=t panic=-1" -nographic -no-reboot "$@"
