// Code that is run hardly ever. 3000 different functions (cold.inc, made by cold.awk) lie in a section of their own and need
// nothing outside it; each round copies them to fresh memory, as a loader or a compiler would have put them there, and calls
// each function once, so that a translator has all to translate again.
//
//     cold ROUNDS

#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define COLD __attribute__((noinline, section("coldtext"))) static uint64_t
#include "cold.inc"

extern const uint8_t __start_coldtext[], __stop_coldtext[];

int main(int argc, char **argv) {
    static const struct { uint64_t (*call)(uint64_t, uint64_t); } functions[] = {COLD_FUNCTIONS};
    size_t size = (size_t)(__stop_coldtext - __start_coldtext);
    uint64_t sum = 1;
    for (int round = 0; round < (argc > 1 ? atoi(argv[1]) : 1); round++) {
        uint8_t *code = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (code == MAP_FAILED)
            return 1;
        memcpy(code, __start_coldtext, size);
        if (mprotect(code, size, PROT_READ | PROT_EXEC) != 0)
            return 1;
        for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
            uintptr_t at = (uintptr_t)functions[i].call - (uintptr_t)__start_coldtext + (uintptr_t)code;
            sum = ((uint64_t (*)(uint64_t, uint64_t))at)(sum, i);
        }
        munmap(code, size);
    }
    printf("cold %llu\n", (unsigned long long)sum);
    return 0;
}
