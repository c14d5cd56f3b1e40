#!/bin/bash
# Builds the initramfs of a nested test: an L1 machine with kvm-amd, in which given commands run.
#
#     resources/guests/nested.sh IMAGE [--program PATH | --file PATH | --module NAME]... [--run COMMAND]...
#
# Each program is copied to /bin with the shared libraries it needs, each file or folder to /files; modules are loaded besides
# kvm-amd, with what they need; the kernel and the boot test lie in /guests. Each COMMAND is one shell command line; its exit status
# is printed after it. L1 boots the cloud kernel of fetch.sh; see resources/design/0001-nested-kvm.md for how and why.

# shellcheck source=resources/guests/lib.sh
. "$(dirname "$0")/lib.sh"
HERE=$REPO/resources/guests

[ $# -gt 0 ] || die "usage: nested.sh IMAGE [--program PATH | --file PATH | --module NAME]... [--run COMMAND]..."
image=$1
shift
"$HERE/fetch.sh" cloud boot-test
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
busybox_root "$root"
mkdir -p "$root"/{guests,files,lib64,modules}
cp "$GUESTS/vmlinuz-cloud" "$GUESTS/boot-test.gz" "$root/guests/"
install -m 755 "$HERE/init/nested" "$root/init"

# program PATH: the dynamic linker is found by its absolute path, so libraries keep theirs.
program() {
    local library
    cp "$1" "$root/bin/"
    # A static program has none: ldd then says so and fails.
    for library in $(ldd "$1" 2>/dev/null | grep -o '/[^ ]*' || true); do
        mkdir -p "$root$(dirname "$library")"
        cp -L "$library" "$root$library"
    done
}

# module NAME: what it depends on first, in the order of insertion. Newer packages compress their modules.
module() {
    local file dependency
    [ ! -e "$root/modules/$1.ko" ] || return 0
    # Files have - where names have _, or not.
    file=$(find "$GUESTS/kernel-cloud/root" -regex ".*/${1//_/[-_]}\.ko\(\..*\)?" | head -n 1)
    [ -n "$file" ] || { say "no module $1: taken to be in the kernel"; return 0; }
    case $file in
    *.ko) cp "$file" "$root/modules/$1.ko" ;;
    *.xz) xz -dc "$file" >"$root/modules/$1.ko" ;;
    *.zst) zstd -qdc "$file" >"$root/modules/$1.ko" ;;
    *) die "unknown compression: $file" ;;
    esac
    for dependency in $(tr '\0' '\n' <"$root/modules/$1.ko" | sed -n 's/^depends=//p' | tr ',' ' '); do
        module "$dependency"
    done
    echo "$1" >>"$root/modules/order"
}

module kvm-amd
: >"$root/runs"
while [ $# -gt 0 ]; do
    case $1 in
    --program) program "$2" ;;
    --file) cp -r "$2" "$root/files/" ;;
    --module) module "$2" ;;
    --run) printf '%s\n' "$2" >>"$root/runs" ;;
    *) die "unknown argument: $1" ;;
    esac
    shift 2
done
pack "$root" "$image" 1
