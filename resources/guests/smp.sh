#!/bin/bash
# Builds smp.cpio: an initramfs with Debian's gcc, make and stress-ng, the sources of a real C program (Lua), and the programs of
# smp/, whose /init runs the jobs that the kernel's command line names.

# shellcheck source=resources/guests/lib.sh
. "$(dirname "$0")/lib.sh"
HERE=$REPO/resources/guests
ROOT=$GUESTS/smp/root
PACKAGES="dash coreutils make gcc libc6-dev stress-ng"
SOURCES=lua5.4

packages() {
    [ "$PACKAGES $SOURCES" != "$(cat "$GUESTS/smp/done" 2>/dev/null)" ] || return 0
    say "fetching gcc, make, stress-ng and what they depend on, and Lua's sources"
    rm -rf "$GUESTS/smp"
    mkdir -p "$ROOT"/usr/{bin,sbin,lib,lib64} "$ROOT"/{dev,proc,sys,tmp,run,etc,smp/lua}
    ln -s usr/bin usr/sbin usr/lib usr/lib64 "$ROOT"
    # shellcheck disable=SC2086
    fetch_with_dependencies "$GUESTS/smp/debs" $PACKAGES
    unpack "$ROOT" "$GUESTS/smp/debs"/*.deb
    [ -e "$ROOT/bin/sh" ] || ln -s dash "$ROOT/bin/sh"
    fetch_source "$GUESTS/smp/sources" "$SOURCES"
    tar -x --strip-components=1 --no-same-owner -C "$ROOT/smp/lua" -f "$(echo "$GUESTS/smp/sources/$SOURCES"_*.orig.tar.*)"
    # All of the image is memory of the guest: leave out what no job uses.
    rm -rf "$ROOT"/usr/{share,libexec} "$ROOT"/{var,boot} "$ROOT"/usr/lib/{locale,systemd,dpkg,apt} \
        "$ROOT"/usr/lib/x86_64-linux-gnu/{gconv,gprofng,ldscripts,dri} \
        "$ROOT"/usr/lib/gcc/x86_64-linux-gnu/*/{lto1,lto-wrapper,plugin,g++-mapper-server}
    find "$ROOT" \( -name '*san.so*' -o -name 'lib*san*.a' -o -name '*libgprofng*' -o -name 'x86_64-linux-gnu-lto-dump*' \
        -o -name '*-dwp' -o -name '*-gcov*' -o -name '*gp-*' -o -name 'libLLVM*' -o -name 'libicudata*' \) -delete
    rm -rf "$GUESTS/smp/debs" "$GUESTS/smp/sources"
    echo "$PACKAGES $SOURCES" >"$GUESTS/smp/done"
}

packages
! newer_than "$GUESTS/smp.cpio" "$HERE/smp.sh" "$HERE/init/smp" "$HERE/smp"/* || exit 0
need gcc
say "building smp.cpio"
rm -rf "$ROOT/smp/bin" "$ROOT/tmp" "$ROOT/dev"
mkdir -p "$ROOT"/{smp/bin,tmp,dev}
for name in torture litmus speed modify; do
    gcc -O2 -Wall -Wextra -static -pthread -o "$ROOT/smp/bin/$name" "$HERE/smp/$name.c" || die "cannot compile $name.c"
done
find "$HERE/smp" -type f ! -name '*.c' -exec cp {} "$ROOT/smp/" \;
install -m 755 "$HERE/init/smp" "$ROOT/init"
cp "$GUESTS/busybox" "$ROOT/bin/busybox"
archive "$ROOT" >"$GUESTS/smp.cpio.partial"
mv "$GUESTS/smp.cpio.partial" "$GUESTS/smp.cpio"
