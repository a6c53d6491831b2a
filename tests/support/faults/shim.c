/* Makes chosen calls on chosen files fail: loaded by LD_PRELOAD, told by the file that FAULTS names.
 *
 * One rule a line:  CALL WHAT PART [after=N] [times=N]
 *
 *   CALL   open list read map write sync stat rename lock, or clock (list: of a folder)
 *   WHAT   a number of errno; "short": half of the bytes are done; "slow=SECONDS"; of clock: "jump=SECONDS"
 *   PART   what the file's path must contain ("-" for any)
 *   after  calls that go well before, times: calls that fail (default: all); both count in each process
 *
 * Of rules that fit the first counts. Files that programs map into memory (call map) are read without a call.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 32 };
enum kind { FAIL, SHORT, SLOW, JUMP };

struct rule {
  char call[16], part[256];
  enum kind kind;
  int number;
  double seconds;
  long after, times, seen;
};

static struct rule rules[MOST];
static int count;
static double jump;
static __thread int inside;

#define REAL(name) \
  static __typeof__(name) *real; \
  if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

/* Takes the rules of a file in the place of those before; for a process that meets one case after the other. */
void faults_load(const char *path) {
  FILE *file = path ? fopen(path, "re") : NULL;
  char line[512], what[64];
  count = 0, jump = 0;
  if (!file) return;
  while (count < MOST && fgets(line, sizeof line, file)) {
    struct rule *r = &rules[count];
    memset(r, 0, sizeof *r);
    if (sscanf(line, "%15s %63s %255s", r->call, what, r->part) != 3) continue;
    const char *after = strstr(line, " after="), *times = strstr(line, " times=");
    r->after = after ? atol(after + 7) : 0;
    r->times = times ? atol(times + 7) : -1;
    if (!strcmp(what, "short")) r->kind = SHORT;
    else if (!strncmp(what, "slow=", 5)) r->kind = SLOW, r->seconds = atof(what + 5);
    else if (!strncmp(what, "jump=", 5)) r->kind = JUMP, r->seconds = atof(what + 5);
    else r->kind = FAIL, r->number = atoi(what);
    if (r->kind == JUMP) jump = r->seconds;
    else count++;
  }
  fclose(file);
}

__attribute__((constructor)) static void begin(void) { faults_load(getenv("FAULTS")); }

/* The rule for this call on this path, if it is due. */
static struct rule *due(const char *call, const char *path) {
  for (int i = 0; i < count; i++) {
    struct rule *r = &rules[i];
    if (strcmp(r->call, call) || (strcmp(r->part, "-") && !strstr(path, r->part))) continue;
    long seen = __sync_fetch_and_add(&r->seen, 1);
    if (seen < r->after || (r->times >= 0 && seen >= r->after + r->times)) return NULL;
    if (r->kind == SLOW) {
      struct timespec t = {(time_t)r->seconds, (long)((r->seconds - (time_t)r->seconds) * 1e9)};
      nanosleep(&t, NULL);
      return NULL;
    }
    return r;
  }
  return NULL;
}

static struct rule *due_at(const char *call, int descriptor) {
  if (!count || inside) return NULL;
  char name[64], path[4096];
  inside = 1;
  snprintf(name, sizeof name, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(name, path, sizeof path - 1);
  inside = 0;
  if (length < 0) return NULL;
  path[length] = 0;
  return due(call, path);
}

#define REFUSE(rule, failed) \
  if ((rule) && (rule)->kind == FAIL) { errno = (rule)->number; return failed; }

#define MODE(mode, flags) \
  mode_t mode = 0; \
  if (flags & (O_CREAT | __O_TMPFILE)) { va_list l; va_start(l, flags); mode = va_arg(l, mode_t); va_end(l); }

#define OPEN(name, parameters, arguments) \
  int name(parameters const char *path, int flags, ...) { \
    REAL(name); \
    MODE(mode, flags) \
    struct rule *r = count && !inside ? due("open", path) : NULL; \
    REFUSE(r, -1) \
    return real(arguments path, flags, mode); \
  }
#define AND ,
OPEN(open, , )
OPEN(open64, , )
OPEN(openat, int folder AND, folder AND)
OPEN(openat64, int folder AND, folder AND)

#define HALF(rule, size) ((rule) && (rule)->kind == SHORT && (size) > 1 ? (size) / 2 : (size))

#define BYTES(name, call, type, parameter, argument) \
  ssize_t name(int file, type *data, size_t size parameter) { \
    REAL(name); \
    struct rule *r = due_at(call, file); \
    REFUSE(r, -1) \
    return real(file, data, HALF(r, size) argument); \
  }
BYTES(read, "read", void, , )
BYTES(write, "write", const void, , )
BYTES(pread, "read", void, AND off64_t at, AND at)
BYTES(pread64, "read", void, AND off64_t at, AND at)
BYTES(pwrite, "write", const void, AND off64_t at, AND at)
BYTES(pwrite64, "write", const void, AND off64_t at, AND at)
#define PREADV(name) \
  ssize_t name(int file, const struct iovec *parts, int n, off64_t at) { \
    REAL(name); \
    struct rule *r = due_at("read", file); \
    REFUSE(r, -1) \
    return real(file, parts, r && r->kind == SHORT && n > 1 ? n - 1 : n, at); \
  }
PREADV(preadv)
PREADV(preadv64)

#define SYNC(name) \
  int name(int file) { \
    REAL(name); \
    struct rule *r = due_at("sync", file); \
    REFUSE(r, -1) \
    return real(file); \
  }
SYNC(fsync)
SYNC(fdatasync)

/* Room for a file is a write, which tells its error by what it returns. */
#define ROOM(name) \
  int name(int file, off64_t at, off64_t size) { \
    REAL(name); \
    struct rule *r = due_at("write", file); \
    return r && r->kind == FAIL ? r->number : real(file, at, size); \
  }
ROOM(posix_fallocate)
ROOM(posix_fallocate64)

#define MAP(name) \
  void *name(void *where, size_t size, int allowed, int flags, int file, off64_t at) { \
    REAL(name); \
    struct rule *r = file >= 0 ? due_at("map", file) : NULL; \
    REFUSE(r, MAP_FAILED) \
    return real(where, size, allowed, flags, file, at); \
  }
MAP(mmap)
MAP(mmap64)

DIR *opendir(const char *path) {
  REAL(opendir);
  struct rule *r = count && !inside ? due("list", path) : NULL;
  REFUSE(r, NULL)
  return real(path);
}

#define STAT(name, type) \
  int name(const char *restrict path, struct type *restrict found) { \
    REAL(name); \
    struct rule *r = count && !inside ? due("stat", path) : NULL; \
    REFUSE(r, -1) \
    return real(path, found); \
  }
STAT(stat, stat)
STAT(stat64, stat64)
STAT(lstat, stat)
STAT(lstat64, stat64)

#define FSTAT(name, type) \
  int name(int file, struct type *found) { \
    REAL(name); \
    struct rule *r = due_at("stat", file); \
    REFUSE(r, -1) \
    return real(file, found); \
  }
FSTAT(fstat, stat)
FSTAT(fstat64, stat64)

#define STATAT(name, type) \
  int name(int folder, const char *restrict path, struct type *restrict found, int flags) { \
    REAL(name); \
    struct rule *r = !count || inside ? NULL : *path ? due("stat", path) : due_at("stat", folder); \
    REFUSE(r, -1) \
    return real(folder, path, found, flags); \
  }
STATAT(fstatat, stat)
STATAT(fstatat64, stat64)

int statx(int folder, const char *restrict path, int flags, unsigned mask, struct statx *restrict found) {
  REAL(statx);
  struct rule *r = !count || inside ? NULL : path && *path ? due("stat", path) : due_at("stat", folder);
  REFUSE(r, -1)
  return real(folder, path, flags, mask, found);
}

int rename(const char *from, const char *to) {
  REAL(rename);
  struct rule *r = count && !inside ? due("rename", to) : NULL;
  REFUSE(r, -1)
  return real(from, to);
}

extern int flock(int file, int what);
int flock(int file, int what) {
  REAL(flock);
  struct rule *r = due_at("lock", file);
  REFUSE(r, -1)
  return real(file, what);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  REAL(clock_gettime);
  int result = real(clock, now);
  if (!result && jump != 0 && clock == CLOCK_REALTIME) now->tv_sec += (time_t)jump;
  return result;
}
time_t time(time_t *out) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (out) *out = now.tv_sec;
  return now.tv_sec;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec t;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &t);
  now->tv_sec = t.tv_sec;
  now->tv_usec = t.tv_nsec / 1000;
  return 0;
}
