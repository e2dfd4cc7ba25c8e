/* Duet's port for Zephyr. */
#ifndef DUET_ZEPHYR_H
#define DUET_ZEPHYR_H

#include "duet.h"
#include "duet_udp.h"

/* Random bytes, the clock, and the pages in the settings `duet/0` and `duet/1`; 0 if the settings are there. */
int duet_zephyr_port(duet_port *port);

#endif
