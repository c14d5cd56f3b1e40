#!/bin/bash
# Builds pci.gz, an initramfs with the cloud kernel's modules for virtio devices on PCI.

# shellcheck source=resources/guests/lib.sh
. "$(dirname "$0")/lib.sh"
HERE=$REPO/resources/guests

! newer_than "$GUESTS/pci.gz" "$HERE/pci.sh" "$HERE/init/pci" "$HERE/lib.sh" "$GUESTS/busybox" "$GUESTS/vmlinuz-cloud" || exit 0
say "building pci.gz"
root=$(mktemp -d)
chmod 755 "$root"
busybox_root "$root"
mkdir -p "$root/modules"
for module in virtio_pci virtio_mmio virtio_blk virtio_net virtio-rng; do add_module "$root" "$module"; done
install -m 755 "$HERE/init/pci" "$root/init"
cat >"$root/bin/lease" <<'EOT'
#!/bin/sh
# What udhcpc calls.
[ "$1" = bound ] || exit 0
ip address add "$ip/$mask" dev "$interface"
ip route add default via "$router"
echo "lease: $ip/$mask"
EOT
chmod 755 "$root/bin/lease"
pack "$root" "$GUESTS/pci.gz" 6
rm -rf "$root"
