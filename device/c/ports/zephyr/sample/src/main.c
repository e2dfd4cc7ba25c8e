/* A sensor on Zephyr: wakes once a minute, sends one reading in one packet, carries out what waits, and sleeps. */
#include <unistd.h>

#include <zephyr/kernel.h>

#include "credential.h" /* duet device add NAME --registered-id --format c --out src/credential.h */
#include "duet_zephyr.h"

static const uint8_t certificate[] = DUET_CREDENTIAL_GATEWAY_CERTIFICATE;
static const duet_credentials credentials = DUET_CREDENTIALS(certificate);
static duet_device device;

int main(void) {
    static const uint8_t reading[] = "21.5";
    duet_port port;
    int udp, error = duet_zephyr_port(&port);
    if (error == 0) error = duet_init(&device, &port, &credentials, 0, DUET_EARLY_LEAVE);
    if (error != DUET_OK) return printk("cannot start: %d\n", error), 1;
    for (;;) {
        udp = duet_udp_connect(DUET_CREDENTIAL_GATEWAY_ADDRESS);
        if (udp < 0) printk("no way to %s\n", DUET_CREDENTIAL_GATEWAY_ADDRESS);
        error = duet_send(&device, 1, reading, sizeof reading - 1, 1, NULL);
        /* After a timeout the reading is still there, and goes on with the next wake. */
        if (udp >= 0 && (error == DUET_OK || error == DUET_ERROR_FULL))
            error = duet_udp_run(&device, &port, udp, NULL, port.now_us(NULL) + 30000000u);
        if (udp >= 0) close(udp);
        if (udp >= 0) printk(error == DUET_OK ? "stored\n" : "not stored yet: %d\n", error);
        k_sleep(K_SECONDS(60));
    }
}
