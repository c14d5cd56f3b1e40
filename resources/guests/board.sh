#!/bin/bash
# Builds board.gz, an initramfs with the generic kernel's modules for the board's small devices. (The cloud kernel has no
# driver for vmgenid and the watchdog.)

# shellcheck source=resources/guests/lib.sh
. "$(dirname "$0")/lib.sh"
HERE=$REPO/resources/guests
MODULES_OF=generic

! newer_than "$GUESTS/board.gz" "$HERE/board.sh" "$HERE/init/board" "$HERE/lib.sh" "$GUESTS/busybox" "$GUESTS/vmlinuz-generic" || exit 0
say "building board.gz"
root=$(mktemp -d)
chmod 755 "$root"
busybox_root "$root"
mkdir -p "$root/modules"
for module in qemu_fw_cfg pvpanic pvpanic_mmio i6300esb; do add_module "$root" "$module"; done
install -m 755 "$HERE/init/board" "$root/init"
pack "$root" "$GUESTS/board.gz" 6
rm -rf "$root"
