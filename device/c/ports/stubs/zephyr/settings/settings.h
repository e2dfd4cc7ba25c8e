/* See stub.h. */
#include "stub.h"
typedef ssize_t (*settings_read_cb)(void *cb_arg, void *data, size_t len);
typedef int (*settings_load_direct_cb)(const char *key, size_t len, settings_read_cb read_cb, void *cb_arg, void *param);
static inline int settings_subsys_init(void) { return 0; }
static inline int settings_save_one(const char *name, const void *value, size_t len) { return stub_write(name, value, len); }
static inline ssize_t stub_setting(void *name, void *data, size_t len) { return stub_read(name, data, len); }
static inline int settings_load_subtree_direct(const char *subtree, settings_load_direct_cb cb, void *param) {
    uint8_t all[256];
    ssize_t len = stub_read(subtree, all, sizeof all);
    return len < 0 ? 0 : cb(NULL, (size_t)len, stub_setting, (void *)subtree, param);
}
