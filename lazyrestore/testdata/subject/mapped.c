/* Mappings of less usual kinds. */
#include <dlfcn.h>
#include <linux/mempolicy.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/ioctl.h>

#include "subject.h"

#ifndef MLOCK_ONFAULT
#define MLOCK_ONFAULT 1
#endif
#ifndef MCL_ONFAULT
#define MCL_ONFAULT 4
#endif
#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 8
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8
#define F_SEAL_EXEC 0x20
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x10
#endif

enum { SIZE = 64 * PAGE, HUGE = 2 << 20 };

/* The figure of a line of smaps of the mapping at an address. */
static long smaps(void *of, const char *key)
{
	char line[512];
	FILE *f = fopen("/proc/self/smaps", "r");
	long n = -1;
	int here = 0;
	MUST(f != NULL);
	while (fgets(line, sizeof line, f)) {
		unsigned long start, end;
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			here = (unsigned long)of >= start && (unsigned long)of < end;
		else if (here && strncmp(line, key, strlen(key)) == 0)
			sscanf(line + strlen(key) + 1, "%ld", &n);
	}
	fclose(f);
	return n;
}

/* Memory that cannot become one with its neighbours. */
static char *apart(size_t bytes)
{
	char *at = map(bytes + 2 * PAGE);
	MUST(mprotect(at, PAGE, PROT_NONE) == 0 && mprotect(at + bytes + PAGE, PAGE, PROT_NONE) == 0);
	return at + PAGE;
}

static atomic_int napping;

static void *naps(void *unused)
{
	napping = 1;
	pause();
	return NULL;
}

static void locked(int argc, char **argv)
{
	char *all = apart(SIZE), *on_fault = apart(4 * SIZE), *part = apart(SIZE), *empty = apart(SIZE);
	fill(all, SIZE, 1);
	fill(on_fault, SIZE, 2);
	fill(part, SIZE, 3);
	MUST(mlock(all, SIZE) == 0 && mlock(part + 16 * PAGE, 16 * PAGE) == 0 && mlock(empty, SIZE) == 0);
	MUST(syscall(SYS_mlock2, on_fault, 4 * SIZE, MLOCK_ONFAULT) == 0);
	stop();
	CHECK(differs(all, SIZE, 1) == -1 && differs(on_fault, SIZE, 2) == -1 && differs(part, SIZE, 3) == -1);
	CHECK(smaps(all, "Locked:") == SIZE / 1024); /* all of it, by now */
	memset(empty, 1, SIZE);
	CHECK(smaps(empty, "Locked:") == SIZE / 1024);
	CHECK(smaps(part, "Locked:") == 0 && smaps(part + 16 * PAGE, "Locked:") == 16 * PAGE / 1024);
	CHECK(smaps(on_fault, "Locked:") == SIZE / 1024);
	on_fault[3 * SIZE] = 1;
	CHECK(smaps(on_fault, "Locked:") == SIZE / 1024 + 4);
	CHECK(munlock(all, SIZE) == 0 && smaps(all, "Locked:") == 0);
}

/* Whether a mapping has a flag of smaps. */
static int has_flag(void *of, const char *flag)
{
	char line[512], with[8];
	FILE *f = fopen("/proc/self/smaps", "r");
	int here = 0, has = 0;
	MUST(f != NULL);
	snprintf(with, sizeof with, " %s ", flag);
	while (fgets(line, sizeof line, f)) {
		unsigned long start, end;
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			here = (unsigned long)of >= start && (unsigned long)of < end;
		else if (here && strncmp(line, "VmFlags:", 8) == 0)
			has = strstr(line, with) != NULL;
	}
	fclose(f);
	return has;
}

/* All of a process is locked, also what cannot be resident: the guard of a thread's
   stack, guard regions, mappings that reach beyond their file. */
static void locked_all(int argc, char **argv)
{
	pthread_t thread;
	int fd = open("short", O_RDWR | O_CREAT, 0600);
	MUST(pthread_create(&thread, NULL, naps, NULL) == 0);
	while (!napping) /* until then it blocks all signals */
		sched_yield();
	char *none = mmap(NULL, SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *guarded = apart(SIZE), *full = apart(SIZE);
	MUST(fd >= 0 && ftruncate(fd, 100) == 0);
	char *beyond = mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE, fd, 0), *written = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	MUST(none != MAP_FAILED && beyond != MAP_FAILED && written != MAP_FAILED);
	int guards = madvise(guarded, PAGE, MADV_GUARD_INSTALL) == 0;
	fill(full, SIZE, 1);
	MUST(mlockall(MCL_CURRENT) == 0);
	stop();
	char *const all[] = {none, guarded, full, beyond, written};
	for (int i = 0; i < 5; i++)
		if (!has_flag(all[i], "lo"))
			bad("mapping %d is not locked", i);
	CHECK(!has_flag(none, "lf") && differs(full, SIZE, 1) == -1);
	CHECK(!has_flag(map(SIZE), "lo"));
	if (guards) {
		int p[2];
		MUST(pipe(p) == 0);
		CHECK(write(p[1], guarded, 1) == -1 && errno == EFAULT && write(p[1], guarded + PAGE, 1) == 1);
	}
}

static void locked_future(int argc, char **argv)
{
	char *before = apart(SIZE);
	MUST(mlockall(argc ? MCL_FUTURE | MCL_ONFAULT : MCL_FUTURE) == 0);
	char *now = mmap(NULL, SIZE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	fill(now, SIZE, 5);
	stop();
	char *after = map(2 * SIZE);
	CHECK(differs(now, SIZE, 5) == -1 && smaps(now, "Locked:") == SIZE / 1024);
	CHECK(smaps(after, "Locked:") == (argc ? 0 : 2 * SIZE / 1024));
	after[0] = before[0] = 1;
	CHECK(smaps(after, "Locked:") == (argc ? 4 : 2 * SIZE / 1024) && smaps(before, "Locked:") == 0);
}

static void policies(int argc, char **argv)
{
	static const int modes[] = {MPOL_BIND, MPOL_PREFERRED, MPOL_INTERLEAVE, MPOL_LOCAL, MPOL_BIND | MPOL_F_STATIC_NODES};
	enum { N = sizeof modes / sizeof *modes };
	char *at[N];
	unsigned long node = 1, got;
	int mode;
	for (int i = 0; i < N; i++) {
		at[i] = map(SIZE + PAGE);
		MUST(munmap(at[i] + SIZE, PAGE) == 0);
		fill(at[i], SIZE, i);
		int local = modes[i] == MPOL_LOCAL;
		MUST(syscall(SYS_mbind, at[i], (long)SIZE, modes[i], local ? NULL : &node, local ? 0L : 8L, 0) == 0);
	}
	char *none = map(SIZE);
	stop();
	for (int i = 0; i < N; i++) {
		got = 0;
		CHECK(syscall(SYS_get_mempolicy, &mode, &got, 64L, at[i], MPOL_F_ADDR) == 0 && mode == modes[i]);
		CHECK(got == (modes[i] == MPOL_LOCAL ? 0 : 1) && differs(at[i], SIZE, i) == -1);
	}
	CHECK(syscall(SYS_get_mempolicy, &mode, NULL, 0L, none, MPOL_F_ADDR) == 0 && mode == MPOL_DEFAULT);
}

static void droppable(int argc, char **argv)
{
	char *at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_DROPPABLE | MAP_ANONYMOUS, -1, 0), *beside = map(SIZE);
	MUST(at != MAP_FAILED);
	fill(at, SIZE, 1);
	fill(beside, SIZE, 2);
	stop();
	CHECK(differs(beside, SIZE, 2) == -1);
	for (int i = 0; i < SIZE; i++)
		if (at[i] != 0) {
			bad("byte %d was kept", i);
			break;
		}
	fill(at, SIZE, 3);
	CHECK(differs(at, SIZE, 3) == -1);
	pid_t child = fork();
	if (child == 0)
		_exit(at[0] != 0);
	int status = -1;
	CHECK(waitpid(child, &status, 0) == child && status == 0);
}

/* Nothing of it has been touched since the restore when the child looks. */
static void wiped(int argc, char **argv)
{
	char *at = map(4 << 20);
	fill(at, 4 << 20, 1);
	MUST(madvise(at, 4 << 20, MADV_WIPEONFORK) == 0);
	stop();
	pid_t child = fork();
	if (child == 0) {
		for (int i = 0; i < 4 << 20; i += 512)
			if (at[i] != 0)
				_exit(1);
		_exit(0);
	}
	int status = -1;
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	CHECK(differs(at, 4 << 20, 1) == -1);
}

/* Private mappings of files that have no name any more; one has code in it. */
static void removed(int argc, char **argv)
{
	static const unsigned char text[] = {0xb8, 0x2a, 0x15, 0, 0, 0xc3};
	char *from = map(SIZE);
	int fd = open("removed", O_RDWR | O_CREAT, 0700);
	fill(from, SIZE, 21);
	memcpy(from + 40 * PAGE, text, sizeof text);
	MUST(write(fd, from, SIZE - 100) == SIZE - 100);
	char *at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	char *code = mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 40 * PAGE);
	MUST(at != MAP_FAILED && code != MAP_FAILED && close(fd) == 0 && unlink("removed") == 0);
	fill(at + 3 * PAGE, PAGE, 1000);
	fill(from + 3 * PAGE, PAGE, 1000);
	fd = memfd_create("private", 0);
	MUST(write(fd, from, SIZE) == SIZE);
	char *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	MUST(memory != MAP_FAILED && close(fd) == 0);
	memory[0] = 99;
	stop();
	CHECK(memcmp(at, from, SIZE - 100) == 0 && at[SIZE - 50] == 0);
	CHECK(((int (*)(void))code)() == 0x152a);
	CHECK(memory[0] == 99 && memcmp(memory + 1, from + 1, SIZE - 1) == 0);
	at[9 * PAGE] = 7;
	CHECK(code[0] == (char)0xb8);
}

/* Pages of a private mapping of a file that are zeroed, and may be merged. */
static void merged_zeros(int argc, char **argv)
{
	char *from = map(SIZE);
	fill(from, SIZE, 6);
	int fd = open("merged", O_RDWR | O_CREAT | O_TRUNC, 0600);
	MUST(write(fd, from, SIZE) == SIZE);
	char *at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	MUST(at != MAP_FAILED && close(fd) == 0);
	memset(at, 0, SIZE / 2);
	memset(from, 0, SIZE / 2);
	MUST(madvise(at, SIZE, MADV_MERGEABLE) == 0);
	say("mapped %lx-%lx", (long)at, (long)at + SIZE / 2);
	stop();
	CHECK(memcmp(at, from, SIZE) == 0);
	at[5] = 7;
	CHECK(at[5] == 7 && at[6] == 0);
}

static void seals(int argc, char **argv)
{
	static char back[SIZE];
	int open_ = memfd_create("sealable", MFD_ALLOW_SEALING), size = memfd_create("size", MFD_ALLOW_SEALING | MFD_CLOEXEC);
	int all = memfd_create("all", MFD_ALLOW_SEALING), future = memfd_create("future", MFD_ALLOW_SEALING);
	char *from = map(SIZE);
	fill(from, SIZE, 3);
	MUST(write(open_, from, SIZE) == SIZE && write(size, from, SIZE) == SIZE && write(all, from, SIZE) == SIZE && write(future, from, SIZE) == SIZE);
	char *writable = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, future, 0);
	MUST(writable != MAP_FAILED);
	MUST(fcntl(size, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
	MUST(fcntl(all, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) == 0);
	MUST(fcntl(future, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) == 0);
	char *read_only = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, all, 0);
	MUST(read_only != MAP_FAILED && fchmod(size, 0640) == 0);
	stop();
	struct stat st;
	CHECK(fcntl(open_, F_GET_SEALS) == 0 && fcntl(size, F_GET_SEALS) == (F_SEAL_SHRINK | F_SEAL_GROW));
	CHECK(fcntl(all, F_GET_SEALS) == (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL));
	CHECK(fcntl(future, F_GET_SEALS) == (F_SEAL_FUTURE_WRITE | F_SEAL_SEAL));
	CHECK(ftruncate(size, 1) == -1 && errno == EPERM && pwrite(size, "x", 1, 0) == 1);
	CHECK(pwrite(all, "x", 1, 0) == -1 && errno == EPERM);
	CHECK(pread(all, back, SIZE, 0) == SIZE && memcmp(back, from, SIZE) == 0 && memcmp(read_only, from, SIZE) == 0);
	CHECK(pwrite(future, "x", 1, 0) == -1 && errno == EPERM);
	writable[5] = 42;
	CHECK(pread(future, back, 10, 0) == 10 && back[5] == 42);
	CHECK(fcntl(open_, F_ADD_SEALS, F_SEAL_WRITE) == 0);
	CHECK(fstat(size, &st) == 0 && (st.st_mode & 07777) == 0640);
}

/* Memory files that nobody may execute, as all are that are made with MFD_NOEXEC_SEAL; one
   has no descriptor. */
static void no_exec(int argc, char **argv)
{
	int mapped = memfd_create("mapped", MFD_NOEXEC_SEAL), open_ = memfd_create("open", MFD_NOEXEC_SEAL);
	MUST(mapped >= 0 && open_ >= 0 && ftruncate(mapped, SIZE) == 0 && fchmod(mapped, 0640) == 0 && fchown(mapped, 5, 6) == 0);
	char *at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, mapped, 0);
	MUST(at != MAP_FAILED && close(mapped) == 0);
	fill(at, SIZE, 4);
	stop();
	CHECK(differs(at, SIZE, 4) == -1);
	fill(at, SIZE, 5);
	char name[64];
	snprintf(name, sizeof name, "/proc/self/map_files/%lx-%lx", (long)at, (long)at + SIZE);
	struct stat st;
	CHECK(stat(name, &st) == 0 && (st.st_mode & 07777) == 0640 && st.st_uid == 5 && st.st_gid == 6);
	mapped = open(name, O_RDWR);
	CHECK(mapped >= 0 && fcntl(mapped, F_GET_SEALS) == F_SEAL_EXEC && fcntl(open_, F_GET_SEALS) == F_SEAL_EXEC);
	CHECK(fstat(open_, &st) == 0 && (st.st_mode & 07777) == 0666 && fchmod(open_, 0777) == -1 && errno == EPERM);
}

/* Files with a name in a memory file system, argv[0]: mapped shared, mapped
   private, open, each of which may be gone at the restore. */
static void memory_files(int argc, char **argv)
{
	char dir[200];
	struct stat st;
	char *from = map(SIZE), *back = map(SIZE);
	fill(from, SIZE, 8);
	snprintf(dir, sizeof dir, "%s/subject-%d", argv[0], getpid());
	MUST(mkdir(dir, 0700) == 0 && chdir(dir) == 0);
	int shared = open("shared", O_RDWR | O_CREAT, 0640), private = open("private", O_RDWR | O_CREAT, 0600), plain = open("plain", O_RDWR | O_CREAT | O_APPEND, 0604);
	MUST(write(shared, from, SIZE) == SIZE && write(private, from, SIZE) == SIZE && write(plain, from, SIZE) == SIZE);
	MUST(ftruncate(shared, 2 * SIZE + 5) == 0 && fchown(shared, 0, 7) == 0);
	char *at = mmap(NULL, 2 * SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, shared, 0);
	char *own = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, private, 0);
	MUST(at != MAP_FAILED && own != MAP_FAILED && close(shared) == 0 && close(private) == 0);
	own[0] = 99;
	at[SIZE + 3] = 98;
	MUST(chdir(argv[1]) == 0);
	stop();
	CHECK(memcmp(at, from, SIZE) == 0 && at[SIZE + 3] == 98 && at[SIZE + 4] == 0);
	CHECK(own[0] == 99 && memcmp(own + 1, from + 1, SIZE - 1) == 0);
	CHECK(pread(plain, back, SIZE, 0) == SIZE && memcmp(back, from, SIZE) == 0);
	MUST(chdir(dir) == 0);
	CHECK(stat("shared", &st) == 0 && (st.st_mode & 07777) == 0640 && st.st_gid == 7 && st.st_size == 2 * SIZE + 5);
	CHECK(stat("plain", &st) == 0 && (st.st_mode & 07777) == 0604);
	at[7] = 77;
	shared = open("shared", O_RDONLY);
	CHECK(pread(shared, back, 10, 0) == 10 && back[7] == 77);
	CHECK(write(plain, "x", 1) == 1 && fstat(plain, &st) == 0 && st.st_size == SIZE + 1);
	unlink("shared");
	unlink("private");
	unlink("plain");
	CHECK(rmdir(dir) == 0);
}

/* Memory of huge pages: full, touched in part, never touched, read-only. */
static void hugetlb(int argc, char **argv)
{
	char *at = mmap(NULL, 3L * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	MUST(at != MAP_FAILED);
	fill(at, HUGE, 1);
	fill(at + HUGE + 100 * PAGE, PAGE, 2);
	MUST(mprotect(at, HUGE, PROT_READ) == 0);
	stop();
	CHECK(differs(at, HUGE, 1) == -1 && differs(at + HUGE + 100 * PAGE, PAGE, 2) == -1);
	CHECK(at[HUGE] == 0 && at[HUGE + 101 * PAGE] == 0 && at[2 * HUGE + 5] == 0);
	CHECK(smaps(at, "KernelPageSize:") == HUGE / 1024 && smaps(at + HUGE, "KernelPageSize:") == HUGE / 1024);
	at[2 * HUGE] = 1;
	CHECK(mprotect(at, HUGE, PROT_READ | PROT_WRITE) == 0);
	pid_t child = fork();
	if (child == 0)
		_exit(differs(at + HUGE + 100 * PAGE, PAGE, 2) != -1);
	int status = -1;
	CHECK(waitpid(child, &status, 0) == child && status == 0);
}

/* Very many mappings; argv[0] says how many. */
static void many(int argc, char **argv)
{
	long n = atol(argv[0]);
	char *at = mmap(NULL, n * 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	MUST(at != MAP_FAILED);
	for (long i = 0; i < n; i += 2) {
		char *here = at + i * 2 * PAGE;
		MUST(mprotect(here, 2 * PAGE, PROT_READ | PROT_WRITE) == 0);
		fill(here + (i % 4 ? PAGE : 0), PAGE, i);
	}
	stop();
	for (long i = 0; i < n; i += 2)
		CHECK(differs(at + i * 2 * PAGE + (i % 4 ? PAGE : 0), PAGE, i) == -1);
}

const struct scene mapped_scenes[] = {
	{"locked", locked}, {"locked-all", locked_all}, {"locked-future", locked_future}, {"policies", policies}, {"droppable", droppable}, {"wiped", wiped},
	{"removed-mapping", removed}, {"merged-zeros", merged_zeros}, {"seals", seals}, {"no-exec", no_exec}, {"memory-files", memory_files}, {"hugetlb", hugetlb}, {"many-mappings", many}, {NULL, NULL},
};
