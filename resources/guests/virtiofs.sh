#!/bin/bash
# Builds virtiofs.gz, an initramfs with the cloud kernel's module for folders that virtiofsd shares.

# shellcheck source=resources/guests/lib.sh
. "$(dirname "$0")/lib.sh"
HERE=$REPO/resources/guests

! newer_than "$GUESTS/virtiofs.gz" "$HERE/virtiofs.sh" "$HERE/init/virtiofs" "$HERE/virtiofs"/* "$HERE/lib.sh" "$GUESTS/busybox" "$GUESTS/vmlinuz-cloud" || exit 0
need gcc
say "building virtiofs.gz"
root=$(mktemp -d)
chmod 755 "$root"
busybox_root "$root"
mkdir -p "$root/modules" "$root/mnt"
for module in virtio_mmio virtio_pci virtiofs; do add_module "$root" "$module"; done
for source in "$HERE/virtiofs"/*.c; do
    gcc -O1 -static -o "$root/bin/$(basename "$source" .c)" "$source" || die "cannot compile $source"
done
install -m 755 "$HERE/init/virtiofs" "$root/init"
pack "$root" "$GUESTS/virtiofs.gz" 6
rm -rf "$root"
