/* The board: a serial line, two timers, sleep; and what QEMU lends in place of hardware that it does not have. */
#ifndef BOARD_H
#define BOARD_H

#include <stddef.h>
#include <stdint.h>

/* Starts the clock and the serial line. */
void board_start(void);
/* The clock's ticks, 25 a microsecond; they begin again after 170 s. */
uint32_t board_ticks(void);
/* Microseconds since the start. It must be asked once in 170 s. */
uint64_t board_now_us(void);
/* A byte that has come, or -1. */
int board_receive(void);
void board_send(const uint8_t *bytes, size_t len);
/* Sleeps until a byte has come or it is this late, but for two minutes at most. */
void board_sleep_until(uint64_t until_us);

/* Bytes of memory that static variables take, and how deep the stack ever was. */
uint32_t board_static(void);
uint32_t board_stack(void);

/* Says a line: words, and a number unless it is negative. */
void host_say(const char *words, int32_t number);
/* Ends the program, for better or worse. */
void host_exit(int good);
/* Reads a whole file of the host's, or writes it; 0 on success. */
int host_read(const char *name, uint8_t *out, size_t len);
int host_write(const char *name, const uint8_t *bytes, size_t len);

#endif
