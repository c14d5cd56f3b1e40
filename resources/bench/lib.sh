# Shared functions of the benchmarks. Sourced, never run. Every figure is taken from runs of this very call.

# shellcheck source=resources/guests/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../guests/lib.sh"
export PATH=$PATH:$HOME/.cargo/bin
OUT=$REPO/target/bench
mkdir -p "$OUT"

# The program to measure: the release build, or $BENCH_PROGRAM.
program() {
    if [ -n "${BENCH_PROGRAM:-}" ]; then
        echo "$BENCH_PROGRAM"
    else
        (cd "$REPO" && cargo build --release --quiet --bin bivisor) || die "the release build fails"
        echo "${CARGO_TARGET_DIR:-$REPO/target}/release/bivisor"
    fi
}

# median FILE: of numbers, one a line; of an even count the lower middle one is not favoured: their mean.
median() {
    sort -n "$1" | awk '{ v[NR] = $1 } END { if (NR == 0) { print "null"; exit } m = int((NR + 1) / 2); printf "%d\n", (v[m] + v[NR + 1 - m]) / 2 }'
}

lowest() { sort -n "$1" | head -n 1; }
highest() { sort -n "$1" | tail -n 1; }

# host_json: what the figures were taken on.
host_json() {
    printf '"cpu": "%s", "cores": %d, "host_kernel": "%s", "date": "%s"' \
        "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" "$(nproc)" "$(uname -r)" "$(date -u +%F)"
}

# qemu_clock: what the kernel is told of the TSC under QEMU's microvm, which shows it the host's: there it is calibrated with the PIT,
# fails on a busy host, and hangs. For what is timed after the boot, by the host.
qemu_clock() {
    awk -F: '/^cpu MHz/ { printf "tsc_early_khz=%d", $2 * 1000; exit }' /proc/cpuinfo
}

# watch COMMAND...: leaves what the command says in $lines and when each line came in $stamps, until it ends or hangs: it is silent
# for $BOOT_S seconds, or for $SILENCE_S between BENCH- lines. What it says on stderr goes to $work/log.
watch() {
    local output pid line limit=$BOOT_S
    lines=() stamps=()
    exec {output}< <("$@" </dev/null 2>"$work/log")
    pid=$!
    # Nothing else is done here: it would make the stamp of the next line late.
    while read -r -t "$limit" -u "$output" line; do
        stamps+=("${EPOCHREALTIME/./}")
        lines+=("${line%$'\r'}")
        [[ $line != BENCH-* ]] || limit=$SILENCE_S
    done
    kill -9 "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
    exec {output}<&-
}

last_words() { { cat "$work/log"; printf '%s\n' "${lines[@]}"; } | tail -n 2 | cut -c 1-160 | tr '\n' ' '; }
