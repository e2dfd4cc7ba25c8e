/* What stands for Zephyr and ESP-IDF where the ports are tried without them: the few calls that they use, with the same
 * signatures, over POSIX. A name of the settings is a file here. */
#ifndef STUB_H
#define STUB_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/types.h>
#include <time.h>

static inline void stub_name(const char *name, char out[64]) {
    size_t at = 0;
    for (; name[at] && at < 63; at++) out[at] = name[at] == '/' ? '.' : name[at];
    out[at] = 0;
}

static inline int stub_write(const char *name, const void *bytes, size_t len) {
    char path[64];
    FILE *file;
    int done;
    stub_name(name, path);
    file = fopen(path, "wb");
    if (!file) return -1;
    done = fwrite(bytes, 1, len, file) == len;
    return fclose(file) == 0 && done ? 0 : -1;
}

/* How many bytes came, or -1 where there is no such name. */
static inline ssize_t stub_read(const char *name, void *out, size_t len) {
    char path[64];
    FILE *file;
    size_t found;
    stub_name(name, path);
    file = fopen(path, "rb");
    if (!file) return -1;
    found = fread(out, 1, len, file);
    fclose(file);
    return (ssize_t)found;
}

static inline int stub_random(void *out, size_t len) {
    return getrandom(out, len, 0) == (ssize_t)len ? 0 : -1;
}

static inline int64_t stub_now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

#endif
