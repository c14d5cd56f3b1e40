// Code that is written and run at once, as dynamic languages do. A little function is assembled that folds a few constants
// into its argument in a loop; the constants and their number differ each time.
//
//     jit wx AMOUNT        written where it runs, pages writable and executable; eight places of a page are used in turn
//     jit dual AMOUNT      written through a second mapping of the same memory
//     jit flip AMOUNT      pages made writable before and executable after each writing
//     jit patch AMOUNT     one function whose constant is overwritten between calls: inline caches

#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef uint32_t (*function)(uint32_t argument, uint32_t turns);
enum { SIZE = 64 << 10, PLACE = 512 };

static uint8_t *put(uint8_t *at, const void *bytes, size_t count) {
    memcpy(at, bytes, count);
    return at + count;
}

static uint8_t *put_word(uint8_t *at, uint32_t value) { return put(at, &value, sizeof value); }

// uint32_t f(uint32_t edi, uint32_t esi): eax = edi; do { eax = eax op constant ... } while (--esi); return eax
static void assemble(uint8_t *at, uint32_t seed) {
    at = put(at, "\x89\xf8", 2);
    uint8_t *loop = at;
    for (uint32_t i = 0; i < 4 + seed % 5; i++) {
        seed = seed * 1664525 + 1013904223;
        // add, xor or imul eax, imm32
        at = seed >> 30 == 0 ? put(at, "\x69\xc0", 2) : put(at, seed >> 30 == 1 ? "\x35" : "\x05", 1);
        at = put_word(at, seed | 1);
    }
    // dec esi; jnz loop; ret
    at = put(at, "\xff\xce\x0f\x85", 4);
    at = put_word(at, (uint32_t)(loop - (at + 4)));
    put(at, "\xc3", 1);
}

static uint8_t *map(int protection, int file) {
    void *memory = mmap(NULL, SIZE, protection, file < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, file, 0);
    if (memory == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    return memory;
}

static void protect(uint8_t *code, int protection) {
    if (mprotect(code, SIZE, protection) != 0) {
        perror("mprotect");
        exit(1);
    }
}

static uint32_t run_flip(uint8_t *code, long amount) {
    uint32_t sum = 1;
    for (long i = 0; i < amount; i++) {
        uint8_t *place = code + i * PLACE % SIZE;
        protect(code, PROT_READ | PROT_WRITE);
        assemble(place, (uint32_t)i);
        protect(code, PROT_READ | PROT_EXEC);
        sum = ((function)(uintptr_t)place)(sum, 50);
    }
    return sum;
}

static uint32_t run_patch(uint8_t *code, long amount) {
    // mov eax, imm32; add eax, edi; ret
    uint32_t sum = 1;
    put(put_word(put(code, "\xb8", 1), 0), "\x01\xf8\xc3", 3);
    for (long i = 0; i < amount; i++) {
        put_word(code + 1, (uint32_t)i * 2654435761u);
        for (int call = 0; call < 20; call++)
            sum = ((function)(uintptr_t)code)(sum, 0) * 3;
    }
    return sum;
}

static uint32_t run_written(uint8_t *writable, uint8_t *code, long amount, size_t places) {
    uint32_t sum = 1;
    for (long i = 0; i < amount; i++) {
        size_t place = (size_t)i % places * PLACE;
        assemble(writable + place, (uint32_t)i);
        sum = ((function)(uintptr_t)(code + place))(sum, 50);
    }
    return sum;
}

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    long amount = atol(argv[2]);
    const int writable = PROT_READ | PROT_WRITE, all = writable | PROT_EXEC;
    uint32_t sum;
    if (!strcmp(argv[1], "wx")) {
        uint8_t *code = map(all, -1);
        sum = run_written(code, code, amount, 8);
    } else if (!strcmp(argv[1], "dual")) {
        int file = memfd_create("code", 0);
        if (file < 0 || ftruncate(file, SIZE) != 0)
            return 1;
        uint8_t *written = map(writable, file);
        sum = run_written(written, map(PROT_READ | PROT_EXEC, file), amount, SIZE / PLACE);
    } else if (!strcmp(argv[1], "flip")) {
        sum = run_flip(map(writable, -1), amount);
    } else if (!strcmp(argv[1], "patch")) {
        sum = run_patch(map(all, -1), amount);
    } else {
        return 2;
    }
    printf("%s %u\n", argv[1], sum);
    return 0;
}
