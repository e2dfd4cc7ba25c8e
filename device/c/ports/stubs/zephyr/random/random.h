/* See stub.h. */
#include "stub.h"
static inline int sys_csrand_get(void *dst, size_t len) { return stub_random(dst, len); }
