/* A sensor on a Cortex-M4 in C: what firmware/src/main.rs is in Rust, and with the same words for whoever tries it. A nap
 * ends the device altogether, as a power switch does; what it must not forget is in two pages. */
#include "board.h"
#include "credential.h" /* duet device add NAME --registered-id --format c --out credential.h */
#include "duet.h"

#define PAUSE_US 200000u
#define SILENCE_US 1500000u /* after this the line may have been connected anew: no wire says so */
#define GIVE_UP_US 500000u  /* a message that stops coming for this long is given up */
#define NAPS 3

static const uint8_t certificate[] = DUET_CREDENTIAL_GATEWAY_CERTIFICATE;
static const uint32_t comb[] = DUET_CREDENTIAL_GATEWAY_COMB;
static const duet_credentials credentials = DUET_CREDENTIALS_WITH_COMB(certificate, comb);
static duet_device device;
/* One buffer serves both directions, since memory is short: nothing is sent while a message is coming. */
static uint8_t message[2 + DUET_TRANSMIT_MAX];
static uint32_t have;
static uint64_t heard_us;
static int32_t readings, hello, accept, reading, ack;
static int owed, naps, stops;

static int port_random(void *user, uint8_t *out, size_t len) {
    (void)user;
    return host_read("/dev/urandom", out, len);
}

static uint64_t port_now_us(void *user) {
    (void)user;
    return board_now_us();
}

static const char *port_page(uint8_t page) {
    return page ? "page1" : "page0";
}

static int port_store(void *user, uint8_t page, const uint8_t *bytes, size_t len) {
    (void)user;
    return host_write(port_page(page), bytes, len);
}

static int port_load(void *user, uint8_t page, uint8_t *out, size_t len) {
    (void)user;
    return host_read(port_page(page), out, len) == 0;
}

static const duet_port port = {NULL, port_random, port_now_us, port_store, port_load, NULL, NULL};

static void begin(uint8_t early) {
    if (duet_init(&device, &port, &credentials, 1, early) == DUET_OK) return;
    host_say("failed", -1);
    host_exit(0);
}

static void note(int32_t *cost, uint32_t since) {
    if (!*cost) *cost = (int32_t)(board_ticks() - since);
}

static int is_amid(void) {
    return have > 0 && board_now_us() - heard_us <= GIVE_UP_US;
}

static void transmit(void) {
    while (!is_amid()) {
        uint32_t since = board_ticks();
        int len;
        have = 0;
        len = duet_transmit(&device, message + 2, DUET_TRANSMIT_MAX);
        if (len < 0) host_say("failed", -1), host_exit(0);
        if (len == 0) return;
        note(message[2] >> 4 == 1 ? &hello : &reading, since);
        message[0] = (uint8_t)(len >> 8);
        message[1] = (uint8_t)len;
        board_send(message, 2 + (size_t)len);
    }
}

static int is_word(const duet_event *event, const char *word) {
    size_t at = 0;
    while (word[at] && at < event->payload_len && event->payload[at] == (uint8_t)word[at]) at++;
    return !word[at] && at == event->payload_len;
}

static void handle(size_t len) {
    duet_event event;
    duet_confirmation confirmation;
    uint32_t since = board_ticks();
    if (duet_receive(&device, message + 2, len, &event) != DUET_OK) return;
    if (event.kind == DUET_EVENT_OPENED) note(&accept, since), host_say("opened", -1);
    if (event.kind == DUET_EVENT_CONFIRMED) note(&ack, since);
    if (event.kind == DUET_EVENT_DELIVERED) host_say("delivered", readings);
    if (event.kind == DUET_EVENT_LOST || event.kind == DUET_EVENT_DOUBTED) host_say("lost", -1);
    if (event.kind == DUET_EVENT_COMMAND) {
        int nap = is_word(&event, "nap"), stop = is_word(&event, "stop");
        if (nap) naps = NAPS;
        if (stop) stops = 1;
        duet_result(&device, event.command, nap || stop ? 0 : 1, (const uint8_t *)"yes", nap || stop ? 3 : 0);
        host_say("command", (int32_t)event.command);
    }
    while (duet_confirmed(&device, &confirmation) == 1) {
        owed--;
        host_say("stored", readings);
    }
}

/* Takes a byte of a message behind its length; longer messages are passed over. */
static void take(uint8_t byte) {
    uint64_t now = board_now_us();
    uint32_t len;
    if (!is_amid()) have = 0;
    heard_us = now;
    if (have < sizeof message) message[have] = byte;
    have++;
    len = (uint32_t)message[0] << 8 | message[1];
    if (have < 2 || have < 2 + len) return;
    have = 0;
    if (len > 0 && len <= DUET_TRANSMIT_MAX) handle(len);
}

/* Sends and receives until this time, or until all is said before a nap or the end. */
static void run_until(uint64_t until_us) {
    for (;;) {
        uint64_t due, doubt = owed > 0 ? heard_us + SILENCE_US : UINT64_MAX;
        int byte;
        transmit();
        if (board_now_us() >= until_us || ((naps || stops) && duet_may_sleep(&device) == 1)) return;
        due = duet_timeout(&device);
        due = due < doubt ? due : doubt;
        board_sleep_until(due < until_us ? due : until_us);
        if (board_now_us() >= doubt) heard_us = board_now_us(), duet_reconnected(&device);
        if ((byte = board_receive()) >= 0) take((uint8_t)byte);
    }
}

static void measure(void) {
    uint8_t text[9] = "21.5 C, 0";
    text[8] = (uint8_t)('0' + readings % 10);
    if (duet_send(&device, 1, text, sizeof text, 1, NULL) == DUET_OK) readings++, owed++;
    if (!duet_is_open(&device)) duet_open(&device);
}

int main(void) {
    board_start();
    begin(DUET_EARLY_STAY);
    while (!stops) {
        measure();
        run_until(board_now_us() + PAUSE_US);
        if (!naps && !stops) continue;
        duet_rest(&device);
        run_until(UINT64_MAX);
        duet_close(&device);
        transmit();
        for (; naps && !stops; naps--) {
            duet_end(&device);
            board_sleep_until(board_now_us() + PAUSE_US);
            begin(DUET_EARLY_LEAVE);
            measure();
            run_until(UINT64_MAX);
            if (naps > 1) continue;
            host_say("awake", -1);
            duet_end(&device);
            begin(DUET_EARLY_STAY);
        }
    }
    duet_end(&device);
    host_say("ticks hello", hello);
    host_say("ticks accept", accept);
    host_say("ticks reading", reading);
    host_say("ticks ack", ack);
    host_say("bytes static", (int32_t)board_static());
    host_say("bytes stack", (int32_t)board_stack());
    return 1;
}
