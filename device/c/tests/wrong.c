/* Every wrong argument is answered by an error, in each state of a device; after its end no byte of it is left. The context
 * and all buffers are from the heap and exactly as long as they must be, so that a sanitizer or valgrind sees a step too far. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "duet.h"

#define IS(wanted, call) \
    do { \
        long long got = (long long)(call); \
        if (got != (long long)(wanted)) { \
            printf("line %d: %s is %lld, not %lld\n", __LINE__, #call, got, (long long)(wanted)); \
            wrong++; \
        } \
    } while (0)

static int wrong, fails;
static uint8_t pages[2][DUET_PAGE_LEN];
static int written[2];

static int port_random(void *user, uint8_t *out, size_t len) {
    (void)user;
    memset(out, 7, len);
    return fails ? -1 : 0;
}

static uint64_t port_now_us(void *user) {
    (void)user;
    return 1000;
}

static int port_store(void *user, uint8_t page, const uint8_t *bytes, size_t len) {
    (void)user;
    memcpy(pages[page], bytes, len);
    written[page] = 1;
    return 0;
}

static int port_load(void *user, uint8_t page, uint8_t *out, size_t len) {
    (void)user;
    memcpy(out, pages[page], len);
    return written[page];
}

/* The certificate is the file that the program is given. */
static uint8_t *certificate(const char *path, size_t *len) {
    FILE *file = fopen(path, "rb");
    uint8_t *bytes;
    if (!file) exit(2);
    fseek(file, 0, SEEK_END);
    *len = (size_t)ftell(file);
    rewind(file);
    bytes = malloc(*len);
    if (!bytes || fread(bytes, 1, *len, file) != *len) exit(2);
    fclose(file);
    return bytes;
}

/* What is refused in every state, since an argument says nothing. */
static void always(duet_device *device, int state) {
    uint8_t *small = malloc(DUET_TRANSMIT_MAX - 1), *one = malloc(1);
    duet_event *event = malloc(sizeof *event);
    duet_confirmation *confirmation = malloc(sizeof *confirmation);
    IS(DUET_ERROR_ARGUMENT, duet_open(NULL));
    IS(DUET_ERROR_ARGUMENT, duet_end(NULL));
    IS(DUET_ERROR_ARGUMENT, duet_rest(NULL));
    IS(DUET_ERROR_ARGUMENT, duet_may_sleep(NULL));
    IS(DUET_ERROR_ARGUMENT, duet_is_open(NULL));
    IS(DUET_ERROR_ARGUMENT, duet_reconnected(NULL));
    IS(DUET_ERROR_ARGUMENT, duet_close(NULL));
    IS(DUET_ERROR_ARGUMENT, duet_open((duet_device *)((char *)device + 1)));
    IS(-1, (int64_t)duet_timeout(NULL));
    IS(DUET_ERROR_ARGUMENT, duet_send(NULL, 1, one, 1, 1, NULL));
    IS(DUET_ERROR_ARGUMENT, duet_send(device, 1, NULL, 1, 1, NULL));
    IS(DUET_ERROR_ARGUMENT, duet_send(device, 1, one, 1, 2, NULL));
    IS(DUET_ERROR_ARGUMENT, duet_send(device, 1, one, SIZE_MAX, 1, NULL));
    IS(DUET_ERROR_ARGUMENT, duet_result(device, 1, 0, NULL, 1));
    IS(DUET_ERROR_ARGUMENT, duet_result(device, 1, 0, one, SIZE_MAX));
    IS(DUET_ERROR_ARGUMENT, duet_receive(device, NULL, 1, event));
    IS(DUET_ERROR_ARGUMENT, duet_receive(device, one, 1, NULL));
    IS(DUET_ERROR_ARGUMENT, duet_receive(device, one, SIZE_MAX, event));
    IS(DUET_ERROR_ARGUMENT, duet_receive(NULL, one, 1, event));
    IS(DUET_ERROR_ARGUMENT, duet_transmit(device, NULL, DUET_TRANSMIT_MAX));
    IS(DUET_ERROR_ARGUMENT, duet_transmit(device, small, SIZE_MAX));
    IS(DUET_ERROR_BUFFER, duet_transmit(device, small, DUET_TRANSMIT_MAX - 1));
    IS(DUET_ERROR_BUFFER, duet_transmit(device, small, 0));
    IS(DUET_ERROR_ARGUMENT, duet_confirmed(device, NULL));
    IS(DUET_ERROR_ARGUMENT, duet_confirmed(NULL, confirmation));
    /* Nothing of a message that is none is believed: all lengths, and a first byte of every kind. */
    for (size_t len = 0; len <= DUET_RECEIVE_MAX; len += len < 80 ? 1 : 77) {
        for (int kind = 0; kind < 16; kind++) {
            uint8_t *message = calloc(1, len ? len : 1);
            message[0] = (uint8_t)(kind << 4 | 1);
            IS(state ? state : DUET_ERROR_DISCARDED, duet_receive(device, message, len, event));
            IS(DUET_EVENT_NOTHING, event->kind);
            free(message);
        }
    }
    free(small), free(one), free(event), free(confirmation);
}

/* Without a device in it, storage is good for nothing but to make one. */
static void without(duet_device *device) {
    uint8_t *out = malloc(DUET_TRANSMIT_MAX);
    duet_confirmation confirmation;
    always(device, DUET_ERROR_STATE);
    IS(DUET_ERROR_STATE, duet_open(device));
    IS(DUET_ERROR_STATE, duet_end(device));
    IS(DUET_ERROR_STATE, duet_rest(device));
    IS(DUET_ERROR_STATE, duet_may_sleep(device));
    IS(DUET_ERROR_STATE, duet_is_open(device));
    IS(DUET_ERROR_STATE, duet_reconnected(device));
    IS(DUET_ERROR_STATE, duet_close(device));
    IS(DUET_ERROR_STATE, duet_send(device, 1, out, 1, 1, NULL));
    IS(DUET_ERROR_STATE, duet_result(device, 1, 0, out, 1));
    IS(DUET_ERROR_STATE, duet_transmit(device, out, DUET_TRANSMIT_MAX));
    IS(DUET_ERROR_STATE, duet_confirmed(device, &confirmation));
    IS(-1, (int64_t)duet_timeout(device));
    free(out);
}

int main(int argc, char **argv) {
    size_t der_len;
    uint8_t *der = certificate(argc > 1 ? argv[1] : "", &der_len);
    const duet_port good_port = {NULL, port_random, port_now_us, port_store, port_load, NULL, NULL};
    const duet_credentials good = {.profile = 2, .id = {3}, .key = {9}, .gateway_certificate = der,
                                   .gateway_certificate_len = der_len, .first_fresh = 1};
    duet_device *device = calloc(1, sizeof *device);
    uint8_t *out = malloc(DUET_TRANSMIT_MAX), *payload = calloc(1, DUET_PAYLOAD_MAX + 1);
    duet_port port = good_port;
    duet_credentials credentials = good;
    uint32_t token = 0;

    without(device);
    IS(DUET_ERROR_ARGUMENT, duet_init(NULL, &port, &credentials, 0, 0));
    IS(DUET_ERROR_ARGUMENT, duet_init(device, NULL, &credentials, 0, 0));
    IS(DUET_ERROR_ARGUMENT, duet_init(device, &port, NULL, 0, 0));
    IS(DUET_ERROR_ARGUMENT, duet_init(device, &port, &credentials, 2, 0));
    IS(DUET_ERROR_ARGUMENT, duet_init(device, &port, &credentials, 0, 3));
    port.random = NULL;
    IS(DUET_ERROR_ARGUMENT, duet_init(device, &port, &credentials, 0, 0));
    port = good_port, port.now_us = NULL;
    IS(DUET_ERROR_ARGUMENT, duet_init(device, &port, &credentials, 0, 0));
    port = good_port, port.store = NULL;
    IS(DUET_ERROR_ARGUMENT, duet_init(device, &port, &credentials, 0, 0));
    port = good_port;
    for (int profile = 0; profile < 256; profile++) {
        int done;
        credentials.profile = (uint8_t)profile;
        done = duet_init(device, &port, &credentials, 0, 0);
        if (done == DUET_OK) duet_end(device);
        IS(1, done == DUET_OK || done == DUET_ERROR_ARGUMENT);
        if (profile & 0xe0) IS(DUET_ERROR_ARGUMENT, done);
    }
    credentials = good, credentials.gateway_certificate = NULL;
    IS(DUET_ERROR_ARGUMENT, duet_init(device, &port, &credentials, 0, 0));
    for (size_t len = 0; len < der_len; len++) {
        /* A certificate that ends too early; its copy ends where it says. */
        uint8_t *shorter = malloc(len ? len : 1);
        int done;
        memcpy(shorter, der, len);
        credentials.gateway_certificate = shorter, credentials.gateway_certificate_len = len;
        done = duet_init(device, &port, &credentials, 0, 0);
        IS(DUET_ERROR_CREDENTIALS, done);
        free(shorter);
    }
    credentials = good, credentials.first_fresh = 0;
    IS(DUET_ERROR_ARGUMENT, duet_init(device, &port, &credentials, 0, 0));
    credentials = good, credentials.profile = 0, memset(credentials.key, 0, 32);
    IS(DUET_ERROR_CREDENTIALS, duet_init(device, &port, &credentials, 0, 0));

    IS(DUET_OK, duet_init(device, &port, &good, 0, DUET_EARLY_STAY));
    always(device, 0);
    IS(DUET_ERROR_TOO_LONG, duet_send(device, 1, payload, DUET_PAYLOAD_MAX + 1, 1, &token));
    IS(DUET_ERROR_TOO_LONG, duet_result(device, 1, 0, payload, DUET_PAYLOAD_MAX + 1));
    for (uint32_t number = 0; number < DUET_WINDOW; number++) {
        IS(DUET_OK, duet_send(device, 1, payload, DUET_PAYLOAD_MAX, 1, &token));
        IS(number, token);
    }
    IS(DUET_ERROR_FULL, duet_send(device, 1, payload, 1, 1, &token));
    IS(DUET_OK, duet_open(device));
    fails = 1;
    IS(DUET_ERROR_CRYPTO, duet_transmit(device, out, DUET_TRANSMIT_MAX));
    fails = 0;
    always(device, 0);
    IS(DUET_OK, duet_close(device));
    IS(DUET_OK, duet_end(device));
    for (size_t at = 0; at < sizeof *device; at++) IS(0, ((uint8_t *)device)[at]);
    without(device);
    free(der), free(device), free(out), free(payload);
    return wrong ? 1 : 0;
}
