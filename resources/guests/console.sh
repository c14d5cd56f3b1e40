#!/bin/bash
# Builds console.gz, an initramfs with the cloud kernel's modules for virtio consoles and balloons.

# shellcheck source=resources/guests/lib.sh
. "$(dirname "$0")/lib.sh"
HERE=$REPO/resources/guests

! newer_than "$GUESTS/console.gz" "$HERE/console.sh" "$HERE/init/console" "$HERE/lib.sh" "$GUESTS/busybox" "$GUESTS/vmlinuz-cloud" || exit 0
say "building console.gz"
root=$(mktemp -d)
chmod 755 "$root"
busybox_root "$root"
mkdir -p "$root/modules"
for module in virtio_mmio virtio_pci virtio_console virtio_balloon; do add_module "$root" "$module"; done
install -m 755 "$HERE/init/console" "$root/init"
pack "$root" "$GUESTS/console.gz" 6
rm -rf "$root"
