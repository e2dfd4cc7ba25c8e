/* See stub.h: ESP-IDF calls app_main by itself. */
void app_main(void);

int main(void) {
    app_main();
    return 0;
}
