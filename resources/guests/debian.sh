#!/bin/bash
# Makes debian.ext4, the root file system of a Debian as debootstrap installs it, with systemd, sshd and both kernels; and takes
# out of it, untouched, each kernel and the initramfs that Debian's initramfs-tools made for it (nobody is there to boot from the
# disk itself): debian-cloud.vmlinuz, debian-cloud.initrd, debian-generic.vmlinuz, debian-generic.initrd. debian.key is the key that
# sshd lets in as root; on the console root's password is the name of the host, "debian". The archive is the one that this machine's
# apt uses. Needs root, for what it installs is owned by root and set up in a chroot.

# shellcheck source=resources/guests/lib.sh
. "$(dirname "$0")/lib.sh"
PATH=$PATH:/usr/sbin:/sbin
RELEASE=bookworm
MIB=2048
WANTED=systemd-sysv,udev,dbus,libpam-systemd,kmod,e2fsprogs,iproute2,iputils-ping,procps,openssh-server,initramfs-tools,zstd
KERNELS=linux-image-cloud-amd64,linux-image-amd64
RESULTS=(debian.ext4 debian-{cloud,generic}.{vmlinuz,initrd})

complete() {
    local result
    for result in "${RESULTS[@]}" debian.key; do newer_than "$GUESTS/$result" "$REPO/resources/guests/debian.sh" || return 1; done
}

# The address of the archive that holds the release, as this machine's apt has it.
mirror() {
    private_apt apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(ORIGIN) $(COMPONENT)' 'Created-By: Packages' |
        awk -v wanted="$RELEASE Debian main" '$2 " " $3 " " $4 == wanted { print $1; exit }'
}

# What an administrator sets up: a name, the disk, the network, who may come in.
configure() {
    local root=$1
    echo debian >"$root/etc/hostname"
    printf '127.0.0.1\tlocalhost\n127.0.1.1\tdebian\n' >"$root/etc/hosts"
    echo '/dev/vda / ext4 errors=remount-ro 0 1' >"$root/etc/fstab"
    printf '[Match]\nType=ether\n\n[Network]\nDHCP=yes\n' >"$root/etc/systemd/network/ether.network"
    chroot "$root" systemctl --quiet enable systemd-networkd.service
    echo root:debian | chroot "$root" chpasswd
    rm -f "$GUESTS"/debian.key{,.pub}
    ssh-keygen -q -t ed25519 -N '' -C debian -f "$GUESTS/debian.key"
    install -D -m 600 "$GUESTS/debian.key.pub" "$root/root/.ssh/authorized_keys"
    chmod 700 "$root/root/.ssh"
}

# The kernel of a flavour and its initramfs.
take_out() {
    local root=$1 flavour=$2 image=$3
    [ -e "$image" ] || die "no $flavour kernel in $root/boot"
    cp "$image" "$GUESTS/debian-$flavour.vmlinuz.partial"
    cp "${image/vmlinuz-/initrd.img-}" "$GUESTS/debian-$flavour.initrd.partial"
}

! complete || exit 0
[ "$(distribution)" = debian ] || die "Debian's archive is not among this machine's apt sources"
[ "$(id -u)" = 0 ] || die "making debian.ext4 needs root"
need debootstrap mke2fs ssh-keygen unshare

# dpkg waits for the disk after each file: with memory for it, the root is in memory, in a mount name space that ends with us.
if [ "${BIVISOR_DEBIAN_ROOT:-}" != memory ] && [ "$(awk '/^MemAvailable/ { print $2 }' /proc/meminfo)" -gt $((4 << 20)) ] &&
    unshare --mount mount -t tmpfs root /mnt 2>/dev/null; then
    BIVISOR_DEBIAN_ROOT=memory exec unshare --mount "$0"
fi

update_lists
archive=$(mirror)
[ -n "$archive" ] || die "no source of $RELEASE main among this machine's apt sources"
say "building debian.ext4 (some minutes)"
root=$(mktemp -d "$GUESTS/debian.root.XXXXXX")
trap 'umount "$root" 2>/dev/null; rm -rf --one-file-system "$root"' EXIT
[ "${BIVISOR_DEBIAN_ROOT:-}" != memory ] || mount -t tmpfs -o size=3G,mode=755 root "$root"
chmod 755 "$root"
# apt fetches over one connection what debootstrap fetches over one each.
packages=$GUESTS/debian.packages
fetch_with_dependencies "$packages" -t "$RELEASE" '?essential' '?priority(required)' apt ${WANTED//,/ } ${KERNELS//,/ }
debootstrap --variant=minbase --cache-dir="$packages" --include="$WANTED,$KERNELS" \
    "$RELEASE" "$root" "$archive" >"$GUESTS/debian.log" 2>&1 || {
    tail -n 20 "$GUESTS/debian.log" >&2
    die "debootstrap failed, see $GUESTS/debian.log"
}
configure "$root"
take_out "$root" cloud "$root"/boot/vmlinuz-*-cloud-amd64
take_out "$root" generic "$root"/boot/vmlinuz-*[0-9]-amd64
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*_*
rm -f "$GUESTS/debian.ext4.partial"
mke2fs -q -t ext4 -d "$root" "$GUESTS/debian.ext4.partial" "${MIB}M" >&2
for result in "${RESULTS[@]}"; do mv "$GUESTS/$result.partial" "$GUESTS/$result"; done
rm -rf "$packages"
