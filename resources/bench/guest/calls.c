// System calls and what the kernel does for them: entry and exit, switches between processes and threads, signals.
//
//     calls getppid|pipe|signal|futex|zero|file|poll AMOUNT

#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/poll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void check(int good, const char *what) {
    if (!good) {
        perror(what);
        exit(1);
    }
}

// The shortest call: entry and exit alone. The parent's number is not printed, it differs.
static long run_getppid(long amount) {
    long parent = getppid(), same = 0;
    for (long i = 0; i < amount; i++)
        same += syscall(SYS_getppid) == parent;
    return same;
}

// Two processes hand a byte to and fro: each round is two switches.
static long run_pipe(long amount) {
    int there[2], back[2], status;
    long sum = 0;
    unsigned char byte = 0;
    check(pipe(there) == 0 && pipe(back) == 0, "pipe");
    pid_t child = fork();
    check(child >= 0, "fork");
    if (child == 0) {
        close(there[1]);
        while (read(there[0], &byte, 1) == 1) {
            byte = (unsigned char)(byte * 5 + 1);
            check(write(back[1], &byte, 1) == 1, "write");
        }
        _exit(0);
    }
    for (long i = 0; i < amount; i++) {
        check(write(there[1], &byte, 1) == 1 && read(back[0], &byte, 1) == 1, "pipe");
        sum += byte;
    }
    close(there[1]);
    check(waitpid(child, &status, 0) == child && status == 0, "wait");
    return sum;
}

static volatile sig_atomic_t caught;

static void handler(int number) { caught += number; }

static long run_signal(long amount) {
    struct sigaction action = {.sa_handler = handler};
    pid_t self = getpid();
    check(sigaction(SIGUSR1, &action, NULL) == 0, "sigaction");
    for (long i = 0; i < amount; i++)
        kill(self, SIGUSR1);
    return caught;
}

static atomic_int turn;
static long passes;

static void wait_for(int mine) {
    for (int now; (now = atomic_load(&turn)) != mine;)
        syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, now, NULL, NULL, 0);
}

static void pass_to(int other) {
    passes++;
    atomic_store(&turn, other);
    syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void *second(void *amount) {
    for (long i = 0; i < (long)(intptr_t)amount; i++) {
        wait_for(1);
        pass_to(0);
    }
    return NULL;
}

// Two threads take turns: switches within one address space.
static long run_futex(long amount) {
    pthread_t thread;
    check(pthread_create(&thread, NULL, second, (void *)(intptr_t)amount) == 0, "thread");
    for (long i = 0; i < amount; i++) {
        wait_for(0);
        pass_to(1);
    }
    pthread_join(thread, NULL);
    return passes;
}

static long run_zero(long amount) {
    int file = open("/dev/zero", O_RDWR);
    long sum = 0;
    char byte;
    check(file >= 0, "/dev/zero");
    for (long i = 0; i < amount; i++)
        sum += read(file, &byte, 1) + write(file, &byte, 1);
    return sum;
}

// A file in memory: the page cache's way, a byte at a time.
static long run_file(long amount) {
    int file = open("/tmp/bytes", O_RDWR | O_CREAT | O_TRUNC, 0600);
    long sum = 0;
    check(file >= 0, "/tmp/bytes");
    for (long i = 0; i < amount; i++) {
        char byte = (char)i, read_back = 0;
        check(pwrite(file, &byte, 1, i & 0xffff) == 1 && pread(file, &read_back, 1, i * 7 % (i + 1) & 0xffff) == 1, "byte");
        sum += read_back;
    }
    close(file);
    unlink("/tmp/bytes");
    return sum;
}

// Sixteen descriptors of which one is ready: a longer way through the kernel, and an event queue's.
static long run_poll(long amount) {
    struct pollfd set[16];
    int ends[2];
    long sum = 0;
    for (int i = 0; i < 16; i++) {
        check(pipe(ends) == 0, "pipe");
        set[i] = (struct pollfd){.fd = ends[0], .events = POLLIN};
    }
    check(write(ends[1], "x", 1) == 1, "write");
    for (long i = 0; i < amount; i++)
        sum += poll(set, 16, -1);
    return sum;
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        long (*run)(long);
    } calls[] = {
        {"getppid", run_getppid}, {"pipe", run_pipe}, {"signal", run_signal}, {"futex", run_futex},
        {"zero", run_zero},       {"file", run_file}, {"poll", run_poll},
    };
    for (size_t i = 0; argc == 3 && i < sizeof calls / sizeof *calls; i++)
        if (!strcmp(argv[1], calls[i].name)) {
            printf("%s %ld\n", argv[1], calls[i].run(atol(argv[2])));
            return 0;
        }
    return 2;
}
