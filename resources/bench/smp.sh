#!/bin/bash
# How much more two CPUs do than one: a load of threads that share nothing, and a parallel make, in a guest with one CPU and with
# two, under bivisor and under qemu-system-x86_64 (both translating, a host thread for each CPU), rounds alternating. The
# host's clock times them, between the marker lines of resources/guests/init/smp.
#
#     resources/bench/smp.sh [RUNS]        (5 unless told)
#
# `speed` does as much per CPU, `compile` as much in all: twice the throughput is a ratio of 2 for both. Needs two idle cores.
# Prints a table, writes target/bench/smp.json.

# shellcheck source=resources/bench/lib.sh
. "$(dirname "$0")/lib.sh"

runs=${1:-5}
JOBS=speed:30000000,compile:-O0
"$REPO/resources/guests/fetch.sh" cloud smp
bivisor=$(program)
vmms=(bivisor)
! command -v qemu-system-x86_64 >/dev/null || vmms+=(qemu)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# start VMM CPUS: the VMM's process replaces this shell's.
start() {
    local command
    case $1 in
    bivisor) command=("$bivisor" -M microvm -accel tcg) ;;
    qemu) command=(qemu-system-x86_64 -M microvm,rtc=on -accel tcg,thread=multi -cpu max) ;;
    esac
    exec "${command[@]}" -smp "$2" -m 1024 -kernel "$GUESTS/vmlinuz-cloud" -initrd "$GUESTS/smp.cpio" -nographic -no-reboot \
        -append "console=ttyS0 reboot=t panic=-1 quiet jobs=$JOBS"
}

# session VMM CPUS: one boot that runs the jobs.
session() {
    local output pid line begun=0 done='' job rest
    exec {output}< <(start "$@" </dev/null 2>"$work/log")
    pid=$!
    while read -r -t 300 -u "$output" line; do
        line=${line%$'\r'}
        case $line in
        'BIVISOR-SMP-BEGIN '*) begun=${EPOCHREALTIME/./} ;;
        'BIVISOR-SMP-END '*' status=0')
            rest=$((${EPOCHREALTIME/./} - begun))
            job=${line#* }
            echo "$rest" >>"$work/${job%%:*}.$1.$2"
            ;;
        BIVISOR-SMP-DONE) done=yes ;;
        esac
    done
    kill -9 "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
    exec {output}<&-
    [ "$done" ] || say "$1 with $2 CPUs hung or died: $(tail -n 1 "$work/log")"
}

for _ in $(seq "$runs"); do
    for vmm in "${vmms[@]}"; do
        for cpus in 1 2; do session "$vmm" $cpus; done
    done
done

json=''
printf '%-8s %-8s %10s %10s %12s\n' job vmm 1_cpu_ms 2_cpus_ms throughput
for job in speed compile; do
    for vmm in "${vmms[@]}"; do
        [ -e "$work/$job.$vmm.1" ] && [ -e "$work/$job.$vmm.2" ] || die "$vmm never finished $job"
        one=$(median "$work/$job.$vmm.1") two=$(median "$work/$job.$vmm.2")
        factor=$(awk -v one="$one" -v two="$two" -v job="$job" 'BEGIN { printf "%.2f", one / two * (job == "speed" ? 2 : 1) }')
        printf '%-8s %-8s %10.1f %10.1f %12s\n' "$job" "$vmm" "$(awk "BEGIN { print $one / 1000 }")" "$(awk "BEGIN { print $two / 1000 }")" "$factor"
        json="$json\"${job}_${vmm}_1_us\": $one, \"${job}_${vmm}_2_us\": $two, "
    done
done
printf '{ "what": "two CPUs against one", "runs": %d, %s%s }\n' "$runs" "$json" "$(host_json)" >"$OUT/smp.json"
say "figures in $OUT/smp.json"
