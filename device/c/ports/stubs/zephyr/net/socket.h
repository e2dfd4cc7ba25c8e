/* See stub.h. */
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>
