#!/bin/bash
# Builds vhost.gz, an initramfs with the cloud kernel's modules for cards and sockets that the host's kernel serves (vhost), and
# vhost/vsock, the program that speaks on both sides of a socket.

# shellcheck source=resources/guests/lib.sh
. "$(dirname "$0")/lib.sh"
HERE=$REPO/resources/guests

! newer_than "$GUESTS/vhost.gz" "$HERE/vhost.sh" "$HERE/init/vhost" "$HERE/vhost"/* "$HERE/lib.sh" "$GUESTS/busybox" "$GUESTS/vmlinuz-cloud" || exit 0
need gcc
say "building vhost.gz"
root=$(mktemp -d)
chmod 755 "$root"
busybox_root "$root"
mkdir -p "$root/modules"
for module in virtio_mmio virtio_pci virtio_net vmw_vsock_virtio_transport; do add_module "$root" "$module"; done
gcc -O1 -Wall -Wextra -static -o "$root/bin/vsock" "$HERE/vhost/vsock.c" || die "cannot compile vsock.c"
mkdir -p "$GUESTS/vhost"
cp "$root/bin/vsock" "$GUESTS/vhost/vsock"
install -m 755 "$HERE/init/vhost" "$root/init"
pack "$root" "$GUESTS/vhost.gz" 6
rm -rf "$root"
