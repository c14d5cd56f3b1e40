#!/bin/bash
# Builds disk.gz, an initramfs with the cloud kernel's modules for virtio disks and ext4, and disk.ext4, an ext4 file system with
# programs and what they print, for tests to copy.

# shellcheck source=resources/guests/lib.sh
. "$(dirname "$0")/lib.sh"
HERE=$REPO/resources/guests
WANTED="virtio_mmio virtio_blk virtio-rng ext4 crc32c_generic"
VERSIONS="3 5 7"

initramfs() {
    ! newer_than "$GUESTS/disk.gz" "$HERE/disk.sh" "$HERE/init/disk" "$HERE/lib.sh" "$GUESTS/busybox" "$GUESTS/vmlinuz-cloud" || return 0
    say "building disk.gz"
    local root module
    root=$(mktemp -d)
    chmod 755 "$root"
    busybox_root "$root"
    mkdir -p "$root/modules" "$root/mnt"
    for module in $WANTED; do add_module "$root" "$module"; done
    install -m 755 "$HERE/init/disk" "$root/init"
    pack "$root" "$GUESTS/disk.gz" 6
    rm -rf "$root"
}

file_system() {
    ! newer_than "$GUESTS/disk.ext4" "$HERE/disk.sh" "$HERE/disk"/* || return 0
    need mke2fs gcc
    say "building disk.ext4"
    local root version
    root=$(mktemp -d)
    for version in $VERSIONS; do
        gcc -O1 -static -DVERSION="$version" -o "$root/program-$version" "$HERE/disk/program.c" || die "cannot compile program.c"
        "$root/program-$version" >"$root/program-$version.expected"
    done
    rm -f "$GUESTS/disk.ext4.partial"
    mke2fs -q -t ext4 -d "$root" "$GUESTS/disk.ext4.partial" 64M >&2
    mv "$GUESTS/disk.ext4.partial" "$GUESTS/disk.ext4"
    rm -rf "$root"
}

PATH=$PATH:/usr/sbin:/sbin
initramfs
file_system
