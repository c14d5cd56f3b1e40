#!/bin/bash
# Builds shares.gz, an initramfs with the generic kernel's modules for shared folders and sockets to the host (Debian's cloud kernel
# has no 9p), and programs that try them.

# shellcheck source=resources/guests/lib.sh
. "$(dirname "$0")/lib.sh"
HERE=$REPO/resources/guests
MODULES_OF=generic

! newer_than "$GUESTS/shares.gz" "$HERE/shares.sh" "$HERE/init/shares" "$HERE/shares"/* "$HERE/lib.sh" "$GUESTS/busybox" "$GUESTS/vmlinuz-generic" || exit 0
need gcc
say "building shares.gz"
root=$(mktemp -d)
chmod 755 "$root"
busybox_root "$root"
mkdir -p "$root/modules" "$root/mnt"
for module in virtio_mmio virtio_pci 9p 9pnet_virtio vmw_vsock_virtio_transport; do add_module "$root" "$module"; done
for source in "$HERE/shares"/*.c; do
    gcc -O1 -static -o "$root/bin/$(basename "$source" .c)" "$source" || die "cannot compile $source"
done
install -m 755 "$HERE/init/shares" "$root/init"
pack "$root" "$GUESTS/shares.gz" 6
rm -rf "$root"
