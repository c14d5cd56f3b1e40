/* Maps a file, shared: what is written to memory is in the file, and the other way round. Prints "mapped", or the step that failed.
   Argument: the file, which is made. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define CHECK(what)                                                                                                                \
    do {                                                                                                                           \
        errno = 0;                                                                                                                 \
        if (!(what)) {                                                                                                             \
            printf("line %d: %s: %s\n", __LINE__, #what, strerror(errno));                                                         \
            exit(1);                                                                                                               \
        }                                                                                                                          \
    } while (0)

enum { BYTES = 300000 };

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    int fd = open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0644);
    CHECK(fd >= 0 && ftruncate(fd, BYTES) == 0);
    unsigned char *memory = mmap(0, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(memory != MAP_FAILED);
    for (int n = 0; n < BYTES; n++)
        memory[n] = n * 7 / 3;
    CHECK(msync(memory, BYTES, MS_SYNC) == 0);
    static unsigned char again[BYTES];
    CHECK(pread(fd, again, BYTES, 0) == BYTES && !memcmp(memory, again, BYTES));
    CHECK(pwrite(fd, "text", 4, 100000) == 4 && !memcmp(memory + 100000, "text", 4));
    CHECK(munmap(memory, BYTES) == 0 && fsync(fd) == 0 && close(fd) == 0);
    puts("mapped");
    return 0;
}
