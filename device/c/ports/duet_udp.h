/* Drives a device over a connected UDP socket: what the ports for Zephyr and ESP-IDF share. The socket's functions have their
 * POSIX names in both. */
#ifndef DUET_UDP_H
#define DUET_UDP_H

#include "duet.h"

/* Carries out a command: writes at most `size` bytes of output, sets their number, returns the status; 0 is success. */
typedef uint8_t (*duet_act)(const uint8_t *payload, size_t len, uint8_t *output, size_t size, size_t *output_len);

/* A UDP socket that is connected to HOST:PORT, or -1. */
int duet_udp_connect(const char *address);

/* Opens a channel unless one stands, sends and receives: until all readings are stored and the device may sleep (DUET_OK),
 * until `until_us` on the port's clock (DUET_UDP_TIMEOUT: call it again), or until something fails. `act` may be NULL: then
 * commands are answered with status 255. */
int duet_udp_run(duet_device *device, const duet_port *port, int udp, duet_act act, uint64_t until_us);

#define DUET_UDP_TIMEOUT (-100)

#endif
