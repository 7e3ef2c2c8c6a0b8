/* Makes calls to the file system fail, or end the process, at a chosen place: loaded with LD_PRELOAD.
 *
 * A rule is armed by fault_arm() in the process itself, or by the variable FAULT_RULE before it starts:
 *
 *     folder=/tmp/x;calls=write,rename;action=error;value=28;nth=3;sticky=0;chance=0;seed=1;log=/tmp/log
 *
 * Calls whose path lies below the folder are counted. The nth of them (every one from there on: sticky; or each with
 * the given chance in 1e6) meets the action: error (value is errno), short (half of what was asked for is done),
 * before and after (value is a signal that the process sends itself, before or after the call), count (nothing).
 * The log has one line a call that met the action; all calls if the action is count.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum call { OPEN, READ_OPEN, WRITE, READ, FSYNC, RENAME, CLOSE, MKDIR, REMOVE, LINK, SIZE, COPY, STAT, MODE, MAP, LIST };
static const char *const names[] = {"open", "open-read", "write", "read", "fsync", "rename", "close", "mkdir",
                                    "remove", "link", "size", "copy", "stat", "mode", "map", "list"};
enum action { NOTHING, COUNT, ERROR, SHORT, BEFORE, AFTER };
static const char *const actions[] = {"nothing", "count", "error", "short", "before", "after"};
enum { GO_ON, FAIL, HALF };

static char folder[PATH_MAX];
static size_t folder_length;
static unsigned calls;
static enum action action;
static int value, sticky, log_to = -1;
static long nth;
static unsigned chance;
static atomic_uint state;
static atomic_long seen;
static __thread int ends_after;

static void field(const char *name, char *text) {
    if (!strcmp(name, "folder")) snprintf(folder, sizeof folder, "%s", text);
    if (!strcmp(name, "value")) value = atoi(text);
    if (!strcmp(name, "nth")) nth = atol(text);
    if (!strcmp(name, "sticky")) sticky = atoi(text);
    if (!strcmp(name, "chance")) chance = (unsigned)atoi(text);
    if (!strcmp(name, "seed")) atomic_store(&state, (unsigned)atoi(text) * 2654435761u + 1u);
    if (!strcmp(name, "log")) {
        int found = (int)syscall(SYS_openat, AT_FDCWD, text, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
        log_to = (int)syscall(SYS_fcntl, found, F_DUPFD_CLOEXEC, 700);
        syscall(SYS_close, found);
    }
    for (int i = 0; !strcmp(name, "action") && i < (int)(sizeof actions / sizeof *actions); i++)
        if (!strcmp(text, actions[i])) action = (enum action)i;
    char *rest = NULL;
    if (!strcmp(name, "calls"))
        for (char *word = strtok_r(text, ",", &rest); word; word = strtok_r(NULL, ",", &rest))
            for (int i = 0; i < (int)(sizeof names / sizeof *names); i++)
                if (!strcmp(word, names[i])) calls |= 1u << i;
}

void fault_arm(const char *rule) {
    char copy[2 * PATH_MAX], *rest = NULL;
    enum action wanted;
    snprintf(copy, sizeof copy, "%s", rule);
    action = NOTHING;
    calls = 0;
    atomic_store(&seen, 0);
    for (char *word = strtok_r(copy, ";", &rest); word; word = strtok_r(NULL, ";", &rest)) {
        char *equals = strchr(word, '=');
        if (!equals) continue;
        *equals = 0;
        field(word, equals + 1);
    }
    wanted = action;
    folder_length = strlen(folder);
    action = wanted;
}

__attribute__((constructor)) static void start(void) {
    const char *rule = getenv("FAULT_RULE");
    if (rule) fault_arm(rule);
}

static int below(int at, const char *path, char *out) {
    char base[PATH_MAX] = "";
    if (path[0] != '/') {
        if (at == AT_FDCWD) {
            if (syscall(SYS_getcwd, base, sizeof base) < 0) return 0;
        } else {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", at);
            ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, base, sizeof base - 1);
            if (length < 0) return 0;
            base[length] = 0;
        }
    }
    if (snprintf(out, PATH_MAX, "%s%s%s", base, base[0] && path[0] ? "/" : "", path) >= PATH_MAX) return 0;
    return !strncmp(out, folder, folder_length) && (out[folder_length] == '/' || !out[folder_length]);
}

static void note(long number, enum call call, const char *path) {
    char line[PATH_MAX + 64];
    if (log_to < 0) return;
    int length = snprintf(line, sizeof line, "%ld %s %s\n", number, names[call], path);
    syscall(SYS_write, log_to, line, length < (int)sizeof line ? (size_t)length : sizeof line);
}

static int lucky(void) {
    unsigned old = atomic_load(&state), new;
    do {
        new = old;
        new ^= new << 13;
        new ^= new >> 17;
        new ^= new << 5;
    } while (!atomic_compare_exchange_weak(&state, &old, new));
    return new % 1000000u < chance;
}

/* Decides what becomes of a call; `path` is relative to the descriptor `at`, "" for the descriptor's own file. */
static int meet(enum call call, int at, const char *path) {
    char whole[PATH_MAX];
    int before = errno;
    if (action == NOTHING || !(calls & 1u << call) || !path || !below(at, path, whole)) {
        errno = before;
        return GO_ON;
    }
    long number = atomic_fetch_add(&seen, 1) + 1;
    int met = action == COUNT || (nth && (number == nth || (sticky && number > nth))) || (chance && lucky());
    if (met) note(number, call, whole);
    if (met && action == BEFORE) kill(getpid(), value);
    ends_after = met && action == AFTER;
    errno = before;
    if (!met) return GO_ON;
    return action == ERROR ? FAIL : action == SHORT ? HALF : GO_ON;
}

static long done(long result) {
    if (ends_after) {
        int before = errno;
        ends_after = 0;
        kill(getpid(), value);
        errno = before;
    }
    return result;
}

#define FAILS(call, at, path)                \
    if (meet(call, at, path) == FAIL) {      \
        errno = value;                       \
        return -1;                           \
    }
#define EXPORT __attribute__((visibility("default")))

static int opens(int at, const char *path, int flags, mode_t mode) {
    int writes = (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC));
    FAILS(writes ? OPEN : READ_OPEN, at, path);
    return (int)done(syscall(SYS_openat, at, path, flags, mode));
}
#define MODE_OF(flags)                                  \
    mode_t mode = 0;                                    \
    if (((flags) & O_CREAT) || ((flags) & O_TMPFILE) == O_TMPFILE) { \
        va_list list;                                   \
        va_start(list, flags);                          \
        mode = va_arg(list, mode_t);                    \
        va_end(list);                                   \
    }
EXPORT int open(const char *path, int flags, ...) { MODE_OF(flags); return opens(AT_FDCWD, path, flags, mode); }
EXPORT int open64(const char *path, int flags, ...) { MODE_OF(flags); return opens(AT_FDCWD, path, flags, mode); }
EXPORT int openat(int at, const char *path, int flags, ...) { MODE_OF(flags); return opens(at, path, flags, mode); }
EXPORT int openat64(int at, const char *path, int flags, ...) { MODE_OF(flags); return opens(at, path, flags, mode); }
EXPORT int creat(const char *path, mode_t mode) { return opens(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

static ssize_t moves(enum call call, long number, int fd, const void *data, size_t count, off_t offset, int placed) {
    int met = meet(call, fd, "");
    if (met == FAIL) {
        errno = value;
        return -1;
    }
    if (met == HALF && count > 1) count /= 2;
    return done(placed ? syscall(number, fd, data, count, offset) : syscall(number, fd, data, count));
}
EXPORT ssize_t write(int fd, const void *data, size_t count) { return moves(WRITE, SYS_write, fd, data, count, 0, 0); }
EXPORT ssize_t pwrite(int fd, const void *data, size_t count, off_t at) { return moves(WRITE, SYS_pwrite64, fd, data, count, at, 1); }
EXPORT ssize_t pwrite64(int fd, const void *data, size_t count, off_t at) { return moves(WRITE, SYS_pwrite64, fd, data, count, at, 1); }
EXPORT ssize_t read(int fd, void *data, size_t count) { return moves(READ, SYS_read, fd, data, count, 0, 0); }
EXPORT ssize_t pread(int fd, void *data, size_t count, off_t at) { return moves(READ, SYS_pread64, fd, data, count, at, 1); }
EXPORT ssize_t pread64(int fd, void *data, size_t count, off_t at) { return moves(READ, SYS_pread64, fd, data, count, at, 1); }
EXPORT ssize_t writev(int fd, const struct iovec *parts, int count) {
    int met = meet(WRITE, fd, "");
    if (met == FAIL) {
        errno = value;
        return -1;
    }
    if (met == HALF && count > 0)
        return done(syscall(SYS_write, fd, parts[0].iov_base, parts[0].iov_len > 1 ? parts[0].iov_len / 2 : parts[0].iov_len));
    return done(syscall(SYS_writev, fd, parts, count));
}
EXPORT ssize_t readv(int fd, const struct iovec *parts, int count) { FAILS(READ, fd, ""); return done(syscall(SYS_readv, fd, parts, count)); }

EXPORT int fsync(int fd) { FAILS(FSYNC, fd, ""); return (int)done(syscall(SYS_fsync, fd)); }
EXPORT int fdatasync(int fd) { FAILS(FSYNC, fd, ""); return (int)done(syscall(SYS_fdatasync, fd)); }

static int renames(int from, const char *old, int to, const char *new, unsigned flags) {
    FAILS(RENAME, to, new);
    return (int)done(syscall(SYS_renameat2, from, old, to, new, flags));
}
EXPORT int rename(const char *old, const char *new) { return renames(AT_FDCWD, old, AT_FDCWD, new, 0); }
EXPORT int renameat(int from, const char *old, int to, const char *new) { return renames(from, old, to, new, 0); }
EXPORT int renameat2(int from, const char *old, int to, const char *new, unsigned flags) { return renames(from, old, to, new, flags); }

/* As in Linux, a close that fails has closed. */
EXPORT int close(int fd) {
    int met = meet(CLOSE, fd, "");
    int result = (int)done(syscall(SYS_close, fd));
    if (met != FAIL) return result;
    errno = value;
    return -1;
}

EXPORT int mkdir(const char *path, mode_t mode) { FAILS(MKDIR, AT_FDCWD, path); return (int)done(syscall(SYS_mkdirat, AT_FDCWD, path, mode)); }
EXPORT int mkdirat(int at, const char *path, mode_t mode) { FAILS(MKDIR, at, path); return (int)done(syscall(SYS_mkdirat, at, path, mode)); }
EXPORT int unlink(const char *path) { FAILS(REMOVE, AT_FDCWD, path); return (int)done(syscall(SYS_unlinkat, AT_FDCWD, path, 0)); }
EXPORT int unlinkat(int at, const char *path, int flags) { FAILS(REMOVE, at, path); return (int)done(syscall(SYS_unlinkat, at, path, flags)); }
EXPORT int rmdir(const char *path) { FAILS(REMOVE, AT_FDCWD, path); return (int)done(syscall(SYS_unlinkat, AT_FDCWD, path, AT_REMOVEDIR)); }
EXPORT int link(const char *old, const char *new) { FAILS(LINK, AT_FDCWD, new); return (int)done(syscall(SYS_linkat, AT_FDCWD, old, AT_FDCWD, new, 0)); }
EXPORT int linkat(int from, const char *old, int to, const char *new, int flags) { FAILS(LINK, to, new); return (int)done(syscall(SYS_linkat, from, old, to, new, flags)); }
EXPORT int symlink(const char *old, const char *new) { FAILS(LINK, AT_FDCWD, new); return (int)done(syscall(SYS_symlinkat, old, AT_FDCWD, new)); }
EXPORT int ftruncate(int fd, off_t size) { FAILS(SIZE, fd, ""); return (int)done(syscall(SYS_ftruncate, fd, size)); }
EXPORT int ftruncate64(int fd, off_t size) { FAILS(SIZE, fd, ""); return (int)done(syscall(SYS_ftruncate, fd, size)); }
EXPORT int fallocate(int fd, int mode, off_t at, off_t size) { FAILS(SIZE, fd, ""); return (int)done(syscall(SYS_fallocate, fd, mode, at, size)); }
EXPORT int fallocate64(int fd, int mode, off_t at, off_t size) { FAILS(SIZE, fd, ""); return (int)done(syscall(SYS_fallocate, fd, mode, at, size)); }
EXPORT int chmod(const char *path, mode_t mode) { FAILS(MODE, AT_FDCWD, path); return (int)done(syscall(SYS_fchmodat, AT_FDCWD, path, mode)); }
EXPORT int fchmod(int fd, mode_t mode) { FAILS(MODE, fd, ""); return (int)done(syscall(SYS_fchmod, fd, mode)); }

EXPORT ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t count, unsigned flags) {
    int met = meet(COPY, out, "");
    if (met == FAIL) {
        errno = value;
        return -1;
    }
    return done(syscall(SYS_copy_file_range, in, from, out, to, met == HALF && count > 1 ? count / 2 : count, flags));
}
EXPORT ssize_t sendfile64(int out, int in, off64_t *from, size_t count) {
    int met = meet(COPY, out, "");
    if (met == FAIL) {
        errno = value;
        return -1;
    }
    return done(syscall(SYS_sendfile, out, in, from, met == HALF && count > 1 ? count / 2 : count));
}
EXPORT ssize_t sendfile(int out, int in, off_t *from, size_t count) { return sendfile64(out, in, (off64_t *)from, count); }

EXPORT void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    if (fd >= 0 && meet(MAP, fd, "") == FAIL) {
        errno = value;
        return (void *)-1;
    }
    return (void *)done(syscall(SYS_mmap, address, length, protection, flags, fd, offset));
}
EXPORT void *mmap64(void *address, size_t length, int protection, int flags, int fd, off_t offset) { return mmap(address, length, protection, flags, fd, offset); }

/* What libc does inside of these is out of reach, so they are looked up instead of made anew. */
#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
EXPORT int stat64(const char *path, struct stat64 *out) { FAILS(STAT, AT_FDCWD, path); return (int)done(NEXT(stat64)(path, out)); }
EXPORT int lstat64(const char *path, struct stat64 *out) { FAILS(STAT, AT_FDCWD, path); return (int)done(NEXT(lstat64)(path, out)); }
EXPORT int fstat64(int fd, struct stat64 *out) { FAILS(STAT, fd, ""); return (int)done(NEXT(fstat64)(fd, out)); }
EXPORT int fstatat64(int at, const char *path, struct stat64 *out, int flags) { FAILS(STAT, at, path); return (int)done(NEXT(fstatat64)(at, path, out, flags)); }

struct __dirstream;
EXPORT struct __dirstream *opendir(const char *path) {
    if (meet(LIST, AT_FDCWD, path) == FAIL) {
        errno = value;
        return NULL;
    }
    return ((struct __dirstream * (*)(const char *)) dlsym(RTLD_NEXT, "opendir"))(path);
}
EXPORT struct __dirstream *fdopendir(int fd) {
    if (meet(LIST, fd, "") == FAIL) {
        errno = value;
        return NULL;
    }
    return ((struct __dirstream * (*)(int)) dlsym(RTLD_NEXT, "fdopendir"))(fd);
}

static int writes_to(const char *mode) { return mode && (strpbrk(mode, "wa+") != NULL); }
EXPORT FILE *fopen64(const char *path, const char *mode) {
    if (meet(writes_to(mode) ? OPEN : READ_OPEN, AT_FDCWD, path) == FAIL) {
        errno = value;
        return NULL;
    }
    FILE *file = NEXT(fopen64)(path, mode);
    done(0);
    return file;
}
EXPORT FILE *fopen(const char *path, const char *mode) { return fopen64(path, mode); }
EXPORT size_t fwrite(const void *data, size_t size, size_t count, FILE *file) {
    int met = meet(WRITE, fileno(file), "");
    if (met == FAIL) {
        errno = value;
        return 0;
    }
    return (size_t)done((long)NEXT(fwrite)(data, size, count, file));
}
