# Shared functions of the guest scripts: the cache folder, Debian packages without root, reproducible initramfs images.
# Sourced, never run. The initramfs format is the kernel's Documentation/driver-api/early-userspace/buffer-format.rst ("newc").

set -euo pipefail
export LC_ALL=C

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# The cache lies under target/, which git ignores; BIVISOR_GUESTS moves it (one cache for several checkouts).
GUESTS=${BIVISOR_GUESTS:-$REPO/target/guests}

say() { printf '%s\n' "guests: $*" >&2; }
die() { say "$*"; exit 1; }

need() {
    local missing=() tool
    for tool in "$@"; do command -v "$tool" >/dev/null || missing+=("$tool"); done
    [ ${#missing[@]} -eq 0 ] || die "missing tools: ${missing[*]} (resources/prepare.sh installs them)"
}

# debian or ubuntu: they name their kernel packages differently.
distribution() {
    local ID='' ID_LIKE=''
    # shellcheck disable=SC1091
    . /etc/os-release
    case " $ID $ID_LIKE " in
    *" ubuntu "*) echo ubuntu ;;
    *" debian "*) echo debian ;;
    *) die "this needs Debian's or Ubuntu's packages; /etc/os-release says ID=$ID" ;;
    esac
}

# The package whose first dependency on a linux-image-VERSION package is the kernel wanted.
kernel_metapackage() {
    case "$(distribution)-$1" in
    debian-cloud) echo linux-image-cloud-amd64 ;;
    debian-generic) echo linux-image-amd64 ;;
    # Ubuntu's kernel for virtual machines. (Its linux-image-kvm flavour ended with 24.04.)
    ubuntu-cloud) echo linux-image-virtual ;;
    ubuntu-generic) echo linux-image-generic ;;
    *) die "no such kernel flavour: $1" ;;
    esac
}

# apt with a state of its own inside the cache: it needs no root, does not see what the host has installed (so
# that dependencies resolve completely) and leaves the host's package lists alone.
private_apt() {
    local command=$1
    shift
    "$command" -q \
        -o Dir::State="$GUESTS/apt" \
        -o Dir::State::lists="$GUESTS/apt/lists" \
        -o Dir::State::status="$GUESTS/apt/status" \
        -o Dir::Cache="$GUESTS/apt/cache" \
        -o Dir::Log="$GUESTS/apt/log" \
        -o APT::Architecture=amd64 \
        -o APT::Install-Recommends=false \
        -o APT::Sandbox::User="$(id -un)" \
        -o Debug::NoLocking=true \
        "$@"
}

# Package lists at most a day old. A third-party source that cannot be reached is not our business: whether the
# packages wanted can be had is decided when they are.
update_lists() {
    local stamp=$GUESTS/apt/lists.stamp
    mkdir -p "$GUESTS/apt/lists/partial" "$GUESTS/apt/cache/archives/partial" "$GUESTS/apt/log"
    [ -e "$GUESTS/apt/status" ] || : >"$GUESTS/apt/status"
    [ -z "$(find "$stamp" -mmin -1440 2>/dev/null)" ] || return 0
    say "fetching package lists"
    private_apt apt-get update >"$GUESTS/apt/update.log" 2>&1 || say "apt-get update complained, see $GUESTS/apt/update.log"
    : >"$stamp"
}

# fetch_packages FOLDER PACKAGE...: downloads exactly these packages into FOLDER.
fetch_packages() {
    local folder=$1
    shift
    update_lists
    mkdir -p "$folder"
    (cd "$folder" && private_apt apt-get download "$@" >download.log 2>&1) || {
        cat "$folder/download.log" >&2
        die "cannot download: $*"
    }
}

# fetch_with_dependencies FOLDER PACKAGE...: downloads the packages and all that they depend on.
fetch_with_dependencies() {
    local folder=$1
    shift
    update_lists
    mkdir -p "$folder/partial"
    private_apt apt-get -y --download-only -o Dir::Cache::archives="$folder" install "$@" >"$folder/download.log" 2>&1 || {
        cat "$folder/download.log" >&2
        die "cannot download: $*"
    }
}

# fetch_source FOLDER PACKAGE: downloads the upstream sources of PACKAGE. The host's package sources serve, asked for sources too.
fetch_source() {
    local folder=$1 package=$2 lists=$GUESTS/apt/sources options
    rm -rf "$lists"
    mkdir -p "$folder" "$lists/parts" "$lists/state/partial"
    sed 's/^Types:.*/Types: deb-src/' /etc/apt/sources.list.d/*.sources >"$lists/parts/host.sources" 2>/dev/null || true
    sed -n 's/^deb /deb-src /p' /etc/apt/sources.list /etc/apt/sources.list.d/*.list >"$lists/parts/host.list" 2>/dev/null || true
    options=(-o "Dir::Etc::sourcelist=/dev/null" -o "Dir::Etc::sourceparts=$lists/parts" -o "Dir::State::lists=$lists/state")
    (cd "$folder" && {
        private_apt apt-get "${options[@]}" update
        private_apt apt-get "${options[@]}" source --download-only --only-source "$package"
    } >download.log 2>&1) || {
        cat "$folder/download.log" >&2
        die "cannot download the sources of $package"
    }
    rm -rf "$lists"
}

# unpack FOLDER DEB...: like dpkg-deb -x, but keeps the symbolic links of a merged /usr.
unpack() {
    local folder=$1 deb
    shift
    mkdir -p "$folder"
    for deb in "$@"; do
        dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink --no-same-owner -C "$folder"
    done
}

# archive FOLDER: a newc archive on standard output; the same content always gives the same bytes.
archive() {
    find "$1" -exec touch -h -d @0 {} +
    (cd "$1" && find . -print0 | sort -z | cpio --quiet --null --create --format=newc --reproducible --owner=0:0)
}

# pack FOLDER IMAGE [LEVEL]: the same, compressed by gzip.
pack() {
    local folder=$1 image=$2 level=${3:-6}
    archive "$folder" | gzip -n "-$level" >"$image.partial"
    mv "$image.partial" "$image"
}

# in_root ROOT COMMAND...: runs the command in that root file system, with an empty /tmp in memory and this machine's /dev.
# A mount name space of its own keeps both from the host; a user name space does where we are not root. A root that may
# not mount (as in containers) gets a plain chroot.
in_root() {
    local root=$1 become=()
    shift
    [ "$(id -u)" = 0 ] || become=(--map-root-user)
    if unshare "${become[@]}" --mount sh -c 'mount -t tmpfs tmp "$1"' sh "$root/tmp" 2>/dev/null; then
        unshare "${become[@]}" --mount sh -c 'mount --rbind /dev "$1/dev" && mount -t tmpfs tmp "$1/tmp" && exec chroot "$@"' sh "$root" "$@"
    else
        cp -a /dev/null /dev/zero /dev/urandom "$root/dev/"
        chroot "$root" "$@"
    fi
}

# busybox_root FOLDER: the folders every image has, and busybox with all its names.
busybox_root() {
    local folder=$1 name
    mkdir -p "$folder"/{bin,dev,proc,sys,tmp,root,etc}
    cp "$GUESTS/busybox" "$folder/bin/busybox"
    # Names are made here and not by `busybox --install` in the guest: that would cost every boot a few ms.
    for name in $("$GUESTS/busybox" --list); do
        [ "$name" = busybox ] || ln -sf busybox "$folder/bin/$name"
    done
}

# add_module ROOT NAME: copies a module of the cloud kernel, or of MODULES_OF (- and _ are the same) and, before it, those that it depends on; each
# once. Their order is /modules/order.
add_module() {
    local root=$1 name=${2//-/_} file depends depend
    [ ! -e "$root/modules/$name.ko" ] || return 0
    file=$(find "$GUESTS/kernel-${MODULES_OF:-cloud}/root/lib/modules" -regex ".*/${name//_/[-_]}\.ko\(\.xz\|\.zst\)?" | head -n 1)
    [ -n "$file" ] || { say "no module $name: taken to be in the kernel"; return 0; }
    case $file in
    *.xz) xz -dc "$file" >"$root/modules/module" ;;
    *.zst) zstd -qdc "$file" >"$root/modules/module" ;;
    *) cp "$file" "$root/modules/module" ;;
    esac
    depends=$(tr '\0' '\n' <"$root/modules/module" | sed -n 's/^depends=//p' | head -n 1)
    mv "$root/modules/module" "$root/modules/$name.partial"
    for depend in ${depends//,/ }; do add_module "$root" "$depend"; done
    mv "$root/modules/$name.partial" "$root/modules/$name.ko"
    echo "$name" >>"$root/modules/order"
}

# newer_than TARGET SOURCE...: true if TARGET exists and no SOURCE is newer.
newer_than() {
    local target=$1 source
    shift
    [ -e "$target" ] || return 1
    for source in "$@"; do
        [ ! "$source" -nt "$target" ] || return 1
    done
}
