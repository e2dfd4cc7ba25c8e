/* See stub.h. */
#include "stub.h"
static inline int64_t esp_timer_get_time(void) { return stub_now_us(); }
