// Input and output for resources/bench/io.sh: the guest's end, and the server on the host that the network's end talks to.
//
//     io serve                       prints its port; serves connections one after the other, for ever
//     io get ADDRESS PORT MIB        receives from it
//     io put ADDRESS PORT MIB        sends to it, and waits until it has everything
//     io read FILE MIB [direct]      reads from the beginning, 1 MiB at a time
//     io random FILE COUNT DEPTH     reads blocks of 4 KiB anywhere in the file, past the page cache, DEPTH at once
//
// It reads no clock: the host times it.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PIECE = 256 << 10, LARGE = 1 << 20, BLOCK = 4096 };

static char *buffer;

static void die(const char *what) {
    perror(what);
    exit(1);
}

// A request: what is wanted ('g' or 'p') and how many MiB.
struct request {
    uint32_t what, mib;
};

static void send_all(int socket, uint64_t left) {
    while (left > 0) {
        ssize_t sent = write(socket, buffer, left < PIECE ? left : PIECE);
        if (sent <= 0)
            die("write");
        left -= (uint64_t)sent;
    }
}

static void receive_all(int socket, uint64_t left) {
    while (left > 0) {
        ssize_t got = read(socket, buffer, left < PIECE ? left : PIECE);
        if (got <= 0)
            die("read");
        left -= (uint64_t)got;
    }
}

static void serve_one(int socket) {
    struct request request;
    char done = 0;
    if (read(socket, &request, sizeof request) != sizeof request)
        return;
    uint64_t bytes = (uint64_t)request.mib << 20;
    if (request.what == 'g') {
        send_all(socket, bytes);
        // Until the other end has closed.
        (void)!read(socket, &done, 1);
    } else {
        receive_all(socket, bytes);
        (void)!write(socket, &done, 1);
    }
}

static void serve(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    signal(SIGCHLD, SIG_IGN);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, size) != 0 || listen(listener, 16) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) != 0)
        die("listen");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        int socket = accept(listener, NULL, NULL);
        if (socket < 0)
            die("accept");
        if (fork() == 0) {
            serve_one(socket);
            exit(0);
        }
        close(socket);
    }
}

static void transfer(char what, const char *host, int port, uint32_t mib) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct request request = {(uint32_t)what, mib};
    char done;
    int peer = socket(AF_INET, SOCK_STREAM, 0);
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1 || connect(peer, (struct sockaddr *)&address, sizeof address) != 0 ||
        write(peer, &request, sizeof request) != sizeof request)
        die("connect");
    if (what == 'g') {
        receive_all(peer, (uint64_t)mib << 20);
    } else {
        send_all(peer, (uint64_t)mib << 20);
        if (read(peer, &done, 1) != 1)
            die("read");
    }
}

static void sequential(const char *file, uint32_t mib, int flags) {
    int fd = open(file, O_RDONLY | flags);
    for (uint32_t n = 0; n < mib; n++)
        if (read(fd, buffer, LARGE) != LARGE)
            die(file);
}

static void random_blocks(const char *file, uint32_t count, uint32_t seed) {
    int fd = open(file, O_RDONLY | O_DIRECT);
    uint64_t blocks = (uint64_t)lseek(fd, 0, SEEK_END) / BLOCK, state = seed;
    for (uint32_t n = 0; n < count; n++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        if (pread(fd, buffer, BLOCK, (off_t)((state >> 33) % blocks * BLOCK)) != BLOCK)
            die(file);
    }
}

int main(int count, char **words) {
    const char *what = count > 1 ? words[1] : "";
    buffer = aligned_alloc(BLOCK, LARGE);
    // Not all zeros: some hosts treat those better.
    for (size_t n = 0; n < LARGE; n++)
        buffer[n] = (char)(n * 2654435761u >> 13);
    if (!strcmp(what, "serve")) {
        serve();
    } else if ((!strcmp(what, "get") || !strcmp(what, "put")) && count == 5) {
        transfer(what[0], words[2], atoi(words[3]), (uint32_t)atoi(words[4]));
    } else if (!strcmp(what, "read") && count >= 4) {
        sequential(words[2], (uint32_t)atoi(words[3]), count > 4 ? O_DIRECT : 0);
    } else if (!strcmp(what, "random") && count == 5) {
        int depth = atoi(words[4]), failed = 0, status;
        for (int n = 0; n < depth; n++) {
            if (fork() == 0) {
                random_blocks(words[2], (uint32_t)(atoi(words[3]) / depth), (uint32_t)n + 1);
                exit(0);
            }
        }
        while (wait(&status) > 0)
            failed |= status;
        return failed != 0;
    } else {
        fputs("see the head of io.c\n", stderr);
        return 2;
    }
    return 0;
}
