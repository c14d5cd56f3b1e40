// The runner of the workloads, the same in the guests and natively: reads the list of workloads, runs those that are named
// and tells the host on standard output, one line each,
//
//     BENCH-BEGIN name                 just before the first process of the workload is made
//     BENCH-END name                   when its last one has ended: the host times the arrival of these two
//     BENCH-RESULT name STATUS SUM     exit status and a checksum of what it printed and left in /tmp/result
//     BENCH-SKIP name WHY              this CPU lacks what the workload needs
//
// It reads no clock. Only a workload that hangs is ended by one, that of the machine it runs on.
//
//     run LIST [NAME...]               (all of the list unless told)
//
// A line of the list: GROUP NAME REPEAT NEEDS COMMAND [ARGUMENT...]: fields between blanks, no quoting; the command runs
// REPEAT times in a row; NEEDS is a CPU feature or -.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LIMIT_S = 60, MAX_WORDS = 32 };
#define OUTPUT "/tmp/output"
#define RESULT "/tmp/result"

static pid_t child;

static void say(const char *format, const char *name, const char *why) {
    char line[160];
    int length = snprintf(line, sizeof line, format, name, why);
    // One write: a line reaches the console in one go.
    if (write(STDOUT_FILENO, line, (size_t)length) != length)
        exit(2);
}

// Two CPUs would help some workloads natively, and a guest has one.
static void keep_to_one_cpu(void) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(sched_getcpu(), &set);
    sched_setaffinity(0, sizeof set, &set);
}

static int cpu_has(const char *feature) {
    if (!strcmp(feature, "avx2"))
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return !strcmp(feature, "-");
}

// FNV-1a, over a whole file if it is there.
static uint64_t add_file(uint64_t sum, const char *path) {
    static unsigned char buffer[1 << 16];
    int file = open(path, O_RDONLY);
    if (file < 0)
        return sum;
    for (ssize_t length; (length = read(file, buffer, sizeof buffer)) > 0;)
        for (ssize_t i = 0; i < length; i++)
            sum = (sum ^ buffer[i]) * 0x100000001b3;
    close(file);
    return sum;
}

static void out_of_time(int signal) {
    (void)signal;
    if (child > 0)
        kill(-child, SIGKILL);
}

static int run_once(char **command) {
    int status;
    child = fork();
    if (child == 0) {
        setpgid(0, 0);
        int output = open(OUTPUT, O_WRONLY | O_CREAT | O_APPEND, 0600);
        int input = open("/dev/null", O_RDONLY);
        if (output < 0 || input < 0 || dup2(input, 0) < 0 || dup2(output, 1) < 0 || dup2(output, 2) < 0)
            _exit(126);
        execv(command[0], command);
        _exit(127);
    }
    while (child > 0 && waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return -1;
    return child < 0 ? -1 : WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void run(const char *name, int repeat, const char *needs, char **command) {
    char result[48];
    int status = 0;
    if (!cpu_has(needs)) {
        say("BENCH-SKIP %s needs %s\n", name, needs);
        return;
    }
    unlink(OUTPUT);
    unlink(RESULT);
    alarm(LIMIT_S);
    say("BENCH-BEGIN %s\n", name, "");
    for (int i = 0; i < repeat && status == 0; i++)
        status = run_once(command);
    say("BENCH-END %s\n", name, "");
    alarm(0);
    uint64_t sum = add_file(add_file(0xcbf29ce484222325, OUTPUT), RESULT);
    snprintf(result, sizeof result, "%d %016llx", status, (unsigned long long)sum);
    say("BENCH-RESULT %s %s\n", name, result);
}

static int wanted(const char *name, char **names) {
    if (!*names)
        return 1;
    while (*names)
        if (!strcmp(name, *names++))
            return 1;
    return 0;
}

int main(int argc, char **argv) {
    char line[1024], *words[MAX_WORDS + 1];
    FILE *list = argc > 1 ? fopen(argv[1], "re") : NULL;
    if (!list)
        return 2;
    keep_to_one_cpu();
    struct sigaction action = {.sa_handler = out_of_time};
    sigaction(SIGALRM, &action, NULL);
    while (fgets(line, sizeof line, list)) {
        int count = 0;
        for (char *word = strtok(line, " \t\n"); word && count < MAX_WORDS; word = strtok(NULL, " \t\n"))
            words[count++] = word;
        words[count] = NULL;
        if (count >= 5 && words[0][0] != '#' && wanted(words[1], argv + 2))
            run(words[1], atoi(words[2]), words[3], words + 4);
    }
    say("BENCH-DONE%s%s\n", "", "");
    return 0;
}
