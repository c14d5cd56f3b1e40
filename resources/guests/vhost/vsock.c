/* Joins standard input and output to one stream of AF_VSOCK, on either side of it.
     vsock stream|seqpacket connect CID PORT   connects, again and again for ten minutes while nobody serves the port
     vsock stream|seqpacket listen PORT        serves one connection
   Input is sent until its end, which ends that half; what comes goes to the output until its end. Packets are of 4000 bytes. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#define CHECK(what)                                                                                                                \
    do {                                                                                                                           \
        errno = 0;                                                                                                                 \
        if (!(what)) {                                                                                                             \
            fprintf(stderr, "vsock: line %d: %s: %s\n", __LINE__, #what, strerror(errno));                                         \
            exit(1);                                                                                                               \
        }                                                                                                                          \
    } while (0)

static char chunk[65536];

static void copy(int from, int to, size_t most)
{
    ssize_t got;
    while ((got = read(from, chunk, most)) > 0)
        for (ssize_t sent = 0, now; sent < got; sent += now)
            CHECK((now = write(to, chunk + sent, got - sent)) > 0);
    CHECK(got == 0);
}

int main(int argc, char **argv)
{
    CHECK(argc >= 4);
    int packets = !strcmp(argv[1], "seqpacket"), is_client = !strcmp(argv[2], "connect"), fd, status;
    CHECK(argc == (is_client ? 5 : 4));
    struct sockaddr_vm address = {
        .svm_family = AF_VSOCK,
        .svm_cid = is_client ? (unsigned)atoi(argv[3]) : VMADDR_CID_ANY,
        .svm_port = atoi(argv[argc - 1]),
    };
    for (int tries = 0;; tries++) {
        CHECK((fd = socket(AF_VSOCK, packets ? SOCK_SEQPACKET : SOCK_STREAM, 0)) >= 0);
        if (!is_client || connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
            break;
        CHECK(tries < 3000);
        close(fd);
        usleep(200000);
    }
    if (!is_client) {
        int listener = fd;
        CHECK(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 1) == 0);
        CHECK((fd = accept(listener, NULL, NULL)) >= 0);
        close(listener);
    }
    if (fork() == 0) {
        copy(0, fd, packets ? 4000 : sizeof chunk);
        CHECK(shutdown(fd, SHUT_WR) == 0);
        _exit(0);
    }
    copy(fd, 1, sizeof chunk);
    CHECK(wait(&status) > 0 && status == 0);
    return 0;
}
