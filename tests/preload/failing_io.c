/*
 * A disk that fails now and then, for tests/crash.rs: loaded with LD_PRELOAD, it stands between SQLite and the C library.
 * SQLite's own test hooks would fail inside it; here even its handling of short writes is under test.
 *
 * WASTORE_FAIL_PATH    only files whose path contains this fail: the database, its log and its index
 * WASTORE_FAIL_ONE_IN  one call of so many fails; 0: none
 * WASTORE_FAIL_SEED    where chance begins
 * WASTORE_FAIL_LOG     gets one byte for each failure
 */

/* A compiler that sets it would make `pwrite` and `pwrite64` one name. */
#undef _FILE_OFFSET_BITS
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The function of this name that would have been called without this file. */
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static const char *path;
static uint64_t one_in, seed;
static uint32_t rolls;
static int failures = -1;

static uint64_t number(const char *name)
{
    const char *text = getenv(name);
    return text == NULL ? 0 : strtoull(text, NULL, 10);
}

__attribute__((constructor)) static void set_up(void)
{
    const char *log = getenv("WASTORE_FAIL_LOG");
    path = getenv("WASTORE_FAIL_PATH");
    one_in = number("WASTORE_FAIL_ONE_IN");
    seed = number("WASTORE_FAIL_SEED");
    if (log != NULL) {
        failures = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    }
}

/* A number below `sides`. Hashes a counter (splitmix64), so that threads need no lock and no state of their own. */
static uint64_t roll(uint64_t sides)
{
    uint64_t x = seed + __sync_add_and_fetch(&rolls, 1) * UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (x ^ (x >> 31)) % sides;
}

/* Whether this call is to fail. Asks the kernel what the descriptor is, so that no way of opening a file is missed. */
static int fails(int fd)
{
    char name[64], target[PATH_MAX];
    ssize_t length;
    if (path == NULL || one_in == 0) {
        return 0;
    }
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    length = readlink(name, target, sizeof target - 1);
    if (length < 0) {
        return 0;
    }
    target[length] = '\0';
    if (strstr(target, path) == NULL || roll(one_in) != 0) {
        return 0;
    }
    if (REAL(write)(failures, ".", 1) != 1) {
        abort();
    }
    return 1;
}

static int refuse(void)
{
    errno = roll(2) == 0 ? EIO : ENOSPC;
    return -1;
}

/* How much of a failing write reaches the file all the same. */
static size_t torn(size_t count)
{
    return count > 1 && roll(2) == 0 ? (size_t)roll(count) : 0;
}

/* What a failing write tells of that: less than was asked for, or nothing but an error. */
static ssize_t outcome(ssize_t written)
{
    return written > 0 && roll(2) == 0 ? written : refuse();
}

ssize_t write(int fd, const void *buffer, size_t count)
{
    if (fails(fd)) {
        size_t part = torn(count);
        return outcome(part > 0 ? REAL(write)(fd, buffer, part) : 0);
    }
    return REAL(write)(fd, buffer, count);
}

ssize_t pwrite(int fd, const void *buffer, size_t count, off_t offset)
{
    if (fails(fd)) {
        size_t part = torn(count);
        return outcome(part > 0 ? REAL(pwrite)(fd, buffer, part, offset) : 0);
    }
    return REAL(pwrite)(fd, buffer, count, offset);
}

ssize_t pwrite64(int fd, const void *buffer, size_t count, off64_t offset)
{
    if (fails(fd)) {
        size_t part = torn(count);
        return outcome(part > 0 ? REAL(pwrite64)(fd, buffer, part, offset) : 0);
    }
    return REAL(pwrite64)(fd, buffer, count, offset);
}

int fsync(int fd)
{
    return fails(fd) ? refuse() : REAL(fsync)(fd);
}

int fdatasync(int fd)
{
    return fails(fd) ? refuse() : REAL(fdatasync)(fd);
}

int ftruncate(int fd, off_t length)
{
    return fails(fd) ? refuse() : REAL(ftruncate)(fd, length);
}

int ftruncate64(int fd, off64_t length)
{
    return fails(fd) ? refuse() : REAL(ftruncate64)(fd, length);
}
