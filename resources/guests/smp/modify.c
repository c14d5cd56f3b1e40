// One thread rewrites code that others run (SDM vol. 3A, "Handling Self- and Cross-Modifying Code"): who has seen that version N
// is out, and serializes, runs version N or a later one. In one page that is writable and executable, and in two
// mappings of the same memory.
//
//     modify THREADS VERSIONS

#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static uint32_t (*function)(void);
static unsigned char *writable;
static _Alignas(64) atomic_uint published;
static atomic_long failures, calls;
static uint32_t versions;

// The constant of the MOV is 4-aligned, so that a store changes it as a whole.
enum { CONSTANT = 4, START = CONSTANT - 1 };

static void serialize(void) {
    uint32_t a = 0, b, c = 0, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d)::"memory");
}

static void *run(void *unused) {
    uint32_t before, got, last = 0;
    (void)unused;
    do {
        before = atomic_load(&published);
        serialize();
        got = function();
        if (got < before || got < last || got > versions)
            atomic_fetch_add(&failures, 1);
        last = got;
        atomic_fetch_add(&calls, 1);
    } while (before < versions);
    return NULL;
}

static void *write_versions(void *unused) {
    (void)unused;
    for (uint32_t version = 1; version <= versions; version++) {
        atomic_store((_Atomic uint32_t *)(writable + CONSTANT), version);
        atomic_store(&published, version);
        // Some stay long enough to be run often.
        if (version % 16 == 0)
            for (int i = 0; i < 2000; i++)
                __builtin_ia32_pause();
    }
    return NULL;
}

static void test(const char *name, int threads) {
    pthread_t thread[64];
    static const unsigned char code[] = {0xb8, 0, 0, 0, 0, 0xc3};
    memcpy(writable + START, code, sizeof code);
    atomic_store(&published, 0);
    atomic_store(&calls, 0);
    for (int i = 0; i < threads; i++)
        if (pthread_create(&thread[i], NULL, i ? run : write_versions, NULL))
            exit(2);
    for (int i = 0; i < threads; i++)
        pthread_join(thread[i], NULL);
    printf("modify: %s: %u versions, %s calls, %ld failures\n", name, versions,
           atomic_load(&calls) >= threads - 1 ? "enough" : "too few", atomic_load(&failures));
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 0;
    versions = argc > 2 ? (uint32_t)atol(argv[2]) : 0;
    if (threads < 2 || threads > 64 || versions < 1) {
        fprintf(stderr, "modify THREADS VERSIONS\n");
        return 2;
    }
    writable = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (writable == MAP_FAILED)
        return 2;
    function = (uint32_t(*)(void))(void *)(writable + START);
    test("one mapping", threads);
    int file = memfd_create("code", 0);
    if (file < 0 || ftruncate(file, 4096))
        return 2;
    writable = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    unsigned char *executable = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, file, 0);
    if (writable == MAP_FAILED || executable == MAP_FAILED)
        return 2;
    function = (uint32_t(*)(void))(void *)(executable + START);
    test("two mappings", threads);
    return atomic_load(&failures) != 0;
}
