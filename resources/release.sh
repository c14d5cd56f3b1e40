#!/bin/bash
# Builds the fastest program: a release build guided by a profile of its own runs under translation. They are runs of guests that
# the tests have, none of the benchmarks' (resources/bench): their figures would be flattered.
#
#     resources/release.sh
#
# Leaves it at target/guided/bivisor and prints that path; target/release stays as it is. All is built anew, and twice: some
# eight minutes on two cores. It takes rustc's own llvm-profdata, of rustup's component llvm-tools, which is added where it is missing.

# shellcheck source=resources/guests/lib.sh
. "$(dirname "$0")/guests/lib.sh"
export PATH=$PATH:$HOME/.cargo/bin

[ $# -eq 0 ] || die "usage: release.sh"
cd "$REPO"
host=$(rustc -vV | sed -n 's/^host: //p')
profdata=$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata
if [ ! -x "$profdata" ]; then
    ! command -v rustup >/dev/null || rustup --quiet component add llvm-tools >&2 || true
    [ -x "$profdata" ] || die "rustc has no llvm-profdata ($profdata): it is in the component llvm-tools of a Rust that rustup has installed"
fi
resources/guests/fetch.sh cloud generic boot-test programs smp disk

# rustc runs in the folder of each crate: absolute.
work=$(realpath -m "${CARGO_TARGET_DIR:-target}")/guided
built=$work/build/$host/release/bivisor
# Cargo does not see that a profile has changed.
rm -rf "$work"
mkdir -p "$work/raw"

# build FLAG: with --target the flag does not reach build scripts and macros.
build() {
    RUSTFLAGS="${RUSTFLAGS:-} $1" cargo build --release --quiet --bin bivisor --target "$host" --target-dir "$work/build" ||
        die "the build with $1 fails"
}

# guest NAME LINE OPTIONS...: runs a guest, which must say this line and switch itself off. Only then is a profile written.
guest() {
    local name=$1 line=$2 status=0 begun=$SECONDS
    shift 2
    LLVM_PROFILE_FILE=$work/raw/$name.profraw timeout -k 5 1800 "$built" -accel tcg "$@" -nographic -no-reboot \
        </dev/null >"$work/log" 2>&1 || status=$?
    tr -d '\r' <"$work/log" >"$work/$name.log"
    [ $status != 124 ] || failed "$name" "hangs"
    [ $status = 0 ] || failed "$name" "exit code $status"
    grep -qx "$line" "$work/$name.log" || failed "$name" "it does not say $line"
    grep -q 'reboot: Power down' "$work/$name.log" || failed "$name" "no power-off"
    say "$name ended well, $((SECONDS - begun)) s"
}

failed() {
    tail -n 20 "$work/$1.log" >&2
    die "guest $1: $2 (log: $work/$1.log)"
}

# linux KERNEL INITRD PARAMETERS: the options of a kernel, in $linux.
linux() {
    linux=(-kernel "$GUESTS/vmlinuz-$1" -initrd "$GUESTS/$2" -append "console=ttyS0 reboot=t panic=-1 $3")
}

say "building a program that counts"
build "-Cprofile-generate=$work/raw"
for kernel in cloud generic; do
    linux $kernel boot-test.gz ""
    for machine in microvm q35; do
        for cpus in 1 4; do
            guest "boot-$kernel-$machine-$cpus" BIVISOR-INIT-OK -M $machine -smp $cpus -m 512 "${linux[@]}"
        done
    done
done
linux cloud boot-test.gz ""
guest icount BIVISOR-INIT-OK -M microvm -m 512 -icount shift=1,sleep=off "${linux[@]}"
# Programs that run for long have windows, and those of several CPUs take them from each other.
linux cloud programs.gz ""
guest programs "BIVISOR-PROGRAMS-END status=0" -M microvm -m 2048 "${linux[@]}"
for cpus in 1 4; do
    linux cloud smp.cpio jobs=compile:-O0
    guest "compile-$cpus" "BIVISOR-SMP-END compile:-O0 status=0" -M microvm -smp $cpus -m 1024 "${linux[@]}"
done
cp "$GUESTS/disk.ext4" "$work/disk"
linux cloud disk.gz jobs=run,copy
guest disk "BIVISOR-DISK-END copy status=0" -M microvm -m 256 "${linux[@]}" -drive "file=$work/disk,format=raw"

say "building the program"
"$profdata" merge -o "$work/profile" "$work"/raw/*.profraw || die "llvm-profdata fails"
rm -rf "$work"/{raw,disk,log,*.log}
build "-Cprofile-use=$work/profile"
linux cloud boot-test.gz ""
guest guided BIVISOR-INIT-OK -M microvm -m 512 "${linux[@]}"
rm "$work"/{log,guided.log}
ln "$built" "$work/bivisor"
echo "${work#"$REPO/"}/bivisor"
