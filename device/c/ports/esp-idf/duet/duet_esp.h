/* Duet's port for ESP-IDF. */
#ifndef DUET_ESP_H
#define DUET_ESP_H

#include "duet.h"
#include "duet_udp.h"

/* Random bytes, the clock, and the pages in the NVS namespace `duet`; 0 if that is there. Without WiFi or Bluetooth the chip's
 * generator is no true one: call bootloader_random_enable before. */
int duet_esp_port(duet_port *port);

#endif
