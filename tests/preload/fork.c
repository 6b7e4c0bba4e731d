/*
 * For tests/fork.rs, loaded with LD_PRELOAD: a process that asks for its parent is two afterwards, as after fork(), which
 * Rust without unsafe code cannot call. Nobody else asks for it.
 */

#define _GNU_SOURCE
#include <sys/syscall.h>
#include <unistd.h>

pid_t getppid(void)
{
    static int forked;
    if (!__sync_lock_test_and_set(&forked, 1)) {
        fork();
    }
    return (pid_t)syscall(SYS_getppid);
}
