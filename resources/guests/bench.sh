#!/bin/bash
# Builds bench.cpio: an initramfs with Debian's coreutils, gzip, xz, sqlite3, python3, perl, openssl and gcc and the programs
# of resources/bench/guest, whose /init runs the workloads of resources/bench/guest/list that the kernel's command line names.
# Its root file system stays in bench/root, where the same workloads run natively. Not compressed: what a guest's decompressor
# takes is not what is measured.

# shellcheck source=resources/guests/lib.sh
. "$(dirname "$0")/lib.sh"
HERE=$REPO/resources/guests
SOURCES=$REPO/resources/bench/guest
ROOT=$GUESTS/bench/root
HEADERS=$GUESTS/bench/headers
PACKAGES="dash coreutils gzip xz-utils sqlite3 python3-minimal perl-base openssl gcc libssl-dev"

packages() {
    [ "$PACKAGES" != "$(cat "$GUESTS/bench/done" 2>/dev/null)" ] || return 0
    say "fetching the benchmarks' packages and what they depend on"
    rm -rf "$GUESTS/bench"
    mkdir -p "$ROOT"/usr/{bin,sbin,lib,lib64} "$ROOT"/{dev,proc,sys,tmp,bench} "$HEADERS"
    ln -s usr/bin usr/sbin usr/lib usr/lib64 "$ROOT"
    # shellcheck disable=SC2086
    fetch_with_dependencies "$GUESTS/bench/debs" $PACKAGES
    unpack "$ROOT" "$GUESTS/bench/debs"/*.deb
    [ -e "$ROOT/bin/sh" ] || ln -s dash "$ROOT/bin/sh"
    # libcrypto's headers are for compiling here.
    cp -r "$ROOT"/usr/include/{openssl,x86_64-linux-gnu/openssl} "$HEADERS/"
    # All of the image is memory of the guest: leave out what no workload uses.
    rm -rf "$ROOT"/usr/{share,include,libexec} "$ROOT"/{var,etc,run,boot,home} "$ROOT"/usr/lib/{locale,systemd,dpkg,apt} \
        "$ROOT"/usr/lib/x86_64-linux-gnu/{gconv,gprofng,ldscripts} \
        "$ROOT"/usr/lib/gcc/x86_64-linux-gnu/*/{lto1,lto-wrapper,plugin,g++-mapper-server,collect2}
    find "$ROOT" \( -name '*.a' -o -name '*san.so*' -o -name '*libgprofng*' -o -name 'x86_64-linux-gnu-lto-dump*' -o -name '*-dwp' \
        -o -name '*-ld.*' -o -name '*-gcov*' -o -name '*gp-*' \) -delete
    rm -rf "$GUESTS/bench/debs"
    # With its library compiled, as an installed Python's is; not by time stamps, which the image has none of.
    in_root "$ROOT" /usr/bin/python3 -I -S -m compileall -q --invalidation-mode unchecked-hash /usr/lib/python3.[0-9]* ||
        die "cannot compile Python's library"
    in_root "$ROOT" /usr/bin/openssl genrsa -traditional 2048 >"$GUESTS/bench/rsa.pem" 2>/dev/null || die "cannot make an RSA key"
    echo "$PACKAGES" >"$GUESTS/bench/done"
}

# compile PROGRAM SOURCE OPTION...: static, so that one binary serves whatever the C library here and there.
compile() {
    local program=$1 source=$2
    shift 2
    gcc -O2 -Wall -Wextra -static -o "$ROOT/bench/$program" "$SOURCES/$source" "$@" || die "cannot compile $source"
}

programs() {
    local work name
    for name in run loops calls pages jit; do compile "$name" "$name.c"; done
    compile floats floats.c -ffp-contract=off -lm
    compile tiny tiny.S -nostdlib
    work=$(mktemp -d)
    awk -v COUNT=3000 -f "$SOURCES/cold.awk" >"$work/cold.inc"
    # Without tables of jumps, which would lie outside the section that is copied.
    compile cold cold.c -O1 -fno-jump-tables -Wno-unused-function -I"$work"
    rm -rf "$work"
    gcc -O2 -Wall -Wextra -I"$HEADERS" -o "$ROOT/bench/crypto" "$SOURCES/crypto.c" \
        "$ROOT/usr/lib/x86_64-linux-gnu/libcrypto.so.3" || die "cannot compile crypto.c"
}

packages
! newer_than "$GUESTS/bench.cpio" "$HERE/bench.sh" "$HERE/init/bench" "$SOURCES"/* || exit 0
need gcc awk
say "building bench.cpio"
rm -rf "$ROOT/bench" "$ROOT/tmp" "$ROOT/dev"
mkdir -p "$ROOT"/{bench,tmp,dev}
programs
cp "$SOURCES"/{work.*,exec.sh,loops.c,list,start} "$GUESTS/bench/rsa.pem" "$ROOT/bench/"
# A real text, of 2.3 MB: the Python library's sources.
cat "$ROOT"/usr/lib/python3.*/*.py >"$ROOT/bench/text"
install -m 755 "$HERE/init/bench" "$ROOT/init"
cp "$GUESTS/busybox" "$ROOT/bin/busybox"
archive "$ROOT" >"$GUESTS/bench.cpio.partial"
mv "$GUESTS/bench.cpio.partial" "$GUESTS/bench.cpio"
