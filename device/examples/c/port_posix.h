/* The port for POSIX systems: random bytes, a clock, two pages in files, a UDP socket. Copy it, and change
 * what your board does otherwise. */
#ifndef PORT_POSIX_H
#define PORT_POSIX_H

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "duet.h"

static int port_random(void *user, uint8_t *out, size_t len) {
    int file = open("/dev/urandom", O_RDONLY);
    size_t done = 0;
    (void)user;
    while (file >= 0 && done < len) {
        ssize_t more = read(file, out + done, len - done);
        if (more < 1) break;
        done += (size_t)more;
    }
    if (file >= 0) close(file);
    return done == len ? 0 : -1;
}

static uint64_t port_now_us(void *user) {
    struct timespec now;
    (void)user;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

static void port_name(void *user, uint8_t page, char name[128]) {
    snprintf(name, 128, "%s.%u", (const char *)user, page);
}

static int port_store(void *user, uint8_t page, const uint8_t *bytes, size_t len) {
    char name[128];
    int file, done;
    port_name(user, page, name);
    file = open(name, O_WRONLY | O_CREAT, 0600);
    if (file < 0) return -1;
    done = write(file, bytes, len) == (ssize_t)len && fsync(file) == 0;
    close(file);
    file = open(".", O_RDONLY); /* the file's name must survive, too: user names files in this folder */
    done = done && file >= 0 && fsync(file) == 0;
    if (file >= 0) close(file);
    return done ? 0 : -1;
}

static int port_load(void *user, uint8_t page, uint8_t *out, size_t len) {
    char name[128];
    int file, there;
    port_name(user, page, name);
    file = open(name, O_RDONLY);
    if (file < 0) return errno == ENOENT ? 0 : -1; /* a page that is there and cannot be read is not "never written" */
    there = read(file, out, len) == (ssize_t)len; /* a short page was torn: it counts as never written */
    close(file);
    return there;
}

static duet_port port_posix(char *counter) {
    duet_port port = {counter, port_random, port_now_us, port_store, port_load, NULL, NULL};
    return port;
}

/* How long to wait for a message, milliseconds. */
static int port_wait_ms(uint64_t due_us) {
    uint64_t now = port_now_us(NULL);
    if (due_us <= now) return 0;
    return due_us - now > 60000000u ? 60000 : (int)((due_us - now) / 1000u) + 1;
}

/* A UDP socket that is connected to HOST:PORT, or -1. */
static int port_connect(const char *address) {
    struct addrinfo hints = {0}, *found = NULL, *one;
    char host[256];
    const char *colon = strrchr(address, ':');
    size_t len = colon ? (size_t)(colon - address) : sizeof host;
    int udp = -1;
    if (len >= sizeof host) return -1;
    memcpy(host, address, len);
    host[len] = 0;
    hints.ai_socktype = SOCK_DGRAM;
    if (getaddrinfo(host, colon + 1, &hints, &found) != 0) return -1;
    for (one = found; one && udp < 0; one = one->ai_next) {
        udp = socket(one->ai_family, one->ai_socktype, one->ai_protocol);
        if (udp >= 0 && connect(udp, one->ai_addr, one->ai_addrlen) != 0) {
            close(udp);
            udp = -1;
        }
    }
    freeaddrinfo(found);
    return udp;
}

#endif
