/* A sensor: sends one reading, carries out a command if one comes, and ends once the reading is stored. */
#include <poll.h>
#include <stdio.h>

#include "credential.h" /* duet device add NAME --registered-id --format c --out credential.h */
#include "duet.h"
#include "port_posix.h"

static const uint8_t certificate[] = DUET_CREDENTIAL_GATEWAY_CERTIFICATE;
static const duet_credentials credentials = DUET_CREDENTIALS(certificate);
static duet_device device;

static int transmit(int udp) {
    uint8_t message[DUET_TRANSMIT_MAX];
    int len;
    while ((len = duet_transmit(&device, message, sizeof message)) > 0)
        (void)!write(udp, message, (size_t)len); /* what is lost is sent again */
    return len;
}

int main(int argc, char **argv) {
    const char *reading = argc > 1 ? argv[1] : "21.5";
    duet_port port = port_posix("counter");
    int udp = port_connect(DUET_CREDENTIAL_GATEWAY_ADDRESS), stored = 0, error;
    if (udp < 0 || (error = duet_init(&device, &port, &credentials, 0, DUET_EARLY_STAY)) != DUET_OK) return 1;
    duet_send(&device, 1, (const uint8_t *)reading, strlen(reading), 1, NULL);
    duet_open(&device);
    while (!stored && (error = transmit(udp)) == DUET_OK) {
        uint8_t message[DUET_RECEIVE_MAX];
        duet_event event;
        duet_confirmation confirmation;
        struct pollfd wait = {.fd = udp, .events = POLLIN};
        if (poll(&wait, 1, port_wait_ms(duet_timeout(&device))) < 1) continue;
        ssize_t len = read(udp, message, sizeof message);
        if (len < 1 || duet_receive(&device, message, (size_t)len, &event) != DUET_OK) continue;
        if (event.kind == DUET_EVENT_COMMAND) duet_result(&device, event.command, 0, (const uint8_t *)"ok", 2);
        stored = duet_confirmed(&device, &confirmation);
    }
    printf(stored == 1 ? "stored: %s\n" : "%s failed: %d\n", reading, error);
    duet_close(&device);
    transmit(udp);
    duet_end(&device);
    return stored == 1 ? 0 : 1;
}
