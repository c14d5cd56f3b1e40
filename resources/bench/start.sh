#!/bin/bash
# Wall clock from the start of the program to the guest's first instructions, on KVM: they send a byte to the serial
# port, and the time is taken here, when that byte arrives at the other end of the program's standard output. So it
# includes making the process and all that the byte passes through; the end of the program is told beside it.
#
# Two guests: the smallest one, and Debian's kernel with its initramfs, whose entry is overwritten by the same
# instructions, so that all loading is real.
#
#     resources/bench/start.sh [RUNS] [ACCEL]        (20 and kvm unless told)
#
# What else the host does counts too: on a busy one compare with qemu's figures, or run it as `chrt -f 1 resources/bench/start.sh`.
#
# qemu-system-x86_64 runs beside it where it is installed. Prints a table, writes target/bench/start.json.

# shellcheck source=resources/bench/lib.sh
. "$(dirname "$0")/lib.sh"

runs=${1:-20} accel=${2:-kvm}
"$REPO/resources/guests/fetch.sh" cloud boot-test
need as ld objcopy
bivisor=$(program)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

as --64 -o "$work/first.o" "$REPO/resources/bench/first.S"
ld -m elf_x86_64 --no-warn-rwx-segments -N -Ttext=0x100000 -e _start -o "$work/small" "$work/first.o"
objcopy -O binary -j .text "$work/first.o" "$work/first.bin"

# The protected-mode part begins after the set-up sectors (Documentation/arch/x86/boot.rst, setup_sects); it is entered at
# its first byte in 32-bit mode or 0x200 later in 64-bit mode.
cp "$GUESTS/vmlinuz-cloud" "$work/linux"
sectors=$(od -An -tu1 -j 497 -N 1 "$work/linux")
for entry in 0 512; do
    dd if="$work/first.bin" of="$work/linux" bs=1 seek=$(((sectors + 1) * 512 + entry)) conv=notrunc status=none
done

# once NAME COMMAND...: exit code 99 is the debug exit's (0x31 << 1) | 1: anything else is not what was to be timed.
once() {
    local name=$1 begun first ended status=0 output pid text arrived=''
    shift
    begun=${EPOCHREALTIME/./}
    exec {output}< <(exec "$@" -nographic -no-reboot -device isa-debug-exit,iobase=0xf4,iosize=1 </dev/null 2>"$work/log")
    pid=$!
    # qemu enters Debian's kernel in real mode: its set-up part may talk before.
    ! read -r -d '!' -t 60 -u "$output" text || arrived=yes
    first=${EPOCHREALTIME/./}
    [ "$arrived" ] || kill "$pid" 2>/dev/null || true
    wait "$pid" || status=$?
    ended=${EPOCHREALTIME/./}
    exec {output}<&-
    [ "$arrived" ] && [ $status = 99 ] || {
        cat "$work/log" >&2
        die "$name: said \"$text\" and ${arrived:-no} !, exit code $status instead of 99"
    }
    echo $((first - begun)) >>"$work/$name"
    echo $((ended - begun)) >>"$work/$name.end"
}

vmms=(bivisor)
! command -v qemu-system-x86_64 >/dev/null || vmms+=(qemu)
for _ in $(seq "$runs"); do
    for vmm in "${vmms[@]}"; do
        case $vmm in
        bivisor) command=("$bivisor" -M microvm -accel "$accel") ;;
        qemu) command=(qemu-system-x86_64 -M microvm,rtc=on -accel "$accel") ;;
        esac
        once "$vmm-small" "${command[@]}" -m 128 -kernel "$work/small"
        once "$vmm-linux" "${command[@]}" -m 512 -kernel "$work/linux" -initrd "$GUESTS/boot-test.gz" -append "console=ttyS0"
    done
done

printf '%-14s %5s %9s %10s %9s %14s\n' guest runs min_us median_us max_us end_median_us
for vmm in "${vmms[@]}"; do
    for guest in small linux; do
        name=$vmm-$guest
        printf '%-14s %5d %9d %10d %9d %14d\n' "$name" "$runs" "$(lowest "$work/$name")" "$(median "$work/$name")" \
            "$(highest "$work/$name")" "$(median "$work/$name.end")"
    done
done
{
    printf '{ "what": "start to first instruction, us", "accel": "%s", "runs": %d' "$accel" "$runs"
    for vmm in "${vmms[@]}"; do
        printf ', "%s_small_median": %s, "%s_linux_median": %s' "$vmm" "$(median "$work/$vmm-small")" "$vmm" "$(median "$work/$vmm-linux")"
    done
    printf ', %s }\n' "$(host_json)"
} | tee "$OUT/start.json"
