#!/bin/bash
# Guest workloads (resources/bench/guest/list) under translation: bivisor against qemu-system-x86_64 and against this machine
# itself, where the same binaries run in a chroot on one CPU. One boot of each per round runs all workloads, rounds alternate.
# All times are the host's: it watches for the marker lines that resources/bench/guest/run.c prints; no clock of a guest is
# asked. A workload counts only if it ended with 0 and yielded what it yields natively.
#
#     resources/bench/workloads.sh [RUNS] [NAME...]     (5, and all workloads and `boot`, unless told)
#
# `boot` is the whole boot of the boot test, start of the program to power-off. $BENCH_VMMS names what runs beside the native
# programs ("bivisor qemu" unless told); BENCH_BASELINE=PROGRAM adds another bivisor, as `baseline`.
# Prints a table, writes target/bench/workloads.json.

# shellcheck source=resources/bench/lib.sh
. "$(dirname "$0")/lib.sh"

LIST=$REPO/resources/bench/guest/list
# A line of a guest that is silent for longer will not come: the runner ends each workload after 60 seconds.
SILENCE_S=90

runs=5
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
    runs=$1
    shift
fi
mapfile -t known < <(awk '!/^#/ && NF { print $2 }' "$LIST")
[ $# -gt 0 ] || set -- "${known[@]}" boot
wanted=() boot=''
for name in "$@"; do
    case " ${known[*]} boot " in
    *" $name "*) ;;
    *) die "no workload $name (there are: ${known[*]} boot)" ;;
    esac
    [ "$name" != boot ] && wanted+=("$name") || boot=yes
done

"$REPO/resources/guests/fetch.sh" cloud boot-test bench
bivisor=$(program)
read -r -a vmms <<<"${BENCH_VMMS:-bivisor qemu}"
[ -z "${BENCH_BASELINE:-}" ] || vmms+=(baseline)
[[ " ${vmms[*]} " != *" qemu "* ]] || need qemu-system-x86_64
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# start SUBJECT GUEST-OPTION...: the subject's process replaces this shell's.
start() {
    local subject=$1 command
    shift
    case $subject in
    bivisor) command=("$bivisor" -M microvm -accel tcg) ;;
    baseline) command=("$BENCH_BASELINE" -M microvm -accel tcg) ;;
    qemu) command=(qemu-system-x86_64 -M microvm,rtc=on -accel tcg -cpu max) ;;
    esac
    exec "${command[@]}" -kernel "$GUESTS/vmlinuz-cloud" -nographic -no-reboot "$@"
}

failed() {
    say "round $round, $1, $2: $3"
    echo "$3" >>"$work/failed.$1.$2"
}

# judge SUBJECT NAME STATUS SUM: the native run, which is a round's first, says what the sum must be.
judge() {
    local subject=$1 name=$2 status=$3 sum=$4
    [ "$subject" != native ] || [ -e "$work/sum.$name" ] || echo "$sum" >"$work/sum.$name"
    if [ "$status" != 0 ]; then
        failed "$subject" "$name" "exit status $status"
    elif [ "$sum" != "$(cat "$work/sum.$name" 2>/dev/null)" ]; then
        failed "$subject" "$name" "another result than natively"
    else
        echo "$took" >>"$work/time.$subject.$name"
    fi
}

# session SUBJECT NAME...: one boot, or native run, of these workloads. Leaves in $left those it did not get to: not the one
# during which it hung or died, which has failed.
session() {
    local subject=$1 output pid line lines=() stamps=()
    shift
    left=("$@")
    if [ "$subject" = native ]; then
        exec {output}< <(in_root "$GUESTS/bench/root" /bin/busybox sh /bench/start "$@" 2>"$work/log")
    else
        exec {output}< <(start "$subject" -m 1024 -initrd "$GUESTS/bench.cpio" \
            -append "console=ttyS0 reboot=t panic=-1 quiet bench=$(IFS=,; echo "$*")" </dev/null 2>"$work/log")
    fi
    pid=$!
    # Nothing else is done here: it would make the stamp of the line after late.
    while read -r -t "$SILENCE_S" -u "$output" line; do
        stamps+=("$EPOCHREALTIME")
        lines+=("${line%$'\r'}")
    done
    kill -9 "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
    exec {output}<&-
    replay "$subject"
}

# replay SUBJECT: what a session's lines say.
replay() {
    local subject=$1 i word name rest stamp begun=0 current=''
    for i in "${!lines[@]}"; do
        stamp=${stamps[i]/./}
        read -r word name rest <<<"${lines[i]}"
        case $word in
        BENCH-BEGIN) current=$name begun=$stamp ;;
        BENCH-END) took=$((stamp - begun)) ;;
        BENCH-RESULT) judge "$subject" "$name" "${rest% *}" "${rest#* }" && current='' left=("${left[@]:1}") ;;
        BENCH-SKIP) failed "$subject" "$name" "$rest" && left=("${left[@]:1}") ;;
        BENCH-DONE) left=() && return 0 ;;
        *) echo "${lines[i]}" >>"$work/log" ;;
        esac
    done
    [ -z "$current" ] || left=("${left[@]:1}")
    failed "$subject" "${current:-start}" "hung or died, its last words: $(tail -n 2 "$work/log" | tr '\r\n' '  ')"
}

# all SUBJECT: every workload, in a new boot after one that ended early; three boots that get nowhere end the round.
all() {
    local subject=$1 before hopeless=0 left=("${wanted[@]}")
    while [ ${#left[@]} -gt 0 ] && [ $hopeless -lt 3 ]; do
        before=${#left[@]}
        : >"$work/log"
        session "$subject" "${left[@]}"
        [ ${#left[@]} -lt "$before" ] || hopeless=$((hopeless + 1))
    done
}

boot_once() {
    local subject=$1 begun ended
    begun=${EPOCHREALTIME/./}
    (start "$subject" -m 512 -initrd "$GUESTS/boot-test.gz" -append "console=ttyS0 reboot=t panic=-1") </dev/null >"$work/log" 2>&1 &
    # A watchdog beside it, so that timeout's own start is not measured.
    local pid=$! dog
    (sleep 60; kill -9 "$pid" 2>/dev/null) &
    dog=$!
    wait "$pid" || true
    ended=${EPOCHREALTIME/./}
    kill "$dog" 2>/dev/null || true
    wait "$dog" 2>/dev/null || true
    if grep -q '^BIVISOR-INIT-OK' "$work/log" && grep -q 'reboot: Power down' "$work/log"; then
        echo $((ended - begun)) >>"$work/time.$subject.boot"
    else
        failed "$subject" boot "hung or died, its last words: $(tail -n 2 "$work/log" | tr '\r\n' '  ')"
    fi
}

for round in $(seq "$runs"); do
    for subject in native "${vmms[@]}"; do
        all "$subject"
        [ -z "$boot" ] || [ "$subject" = native ] || boot_once "$subject"
    done
done

# One line per workload: group, name, median microseconds natively and of each VMM, failures of each; - is none.
figures() {
    local group name subject
    while read -r group name; do
        [[ " ${wanted[*]} ${boot:+boot} " == *" $name "* ]] || continue
        printf '%s %s' "$group" "$name"
        for subject in native "${vmms[@]}"; do
            if [ -e "$work/time.$subject.$name" ]; then
                printf ' %s' "$(median "$work/time.$subject.$name")"
            else
                printf ' -'
            fi
            printf ' %d' "$(cat "$work/failed.$subject.$name" 2>/dev/null | wc -l)"
        done
        echo
    done < <(awk '!/^#/ && NF { print $1, $2 }' "$LIST"; echo boot boot)
}
figures >"$work/figures"
awk -v vmms="native ${vmms[*]}" -v json="$work/json" -f "$REPO/resources/bench/workloads.awk" "$work/figures"
printf '{ "what": "guest workloads under translation, medians in us", "kernel": "%s", "runs": %d, %s, %s }\n' \
    "$(cat "$GUESTS/kernel-cloud/release")" "$runs" "$(cat "$work/json")" "$(host_json)" >"$OUT/workloads.json"
say "figures in $OUT/workloads.json"
shopt -s nullglob
[ -z "$(echo "$work"/failed.bivisor.*)" ] || die "bivisor failed a workload"
