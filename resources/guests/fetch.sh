#!/bin/bash
# Fetches Debian's (or Ubuntu's) current kernels and builds the initramfs images that run on them.
#
#     resources/guests/fetch.sh [--refresh] [WHAT...]
#
# WHAT: cloud generic (kernels), shell boot-test programs bench smp disk net console board pci shares virtiofs vhost io durable (initramfs images; disk.ext4 beside), vmlinux (the cloud kernel as an ELF
# file with its symbols, for debuggers), debian (a Debian on a disk; needs root), or all. Without one: cloud shell boot-test.
# Results lie in target/guests (or $BIVISOR_GUESTS): vmlinuz-cloud, vmlinuz-generic, shell.gz, boot-test.gz, ...
# What is there already is left as it is; --refresh asks the archive again. No root needed.

# shellcheck source=resources/guests/lib.sh
. "$(dirname "$0")/lib.sh"
HERE=$REPO/resources/guests

# One run at a time per cache: tests run in parallel and each asks for its guest.
mkdir -p "$GUESTS"
exec 9>"$GUESTS/.lock"
flock 9

kernel() {
    local flavour=$1 image package folder=$GUESTS/kernel-$1
    [ ! -e "$GUESTS/vmlinuz-$flavour" ] || return 0
    update_lists
    package=$(private_apt apt-cache depends "$(kernel_metapackage "$flavour")" | sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1)
    [ -n "$package" ] || die "no package $(kernel_metapackage "$flavour") in the package lists"
    say "fetching $package"
    rm -rf "$folder"
    fetch_packages "$folder/debs" "$package"
    unpack "$folder/root" "$folder/debs"/*.deb
    if [ "$(distribution)" = ubuntu ]; then
        # Ubuntu keeps the modules in a package of their own.
        fetch_packages "$folder/modules" "${package/linux-image-/linux-modules-}"
        unpack "$folder/root" "$folder/modules"/*.deb
    fi
    image=$(echo "$folder/root/boot"/vmlinuz-*)
    [ -e "$image" ] || die "$package holds no boot/vmlinuz-*"
    basename "$image" | sed 's/^vmlinuz-//' >"$folder/release"
    rm -rf "$folder/debs" "$folder/modules"
    cp "$image" "$GUESTS/vmlinuz-$flavour.partial"
    mv "$GUESTS/vmlinuz-$flavour.partial" "$GUESTS/vmlinuz-$flavour"
}

busybox() {
    [ ! -e "$GUESTS/busybox" ] || return 0
    say "fetching busybox-static"
    rm -rf "$GUESTS/busybox-package"
    fetch_packages "$GUESTS/busybox-package" busybox-static
    unpack "$GUESTS/busybox-package/root" "$GUESTS/busybox-package"/*.deb
    cp "$GUESTS/busybox-package/root"/bin/busybox "$GUESTS/busybox.partial" 2>/dev/null ||
        cp "$GUESTS/busybox-package/root"/usr/bin/busybox "$GUESTS/busybox.partial"
    mv "$GUESTS/busybox.partial" "$GUESTS/busybox"
    rm -rf "$GUESTS/busybox-package"
}

# A busybox image whose /init is init/NAME.
image() {
    local name=$1 root
    busybox
    ! newer_than "$GUESTS/$name.gz" "$HERE/init/$name" "$HERE/lib.sh" "$GUESTS/busybox" || return 0
    say "building $name.gz"
    root=$(mktemp -d)
    chmod 755 "$root"
    busybox_root "$root"
    install -m 755 "$HERE/init/$name" "$root/init"
    pack "$root" "$GUESTS/$name.gz" 9
    rm -rf "$root"
}

if [ "${1:-}" = --refresh ]; then
    shift
    rm -rf "$GUESTS"/{vmlinuz-*,busybox,debian-*.{vmlinuz,initrd},*.gz,*.cpio,*.ext4,vmlinux,programs,bench,smp,apt/lists.stamp}
fi
[ $# -gt 0 ] || set -- cloud shell boot-test
[ "$*" != all ] || set -- cloud generic shell boot-test programs bench smp disk net console board pci shares virtiofs vhost io durable vmlinux debian
need apt-get dpkg-deb cpio gzip flock tar
for what in "$@"; do
    case $what in
    cloud | generic) kernel "$what" ;;
    shell | boot-test) image "$what" ;;
    programs) "$HERE/programs.sh" ;;
    bench) busybox && "$HERE/bench.sh" ;;
    smp) busybox && "$HERE/smp.sh" ;;
    disk) busybox && kernel cloud && "$HERE/disk.sh" ;;
    net) busybox && kernel cloud && "$HERE/net.sh" ;;
    console) busybox && kernel cloud && "$HERE/console.sh" ;;
    pci) busybox && kernel cloud && "$HERE/pci.sh" ;;
    board) busybox && kernel generic && "$HERE/board.sh" ;;
    shares) busybox && kernel generic && "$HERE/shares.sh" ;;
    virtiofs) busybox && kernel cloud && "$HERE/virtiofs.sh" ;;
    vhost) busybox && kernel cloud && "$HERE/vhost.sh" ;;
    io) busybox && kernel cloud && "$HERE/io.sh" ;;
    durable) busybox && kernel cloud && "$HERE/durable.sh" ;;
    debian) "$HERE/debian.sh" ;;
    vmlinux) kernel cloud && "$HERE/vmlinux.sh" ;;
    *) die "unknown guest: $what (known: cloud generic shell boot-test programs bench smp disk net console board pci shares virtiofs io durable vmlinux debian all)" ;;
    esac
done
