#!/bin/sh
# Builds the micro-kernels: build.sh FOLDER. Needs gcc and binutils.
set -e
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
for source in "$here"/*.c; do
    kernel=$(basename "$source" .c)
    [ "$kernel" = kernel ] && continue
    extra=""; [ -f "$here/$kernel.S" ] && extra="$here/$kernel.S"
    gcc -std=gnu17 -O1 -g0 -Wall -Wextra -ffreestanding -fno-pic -no-pie -mcmodel=small -mno-red-zone -mgeneral-regs-only \
        -fno-stack-protector -fcf-protection=none -fno-asynchronous-unwind-tables -fno-toplevel-reorder -nostdlib -static -Wl,-z,max-page-size=4096 -Wl,--build-id=none -Wl,--no-warn-rwx-segments \
        -T "$here/kernel.ld" -o "$1/$kernel.new" "$here/start.S" "$here/kernel.c" "$source" $extra
    mv "$1/$kernel.new" "$1/$kernel"
done
