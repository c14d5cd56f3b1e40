#!/bin/bash
# Input and output under translation: bivisor against qemu-system-x86_64, alternating, same kernel, same initramfs, same image on
# the host's page cache: TCP through the user network each way, a virtio disk read from one end to the other and in blocks of 4 KiB.
# The host times the marker lines of resources/guests/init/io; no clock of a guest is asked.
#
#     resources/bench/io.sh [RUNS] [NAME...]     (5, and all: get put read direct random1 random8)
#
# $BENCH_VMMS names the subjects ("bivisor qemu" unless told); BENCH_BASELINE=PROGRAM adds another bivisor, as `baseline`.
# Prints a table, writes target/bench/io.json.

# shellcheck source=resources/bench/lib.sh
. "$(dirname "$0")/lib.sh"

BOOT_S=30 SILENCE_S=90
MIB=256 DISK_MIB=512 BLOCKS=20000

runs=5
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
    runs=$1
    shift
fi
[ $# -gt 0 ] || set -- get put read direct random1 random8
names=("$@")
"$REPO/resources/guests/fetch.sh" cloud io
bivisor=$(program)
read -r -a vmms <<<"${BENCH_VMMS:-bivisor qemu}"
[ -z "${BENCH_BASELINE:-}" ] || vmms+=(baseline)
[[ " ${vmms[*]} " != *" qemu "* ]] || need qemu-system-x86_64
work=$(mktemp -d)
server=''
trap 'kill $server 2>/dev/null; rm -rf "$work"' EXIT
disk=$OUT/io.img
[ "$(stat -c %s "$disk" 2>/dev/null)" = $((DISK_MIB << 20)) ] || head -c "${DISK_MIB}M" /dev/urandom >"$disk"
"$GUESTS/bench-io" serve >"$work/port" &
server=$!
until [ -s "$work/port" ]; do sleep 0.1; done
append="console=ttyS0 reboot=t panic=-1 quiet mib=$MIB blocks=$BLOCKS port=$(cat "$work/port") io=$(IFS=,; echo "${names[*]}")"

# start SUBJECT: its process replaces this shell's.
start() {
    local command clock=''
    case $1 in
    bivisor) command=("$bivisor" -M microvm -accel tcg) ;;
    baseline) command=("$BENCH_BASELINE" -M microvm -accel tcg) ;;
    qemu) command=(qemu-system-x86_64 -M microvm,rtc=on -accel tcg -cpu max) clock=$(qemu_clock) ;;
    esac
    cat "$disk" >/dev/null
    exec "${command[@]}" -m 1024 -kernel "$GUESTS/vmlinuz-cloud" -initrd "$GUESTS/io.gz" -append "$append $clock" -nographic -no-reboot \
        -netdev user,id=n0 -device virtio-net-device,netdev=n0 \
        -drive file="$disk",format=raw,if=none,id=d0,readonly=on -device virtio-blk-device,drive=d0
}

# session SUBJECT: one boot; false if it did not get through.
session() {
    local subject=$1 lines stamps i word name status begun=0
    watch start "$subject"
    for i in "${!lines[@]}"; do
        read -r word name status <<<"${lines[i]}"
        case $word in
        BENCH-BEGIN) begun=${stamps[i]} ;;
        BENCH-END)
            [ "$status" = 0 ] || return 1
            echo $((stamps[i] - begun)) >>"$work/time.$subject.$name"
            ;;
        BENCH-DONE) return 0 ;;
        esac
    done
    say "$subject hung or died: $(last_words)"
    return 1
}

for _ in $(seq "$runs"); do
    for subject in "${vmms[@]}"; do
        # A boot that gets nowhere has timed nothing.
        for attempt in 1 2 3 4; do
            ! session "$subject" || break
            [ "$subject" = qemu ] && [ "$attempt" -lt 4 ] || die "$subject does not get through"
        done
    done
done

# What a workload moves: its amount and the unit per second.
amount() {
    case $1 in
    get | put) echo "$MIB MiB/s" ;;
    read | direct) echo "$DISK_MIB MiB/s" ;;
    random*) echo "$BLOCKS blocks/s" ;;
    esac
}

json=''
printf '%-10s %-9s' workload unit
printf ' %12s' "${vmms[@]}"
printf ' %s\n' "ratios to the first"
for name in "${names[@]}"; do
    read -r amount unit < <(amount "$name")
    printf '%-10s %-9s' "$name" "$unit"
    first=$(median "$work/time.${vmms[0]}.$name") ratios=''
    for subject in "${vmms[@]}"; do
        time=$(median "$work/time.$subject.$name")
        printf ' %12s' "$(awk "BEGIN { printf \"%.0f\", $amount * 1e6 / $time }")"
        ratios+=" $(awk "BEGIN { printf \"%.2f\", $time / $first }")"
        json+="\"${name}_$subject\": $time, "
    done
    printf ' %s\n' "$ratios"
done
printf '{ "what": "input and output under translation, medians in us", "mib": %d, "disk_mib": %d, "blocks": %d, "runs": %d, %s%s }\n' \
    $MIB $DISK_MIB $BLOCKS "$runs" "$json" "$(host_json)" >"$OUT/io.json"
say "figures in $OUT/io.json"
