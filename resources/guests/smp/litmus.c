// Litmus tests of the x86 memory model (P. Sewell et al., "x86-TSO", CACM 53(7), 2010; SDM vol. 3A, "Memory Ordering"): what the
// model forbids must never be seen. Also LOCK operations on operands that cross a cache line and a page.
//
//     litmus ROUNDS

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define LINE 64

typedef struct { _Alignas(LINE) volatile long value; } cell;

static cell x, y, r[4];
static _Alignas(LINE) atomic_long turn;
static long rounds, thread_count;
static void (*body)(int);

#define FENCE() __asm__ volatile("mfence" ::: "memory")
#define LOCKED() __asm__ volatile("lock; addl $0, -8(%%rsp)" ::: "memory", "cc")
// The processor may reorder, the compiler not.
#define NEXT() __asm__ volatile("" ::: "memory")

static void meet(long number) {
    atomic_fetch_add(&turn, 1);
    while (atomic_load(&turn) < number)
        __builtin_ia32_pause();
}

static void store_buffering_fence(int me) {
    cell *mine = me ? &y : &x, *other = me ? &x : &y;
    mine->value = 1;
    FENCE();
    r[me].value = other->value;
}
static void store_buffering_lock(int me) {
    cell *mine = me ? &y : &x, *other = me ? &x : &y;
    mine->value = 1;
    LOCKED();
    r[me].value = other->value;
}
static void store_buffering_xchg(int me) {
    cell *mine = me ? &y : &x, *other = me ? &x : &y;
    long one = 1;
    __asm__ volatile("xchg %0, %1" : "+r"(one), "+m"(mine->value)::"memory");
    r[me].value = other->value;
}
static void message_passing(int me) {
    if (me == 0) {
        x.value = 1;
        NEXT();
        y.value = 1;
    } else {
        r[0].value = y.value;
        NEXT();
        r[1].value = x.value;
    }
}
static void load_buffering(int me) {
    cell *from = me ? &y : &x, *to = me ? &x : &y;
    r[me].value = from->value;
    NEXT();
    to->value = 1;
}
// Independent reads of independent writes: all see the stores in one order.
static void independent_reads(int me) {
    switch (me) {
    case 0: x.value = 1; break;
    case 1: y.value = 1; break;
    case 2: r[0].value = x.value; NEXT(); r[1].value = y.value; break;
    case 3: r[2].value = y.value; NEXT(); r[3].value = x.value; break;
    }
}
static void two_writes(int me) {
    cell *first = me ? &y : &x, *second = me ? &x : &y;
    first->value = 1;
    NEXT();
    second->value = 2;
}

static int both_zero(void) { return r[0].value == 0 && r[1].value == 0; }
static int flag_without_data(void) { return r[0].value == 1 && r[1].value == 0; }
static int both_one(void) { return r[0].value == 1 && r[1].value == 1; }
static int two_orders(void) { return r[0].value == 1 && r[1].value == 0 && r[2].value == 1 && r[3].value == 0; }
static int both_first(void) { return x.value == 1 && y.value == 1; }

static const struct {
    const char *name;
    int threads;
    void (*body)(int);
    int (*forbidden)(void);
} tests[] = {
    {"store buffering with MFENCE", 2, store_buffering_fence, both_zero},
    {"store buffering with LOCK", 2, store_buffering_lock, both_zero},
    {"store buffering with XCHG", 2, store_buffering_xchg, both_zero},
    {"message passing", 2, message_passing, flag_without_data},
    {"load buffering", 2, load_buffering, both_one},
    {"independent reads", 4, independent_reads, two_orders},
    {"two writes", 2, two_writes, both_first},
};
static int (*forbidden)(void);
static long seen;

static void *work(void *number) {
    long me = (long)(intptr_t)number, next = 0;
    for (long round = 0; round < rounds; round++) {
        if (me == 0) {
            x.value = y.value = 0;
            for (int i = 0; i < 4; i++)
                r[i].value = 0;
        }
        meet(next += thread_count);
        body((int)me);
        meet(next += thread_count);
        if (me == 0)
            seen += forbidden();
        meet(next += thread_count);
    }
    return NULL;
}

static void run(long threads, void *(*start)(void *)) {
    pthread_t thread[4];
    thread_count = threads;
    atomic_store(&turn, 0);
    for (long i = 0; i < threads; i++)
        if (pthread_create(&thread[i], NULL, start, (void *)(intptr_t)i))
            exit(2);
    for (long i = 0; i < threads; i++)
        pthread_join(thread[i], NULL);
}

static volatile char *crossing;

static void *add(void *number) {
    (void)number;
    for (long i = 0; i < rounds; i++)
        __asm__ volatile("lock; addq $1, %0" : "+m"(*(volatile uint64_t *)crossing)::"memory", "cc");
    return NULL;
}

int main(int argc, char **argv) {
    long failures = 0;
    rounds = argc > 1 ? atol(argv[1]) : 0;
    if (rounds < 1) {
        fprintf(stderr, "litmus ROUNDS\n");
        return 2;
    }
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        body = tests[i].body;
        forbidden = tests[i].forbidden;
        seen = 0;
        run(tests[i].threads, work);
        printf("litmus: %s: %ld of %ld forbidden\n", tests[i].name, seen, rounds);
        failures += seen;
    }
    char *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED)
        return 2;
    const struct { const char *name; int offset; } operands[] = {{"a cache line", LINE - 3}, {"a page", 4096 - 5}};
    // Operands across a page stop the whole machine each time.
    rounds = rounds / 20 + 1;
    for (size_t i = 0; i < 2; i++) {
        uint64_t sum;
        memset(pages, 0, 8192);
        crossing = pages + operands[i].offset;
        run(2, add);
        memcpy(&sum, (void *)crossing, sizeof sum);
        printf("litmus: LOCK ADD across %s: %lu of %ld\n", operands[i].name, sum, 2 * rounds);
        failures += sum != (uint64_t)(2 * rounds);
    }
    return failures != 0;
}
