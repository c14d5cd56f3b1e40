// Threads that compute and share nothing: how much more several CPUs do than one.
//
//     speed THREADS ROUNDS

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static long rounds;

static void *work(void *number) {
    uint64_t state = (uint64_t)(intptr_t)number + 88172645463325252u, sum = 0;
    unsigned char counts[256] = {0};
    for (long i = 0; i < rounds; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        sum += ++counts[state & 255] * (state >> 56);
    }
    return (void *)(uintptr_t)sum;
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 0;
    uint64_t sum = 0;
    pthread_t thread[64];
    rounds = argc > 2 ? atol(argv[2]) : 0;
    if (threads < 1 || threads > 64 || rounds < 1) {
        fprintf(stderr, "speed THREADS ROUNDS\n");
        return 2;
    }
    for (long i = 0; i < threads; i++)
        if (pthread_create(&thread[i], NULL, work, (void *)(intptr_t)i))
            return 2;
    for (int i = 0; i < threads; i++) {
        void *result;
        pthread_join(thread[i], &result);
        sum += (uintptr_t)result;
    }
    printf("speed: %016lx\n", sum);
    return 0;
}
