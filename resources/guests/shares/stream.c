/* Streams between this guest and the host (AF_VSOCK).
     stream connect PORT MEGABYTES   connects to the host's port, sends noise, reads what comes back, and compares
     stream serve PORT COUNT         serves so many connections, one process each, with what they send
     stream refused PORT             connects to a port of the host's that nobody serves
     stream halves PORT              sends, ends its half, and reads until the host ends its own */
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
            printf("line %d: %s: %s\n", __LINE__, #what, strerror(errno));                                                         \
            exit(1);                                                                                                               \
        }                                                                                                                          \
    } while (0)

static unsigned long long state;
static unsigned char chunk[65536], expected[65536];

/* The same bytes for the same seed (xorshift64*). */
static void noise(unsigned char *bytes, size_t count)
{
    for (size_t n = 0; n < count; n++) {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes[n] = state * 0x2545f4914f6cdd1dULL >> 56;
    }
}

static void send_all(int fd, const unsigned char *bytes, size_t count)
{
    for (ssize_t sent; count; bytes += sent, count -= sent)
        CHECK((sent = write(fd, bytes, count)) > 0);
}

static struct sockaddr_vm address(unsigned cid, unsigned port)
{
    return (struct sockaddr_vm){.svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port};
}

static int connect_to(unsigned port)
{
    struct sockaddr_vm host = address(VMADDR_CID_HOST, port);
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&host, sizeof host) == 0);
    return fd;
}

static void echo_of_noise(unsigned port, size_t megabytes)
{
    int fd = connect_to(port), status;
    size_t chunks = megabytes * 16;
    if (fork() == 0) {
        state = port + 1;
        for (size_t n = 0; n < chunks; n++) {
            noise(chunk, sizeof chunk);
            send_all(fd, chunk, sizeof chunk);
        }
        CHECK(shutdown(fd, SHUT_WR) == 0);
        _exit(0);
    }
    state = port + 1;
    size_t left = chunks * sizeof chunk;
    while (left) {
        ssize_t count = read(fd, chunk, left < sizeof chunk ? left : sizeof chunk);
        CHECK(count > 0);
        noise(expected, count);
        CHECK(!memcmp(chunk, expected, count));
        left -= count;
    }
    CHECK(read(fd, chunk, 1) == 0);
    CHECK(wait(&status) > 0 && status == 0);
    printf("%zu MiB came back\n", megabytes);
}

static void serve(unsigned port, int count)
{
    struct sockaddr_vm here = address(VMADDR_CID_ANY, port);
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0), status;
    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&here, sizeof here) == 0 && listen(fd, 64) == 0);
    puts("serving");
    fflush(stdout);
    for (int n = 0; n < count; n++) {
        int client = accept(fd, NULL, NULL);
        CHECK(client >= 0);
        if (fork() == 0) {
            ssize_t got;
            size_t all = 0;
            while ((got = read(client, chunk, sizeof chunk)) > 0) {
                send_all(client, chunk, got);
                all += got;
            }
            CHECK(got == 0);
            exit(0);
        }
        close(client);
    }
    for (int n = 0; n < count; n++)
        CHECK(wait(&status) > 0 && status == 0);
    printf("served %d\n", count);
}

int main(int argc, char **argv)
{
    CHECK(argc >= 3);
    unsigned port = atoi(argv[2]);
    if (!strcmp(argv[1], "connect")) {
        echo_of_noise(port, atoi(argv[3]));
    } else if (!strcmp(argv[1], "serve")) {
        serve(port, atoi(argv[3]));
    } else if (!strcmp(argv[1], "refused")) {
        struct sockaddr_vm host = address(VMADDR_CID_HOST, port);
        CHECK(connect(socket(AF_VSOCK, SOCK_STREAM, 0), (struct sockaddr *)&host, sizeof host) == -1 && errno == ECONNRESET);
        puts("refused");
    } else if (!strcmp(argv[1], "halves")) {
        int fd = connect_to(port);
        ssize_t count;
        send_all(fd, (const unsigned char *)"question", 8);
        CHECK(shutdown(fd, SHUT_WR) == 0);
        CHECK((count = read(fd, chunk, sizeof chunk)) == 6 && !memcmp(chunk, "answer", 6) && read(fd, chunk, 1) == 0);
        puts("answered");
    }
    return 0;
}
