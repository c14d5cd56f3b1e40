// Writes files, makes them last with fsync, and says so once they must; or says what is there.
//
//     keeper FOLDER check       what is there, and whether it is whole
//     keeper FOLDER write       writes until it is killed, in several processes at once
//
// Each process has a folder with files that it replaces (written under another name, fsync, rename, fsync of the folder; then
// "kept FOLDER FILE VERSION") and a journal that it appends to (fdatasync; then "appended FOLDER RECORDS"). "found" lines have the
// same form. Content follows from name and version, so that whoever reads it knows all of it.
#include <dirent.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WRITERS = 3, FILES = 16, MOST_BYTES = 300000, MOST_RECORD = 3000, JOURNAL_BYTES = 4 << 20 };

static unsigned char buffer[MOST_BYTES + JOURNAL_BYTES], expected[MOST_BYTES];

static void fail(const char *what) {
    perror(what);
    exit(1);
}

// One write for a line: lines of several processes do not mix.
static void say(const char *format, ...) {
    char line[200];
    va_list list;
    va_start(list, format);
    int length = vsnprintf(line, sizeof line, format, list);
    va_end(list);
    if (write(1, line, length) != length) exit(1);
}

static uint32_t next(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

// The bytes of version `version` of a file, or of a journal's record (file -1): how many there are, and which.
static size_t content(int folder, int file, uint32_t version, unsigned char *into) {
    uint64_t state = ((uint64_t)version << 16) + (unsigned)(file + 1) * 64 + folder;
    for (int n = 0; n < 4; n++) next(&state);
    size_t most = file < 0 ? MOST_RECORD : MOST_BYTES, length = 16 + next(&state) % (most - 16);
    // Small files are as common as large ones.
    if (file >= 0 && next(&state) % 2) length = 16 + length % 4000;
    memcpy(into, &version, 4);
    for (size_t at = 4; at < length; at++) into[at] = next(&state);
    return length;
}

static void write_all(int fd, const unsigned char *bytes, size_t length) {
    for (ssize_t done; length > 0; bytes += done, length -= done)
        if ((done = write(fd, bytes, length)) <= 0) fail("write");
}

// Fills `buffer`; the length, or -1 if there is no such file.
static ssize_t slurp(const char *path) {
    int fd = open(path, O_RDONLY);
    if (fd < 0) return -1;
    ssize_t length = 0, done;
    while ((done = read(fd, buffer + length, sizeof buffer - length)) > 0) length += done;
    if (done < 0) fail(path);
    close(fd);
    return length;
}

// The version of a whole file; 0: there is none.
static uint32_t find(int folder, int file) {
    char path[64];
    snprintf(path, sizeof path, "%d/%d", folder, file);
    ssize_t length = slurp(path);
    if (length < 0) return 0;
    uint32_t version = 0;
    if (length >= 4) memcpy(&version, buffer, 4);
    if (length < 16 || content(folder, file, version, expected) != (size_t)length || memcmp(buffer, expected, length))
        say("torn %d %d: %zd bytes, version %u\n", folder, file, length, version);
    return version;
}

// Whole records of the journal; `*bytes`: how long they are.
static uint32_t records(int folder, size_t *bytes) {
    char path[64];
    snprintf(path, sizeof path, "%d/journal", folder);
    ssize_t length = slurp(path);
    uint32_t count = 0;
    for (*bytes = 0;; count++) {
        size_t here = content(folder, -1, count + 1, expected);
        if ((ssize_t)(*bytes + here) > length || memcmp(buffer + *bytes, expected, here)) return count;
        *bytes += here;
    }
}

static void check(int folder) {
    size_t bytes;
    uint32_t version, count = records(folder, &bytes);
    say("found-records %d %u\n", folder, count);
    for (int file = 0; file < FILES; file++)
        if ((version = find(folder, file))) say("found %d %d %u\n", folder, file, version);
}

static void replace(int folder, int here, int file, uint32_t version) {
    char path[64], new[64];
    snprintf(path, sizeof path, "%d/%d", folder, file);
    snprintf(new, sizeof new, "%d/new", folder);
    int fd = open(new, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0) fail(new);
    write_all(fd, buffer, content(folder, file, version, buffer));
    if (fsync(fd) || close(fd) || rename(new, path) || fsync(here)) fail(path);
    say("kept %d %d %u\n", folder, file, version);
}

static void append(int folder, int journal, uint32_t record) {
    write_all(journal, buffer, content(folder, -1, record, buffer));
    if (fdatasync(journal)) fail("journal");
    say("appended %d %u\n", folder, record);
}

static void work(int folder) {
    char path[64];
    size_t bytes;
    uint32_t version = 0, found, count = records(folder, &bytes);
    uint64_t state = 0;
    for (int file = 0; file < FILES; file++)
        if ((found = find(folder, file)) > version) version = found;
    snprintf(path, sizeof path, "%d", folder);
    int here = open(path, O_RDONLY | O_DIRECTORY);
    snprintf(path, sizeof path, "%d/journal", folder);
    int journal = open(path, O_WRONLY | O_CREAT | O_APPEND, 0644);
    // What was appended and not made to last may be there in part.
    if (here < 0 || journal < 0 || ftruncate(journal, bytes) || fsync(journal) || fsync(here)) fail(path);
    state = version;
    for (;;) {
        replace(folder, here, next(&state) % FILES, ++version);
        if (bytes < JOURNAL_BYTES - MOST_RECORD) {
            append(folder, journal, ++count);
            bytes += content(folder, -1, count, expected);
        }
    }
}

int main(int count, char **words) {
    if (count != 3 || chdir(words[1])) fail("keeper FOLDER check|write");
    for (int folder = 0; folder < WRITERS; folder++) {
        char path[8];
        snprintf(path, sizeof path, "%d", folder);
        mkdir(path, 0755);
        if (!strcmp(words[2], "check")) check(folder);
        else if (!fork()) work(folder);
    }
    while (wait(NULL) > 0) say("a writer ended\n");
    return 0;
}
