#!/bin/busybox sh
# Runs workloads of resources/bench/guest/list, several copies of each at once, and tells the host on standard output:
#
#     BENCH-BEGIN name                 just before the first copy
#     BENCH-END name                   when the last one has ended
#     BENCH-RESULT name STATUS SUM     the worst exit status, and a checksum of what they printed and made, if all did the same
#
#     copies.sh COPIES NAME...         natively; as the /init of a guest it takes both from the kernel's command line
#
# `threads` is one process of so many threads instead.
export PATH=/usr/bin:/bin
if [ $$ = 1 ]; then
    busybox mount -t proc proc /proc
    busybox mount -t sysfs sys /sys
    busybox mount -t devtmpfs dev /dev 2>/dev/null
    busybox mount -t tmpfs tmp /tmp
    # No kernel message may land within a marker line.
    busybox dmesg -n 1
    # The kernel hands its parameters on as variables.
    # shellcheck disable=SC2046,SC2154
    set -- "$copies" $(busybox echo "$bench" | busybox tr , ' ')
    as_init=yes
fi
copies=$1
shift

clean() { busybox env -i PATH="$PATH" HOME=/tmp LC_ALL=C PYTHONHASHSEED=0 PERL_HASH_SEED=0 "$@"; }

# copy N COMMAND...: what it prints and makes goes to files of its own.
copy() {
    local n=$1
    shift
    # No word has blanks.
    # shellcheck disable=SC2046
    clean $(busybox echo "$@" | busybox sed "s|/tmp/result|/tmp/$n.result|") >"/tmp/$n.output" 2>&1 </dev/null
}

# run NAME N COMMAND...: N copies.
run() {
    local name=$1 number=$2 n pids='' status=0 sum='' one
    shift 2
    busybox rm -f /tmp/*.output /tmp/*.result
    busybox echo "BENCH-BEGIN $name"
    for n in $(busybox seq "$number"); do
        copy "$n" "$@" &
        pids="$pids $!"
    done
    for n in $pids; do wait "$n" || status=$?; done
    busybox echo "BENCH-END $name"
    for n in $(busybox seq "$number"); do
        one=$(busybox cat "/tmp/$n.output" "/tmp/$n.result" 2>/dev/null | busybox md5sum)
        one=${one%% *}
        [ "${sum:-$one}" = "$one" ] && sum=$one || sum=copies-differ
    done
    busybox echo "BENCH-RESULT $name $status $sum"
}

for name; do
    if [ "$name" = threads ]; then
        # Long enough that starting them is no part of it.
        run threads 1 /bench/speed "$copies" 300000000
        continue
    fi
    while read -r _ its _ _ command; do
        # shellcheck disable=SC2086
        [ "$its" != "$name" ] || run "$name" "$copies" $command
    done </bench/list
done
busybox echo BENCH-DONE
[ -z "$as_init" ] || busybox poweroff -f
