// Threads that share: a queue behind a mutex and two condition variables, a table behind a read-write lock, barriers, and
// counters that are only atomic. Every item must come out once, and every sum be right.
//
//     torture THREADS ROUNDS

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define ROOM 16
#define CELLS 64

static int threads;
static long rounds;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t not_full = PTHREAD_COND_INITIALIZER, not_empty = PTHREAD_COND_INITIALIZER;
static long queue[ROOM], head, tail, taken_sum, taken;

static pthread_rwlock_t table_lock = PTHREAD_RWLOCK_INITIALIZER;
static long table[CELLS], torn;

static pthread_barrier_t barrier;
static long phase_sum[64];
static atomic_long counter, failures;
// A pair that only a double compare-and-exchange keeps together.
static _Alignas(16) volatile struct { uint64_t low, high; } pair;

static void fail(const char *what) {
    atomic_fetch_add(&failures, 1);
    printf("torture: %s\n", what);
}

static void put(long item) {
    pthread_mutex_lock(&lock);
    while (tail - head == ROOM)
        pthread_cond_wait(&not_full, &lock);
    queue[tail++ % ROOM] = item;
    pthread_cond_signal(&not_empty);
    pthread_mutex_unlock(&lock);
}

static void take(void) {
    pthread_mutex_lock(&lock);
    while (tail == head)
        pthread_cond_wait(&not_empty, &lock);
    taken_sum += queue[head++ % ROOM];
    taken++;
    pthread_cond_signal(&not_full);
    pthread_mutex_unlock(&lock);
}

static void pair_step(void) {
    uint64_t low = pair.low, high = pair.high;
    unsigned char done;
    do {
        __asm__ volatile("lock cmpxchg16b %1; setz %0"
                         : "=q"(done), "+m"(pair), "+a"(low), "+d"(high)
                         : "b"(low + 1), "c"(high + 3)
                         : "memory", "cc");
    } while (!done);
}

static void *work(void *number) {
    long me = (long)(intptr_t)number;
    for (long round = 0; round < rounds; round++) {
        // Half of the threads put, the others take.
        if (me % 2)
            put(me * rounds + round);
        else
            take();
        atomic_fetch_add(&counter, 1);
        pair_step();
        if (round % 8 == 0) {
            pthread_rwlock_wrlock(&table_lock);
            for (int cell = 0; cell < CELLS; cell++)
                table[cell]++;
            pthread_rwlock_unlock(&table_lock);
        } else {
            pthread_rwlock_rdlock(&table_lock);
            long first = table[0];
            for (int cell = 1; cell < CELLS; cell++)
                if (table[cell] != first)
                    __atomic_fetch_add(&torn, 1, __ATOMIC_RELAXED);
            pthread_rwlock_unlock(&table_lock);
        }
        if (round % 64 == 0) {
            phase_sum[me] = round;
            pthread_barrier_wait(&barrier);
            for (int other = 0; other < threads; other++)
                if (phase_sum[other] != round)
                    fail("a barrier let somebody through");
            pthread_barrier_wait(&barrier);
        }
    }
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t thread[64];
    long expected = 0;
    threads = argc > 1 ? atoi(argv[1]) : 0;
    rounds = argc > 2 ? atol(argv[2]) : 0;
    if (threads < 2 || threads > 64 || threads % 2 || rounds < 1) {
        fprintf(stderr, "torture THREADS(even, at most 64) ROUNDS\n");
        return 2;
    }
    pthread_barrier_init(&barrier, NULL, threads);
    for (long i = 0; i < threads; i++)
        if (pthread_create(&thread[i], NULL, work, (void *)(intptr_t)i))
            return 2;
    for (int i = 0; i < threads; i++)
        pthread_join(thread[i], NULL);
    for (long me = 1; me < threads; me += 2)
        for (long round = 0; round < rounds; round++)
            expected += me * rounds + round;
    long writes = threads * ((rounds + 7) / 8), steps = threads * rounds;
    if (taken != threads / 2 * rounds || taken_sum != expected)
        fail("the queue lost or doubled an item");
    if (atomic_load(&counter) != steps)
        fail("the counter lost a step");
    if (pair.low != (uint64_t)steps || pair.high != (uint64_t)steps * 3)
        fail("the pair came apart");
    if (torn || table[0] != writes || table[CELLS - 1] != writes)
        fail("the table was seen half written");
    printf("torture: %d threads, %ld rounds, %ld failures\n", threads, rounds, atomic_load(&failures));
    return atomic_load(&failures) != 0;
}
