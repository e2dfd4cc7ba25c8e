/* A sensor on ESP-IDF: one reading in one packet, what waits is carried out, then deep sleep for a minute. */
#include <stdio.h>
#include <unistd.h>

#include "esp_event.h"
#include "esp_netif.h"
#include "esp_sleep.h"
#include "protocol_examples_common.h"

#include "credential.h" /* duet device add NAME --registered-id --format c --out main/credential.h */
#include "duet_esp.h"

static const uint8_t certificate[] = DUET_CREDENTIAL_GATEWAY_CERTIFICATE;
static const duet_credentials credentials = DUET_CREDENTIALS(certificate);
static duet_device device;

void app_main(void) {
    static const uint8_t reading[] = "21.5";
    duet_port port;
    int udp, error = duet_esp_port(&port);
    if (error == 0) error = duet_init(&device, &port, &credentials, 0, DUET_EARLY_LEAVE);
    if (error != DUET_OK) {
        printf("cannot start: %d\n", error);
        esp_deep_sleep(60 * 1000000ull);
    }
    ESP_ERROR_CHECK(esp_netif_init());
    ESP_ERROR_CHECK(esp_event_loop_create_default());
    ESP_ERROR_CHECK(example_connect());
    udp = duet_udp_connect(DUET_CREDENTIAL_GATEWAY_ADDRESS);
    error = udp < 0 ? DUET_UDP_TIMEOUT : duet_send(&device, 1, reading, sizeof reading - 1, 1, NULL);
    if (error == DUET_OK) error = duet_udp_run(&device, &port, udp, NULL, port.now_us(NULL) + 30000000u);
    if (error == DUET_OK) printf("stored\n");
    else printf("not stored: %d\n", error);
    duet_end(&device);
    if (udp >= 0) close(udp);
    esp_deep_sleep(60 * 1000000ull);
}
