#!/bin/bash
# Builds network.gz, an initramfs with the cloud kernel's module for virtio network cards.

# shellcheck source=resources/guests/lib.sh
. "$(dirname "$0")/lib.sh"
HERE=$REPO/resources/guests

! newer_than "$GUESTS/network.gz" "$HERE/net.sh" "$HERE/init/net" "$HERE/net"/* "$HERE/lib.sh" "$GUESTS/busybox" "$GUESTS/vmlinuz-cloud" || exit 0
need gcc
say "building network.gz"
root=$(mktemp -d)
chmod 755 "$root"
busybox_root "$root"
mkdir -p "$root/modules"
for module in virtio_mmio virtio_net; do add_module "$root" "$module"; done
gcc -O1 -Wall -Wextra -static -o "$root/bin/echo-server" "$HERE/net/echo.c" || die "cannot compile echo.c"
install -m 755 "$HERE/init/net" "$root/init"
cat >"$root/bin/lease" <<'EOF'
#!/bin/sh
# What udhcpc calls.
[ "$1" = bound ] || exit 0
ip address add "$ip/$mask" dev "$interface"
ip route add default via "$router"
echo "nameserver $dns" >/etc/resolv.conf
echo "lease: $ip/$mask router $router dns $dns name $hostname"
EOF
chmod 755 "$root/bin/lease"
pack "$root" "$GUESTS/network.gz" 6
rm -rf "$root"
