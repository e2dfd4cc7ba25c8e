/* See stub.h. A sleep ends the program. */
#include "stub.h"
#define ARG_UNUSED(name) (void)(name)
#define printk printf
typedef struct { int64_t ticks; } k_timeout_t;
#define K_SECONDS(seconds) ((k_timeout_t){(seconds) * 1000000ll})
static inline int64_t k_uptime_ticks(void) { return stub_now_us(); }
static inline uint64_t k_ticks_to_us_floor64(uint64_t ticks) { return ticks; }
static inline int32_t k_sleep(k_timeout_t timeout) { (void)timeout, exit(0); }
