#!/bin/bash
# Wall clock of a whole boot under translation, from start of the program to power-off: bivisor against
# qemu-system-x86_64, alternating, same kernel, same initramfs. Prints a table, writes target/bench/boot.json.
#
#     resources/bench/boot.sh [RUNS]        (10 unless told)

# shellcheck source=resources/bench/lib.sh
. "$(dirname "$0")/lib.sh"

runs=${1:-10}
"$REPO/resources/guests/fetch.sh" cloud boot-test
bivisor=$(program)
need qemu-system-x86_64
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
guest=(-m 512 -kernel "$GUESTS/vmlinuz-cloud" -initrd "$GUESTS/boot-test.gz"
    -append "console=ttyS0 reboot=t panic=-1" -nographic -no-reboot)

# once NAME COMMAND...: a boot that hangs is counted and not timed: qemu's microvm hangs at times on a busy host.
once() {
    local name=$1 begun ended
    shift
    begun=${EPOCHREALTIME/./}
    timeout -k 5 20 "$@" </dev/null >"$work/log" 2>&1 || true
    ended=${EPOCHREALTIME/./}
    if grep -q '^BIVISOR-INIT-OK' "$work/log" && grep -q 'reboot: Power down' "$work/log"; then
        echo $(((ended - begun) / 1000)) >>"$work/$name"
    else
        echo hang >>"$work/$name.hangs"
        tail -n 5 "$work/log" >&2
    fi
}

touch "$work"/{bivisor,qemu,bivisor.hangs,qemu.hangs}
for _ in $(seq "$runs"); do
    once bivisor "$bivisor" -M microvm -accel tcg "${guest[@]}"
    once qemu qemu-system-x86_64 -M microvm,rtc=on -accel tcg -cpu max "${guest[@]}"
done

printf '%-8s %5s %8s %10s %8s %8s\n' vmm runs min_ms median_ms max_ms failed
for name in bivisor qemu; do
    printf '%-8s %5d %8s %10s %8s %8d\n' $name "$(wc -l <"$work/$name")" "$(lowest "$work/$name")" \
        "$(median "$work/$name")" "$(highest "$work/$name")" "$(wc -l <"$work/$name.hangs")"
done
printf '{ "what": "boot under translation, ms", "kernel": "%s", "runs": %d, "bivisor_median": %s, "qemu_median": %s, "bivisor_failed": %d, "qemu_failed": %d, %s }\n' \
    "$(cat "$GUESTS/kernel-cloud/release")" "$runs" "$(median "$work/bivisor")" "$(median "$work/qemu")" \
    "$(wc -l <"$work/bivisor.hangs")" "$(wc -l <"$work/qemu.hangs")" "$(host_json)" | tee "$OUT/boot.json"
[ ! -s "$work/bivisor.hangs" ] || die "not every boot of bivisor came up"
