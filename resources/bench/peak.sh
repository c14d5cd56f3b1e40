#!/bin/sh
# Runs a command and tells the most memory that it had resident at one time, sampled from /proc/PID/smaps:
#
#     resources/bench/peak.sh -g MIB [-t SECONDS] COMMAND...       (ended after so many seconds, if told)
#
# The last line of standard output is "PEAK beyond_kib=N guest_kib=N samples=N". Guest RAM is the mapping of MIB, what -m says, and
# every mapping of the memfd "guest-ram"; all else is "beyond". A memfd that is mapped twice (translated code: once writable, once executable) holds its pages
# once: for memfds the proportional size counts. Plain sh and awk: busybox's do.

limit=0 ram=0
while :; do
    case $1 in
    -g) ram=$(($2 * 1024)) ;;
    -t) limit=$2 ;;
    *) break ;;
    esac
    shift 2
done

"$@" </dev/null &
pid=$!
beyond=0 guest=0 samples=0 begun=$(date +%s) ended=''
while kill -0 $pid 2>/dev/null && ! grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null; do
    now=$(awk -v ram="$ram" '
        /^[0-9a-f]+-[0-9a-f]+ / { memfd = /memfd:/; named = /memfd:guest-ram/ }
        /^Size:/ { guest = named || $2 == ram }
        /^Rss:/ && !memfd { if (guest) inside += $2; else outside += $2 }
        /^Pss:/ && memfd { if (guest) inside += $2; else outside += $2 }
        END { print outside + 0, inside + 0 }' "/proc/$pid/smaps" 2>/dev/null) || now='0 0'
    [ "${now% *}" -le "$beyond" ] || beyond=${now% *}
    [ "${now#* }" -le "$guest" ] || guest=${now#* }
    samples=$((samples + 1))
    if [ "$limit" -gt 0 ] && [ $(($(date +%s) - begun)) -ge "$limit" ]; then
        ended=yes
        kill $pid
        break
    fi
    sleep 0.01
done
status=0
wait $pid || status=$?
[ -z "$ended" ] || status=0
echo "PEAK beyond_kib=$beyond guest_kib=$guest samples=$samples"
exit $status
