/* See stub.h. */
#include "stub.h"
static inline void esp_fill_random(void *buf, size_t len) { if (stub_random(buf, len)) abort(); }
