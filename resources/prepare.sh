#!/bin/bash
# Installs what is missing on a Debian or Ubuntu machine to build bivisor and fetch its guests; with --tests also what
# the tests need. Does nothing, and needs no root, where all is there.
set -euo pipefail

# tool:package, one per need; a tool that is found is not installed again.
needs=(cc:gcc dpkg-deb:dpkg cpio:cpio gzip:gzip xz:xz-utils zstd:zstd flock:util-linux tar:tar)
if [ "${1:-}" = --tests ]; then
    needs+=(qemu-system-x86_64:qemu-system-x86 as:binutils script:bsdutils qemu-img:qemu-utils mke2fs:e2fsprogs c++:g++)
    needs+=(debootstrap:debootstrap ssh:openssh-client)
    # Where mke2fs is, whether or not a user has it in the PATH.
    PATH=$PATH:/usr/sbin:/sbin
fi

missing=()
for need in "${needs[@]}"; do
    command -v "${need%%:*}" >/dev/null || missing+=("${need##*:}")
done
# virtiofsd is in no PATH: in QEMU's package until Debian 12, in its own since.
if [ "${1:-}" = --tests ] && [ ! -e /usr/lib/qemu/virtiofsd ] && [ ! -e /usr/libexec/virtiofsd ]; then
    ! apt-cache show virtiofsd >/dev/null 2>&1 || missing+=(virtiofsd)
fi
# Rust links with the C library's start files and stubs, which a compiler package only recommends.
echo 'int main(void) { return 0; }' | cc -x c -o /dev/null - 2>/dev/null || missing+=(libc6-dev)
if [ ${#missing[@]} -gt 0 ]; then
    command -v apt-get >/dev/null || {
        echo "prepare: this machine lacks ${missing[*]} and has no apt-get: install them by hand" >&2
        exit 1
    }
    as_root=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || {
            echo "prepare: run this as root, or install: ${missing[*]}" >&2
            exit 1
        }
        as_root=(sudo)
    fi
    echo "prepare: installing ${missing[*]}" >&2
    "${as_root[@]}" apt-get -qq update || true
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get -qq -y install --no-install-recommends "${missing[@]}" >/dev/null
fi

# rustup's folder is not in the PATH of every non-interactive shell.
if ! command -v cargo >/dev/null && [ ! -x "$HOME/.cargo/bin/cargo" ]; then
    echo "prepare: no cargo: install Rust 1.91 or newer (https://rustup.rs, or a package)" >&2
    exit 1
fi
