/* The protocol's vectors on the board, through the C face: each HELLO is the same byte for byte, each ACCEPT and record is
 * taken, and the record that answers is the same, too. It says how many, or which one was wrong. */
#include "board.h"
#include "duet.h"
#include "vectors.h"

static duet_device device;
static uint8_t message[DUET_TRANSMIT_MAX];
static const duet_vector *vector;

static int is_same(const uint8_t *a, const uint8_t *b, size_t len) {
    size_t at = 0;
    while (at < len && a[at] == b[at]) at++;
    return at == len;
}

/* A device draws all that is random in a HELLO at once. */
static int port_random(void *user, uint8_t *out, size_t len) {
    size_t at;
    (void)user;
    if (len != sizeof vector->random) return -1;
    for (at = 0; at < len; at++) out[at] = vector->random[at];
    return 0;
}

static uint64_t port_now_us(void *user) {
    (void)user;
    return 1000;
}

static const duet_port port = {NULL, port_random, port_now_us, NULL, NULL, NULL, NULL};

static int receive(const uint8_t *bytes, size_t len) {
    duet_event event;
    size_t at;
    for (at = 0; at < len; at++) message[at] = bytes[at];
    return duet_receive(&device, message, len, &event) == DUET_OK ? event.kind : -1;
}

static int sends(const uint8_t *bytes, size_t len) {
    int made = duet_transmit(&device, message, sizeof message);
    return made == (int)len && is_same(message, bytes, len);
}

/* The step that went wrong, or 0. */
static int wrong(void) {
    duet_confirmation confirmation;
    uint8_t early = vector->early ? DUET_EARLY_STAY : DUET_EARLY_NEVER;
    if (duet_init(&device, &port, &vector->credentials, vector->stream, early) != DUET_OK) return 1;
    if (vector->early && duet_send(&device, 2, vector->payload, vector->payload_len, 1, NULL) != DUET_OK) return 2;
    if (duet_open(&device) != DUET_OK || !sends(vector->hello, vector->hello_len)) return 3;
    if (receive(vector->accept, vector->accept_len) != DUET_EVENT_OPENED) return 4;
    if (duet_confirmed(&device, &confirmation) != vector->stored) return 5;
    if (receive(vector->ack, vector->ack_len) != DUET_EVENT_CONFIRMED) return 6;
    if (receive(vector->ack, vector->ack_len) != -1) return 7; /* a copy is discarded */
    if (receive(vector->prove, vector->prove_len) != DUET_EVENT_NOTHING) return 8;
    if (!sends(vector->here, vector->here_len)) return 9;
    return duet_end(&device) == DUET_OK ? 0 : 10;
}

int main(void) {
    size_t at, count = sizeof duet_vectors / sizeof *duet_vectors;
    board_start();
    for (at = 0; at < count; at++) {
        int step;
        vector = &duet_vectors[at];
        if (!(step = wrong())) continue;
        host_say(vector->name, step);
        host_say("failed", -1);
        return 0;
    }
    host_say("vectors", (int32_t)count);
    return 1;
}
