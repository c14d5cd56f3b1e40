#!/bin/bash
# Builds programs.gz: an initramfs with Debian's perl, python3, openssl and gcc, whose /init runs the checks of
# programs/run, and programs.expected: what the same root file system prints when run natively in a chroot.

# shellcheck source=resources/guests/lib.sh
. "$(dirname "$0")/lib.sh"
HERE=$REPO/resources/guests
ROOT=$GUESTS/programs/root
PACKAGES="bash dash coreutils diffutils grep sed perl python3 openssl gcc libc6-dev"

packages() {
    [ "$PACKAGES" != "$(cat "$GUESTS/programs/done" 2>/dev/null)" ] || return 0
    need ar tar
    say "fetching perl, python3, openssl, gcc and what they depend on"
    rm -rf "$GUESTS/programs"
    mkdir -p "$ROOT"/usr/{bin,sbin,lib,lib64} "$ROOT"/{dev,proc,sys,tmp,root,etc}
    # A merged /usr, as an installed system has it, whatever the packages ship.
    ln -s usr/bin usr/sbin usr/lib usr/lib64 "$ROOT"
    # shellcheck disable=SC2086
    fetch_with_dependencies "$GUESTS/programs/debs" $PACKAGES
    unpack "$ROOT" "$GUESTS/programs/debs"/*.deb
    [ -e "$ROOT/bin/sh" ] || ln -s dash "$ROOT/bin/sh"
    # The image is unpacked into the guest's memory: leave out what no check uses.
    rm -rf "$ROOT"/usr/share/{doc,man,info,locale,lintian,bash-completion,common-licenses,gcc,zoneinfo,debconf,bug,menu,i18n} \
        "$ROOT"/usr/lib/x86_64-linux-gnu/{gconv,perl/debian-config-data*} "$ROOT"/usr/lib/gcc/x86_64-linux-gnu/*/{lto1,lto-wrapper,plugin,g++-mapper-server} \
        "$ROOT"/var "$ROOT"/boot "$ROOT"/usr/lib/locale "$ROOT"/usr/lib/python3*/{test,idlelib,lib2to3,ensurepip,pydoc_data}
    find "$ROOT" \( -name '*san.so*' -o -name 'lib*san*.a' -o -name '*_preinit.o' -o -name '*.pod' -o -name '*-dwp' -o -name '*-gold' -o -name '*gp-*' \) -delete
    rm -rf "$GUESTS/programs/debs"
    echo "$PACKAGES" >"$GUESTS/programs/done"
}

# Runs the checks in the root file system. chroot needs root; a user name space does as well where the host allows it.
native() {
    local command='exec chroot "$1" /usr/bin/env -i PATH=/usr/bin:/bin /bin/sh /checks/run'
    if [ "$(id -u)" = 0 ]; then
        cp -a /dev/null /dev/urandom "$ROOT/dev/"
        sh -c "$command" sh "$ROOT"
    else
        unshare --map-root-user --mount sh -c "mount --rbind /dev \"\$1/dev\" && $command" sh "$ROOT"
    fi
}

packages
! newer_than "$GUESTS/programs.gz" "$HERE/programs.sh" "$HERE/lib.sh" "$HERE/init/programs" "$HERE/programs"/* || exit 0
say "building programs.gz"
rm -rf "$ROOT/checks" "$ROOT/tmp" "$ROOT/dev"
mkdir -p "$ROOT/dev" "$ROOT/checks" "$ROOT/tmp"
cp "$HERE/programs"/* "$ROOT/checks/"
install -m 755 "$HERE/init/programs" "$ROOT/init"
cp "$GUESTS/busybox" "$ROOT/bin/busybox"
say "running the checks natively"
native >"$GUESTS/programs.expected.partial" 2>&1 || {
    tail -n 20 "$GUESTS/programs.expected.partial" >&2
    die "the checks fail natively"
}
rm -rf "$ROOT/tmp" "$ROOT/dev"
mkdir "$ROOT/tmp" "$ROOT/dev"
pack "$ROOT" "$GUESTS/programs.gz" 1
mv "$GUESTS/programs.expected.partial" "$GUESTS/programs.expected"
