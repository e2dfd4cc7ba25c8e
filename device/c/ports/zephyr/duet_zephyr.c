/* See duet_zephyr.h. */
#include "duet_zephyr.h"

#include <errno.h>

#include <zephyr/kernel.h>
#include <zephyr/random/random.h>
#include <zephyr/settings/settings.h>

/* A page that is read: where it goes, and what came of it. */
struct page {
    uint8_t *out;
    size_t len;
    int there;
};

static int port_random(void *user, uint8_t *out, size_t len) {
    ARG_UNUSED(user);
    return sys_csrand_get(out, len);
}

static uint64_t port_now_us(void *user) {
    ARG_UNUSED(user);
    return k_ticks_to_us_floor64(k_uptime_ticks());
}

static const char *page_name(uint8_t page) {
    return page ? "duet/1" : "duet/0";
}

static int port_store(void *user, uint8_t page, const uint8_t *bytes, size_t len) {
    ARG_UNUSED(user);
    return settings_save_one(page_name(page), bytes, len);
}

static int take(const char *key, size_t len, settings_read_cb read_cb, void *cb_arg, void *param) {
    struct page *page = param;
    ARG_UNUSED(key);
    page->there = len == page->len && read_cb(cb_arg, page->out, len) == (ssize_t)len ? 1 : -EIO;
    return 0;
}

static int port_load(void *user, uint8_t number, uint8_t *out, size_t len) {
    struct page page = {out, len, 0};
    ARG_UNUSED(user);
    if (settings_load_subtree_direct(page_name(number), take, &page) != 0) return -EIO;
    return page.there;
}

int duet_zephyr_port(duet_port *port) {
    *port = (duet_port){NULL, port_random, port_now_us, port_store, port_load, NULL, NULL};
    return settings_subsys_init();
}
