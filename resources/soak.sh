#!/bin/bash
# Boots each kernel N times in a row and fails on the first boot that hangs, ends wrongly or logs a complaint.
#
#     resources/soak.sh N [--load] [--kernel cloud|generic]... [-- BIVISOR'S OPTIONS...]
#
# --load keeps every core busy meanwhile. Both kernels unless named. Options default to `-accel tcg`.
# SOAK_PROGRAM puts another build in bivisor's place.

# shellcheck source=resources/guests/lib.sh
. "$(dirname "$0")/guests/lib.sh"
export PATH=$PATH:$HOME/.cargo/bin

[ $# -gt 0 ] || die "usage: soak.sh N [--load] [--kernel cloud|generic]... [-- OPTIONS...]"
count=$1
shift
load='' kernels=() options=()
while [ $# -gt 0 ]; do
    case $1 in
    --load) load=1 ;;
    --kernel) kernels+=("$2") && shift ;;
    --) shift && options=("$@") && break ;;
    *) die "unknown argument: $1" ;;
    esac
    shift
done
[ ${#kernels[@]} -gt 0 ] || kernels=(cloud generic)
[ ${#options[@]} -gt 0 ] || options=(-accel tcg)

cd "$REPO"
resources/guests/fetch.sh "${kernels[@]}" boot-test
if [ -z "${SOAK_PROGRAM:-}" ]; then
    cargo build --release --quiet --bin bivisor
    SOAK_PROGRAM=${CARGO_TARGET_DIR:-target}/release/bivisor
fi
bad=$(grep -v '^#' resources/guests/bad-log-lines)
folder=$(mktemp -d)
busy=()
# The burners are ended by their ids, however this script ends.
trap '[ ${#busy[@]} -eq 0 ] || kill "${busy[@]}" 2>/dev/null || true' EXIT
if [ -n "$load" ]; then
    for _ in $(seq "$(nproc)"); do
        sh -c 'while :; do :; done' &
        busy+=($!)
    done
fi

fail() {
    tail -n 40 "$folder/log" >&2
    die "$kernel kernel, boot $n of $count: $1 (log: $folder/log)"
}

printf '%-8s %6s %9s %9s %9s\n' kernel boots min_ms median_ms max_ms
for kernel in "${kernels[@]}"; do
    : >"$folder/times"
    for n in $(seq "$count"); do
        begun=${EPOCHREALTIME/./}
        status=0
        timeout -k 5 240 "$SOAK_PROGRAM" "${options[@]}" -M microvm -m 512 -kernel "$GUESTS/vmlinuz-$kernel" \
            -initrd "$GUESTS/boot-test.gz" -append "console=ttyS0 reboot=t panic=-1" -nographic -no-reboot \
            </dev/null >"$folder/log" 2>&1 || status=$?
        [ $status != 124 ] || fail "hangs"
        [ $status = 0 ] || fail "exit code $status"
        grep -q '^BIVISOR-INIT-OK' "$folder/log" || fail "no init"
        grep -q 'reboot: Power down' "$folder/log" || fail "no power-off"
        ! grep -n -F "$bad" "$folder/log" >&2 || fail "the log complains"
        echo $(((${EPOCHREALTIME/./} - begun) / 1000)) >>"$folder/times"
        [ $((n % 10)) != 0 ] || say "$kernel: $n of $count boots are good"
    done
    sort -n "$folder/times" | awk -v kernel="$kernel" '{ t[NR] = $1 }
        END { printf "%-8s %6d %9d %9d %9d\n", kernel, NR, t[1], t[int((NR + 1) / 2)], t[NR] }'
done
rm -rf "$folder"
