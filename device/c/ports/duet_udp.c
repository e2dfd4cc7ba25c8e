/* See duet_udp.h. */
#include "duet_udp.h"

#include <stdlib.h>
#include <string.h>

#ifdef __ZEPHYR__
#include <zephyr/net/socket.h>
#else
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>
#endif

/* One buffer: a message that came is done with before one is sent. */
static uint8_t message[DUET_RECEIVE_MAX];

int duet_udp_connect(const char *address) {
    struct addrinfo hints = {0}, *found = NULL, *one;
    char host[64];
    const char *colon = strrchr(address, ':');
    size_t len = colon ? (size_t)(colon - address) : sizeof host;
    int udp = -1;
    if (len >= sizeof host) return -1;
    /* An address of IPv6 stands in brackets. */
    if (len > 2 && address[0] == '[' && address[len - 1] == ']') address++, len -= 2;
    memcpy(host, address, len);
    host[len] = 0;
    hints.ai_socktype = SOCK_DGRAM;
    if (getaddrinfo(host, colon + 1, &hints, &found) != 0) return -1;
    for (one = found; one && udp < 0; one = one->ai_next) {
        udp = socket(one->ai_family, SOCK_DGRAM, 0);
        if (udp >= 0 && connect(udp, one->ai_addr, one->ai_addrlen) != 0) {
            close(udp);
            udp = -1;
        }
    }
    freeaddrinfo(found);
    return udp;
}

static int transmit(duet_device *device, int udp) {
    int len;
    while ((len = duet_transmit(device, message, sizeof message)) > 0) {
        /* What is lost is sent again. */
        (void)!send(udp, message, (size_t)len, 0);
    }
    return len;
}

static void receive(duet_device *device, size_t len, duet_act act) {
    duet_event event;
    duet_confirmation confirmation;
    if (duet_receive(device, message, len, &event) != DUET_OK) return;
    if (event.kind == DUET_EVENT_COMMAND) {
        uint8_t output[DUET_PAYLOAD_MAX], status = 255;
        size_t output_len = 0;
        if (act) status = act(event.payload, event.payload_len, output, sizeof output, &output_len);
        if (output_len > sizeof output) output_len = sizeof output;
        duet_result(device, event.command, status, output, output_len);
    }
    while (duet_confirmed(device, &confirmation) == 1) {
    }
}

int duet_udp_run(duet_device *device, const duet_port *port, int udp, duet_act act, uint64_t until_us) {
    int error = duet_is_open(device) == 1 ? DUET_OK : duet_open(device);
    if (error == DUET_OK) error = duet_rest(device);
    while (error == DUET_OK) {
        struct pollfd wait = {.fd = udp, .events = POLLIN};
        uint64_t now, due;
        error = transmit(device, udp);
        if (error != DUET_OK || duet_may_sleep(device) == 1) return error;
        now = port->now_us(port->user);
        if (now >= until_us) return DUET_UDP_TIMEOUT;
        due = duet_timeout(device);
        due = due < until_us ? due : until_us;
        due = due > now ? (due - now) / 1000u + 1 : 0;
        if (poll(&wait, 1, due < 60000u ? (int)due : 60000) == 1) {
            int len = (int)recv(udp, message, sizeof message, 0);
            if (len > 0) receive(device, (size_t)len, act);
        }
    }
    return error;
}
