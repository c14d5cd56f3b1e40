#!/bin/bash
# Builds durable.gz, an initramfs with the cloud kernel's modules for a virtio disk with ext4 and a program that makes files last.

# shellcheck source=resources/guests/lib.sh
. "$(dirname "$0")/lib.sh"
HERE=$REPO/resources/guests

! newer_than "$GUESTS/durable.gz" "$HERE/durable.sh" "$HERE/init/durable" "$HERE/durable"/* "$HERE/lib.sh" "$GUESTS/busybox" "$GUESTS/vmlinuz-cloud" || exit 0
need gcc
say "building durable.gz"
root=$(mktemp -d)
chmod 755 "$root"
busybox_root "$root"
mkdir -p "$root/modules" "$root/mnt"
for module in virtio_mmio virtio_blk ext4 crc32c_generic; do add_module "$root" "$module"; done
gcc -O1 -Wall -static -o "$root/bin/keeper" "$HERE/durable/keeper.c" || die "cannot compile keeper.c"
install -m 755 "$HERE/init/durable" "$root/init"
pack "$root" "$GUESTS/durable.gz" 6
rm -rf "$root"
