/* Duet on a device: made from device/c/src, do not edit. docs/device.md shows how it is used. */

#ifndef DUET_H
#define DUET_H

#include <stddef.h>
#include <stdint.h>

#if !defined(DUET_SMALL)
// The longest payload of a reading, a command's result and its output, bytes.
#define DUET_PAYLOAD_MAX 256
#endif

#if defined(DUET_SMALL)
// The longest payload of a reading, a command's result and its output, bytes.
#define DUET_PAYLOAD_MAX 64
#endif

#if !defined(DUET_SMALL)
// How many readings wait at once to be confirmed.
#define DUET_WINDOW 4
#endif

#if defined(DUET_SMALL)
// How many readings wait at once to be confirmed.
#define DUET_WINDOW 2
#endif

#if !defined(DUET_SMALL)
// How long a buffer for `duet_transmit` must be, bytes.
#define DUET_TRANSMIT_MAX 512
#endif

#if defined(DUET_SMALL)
// How long a buffer for `duet_transmit` must be, bytes.
#define DUET_TRANSMIT_MAX 288
#endif

#if !defined(DUET_SMALL)
// The size of `duet_device` in words of eight bytes.
#define DUET_DEVICE_WORDS 464
#endif

#if defined(DUET_SMALL)
// The size of `duet_device` in words of eight bytes.
#define DUET_DEVICE_WORDS 240
#endif

// The longest message that a gateway sends, bytes.
#define DUET_RECEIVE_MAX 1200

// What the port keeps in one page, bytes.
#define DUET_PAGE_LEN 48

// The call had its effect.
#define DUET_OK 0

// A pointer was null, a length or a value out of range.
#define DUET_ERROR_ARGUMENT -1

// The context was not made, was ended, or is in use further up the stack.
#define DUET_ERROR_STATE -2

// The message was discarded: it is not for this device, or not genuine. That is no fault.
#define DUET_ERROR_DISCARDED -3

// A random generator, a key or another operation of the port failed; it is tried again later.
#define DUET_ERROR_CRYPTO -4

// The port's `store` or `load` failed; it is tried again later.
#define DUET_ERROR_STORE -5

// Every place for a reading waits for a confirmation.
#define DUET_ERROR_FULL -6

// The payload is longer than `DUET_PAYLOAD_MAX`.
#define DUET_ERROR_TOO_LONG -7

// The buffer is shorter than `DUET_TRANSMIT_MAX`.
#define DUET_ERROR_BUFFER -8

// The credentials do not belong together, or the gateway's certificate is none.
#define DUET_ERROR_CREDENTIALS -9

// Readings are records; HELLO carries none.
#define DUET_EARLY_NEVER 0

// A reading that waits goes inside HELLO; then the session is kept.
#define DUET_EARLY_STAY 1

// The same; and once it is stored and nothing waits, no session is kept: wake, send, sleep.
#define DUET_EARLY_LEAVE 2

// Nothing to do.
#define DUET_EVENT_NOTHING 0

// A channel stands.
#define DUET_EVENT_OPENED 1

// The reading inside HELLO is stored and no session is kept.
#define DUET_EVENT_DELIVERED 2

// Readings are stored: see `duet_confirmed`.
#define DUET_EVENT_CONFIRMED 3

// A command is to be carried out: answer with `duet_result`.
#define DUET_EVENT_COMMAND 4

// Nothing waits for the device: see `duet_may_sleep`.
#define DUET_EVENT_NOTHING_WAITS 5

// Somebody says that the gateway has lost the session; on a stream, connect anew.
#define DUET_EVENT_DOUBTED 6

// The gateway has lost the session: a new handshake begins.
#define DUET_EVENT_LOST 7

// The gateway has ended the session.
#define DUET_EVENT_CLOSED 8

// A device: storage, and nothing that is looked into. Between `duet_init` and `duet_end` it must not be
// moved or copied.
typedef struct duet_device {
  uint64_t opaque[DUET_DEVICE_WORDS];
} duet_device;

// The functions of the caller's. They are called from within `duet_…` functions, and must not call those
// with the same device. All but `random` and `now_us` may be null.
typedef struct duet_port {
  // Handed to every function.
  void *user;
  // Fills `out` with random bytes; 0 on success.
  int (*random)(void *user, uint8_t *out, size_t len);
  // A clock, microseconds. Where it goes back, as one of 32 bits does after 71 minutes, time goes on from where it was; it must
  // be asked more often than that.
  uint64_t (*now_us)(void *user);
  // Writes page 0 or 1, `DUET_PAGE_LEN` bytes; 0 once no power cut can undo it. A page that is torn by a
  // power cut does no harm.
  int (*store)(void *user, uint8_t page, const uint8_t *bytes, size_t len);
  // Reads page 0 or 1; 1 if it is there, 0 if it was never written, anything else for a failure. Without
  // `store` and `load` the counter is lost with the power, and each start costs a challenge.
  int (*load)(void *user, uint8_t page, uint8_t *out, size_t len);
  // Signs a SHA-256 digest of 32 bytes with the device's key: r and s, 64 bytes; 0 on success.
  int (*sign)(void *user, const uint8_t *digest, uint8_t *signature);
  // x of the product of a point (65 bytes) with the device's key, 32 bytes; 0 on success. Needed where
  // `sign` is and the key source is not `ephemeral`.
  int (*agree)(void *user, const uint8_t *point, uint8_t *shared);
} duet_port;

// What a device holds of itself and of its gateway. `duet_init` copies it.
typedef struct duet_credentials {
  // The profile byte of the specification, bits 0 to 4: mode, key source, transfer. 2 is
  // `registered-id/ephemeral`, 0 is `certificate/ephemeral`.
  uint8_t profile;
  // Which of the gateway's keys.
  uint8_t gateway_key_id;
  // The device's id.
  uint8_t id[8];
  // The registration key, or the certificate's private key; where the port has `sign`: the hedge key,
  // 32 random bytes that are made once, kept secret and used for nothing else.
  uint8_t key[32];
  // SHA-256 of the device's certificate; not used with a registered id.
  uint8_t fingerprint[32];
  // The device's public key, 0x04 and both coordinates; used only where the port has `sign`.
  uint8_t public_key[65];
  // The gateway's certificate, DER.
  const uint8_t *gateway_certificate;
  // Its length. 0 where a board has no room for it: then both of the following stand for it.
  size_t gateway_certificate_len;
  // SHA-256 of the gateway's certificate; not used where that is given.
  uint8_t gateway_fingerprint[32];
  // The key in it, 0x04 and both coordinates; not used where the certificate is given.
  uint8_t gateway_public_key[65];
  // The comb of the gateway's key, 128 words as `duet device add --format c` writes them, or null. With it a HELLO takes a
  // fifth less time. It is not copied: it stays where it is as long as the device. One that belongs to another key, or was
  // damaged, is passed over. Only a library that was built with `compact` uses it.
  const uint32_t *gateway_comb;
  // Where the counter begins: 1 where nothing else is said.
  uint64_t first_fresh;
} duet_credentials;

// What a message meant.
typedef struct duet_event {
  // One of `DUET_EVENT_…`.
  uint8_t kind;
  // The number of a command.
  uint32_t command;
  // What to do: inside the buffer that was given to `duet_receive`, valid as long as that is left alone.
  const uint8_t *payload;
  // Its length.
  size_t payload_len;
} duet_event;

// A reading that is stored at the gateway.
typedef struct duet_confirmation {
  // What `duet_send` gave it.
  uint32_t token;
  // Its name for ever.
  uint8_t id[16];
} duet_confirmation;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

#if !defined(DUET_SMALL)
// Makes a device in `device`. `early` is one of `DUET_EARLY_…`; `stream` is 0 for datagrams, 1 for streams.
//
// # Safety
// Pointers are null or point to what their types say; `device` is not in use.
int duet_init(struct duet_device *device,
              const struct duet_port *port,
              const struct duet_credentials *credentials,
              uint8_t stream,
              uint8_t early);
#endif

#if defined(DUET_SMALL)
// `duet_init` of a library that was built with `small`: a program that was compiled for the other sizes does not link.
//
// # Safety
// Pointers are null or point to what their types say; `device` is not in use.
int duet_init_small(struct duet_device *device,
                    const struct duet_port *port,
                    const struct duet_credentials *credentials,
                    uint8_t stream,
                    uint8_t early);
#endif

// Ends a device and destroys every key in it; the storage is free again. `duet_close` comes before it, where
// the gateway is to know.
//
// # Safety
// `device` is null or points to a `duet_device` that was zeroed or made.
int duet_end(struct duet_device *device);

// Begins a handshake now; a session that stands stays until the new one does.
//
// # Safety
// `device` is null or points to a `duet_device` that was zeroed or made.
int duet_open(struct duet_device *device);

// Takes a reading. `confirm` is 1 where it is to be repeated until it is stored, else 0; `token`, which may be
// null, is what `duet_confirmed` names it by.
//
// # Safety
// Pointers are null or point to what their types say, `payload` to `len` bytes.
int duet_send(struct duet_device *device,
              uint16_t channel,
              const uint8_t *payload,
              size_t len,
              uint8_t confirm,
              uint32_t *token);

// Tells what came of a command; `status` 0 is success.
//
// # Safety
// Pointers are null or point to what their types say, `output` to `len` bytes.
int duet_result(struct duet_device *device,
                uint32_t command,
                uint8_t status,
                const uint8_t *output,
                size_t len);

// Takes a message that came, which is changed; `event` says what it meant.
//
// # Safety
// Pointers are null or point to what their types say, `message` to `len` bytes.
int duet_receive(struct duet_device *device, uint8_t *message, size_t len, struct duet_event *event);

// The next message to send, written to `out`; its length, 0 for none, or an error.
//
// # Safety
// Pointers are null or point to what their types say, `out` to `size` bytes.
int duet_transmit(struct duet_device *device, uint8_t *out, size_t size);

// 1 and the next reading that is stored, 0 where there is none, or an error.
//
// # Safety
// Pointers are null or point to what their types say.
int duet_confirmed(struct duet_device *device, struct duet_confirmation *confirmation);

// When `duet_transmit` is to be called next if nothing comes before, on the port's clock; `UINT64_MAX` is
// never, also for a device that was not made.
//
// # Safety
// `device` is null or points to a `duet_device` that was zeroed or made.
uint64_t duet_timeout(struct duet_device *device);

// Asks whether the device may sleep, unless that is known.
//
// # Safety
// `device` is null or points to a `duet_device` that was zeroed or made.
int duet_rest(struct duet_device *device);

// 1 if all is said and nothing waits for the device, 0 if not, or an error.
//
// # Safety
// `device` is null or points to a `duet_device` that was zeroed or made.
int duet_may_sleep(struct duet_device *device);

// 1 if a channel stands, 0 if not, or an error.
//
// # Safety
// `device` is null or points to a `duet_device` that was zeroed or made.
int duet_is_open(struct duet_device *device);

// A stream was connected anew: what waits for an answer is due at once.
//
// # Safety
// `device` is null or points to a `duet_device` that was zeroed or made.
int duet_reconnected(struct duet_device *device);

// Ends the session: the next message says so to the gateway, after which no key of it remains.
//
// # Safety
// `device` is null or points to a `duet_device` that was zeroed or made.
int duet_close(struct duet_device *device);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* DUET_H */

/* The initializer of a duet_credentials from the macros that `duet device add --registered-id --format c` writes;
 * `certificate` is a uint8_t array of DUET_CREDENTIAL_GATEWAY_CERTIFICATE, `comb` a uint32_t array of
 * DUET_CREDENTIAL_GATEWAY_COMB. */
#define DUET_CREDENTIALS(certificate) DUET_CREDENTIALS_WITH_COMB(certificate, NULL)
#define DUET_CREDENTIALS_WITH_COMB(certificate, comb) { \
    .profile = DUET_CREDENTIAL_MODE, \
    .gateway_key_id = DUET_CREDENTIAL_GATEWAY_KEY_ID, \
    .id = DUET_CREDENTIAL_ID, \
    .key = DUET_CREDENTIAL_REGISTRATION_KEY, \
    .gateway_certificate = certificate, \
    .gateway_certificate_len = sizeof certificate, \
    .gateway_comb = comb, \
    .first_fresh = DUET_CREDENTIAL_FIRST_FRESH }
/* A library that was built with the feature `small` has smaller contexts, and another name for duet_init: what was
 * compiled without DUET_SMALL does not link with it. */
#ifdef DUET_SMALL
#define duet_init duet_init_small
#endif
