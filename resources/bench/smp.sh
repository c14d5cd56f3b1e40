#!/bin/bash
# How much more two CPUs do than one: workloads of resources/bench/guest/list, one copy on one CPU and two copies at once on two,
# and threads of one process that share nothing; under bivisor, under qemu-system-x86_64 (both translating, a host thread for
# each CPU) and natively. Rounds alternate. The host's clock times them, between the lines of resources/bench/copies.sh; a
# workload counts only if it ended with 0 and did what it does natively.
#
#     resources/bench/smp.sh [RUNS] [NAME...]        (5, and those below, unless told)
#
# `2:1` is the throughput of two beside that of one. What two CPUs can give natively depends on the machine (two threads of one core
# give far less than two cores), so `/nat` is 2:1 divided by that of the same programs natively. Needs two idle CPUs, and some six
# minutes. $BENCH_VMMS as in workloads.sh. Prints a table, writes target/bench/smp.json.

# shellcheck source=resources/bench/lib.sh
. "$(dirname "$0")/lib.sh"

LIST=$REPO/resources/bench/guest/list
COPIES=$REPO/resources/bench/copies.sh
# A guest that is silent for longer has hung.
BOOT_S=60 SILENCE_S=90

runs=5
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
    runs=$1
    shift
fi
[ $# -gt 0 ] || set -- threads sha256sum gzip python lz nbody mandelbrot spectral getppid signal futex fork exec faults cow
names=("$@")

"$REPO/resources/guests/fetch.sh" cloud bench smp
bivisor=$(program)
read -r -a vmms <<<"${BENCH_VMMS:-bivisor qemu}"
[[ " ${vmms[*]} " != *" qemu "* ]] || need qemu-system-x86_64
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The image of the benchmarks with another /init, and the program of threads.
mkdir -p "$work/more/bench"
install -m 755 "$COPIES" "$work/more/init"
cp "$GUESTS/smp/root/smp/bin/speed" "$work/more/bench/speed"
{ cat "$GUESTS/bench.cpio"; archive "$work/more"; } >"$work/image"
cp -a "$GUESTS/bench/root" "$work/root"
cp "$GUESTS/smp/root/smp/bin/speed" "$work/root/bench/speed"

# start VMM CPUS: the VMM's process replaces this shell's.
start() {
    local command
    case $1 in
    bivisor) command=("$bivisor" -M q35) ;;
    # QEMU's microvm hangs with two CPUs.
    qemu) command=(qemu-system-x86_64 -M q35 -cpu max -nic none) ;;
    esac
    exec "${command[@]}" -accel tcg,thread=multi -smp "$2" -m 1024 -kernel "$GUESTS/vmlinuz-cloud" -initrd "$work/image" \
        -nographic -no-reboot -append "console=ttyS0 reboot=t panic=-1 quiet copies=$2 bench=$(IFS=,; echo "${names[*]}")"
}

# natively COPIES: one copy keeps to one CPU, as in a guest with one.
natively() {
    local cpus=0
    [ "$1" = 1 ] || cpus=0,1
    exec taskset -c "$cpus" "$BASH" -c '. "$1"; in_root "$2" /bin/busybox sh -c "$3" "${@:4}"' \
        bash "$REPO/resources/guests/lib.sh" "$work/root" "$(cat "$COPIES")" copies "$@"
}

failed() { say "round $round, $1 with $2 CPUs: $3"; }

# session SUBJECT CPUS: one boot, or native run, of all workloads.
session() {
    local subject=$1 cpus=$2 lines stamps i word name rest begun=0 took=0 sum done=''
    if [ "$subject" = native ]; then
        watch natively "$cpus" "${names[@]}"
    else
        watch start "$subject" "$cpus"
    fi
    for i in "${!lines[@]}"; do
        # Firmware may have left something on the line of the first.
        read -r word name rest <<<"BENCH-${lines[i]##*BENCH-}"
        case $word in
        BENCH-BEGIN) begun=${stamps[i]} ;;
        BENCH-END) took=$((stamps[i] - begun)) ;;
        BENCH-RESULT)
            sum=$work/sum.$cpus.$name
            [ "$subject" != native ] || [ -e "$sum" ] || echo "$rest" >"$sum"
            if [ "${rest%% *}" != 0 ] || [ "$rest" != "$(cat "$sum")" ]; then
                failed "$subject" "$cpus" "$name: status and checksum $rest, natively $(cat "$sum")"
                touch "$work/wrong.$subject"
            else
                echo "$took" >>"$work/time.$subject.$cpus.$name"
            fi
            ;;
        BENCH-DONE) done=yes ;;
        esac
    done
    [ -n "$done" ] || failed "$subject" "$cpus" "hung or died, its last words: $(last_words)"
}

for round in $(seq "$runs"); do
    for subject in native "${vmms[@]}"; do
        for cpus in 1 2; do session "$subject" $cpus; done
    done
done

figures() {
    local group name subject cpus
    while read -r group name; do
        [[ " ${names[*]} " == *" $name "* ]] || continue
        printf '%s %s' "$group" "$name"
        for subject in native "${vmms[@]}"; do
            for cpus in 1 2; do
                if [ -e "$work/time.$subject.$cpus.$name" ]; then
                    printf ' %s' "$(median "$work/time.$subject.$cpus.$name")"
                else
                    printf ' -'
                fi
            done
        done
        echo
    done < <(echo one threads; awk '!/^#/ && NF { print $1, $2 }' "$LIST")
}
figures >"$work/figures"
awk -v vmms="${vmms[*]}" -v json="$work/json" -f "$REPO/resources/bench/smp.awk" "$work/figures"
printf '{ "what": "two CPUs against one, medians in us", "runs": %d, %s, %s }\n' "$runs" "$(cat "$work/json")" "$(host_json)" \
    >"$OUT/smp.json"
say "figures in $OUT/smp.json"
[ ! -e "$work/wrong.bivisor" ] || die "bivisor failed a workload"
