/* The board: see board.h. Addresses are those of ARM's application note AN386. Interrupts stay masked at the processor: an
 * enabled one ends its sleep, and no handler ever runs. */
#include "board.h"

#define REGISTER(address) (*(volatile uint32_t *)(address))
#define UART_DATA REGISTER(0x40004000)
#define UART_STATE REGISTER(0x40004004) /* 1: transmitter full, 2: a byte has come */
#define UART_CONTROL REGISTER(0x40004008)
#define UART_INTERRUPTS REGISTER(0x4000400c)
#define UART_DIVIDER REGISTER(0x40004010)
#define WAKE_CONTROL REGISTER(0x40000000)
#define WAKE_VALUE REGISTER(0x40000004)
#define WAKE_RELOAD REGISTER(0x40000008)
#define WAKE_INTERRUPTS REGISTER(0x4000000c)
#define CLOCK_CONTROL REGISTER(0x40001000)
#define CLOCK_VALUE REGISTER(0x40001004)
#define CLOCK_RELOAD REGISTER(0x40001008)
#define NVIC_ENABLE REGISTER(0xe000e100)
#define NVIC_UNPEND REGISTER(0xe000e280)
#define LINES (1u << 0 | 1u << 8) /* a byte has come; time is over */
#define TICKS_PER_US 25u
#define PAINT 0x7061696eu

extern uint32_t data_start[], data_end[], data_source[], bss_start[], bss_end[], stack_top[];
int main(void);

void reset(void) {
    uint32_t *to = data_start, *from = data_source;
    uint32_t *below = (uint32_t *)__builtin_frame_address(0) - 16;
    while (to < data_end) *to++ = *from++;
    for (to = bss_start; to < bss_end;) *to++ = 0;
    while (to < below) *to++ = PAINT; /* what is free: see board_stack */
    host_exit(main());
}

static void fault(void) {
    host_say("fault", -1);
    host_exit(0);
}

__attribute__((section(".vectors"), used)) static void *const vectors[16] = {
    stack_top, (void *)reset, (void *)fault, (void *)fault, (void *)fault, (void *)fault, (void *)fault,
};

uint32_t board_static(void) {
    return (uint32_t)bss_end - (uint32_t)data_start;
}

uint32_t board_stack(void) {
    const uint32_t *at = bss_end;
    while (at < stack_top && *at == PAINT) at++;
    return (uint32_t)stack_top - (uint32_t)at;
}

void board_start(void) {
    __asm__ volatile("cpsid i");
    UART_DIVIDER = 16;
    UART_CONTROL = 0xb; /* sends, receives, and interrupts for what is received */
    CLOCK_RELOAD = UINT32_MAX;
    CLOCK_VALUE = UINT32_MAX;
    CLOCK_CONTROL = 1;
    WAKE_RELOAD = 0;
    NVIC_ENABLE = LINES;
}

uint32_t board_ticks(void) {
    return ~CLOCK_VALUE;
}

uint64_t board_now_us(void) {
    static uint64_t now_us;
    static uint32_t last;
    uint32_t passed = (board_ticks() - last) / TICKS_PER_US;
    last += passed * TICKS_PER_US;
    now_us += passed;
    return now_us;
}

int board_receive(void) {
    return UART_STATE & 2 ? (int)(UART_DATA & 0xff) : -1;
}

void board_send(const uint8_t *bytes, size_t len) {
    for (; len; len--) {
        while (UART_STATE & 1) {
        }
        UART_DATA = *bytes++;
    }
}

void board_sleep_until(uint64_t until_us) {
    uint64_t now;
    while ((now = board_now_us()) < until_us && !(UART_STATE & 2)) {
        uint64_t wait_us = until_us - now < 120000000u ? until_us - now : 120000000u;
        WAKE_VALUE = (uint32_t)wait_us * TICKS_PER_US;
        WAKE_CONTROL = 9;
        __asm__ volatile("wfi");
        WAKE_CONTROL = 0;
        WAKE_INTERRUPTS = 1;
        UART_INTERRUPTS = 2;
        NVIC_UNPEND = LINES;
    }
}

static uint32_t host(uint32_t call, const void *arguments) {
    register uint32_t r0 __asm__("r0") = call;
    register const void *r1 __asm__("r1") = arguments;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

void host_say(const char *words, int32_t number) {
    char line[48];
    size_t len = 0;
    uint32_t scale = 1000000000u;
    while (words[len] && len < 32) line[len] = words[len], len++;
    if (number >= 0) {
        line[len++] = ' ';
        while (scale > 1 && (uint32_t)number < scale) scale /= 10;
        for (; scale; scale /= 10) line[len++] = (char)('0' + (uint32_t)number / scale % 10);
    }
    line[len++] = '\n';
    line[len] = 0;
    host(4, line);
}

void host_exit(int good) {
    host(0x18, (void *)(good ? 0x20026 : 0x20023));
    for (;;) __asm__ volatile("wfi");
}

static int host_file(const char *name, uint32_t mode, uint32_t call, const void *bytes, size_t len) {
    uint32_t arguments[3] = {(uint32_t)name, mode, 0}, handle, left;
    while (name[arguments[2]]) arguments[2]++;
    handle = host(1, arguments);
    if (handle == UINT32_MAX) return -1;
    arguments[0] = handle, arguments[1] = (uint32_t)bytes, arguments[2] = len;
    left = host(call, arguments);
    host(2, &handle);
    return left == 0 ? 0 : -1;
}

int host_read(const char *name, uint8_t *out, size_t len) {
    return host_file(name, 1, 6, out, len);
}

int host_write(const char *name, const uint8_t *bytes, size_t len) {
    return host_file(name, 5, 5, bytes, len);
}

/* What a C library would bring: the compiler and the library in Rust call these. Small, since nothing long is copied. */
void *memcpy(void *to, const void *from, size_t len) {
    uint8_t *out = to;
    const uint8_t *in = from;
    if ((((uint32_t)to | (uint32_t)from) & 3) == 0)
        for (; len >= 4; len -= 4, out += 4, in += 4) *(uint32_t *)(void *)out = *(const uint32_t *)(const void *)in;
    while (len--) *out++ = *in++;
    return to;
}

void *memset(void *to, int value, size_t len) {
    uint8_t *out = to;
    while (len--) *out++ = (uint8_t)value;
    return to;
}

int memcmp(const void *a, const void *b, size_t len) {
    const uint8_t *left = a, *right = b;
    for (; len; len--, left++, right++)
        if (*left != *right) return *left < *right ? -1 : 1;
    return 0;
}

/* Names that ARM's compilers use (RTABI): the arguments of a filling stand in another order. */
void *__aeabi_memcpy(void *, const void *, size_t) __attribute__((alias("memcpy")));
void *__aeabi_memcpy4(void *, const void *, size_t) __attribute__((alias("memcpy")));
void *__aeabi_memcpy8(void *, const void *, size_t) __attribute__((alias("memcpy")));

void __aeabi_memset(void *to, size_t len, int value) {
    memset(to, value, len);
}

void __aeabi_memclr(void *to, size_t len) {
    memset(to, 0, len);
}

void __aeabi_memset4(void *, size_t, int) __attribute__((alias("__aeabi_memset")));
void __aeabi_memset8(void *, size_t, int) __attribute__((alias("__aeabi_memset")));
void __aeabi_memclr4(void *, size_t) __attribute__((alias("__aeabi_memclr")));
void __aeabi_memclr8(void *, size_t) __attribute__((alias("__aeabi_memclr")));
