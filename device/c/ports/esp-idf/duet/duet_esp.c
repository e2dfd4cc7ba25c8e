/* See duet_esp.h. */
#include "duet_esp.h"

#include "esp_random.h"
#include "esp_timer.h"
#include "nvs.h"
#include "nvs_flash.h"

static nvs_handle_t nvs;

static int port_random(void *user, uint8_t *out, size_t len) {
    (void)user;
    esp_fill_random(out, len);
    return 0;
}

static uint64_t port_now_us(void *user) {
    (void)user;
    return (uint64_t)esp_timer_get_time();
}

static const char *page_name(uint8_t page) {
    return page ? "page1" : "page0";
}

static int port_store(void *user, uint8_t page, const uint8_t *bytes, size_t len) {
    (void)user;
    return nvs_set_blob(nvs, page_name(page), bytes, len) == ESP_OK && nvs_commit(nvs) == ESP_OK ? 0 : -1;
}

static int port_load(void *user, uint8_t page, uint8_t *out, size_t len) {
    size_t found = len;
    esp_err_t error;
    (void)user;
    error = nvs_get_blob(nvs, page_name(page), out, &found);
    if (error == ESP_ERR_NVS_NOT_FOUND) return 0;
    return error == ESP_OK && found == len ? 1 : -1;
}

int duet_esp_port(duet_port *port) {
    *port = (duet_port){NULL, port_random, port_now_us, port_store, port_load, NULL, NULL};
    /* Where NVS is damaged or full nothing is erased: the counter in it was used. */
    return nvs_flash_init() == ESP_OK && nvs_open("duet", NVS_READWRITE, &nvs) == ESP_OK ? 0 : -1;
}
