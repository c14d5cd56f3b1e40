#!/bin/bash
# Builds io.gz, an initramfs with the cloud kernel's modules for virtio disks and network cards and resources/bench/io/io.c,
# for resources/bench/io.sh; the program is beside it, as bench-io, for the host.

# shellcheck source=resources/guests/lib.sh
. "$(dirname "$0")/lib.sh"
HERE=$REPO/resources/guests
SOURCE=$REPO/resources/bench/io/io.c

! newer_than "$GUESTS/io.gz" "$HERE/io.sh" "$HERE/init/io" "$SOURCE" "$HERE/lib.sh" "$GUESTS/busybox" "$GUESTS/vmlinuz-cloud" || exit 0
need gcc
say "building io.gz"
root=$(mktemp -d)
chmod 755 "$root"
busybox_root "$root"
mkdir -p "$root/modules"
for module in virtio_mmio virtio_blk virtio_net; do add_module "$root" "$module"; done
gcc -O2 -Wall -Wextra -static -o "$root/bin/io" "$SOURCE" || die "cannot compile io.c"
cp "$root/bin/io" "$GUESTS/bench-io"
install -m 755 "$HERE/init/io" "$root/init"
pack "$root" "$GUESTS/io.gz" 6
rm -rf "$root"
