/* What programs do with files, done in the folder named, each step checked. Prints "ok", or the step that failed.
   Arguments: the folder, and whether it keeps owners and devices ("mapped") or not ("none"). */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#define CHECK(what)                                                                                                                \
    do {                                                                                                                           \
        errno = 0;                                                                                                                 \
        if (!(what)) {                                                                                                             \
            printf("line %d: %s: %s\n", __LINE__, #what, strerror(errno));                                                         \
            exit(1);                                                                                                               \
        }                                                                                                                          \
    } while (0)
#define FAILS(what, number) CHECK((what) == -1 && errno == (number))

static char buffer[300000], again[300000];

static void contents(void)
{
    struct stat st;
    int fd = open("data", O_RDWR | O_CREAT | O_EXCL, 0640);
    CHECK(fd >= 0);
    for (size_t n = 0; n < sizeof buffer; n++)
        buffer[n] = n * 7 / 3;
    CHECK(pwrite(fd, buffer, sizeof buffer, 5) == sizeof buffer);
    CHECK(pread(fd, again, sizeof again, 5) == sizeof again && !memcmp(buffer, again, sizeof again));
    CHECK(fstat(fd, &st) == 0 && st.st_size == sizeof buffer + 5);
    CHECK(ftruncate(fd, 1000) == 0 && fstat(fd, &st) == 0 && st.st_size == 1000);
    CHECK(ftruncate(fd, 70000) == 0 && pread(fd, again, 10, 69990) == 10 && !memcmp(again, "\0\0\0\0\0\0\0\0\0\0", 10));
    CHECK(fsync(fd) == 0 && fdatasync(fd) == 0);
    FAILS(open("data", O_RDWR | O_CREAT | O_EXCL, 0640), EEXIST);
    /* Nobody's file any more, and still there for who has it open. */
    CHECK(unlink("data") == 0 && access("data", F_OK) == -1);
    CHECK(pwrite(fd, "xyz", 3, 0) == 3 && pread(fd, again, 3, 0) == 3 && !memcmp(again, "xyz", 3));
    close(fd);
    fd = open("log", O_WRONLY | O_CREAT | O_APPEND, 0600);
    CHECK(fd >= 0 && write(fd, "one\n", 4) == 4 && write(fd, "two\n", 4) == 4 && close(fd) == 0);
    CHECK((fd = open("log", O_RDONLY)) >= 0 && read(fd, again, 100) == 8 && !memcmp(again, "one\ntwo\n", 8));
    char *mapped = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
    CHECK(mapped != MAP_FAILED && !memcmp(mapped, "one\ntwo\n", 9));
    close(fd);
}

static void names(void)
{
    struct stat st, other;
    char target[64];
    CHECK(mkdir("d", 0750) == 0 && stat("d", &st) == 0 && S_ISDIR(st.st_mode) && (st.st_mode & 07777) == 0750);
    FAILS(mkdir("d", 0750), EEXIST);
    CHECK(rename("log", "d/log") == 0 && access("log", F_OK) == -1);
    CHECK(link("d/log", "hard") == 0 && stat("hard", &st) == 0 && stat("d/log", &other) == 0);
    CHECK(st.st_nlink == 2 && st.st_ino == other.st_ino);
    CHECK(symlink("d/log", "soft") == 0 && lstat("soft", &st) == 0 && S_ISLNK(st.st_mode));
    CHECK(readlink("soft", target, sizeof target) == 5 && !memcmp(target, "d/log", 5));
    CHECK(stat("soft", &st) == 0 && st.st_ino == other.st_ino);
    FAILS(rmdir("d"), ENOTEMPTY);
    FAILS(unlink("d"), EISDIR);
    FAILS(rename("d", "d/d"), EINVAL);
    CHECK(rename("d", "e") == 0 && access("e/log", R_OK) == 0 && access("soft", R_OK) == -1);
    /* A file in a folder that moves while it is open. */
    int fd = open("e/log", O_RDONLY);
    CHECK(fd >= 0 && rename("e", "f") == 0 && read(fd, again, 4) == 4 && !memcmp(again, "one\n", 4));
    close(fd);
    CHECK(rename("hard", "f/log") == 0);
    CHECK(unlink("hard") == 0 && unlink("f/log") == 0 && rmdir("f") == 0 && unlink("soft") == 0);
    CHECK(mkfifo("pipe", 0600) == 0 && stat("pipe", &st) == 0 && S_ISFIFO(st.st_mode) && unlink("pipe") == 0);
}

static void many(void)
{
    char name[64];
    int count = 0;
    CHECK(mkdir("many", 0700) == 0);
    for (int n = 0; n < 300; n++) {
        snprintf(name, sizeof name, "many/a-name-that-is-rather-long-%d", n);
        CHECK(close(open(name, O_WRONLY | O_CREAT, 0600)) == 0);
    }
    DIR *folder = opendir("many");
    CHECK(folder);
    while (readdir(folder))
        count++;
    closedir(folder);
    CHECK(count == 302);
    for (int n = 0; n < 300; n++) {
        snprintf(name, sizeof name, "many/a-name-that-is-rather-long-%d", n);
        CHECK(unlink(name) == 0);
    }
    CHECK(rmdir("many") == 0);
}

static void attributes(int is_mapped)
{
    struct stat st;
    struct statfs fs;
    struct timespec times[2] = {{1000000, 5000}, {2000000, 7000}};
    CHECK(close(open("file", O_WRONLY | O_CREAT, 0600)) == 0);
    CHECK(chmod("file", 0604) == 0 && stat("file", &st) == 0 && (st.st_mode & 07777) == 0604);
    CHECK(utimensat(AT_FDCWD, "file", times, 0) == 0 && stat("file", &st) == 0);
    /* Linux's client sets whole seconds (its s_time_gran). */
    CHECK(st.st_atim.tv_sec == 1000000 && st.st_mtim.tv_sec == 2000000);
    CHECK(truncate("file", 12345) == 0 && stat("file", &st) == 0 && st.st_size == 12345);
    CHECK(setxattr("file", "user.colour", "blue", 4, XATTR_CREATE) == 0);
    FAILS(setxattr("file", "user.colour", "blue", 4, XATTR_CREATE), EEXIST);
    CHECK(getxattr("file", "user.colour", again, 100) == 4 && !memcmp(again, "blue", 4));
    CHECK(listxattr("file", again, 1000) == 12 && !strcmp(again, "user.colour"));
    CHECK(removexattr("file", "user.colour") == 0);
    FAILS(getxattr("file", "user.colour", again, 100), ENODATA);
    FAILS(getxattr("file", "user.virtfs.mode", again, 100), EACCES);
    CHECK(statfs(".", &fs) == 0 && fs.f_blocks > 0 && fs.f_namelen >= 200);
    if (is_mapped) {
        CHECK(chown("file", 12, 34) == 0 && chmod("file", 06755) == 0 && stat("file", &st) == 0);
        CHECK(st.st_uid == 12 && st.st_gid == 34 && (st.st_mode & 07777) == 06755);
        CHECK(mknod("disk", S_IFBLK | 0660, makedev(8, 1)) == 0 && stat("disk", &st) == 0);
        CHECK(S_ISBLK(st.st_mode) && st.st_rdev == makedev(8, 1));
        CHECK(symlink("/etc/hostname", "link") == 0);
    }
}

static void locks(void)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 10};
    int status, fd = open("file", O_RDWR);
    CHECK(fd >= 0 && fcntl(fd, F_SETLK, &lock) == 0);
    if (fork() == 0) {
        struct flock theirs = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 15, .l_len = 1};
        FAILS(fcntl(fd, F_SETLK, &theirs), EAGAIN);
        CHECK(fcntl(fd, F_GETLK, &theirs) == 0 && theirs.l_type == F_WRLCK && theirs.l_start == 10 && theirs.l_len == 10);
        theirs = (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 20, .l_len = 1};
        CHECK(fcntl(fd, F_SETLK, &theirs) == 0);
        fflush(stdout);
        _exit(0);
    }
    CHECK(wait(&status) > 0 && status == 0);
    lock.l_type = F_UNLCK;
    CHECK(fcntl(fd, F_SETLK, &lock) == 0 && close(fd) == 0);
}

int main(int argc, char **argv)
{
    CHECK(argc == 3 && chdir(argv[1]) == 0);
    umask(0);
    contents();
    names();
    many();
    attributes(!strcmp(argv[2], "mapped"));
    locks();
    puts("ok");
    return 0;
}
