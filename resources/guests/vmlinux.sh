#!/bin/bash
# The cloud kernel as an uncompressed ELF file with its symbol table, from Debian's debug package (300 MB to fetch).
# For debuggers (`gdb vmlinux`, with `nokaslr` on the guest's command line) and for `-kernel vmlinux`.

# shellcheck source=resources/guests/lib.sh
. "$(dirname "$0")/lib.sh"

[ ! -e "$GUESTS/vmlinux" ] || exit 0
[ "$(distribution)" = debian ] || die "only Debian's archive holds a debug package beside its kernel"
need objcopy nm
release=$(cat "$GUESTS/kernel-cloud/release")
folder=$GUESTS/vmlinux-package
say "fetching linux-image-$release-dbg"
rm -rf "$folder"
fetch_packages "$folder" "linux-image-$release-dbg"
mkdir "$folder/root"
dpkg-deb --fsys-tarfile "$folder"/*.deb |
    tar -x --no-same-owner -C "$folder/root" "./usr/lib/debug/boot/vmlinux-$release"
objcopy --strip-debug "$folder/root/usr/lib/debug/boot/vmlinux-$release" "$GUESTS/vmlinux.partial"
nm -n "$GUESTS/vmlinux.partial" >"$GUESTS/System.map"
mv "$GUESTS/vmlinux.partial" "$GUESTS/vmlinux"
rm -rf "$folder"
