/*
 * A slow disk for benches/tail: loaded with LD_PRELOAD, it makes each fsync and fdatasync take longer.
 *
 * WASTORE_SLOW_MICROS  how many microseconds
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/* The function of this name that would have been called without this file. */
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void wait(void)
{
    const char *text = getenv("WASTORE_SLOW_MICROS");
    long micros = text == NULL ? 0 : strtol(text, NULL, 10);
    struct timespec time = { micros / 1000000, micros % 1000000 * 1000 };
    nanosleep(&time, NULL);
}

int fsync(int fd)
{
    wait();
    return REAL(fsync)(fd);
}

int fdatasync(int fd)
{
    wait();
    return REAL(fdatasync)(fd);
}
