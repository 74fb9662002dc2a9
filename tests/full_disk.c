/* A disk that is full from the n-th write on: tests/full_disk.py says how. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

struct disk { long count, n, number; char folder[1000]; };
static struct disk *disk_;
static char opened[PATH_MAX];
static __thread int within;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static struct disk *disk(void) {
    const char *path = getenv("FULL_DISK");
    if (!path) return NULL;
    if (!disk_ || strcmp(path, opened)) {
        int fd = REAL(open)(path, O_RDWR | O_CLOEXEC);
        if (fd < 0) return NULL;
        void *map = mmap(NULL, sizeof(struct disk), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        close(fd);
        if (map == MAP_FAILED) return NULL;
        disk_ = map;
        strncpy(opened, path, sizeof opened - 1);
    }
    return disk_;
}

static int below(struct disk *d, const char *path) { return !strncmp(path, d->folder, strlen(d->folder)); }

static int path_below(struct disk *d, int folder, const char *path) {
    char whole[2 * PATH_MAX], at[64];
    if (path[0] == '/') return below(d, path);
    if (folder == AT_FDCWD) strcpy(at, "/proc/self/cwd"); else snprintf(at, sizeof at, "/proc/self/fd/%d", folder);
    ssize_t length = readlink(at, whole, PATH_MAX);
    if (length < 0) return 0;
    whole[length] = '/';
    strcpy(whole + length + 1, path);
    return below(d, whole);
}

static int descriptor_below(struct disk *d, int fd) {
    char at[64], path[PATH_MAX + 1];
    snprintf(at, sizeof at, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(at, path, PATH_MAX);
    if (length < 0) return 0;
    path[length] = 0;
    return below(d, path);
}

/* 0: go on; 1: this is the n-th; 2: it comes after the n-th */
static int counted(struct disk *d) {
    long number = __atomic_add_fetch(&d->count, 1, __ATOMIC_SEQ_CST);
    return number < d->n ? 0 : number == d->n ? 1 : 2;
}

#define REFUSE_PATH(folder, path, later) do { \
    struct disk *d = within ? NULL : disk(); \
    if (d && path_below(d, folder, path)) { int at = counted(d); if (at == 1 || (at == 2 && later)) { errno = d->number; return -1; } } \
} while (0)

#define REFUSE_DESCRIPTOR(fd) do { \
    struct disk *d = within ? NULL : disk(); \
    if (d && descriptor_below(d, fd) && counted(d)) { errno = d->number; return -1; } \
} while (0)

#define OPEN(name, parameters, folder, ...) int name parameters { \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); } \
    if (flags & O_CREAT) REFUSE_PATH(folder, path, 1); \
    return REAL(name)(__VA_ARGS__, flags, mode); \
}
OPEN(open, (const char *path, int flags, ...), AT_FDCWD, path)
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD, path)
OPEN(openat, (int folder, const char *path, int flags, ...), folder, folder, path)
OPEN(openat64, (int folder, const char *path, int flags, ...), folder, folder, path)

int mkdir(const char *path, mode_t mode) { REFUSE_PATH(AT_FDCWD, path, 1); return REAL(mkdir)(path, mode); }
int mkdirat(int folder, const char *path, mode_t mode) { REFUSE_PATH(folder, path, 1); return REAL(mkdirat)(folder, path, mode); }
int link(const char *from, const char *to) { REFUSE_PATH(AT_FDCWD, to, 1); return REAL(link)(from, to); }
int linkat(int a, const char *from, int b, const char *to, int flags) { REFUSE_PATH(b, to, 1); return REAL(linkat)(a, from, b, to, flags); }
int rename(const char *from, const char *to) { REFUSE_PATH(AT_FDCWD, to, 0); return REAL(rename)(from, to); }
int renameat(int a, const char *from, int b, const char *to) { REFUSE_PATH(b, to, 0); return REAL(renameat)(a, from, b, to); }
int fsync(int fd) { REFUSE_DESCRIPTOR(fd); return REAL(fsync)(fd); }
int fdatasync(int fd) { REFUSE_DESCRIPTOR(fd); return REAL(fdatasync)(fd); }

ssize_t write(int fd, const void *content, size_t size) {
    struct disk *d = disk();
    if (d && descriptor_below(d, fd)) {
        int at = counted(d);
        if (at == 1 && size > 1) return REAL(write)(fd, content, size / 2);
        if (at) { errno = d->number; return -1; }
    }
    return REAL(write)(fd, content, size);
}
ssize_t writev(int fd, const struct iovec *parts, int count) { REFUSE_DESCRIPTOR(fd); return REAL(writev)(fd, parts, count); }
