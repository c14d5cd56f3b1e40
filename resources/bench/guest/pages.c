// Processes and memory: what makes and unmakes address spaces and pages, and what only reads and writes much of them.
//
//     pages fork|exec|cow|faults|mprotect|thread|copy|chase AMOUNT

#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096 };

static void check(int good, const char *what) {
    if (!good) {
        perror(what);
        exit(1);
    }
}

static unsigned char *map(size_t size) {
    unsigned char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(memory != MAP_FAILED, "mmap");
    // Pages of 4 KiB everywhere: whether there are huge ones is each kernel's configuration.
    madvise(memory, size, MADV_NOHUGEPAGE);
    return memory;
}

static long await(pid_t child) {
    int status;
    check(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status), "child");
    return WEXITSTATUS(status);
}

static long run_fork(long amount) {
    long sum = 0;
    for (long i = 0; i < amount; i++) {
        pid_t child = fork();
        if (child == 0)
            _exit((int)(i & 127));
        sum += await(child);
    }
    return sum;
}

static pid_t start_tiny(void) {
    pid_t child = vfork();
    if (child == 0) {
        execl("/bench/tiny", "tiny", (char *)NULL);
        _exit(127);
    }
    return child;
}

static long run_exec(long amount) {
    long sum = 0;
    for (long i = 0; i < amount; i++)
        sum += await(start_tiny());
    return sum;
}

// A child writes to a megabyte of its parent's: as many faults that copy a page.
static long run_cow(long amount) {
    size_t size = 1 << 20;
    unsigned char *memory = map(size);
    long sum = 0;
    memset(memory, 1, size);
    for (long i = 0; i < amount; i++) {
        pid_t child = fork();
        if (child == 0) {
            for (size_t at = 0; at < size; at += PAGE)
                memory[at]++;
            _exit(memory[PAGE] + memory[size - PAGE]);
        }
        sum += await(child);
    }
    return sum;
}

static long run_faults(long amount) {
    size_t size = 2 << 20;
    long sum = 0;
    for (long i = 0; i < amount; i++) {
        unsigned char *memory = map(size);
        for (size_t at = 0; at < size; at += PAGE)
            sum += ++memory[at + (at >> 12 & 63)];
        munmap(memory, size);
    }
    return sum;
}

// Write protection on and off, as garbage collectors do, with a touch of each of sixteen pages in between.
static long run_mprotect(long amount) {
    size_t size = 16 * PAGE;
    unsigned char *memory = map(size);
    long sum = 0;
    for (long i = 0; i < amount; i++) {
        for (size_t at = 0; at < size; at += PAGE)
            memory[at]++;
        check(mprotect(memory, size, PROT_READ) == 0, "mprotect");
        for (size_t at = 0; at < size; at += PAGE)
            sum += memory[at];
        check(mprotect(memory, size, PROT_READ | PROT_WRITE) == 0, "mprotect");
    }
    return sum;
}

static void *nothing(void *argument) { return (char *)argument + 1; }

static long run_thread(long amount) {
    long sum = 0;
    for (long i = 0; i < amount; i++) {
        pthread_t thread;
        void *result;
        check(pthread_create(&thread, NULL, nothing, (void *)(intptr_t)i) == 0, "thread");
        pthread_join(thread, &result);
        sum += (intptr_t)result;
    }
    return sum;
}

// 32 MiB to and fro, more than the caches hold, by the C library's copy; then a sum and a product over it as compilers do them.
__attribute__((optimize("O3"))) static long run_copy(long amount) {
    size_t size = 32 << 20, count = size / sizeof(uint64_t);
    uint64_t *a = (uint64_t *)map(size), *b = (uint64_t *)map(size), sum = 0;
    for (size_t i = 0; i < count; i++)
        a[i] = i * 0x9e3779b97f4a7c15;
    for (long round = 0; round < amount; round++) {
        memcpy(b, a, size);
        for (size_t i = 0; i < count; i++)
            a[i] = b[i] * 3 + a[i];
        for (size_t i = 0; i < count; i++)
            sum += a[i];
    }
    return (long)(sum >> 1);
}

// One random cycle through 64 MiB, a cache line a step: nothing but waits for memory and misses of the TLB.
static long run_chase(long amount) {
    enum { LINE = 64, LINES = (64 << 20) / LINE };
    struct line {
        uint32_t next, rest[LINE / 4 - 1];
    } *lines = (struct line *)map((size_t)LINES * LINE);
    uint32_t seed = 1, at = 0;
    long sum = 0;
    for (uint32_t i = 0; i < LINES; i++)
        lines[i].next = i;
    // Sattolo's shuffle leaves exactly one cycle.
    for (uint32_t i = LINES - 1; i > 0; i--) {
        seed = seed * 1664525 + 1013904223;
        uint32_t other = (uint32_t)((uint64_t)seed * i >> 32), kept = lines[i].next;
        lines[i].next = lines[other].next;
        lines[other].next = kept;
    }
    for (long i = 0; i < amount; i++)
        sum += at = lines[at].next;
    return sum;
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        long (*run)(long);
    } pages[] = {
        {"fork", run_fork},         {"exec", run_exec},     {"cow", run_cow},   {"faults", run_faults},
        {"mprotect", run_mprotect}, {"thread", run_thread}, {"copy", run_copy}, {"chase", run_chase},
    };
    for (size_t i = 0; argc == 3 && i < sizeof pages / sizeof *pages; i++)
        if (!strcmp(argv[1], pages[i].name)) {
            printf("%s %ld\n", argv[1], pages[i].run(atol(argv[2])));
            return 0;
        }
    return 2;
}
