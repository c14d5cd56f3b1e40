#!/bin/bash
# Peak memory of the program beyond the guest's pages during a boot: what its mappings other than the guest's RAM hold, sampled every
# few ms from /proc/PID/smaps. Guest RAM is the memfd called guest-ram. Writes target/bench/memory.json.
#
#     resources/bench/memory.sh [ACCEL]...        (tcg unless told)

# shellcheck source=resources/bench/lib.sh
. "$(dirname "$0")/lib.sh"

[ $# -gt 0 ] || set -- tcg
"$REPO/resources/guests/fetch.sh" cloud boot-test
bivisor=$(program)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# sample PID: KiB resident outside of guest RAM, and inside. A memfd that is mapped twice (translated code: once
# writable, once executable) holds its pages once: for memfds the proportional size counts.
sample() {
    awk '/^[0-9a-f]+-[0-9a-f]+ / { guest = /memfd:guest-ram/; memfd = /memfd:/ }
         /^Rss:/ && !memfd { outside += $2 }
         /^Pss:/ && memfd { if (guest) inside += $2; else outside += $2 }
         END { print outside + 0, inside + 0 }' "/proc/$1/smaps" 2>/dev/null || true
}

json=''
printf '%-6s %12s %12s %8s\n' accel beyond_KiB guest_KiB samples
for accel in "$@"; do
    "$bivisor" -M microvm -accel "$accel" -m 512 -kernel "$GUESTS/vmlinuz-cloud" -initrd "$GUESTS/boot-test.gz" \
        -append "console=ttyS0 reboot=t panic=-1" -nographic -no-reboot </dev/null >"$work/log" 2>&1 &
    pid=$!
    outside=0 inside=0 samples=0 begun=$SECONDS
    while kill -0 $pid 2>/dev/null; do
        read -r o i <<<"$(sample $pid)" || true
        [ "${o:-0}" -le "$outside" ] || outside=$o
        [ "${i:-0}" -le "$inside" ] || inside=$i
        samples=$((samples + 1))
        [ $((SECONDS - begun)) -lt 120 ] || {
            kill $pid
            die "-accel $accel: the boot hangs"
        }
        sleep 0.005
    done
    wait $pid || die "-accel $accel: exit code $?: $(tail -n 3 "$work/log")"
    grep -q '^BIVISOR-INIT-OK' "$work/log" || die "-accel $accel: the guest did not boot"
    [ "$inside" -gt 0 ] || die "no mapping called guest-ram was seen: the figure would count guest pages"
    printf '%-6s %12d %12d %8d\n' "$accel" "$outside" "$inside" "$samples"
    json="$json\"${accel}_beyond_kib\": $outside, \"${accel}_guest_kib\": $inside, "
done
printf '{ "what": "peak resident memory", %s%s }\n' "$json" "$(host_json)" | tee "$OUT/memory.json"
