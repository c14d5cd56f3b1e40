#!/bin/bash
# Micro-benchmarks of the translator (accel/tcg/benches/translator): what it takes to translate a guest instruction, over
# the text of a program (busybox) and of a kernel; how many host instructions and bytes each class of them becomes; and
# what its slow ways cost: misses of slots and of the table, exits from generated code, calls of helpers.
#
#     resources/bench/translator.sh
#
# Host instructions are those executed when nothing is missed. Prints tables, writes target/bench/translator.json.

# shellcheck source=resources/bench/lib.sh
. "$(dirname "$0")/lib.sh"

"$REPO/resources/guests/fetch.sh" vmlinux shell
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cd "$REPO"
cargo bench --quiet -p accel_tcg --bench translator -- --json "$work/figures" \
    "$GUESTS/busybox:user" "$GUESTS/vmlinux:kernel" || die "the benchmark fails"
printf '{ "what": "translator, ns and per guest instruction", "figures": %s, %s }\n' \
    "$(cat "$work/figures")" "$(host_json)" >"$OUT/translator.json"
