/*
 * A file system that can less than others, for tests/command/less.rs: loaded with LD_PRELOAD.
 *
 * WASTORE_WITHOUT  what is missing, any of: folder-fsync, renameat2, link, locks
 * WASTORE_FAILING  what fails although it is there: folder-fsync
 * WASTORE_SLOW     what takes 50 ms: fsync
 *
 * What is called through the C library is answered here. Renames, links and locks are also asked of the kernel directly, so a filter
 * of system calls (seccomp) answers those.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int named_in(const char *variable, const char *ability)
{
    const char *all = getenv(variable);
    return all != NULL && strstr(all, ability) != NULL;
}

static int synced(int fd, int (*real)(int))
{
    struct stat status;
    if (named_in("WASTORE_SLOW", "fsync")) {
        usleep(50000);
    }
    int folder = fstat(fd, &status) == 0 && S_ISDIR(status.st_mode);
    if (folder && named_in("WASTORE_FAILING", "folder-fsync")) {
        errno = EIO;
        return -1;
    }
    if (folder && named_in("WASTORE_WITHOUT", "folder-fsync")) {
        errno = EINVAL;
        return -1;
    }
    return real(fd);
}

int fsync(int fd) { return synced(fd, REAL(fsync)); }
int fdatasync(int fd) { return synced(fd, REAL(fdatasync)); }

/* Answers one system call with an error. */
#define REFUSE(number, error) \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (number), 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (error))
/* A number that no system call has. */
#define NONE 0xffffff

__attribute__((constructor)) static void set_up(void)
{
    int renames = named_in("WASTORE_WITHOUT", "renameat2"), links = named_in("WASTORE_WITHOUT", "link");
    int locks = named_in("WASTORE_WITHOUT", "locks");
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        REFUSE(renames ? SYS_renameat2 : NONE, EINVAL),
        REFUSE(links ? SYS_linkat : NONE, EPERM),
#ifdef SYS_link
        REFUSE(links ? SYS_link : NONE, EPERM),
#endif
        /* Only the commands of fcntl that are about locks. */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, locks ? SYS_fcntl : NONE, 0, 5),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
        REFUSE(F_SETLK, ENOLCK),
        REFUSE(F_SETLKW, ENOLCK),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { .len = sizeof filter / sizeof filter[0], .filter = filter };
    if (renames || links || locks) {
        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) != 0) {
            _exit(99);
        }
    }
}
