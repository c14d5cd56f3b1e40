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
# A guest that is silent for longer has hung: the runner ends each workload after 60 seconds, and no boot is that slow.
BOOT_S=30 SILENCE_S=90

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

# start SUBJECT PARAMETERS GUEST-OPTION...: the subject's process, whose kernel has these parameters too, replaces this shell's.
start() {
    local subject=$1 append=$2 command
    shift 2
    case $subject in
    bivisor) command=("$bivisor" -M microvm -accel tcg) ;;
    baseline) command=("$BENCH_BASELINE" -M microvm -accel tcg) ;;
    qemu)
        command=(qemu-system-x86_64 -M microvm,rtc=on -accel tcg -cpu max)
        [[ $append != *bench=* ]] || append+=" $(qemu_clock)"
        ;;
    esac
    exec "${command[@]}" -kernel "$GUESTS/vmlinuz-cloud" -append "console=ttyS0 reboot=t panic=-1 $append" -nographic -no-reboot "$@"
}

failed() {
    say "round $round, $1, $2: $3"
    echo "$3" >>"$work/failed.$1.$2"
}

# judge SUBJECT NAME STATUS SUM MICROSECONDS: the native run, which is a round's first, says what the sum must be.
judge() {
    local subject=$1 name=$2 status=$3 sum=$4
    [ "$subject" != native ] || [ -e "$work/sum.$name" ] || echo "$sum" >"$work/sum.$name"
    if [ "$status" != 0 ]; then
        failed "$subject" "$name" "exit status $status"
    elif [ "$sum" != "$(cat "$work/sum.$name" 2>/dev/null)" ]; then
        failed "$subject" "$name" "another result than natively"
    else
        echo "$5" >>"$work/time.$subject.$name"
    fi
}

# session SUBJECT NAME...: one boot, or native run, of these workloads. Leaves in $left those it did not get to: not the one
# during which it hung or died, which has failed.
session() {
    local subject=$1 lines stamps
    shift
    left=("$@")
    if [ "$subject" = native ]; then
        watch in_root "$GUESTS/bench/root" /bin/busybox sh /bench/start "$@"
    else
        watch start "$subject" "quiet bench=$(IFS=,; echo "$*")" -m 1024 -initrd "$GUESTS/bench.cpio"
    fi
    replay "$subject"
}

# replay SUBJECT: what a session's lines say.
replay() {
    local subject=$1 i word name rest begun=0 took=0 current=''
    for i in "${!lines[@]}"; do
        read -r word name rest <<<"${lines[i]}"
        case $word in
        BENCH-BEGIN) current=$name begun=${stamps[i]} ;;
        BENCH-END) took=$((stamps[i] - begun)) ;;
        BENCH-RESULT) judge "$subject" "$name" "${rest% *}" "${rest#* }" "$took" && current='' left=("${left[@]:1}") ;;
        BENCH-SKIP) failed "$subject" "$name" "$rest" && left=("${left[@]:1}") ;;
        BENCH-DONE) left=() && return 0 ;;
        esac
    done
    [ -z "$current" ] || left=("${left[@]:1}")
    failed "$subject" "${current:-start}" "hung or died, its last words: $(last_words)"
}

# all SUBJECT: every workload, in a new boot after one that ended early. QEMU's microvm hangs early at times on a busy host
# (while it looks for the TSC's frequency): five boots that get nowhere end the round.
all() {
    local subject=$1 before hopeless=0 left=("${wanted[@]}")
    while [ ${#left[@]} -gt 0 ] && [ $hopeless -lt 5 ]; do
        before=${#left[@]}
        session "$subject" "${left[@]}"
        [ ${#left[@]} -lt "$before" ] || hopeless=$((hopeless + 1))
    done
}

# boot_once SUBJECT: until its output ends, which is when the process does.
boot_once() {
    local subject=$1 begun ended lines stamps
    begun=${EPOCHREALTIME/./}
    watch start "$subject" "" -m 512 -initrd "$GUESTS/boot-test.gz"
    ended=${EPOCHREALTIME/./}
    if [[ "${lines[*]}" == *BIVISOR-INIT-OK*'reboot: Power down'* ]]; then
        echo $((ended - begun)) >>"$work/time.$subject.boot"
    else
        failed "$subject" boot "hung or died, its last words: $(last_words)"
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
            touch "$work/failed.$subject.$name"
            printf ' %d' "$(wc -l <"$work/failed.$subject.$name")"
        done
        echo
    done < <(awk '!/^#/ && NF { print $1, $2 }' "$LIST"; echo boot boot)
}
figures >"$work/figures"
for subject in "${vmms[@]}"; do
    [ ! -e "$work/failed.$subject.start" ] || say "$subject: $(wc -l <"$work/failed.$subject.start") boots got nowhere"
done
awk -v vmms="native ${vmms[*]}" -v json="$work/json" -f "$REPO/resources/bench/workloads.awk" "$work/figures"
printf '{ "what": "guest workloads under translation, medians in us", "kernel": "%s", "runs": %d, %s, %s }\n' \
    "$(cat "$GUESTS/kernel-cloud/release")" "$runs" "$(cat "$work/json")" "$(host_json)" >"$OUT/workloads.json"
say "figures in $OUT/workloads.json"
[ -z "$(cat "$work"/failed.bivisor.* 2>/dev/null)" ] || die "bivisor failed a workload"
