#!/bin/bash
# Peak memory of the program beyond the guest's pages, during a boot of Debian's kernel to init and power-off (see
# peak.sh for what is counted). Writes target/bench/memory.json.
#
#     resources/bench/memory.sh [WHAT...]
#
# WHAT: tcg (the cloud kernel), tcg-generic, kvm, nested, bench (programs of the benchmark), bench-qemu (the same, by
# qemu-system-x86_64's TCG). Without one: tcg and kvm where /dev/kvm is, else tcg.
# A KVM that only emulates (resources/design/0001-nested-kvm.md) takes minutes to get nowhere: there kvm is the boot's
# first ten seconds. nested is a whole boot under -accel kvm, in an emulated host.

# shellcheck source=resources/bench/lib.sh
. "$(dirname "$0")/lib.sh"
HERE=$REPO/resources/bench
LIMIT=120 EMULATED_LIMIT=10

if [ $# -eq 0 ]; then
    set -- tcg
    [ ! -w /dev/kvm ] || set -- tcg kvm
fi
"$REPO/resources/guests/fetch.sh" cloud boot-test
bivisor=$(program)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# boot LIMIT ACCEL KERNEL: into $work/log
boot() {
    "$HERE/peak.sh" -g 512 -t "$1" "$bivisor" -M microvm -accel "$2" -m 512 -kernel "$GUESTS/vmlinuz-$3" -initrd "$GUESTS/boot-test.gz" \
        -append "console=ttyS0 reboot=t panic=-1" -nographic -no-reboot >"$work/log" 2>&1 ||
        die "-accel $2: exit code $?: $(tail -n 3 "$work/log")"
}

whole_boot() {
    boot $LIMIT "$@"
    came_up
}

came_up() {
    grep -q '^BIVISOR-INIT-OK' "$work/log" || die "the guest did not boot: $(tail -n 3 "$work/log")"
}

# programs PARAMETERS COMMAND...: programs of the benchmark, in a guest with 1 GiB whose kernel has these parameters, too.
programs() {
    local parameters=$1
    shift
    "$REPO/resources/guests/fetch.sh" bench
    "$HERE/peak.sh" -g 1024 -t 300 "$@" -kernel "$GUESTS/vmlinuz-cloud" -nographic -no-reboot -m 1024 -initrd "$GUESTS/bench.cpio" \
        -append "console=ttyS0 reboot=t panic=-1 quiet bench=xz,sqlite,python,gcc,perl,matrix,rsa,fork,jit-wx,cold $parameters" >"$work/log" 2>&1 ||
        die "exit code $?: $(tail -n 3 "$work/log")"
    grep -q '^BENCH-DONE' "$work/log" || die "the programs did not end: $(tail -n 3 "$work/log")"
}

nested() {
    local name
    need qemu-system-x86_64
    name=$(basename "$bivisor")
    "$REPO/resources/guests/nested.sh" "$work/l1.gz" --program "$bivisor" --file "$HERE/peak.sh" --run \
        "sh /files/peak.sh -g 512 $name -M microvm -accel kvm -m 512 -kernel /guests/vmlinuz-cloud -initrd /guests/boot-test.gz -append 'console=ttyS0 reboot=t panic=-1' -nographic -no-reboot"
    timeout -k 5 300 qemu-system-x86_64 -M q35 -accel tcg -cpu max,+svm -smp 1 -m 2048 -nic none -nographic -no-reboot \
        -kernel "$GUESTS/vmlinuz-cloud" -initrd "$work/l1.gz" -append "console=ttyS0 reboot=t panic=-1 quiet" \
        </dev/null 2>&1 | tr -d '\r' >"$work/log"
    came_up
}

json=''
printf '%-12s %12s %12s %8s  %s\n' boot beyond_KiB guest_KiB samples note
for what in "$@"; do
    note=''
    case $what in
    tcg) whole_boot tcg cloud ;;
    tcg-generic)
        "$REPO/resources/guests/fetch.sh" generic
        whole_boot tcg generic
        ;;
    kvm)
        # A warning tells.
        warning=$("$bivisor" -M microvm -accel kvm -kernel "$GUESTS/vmlinuz-cloud" -m 512 -display none -timeout 0.01 2>&1 </dev/null) || true
        if [[ $warning == *'Linux will not run on this KVM'* ]]; then
            note="the first $EMULATED_LIMIT s: this KVM only emulates"
            boot $EMULATED_LIMIT kvm cloud
        else
            whole_boot kvm cloud
        fi
        ;;
    nested) nested ;;
    bench) programs "" "$bivisor" -M microvm -accel tcg ;;
    bench-qemu) programs "$(qemu_clock)" qemu-system-x86_64 -M microvm,rtc=on -accel tcg -cpu max ;;
    *) die "unknown: $what (known: tcg tcg-generic kvm nested bench bench-qemu)" ;;
    esac
    peak=$(grep '^PEAK ' "$work/log") || die "no peak was told"
    beyond=${peak#*beyond_kib=} guest=${peak#*guest_kib=} samples=${peak#*samples=}
    beyond=${beyond%% *} guest=${guest%% *}
    [ "$guest" -gt 0 ] || die "no mapping of the size of guest RAM was seen: the figure would count guest pages"
    printf '%-12s %12d %12d %8d  %s\n' "$what" "$beyond" "$guest" "$samples" "$note"
    json="$json\"${what}_beyond_kib\": $beyond, \"${what}_guest_kib\": $guest, "
done
printf '{ "what": "peak resident memory", %s%s }\n' "$json" "$(host_json)" | tee "$OUT/memory.json"
