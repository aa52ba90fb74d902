/* Mappings of every kind, with content. */
#include <sys/syscall.h>

#include "subject.h"

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

enum { SIZE = 64 * PAGE };

/* Content that the process itself cannot read while it is saved. */
static void protections(int argc, char **argv)
{
	static const int protection[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_EXEC, PROT_WRITE, PROT_READ | PROT_WRITE | PROT_EXEC};
	enum { N = sizeof protection / sizeof *protection };
	char *at[N];
	for (int i = 0; i < N; i++) {
		at[i] = map(SIZE);
		fill(at[i], SIZE, i);
		memset(at[i] + 8 * PAGE, 0, PAGE); /* a page of zeros within */
		MUST(madvise(at[i] + 16 * PAGE, 4 * PAGE, MADV_DONTNEED) == 0);
		MUST(mprotect(at[i], SIZE, protection[i]) == 0);
	}
	stop();
	for (int i = 0; i < N; i++) {
		CHECK(mprotect(at[i], SIZE, PROT_READ | PROT_WRITE) == 0);
		static const char zero[PAGE];
		CHECK(memcmp(at[i] + 8 * PAGE, zero, PAGE) == 0);
		for (int p = 16; p < 20; p++)
			CHECK(memcmp(at[i] + p * PAGE, zero, PAGE) == 0);
		fill(at[i] + 8 * PAGE, PAGE, i + 8 * 512);
		fill(at[i] + 16 * PAGE, 4 * PAGE, i + 16 * 512);
		CHECK(differs(at[i], SIZE, i) == -1);
	}
}

/* Mappings without a gap between them that differ in little: more than a restore
   makes with one call. */
static void neighbours(int argc, char **argv)
{
	static const int protections[] = {PROT_NONE, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ, PROT_READ | PROT_EXEC, PROT_READ};
	enum { N = 300, MORE = 150 }; /* MORE without code, which ends what is made by one call */
	char *at = map(N * PAGE);
	fill(at, N * PAGE, 1);
	for (int i = 0; i < N; i++) {
		if (i >= MORE) {
			MUST(mprotect(at + i * PAGE, PAGE, protections[i % 2]) == 0);
			continue;
		}
		if (i / 20 % 2)
			MUST(madvise(at + i * PAGE, PAGE, MADV_NOHUGEPAGE) == 0);
		MUST(mprotect(at + i * PAGE, PAGE, protections[i % 6]) == 0);
		if (i % 6 == 1)
			MUST(madvise(at + i * PAGE, PAGE, MADV_DONTDUMP) == 0); /* or it and the next are one */
	}
	stop();
	for (int i = 0; i < N; i++)
		MUST(mprotect(at + i * PAGE, PAGE, PROT_READ) == 0);
	CHECK(differs(at, N * PAGE, 1) == -1);
}

/* Machine code made by the program. */
static void code(int argc, char **argv)
{
	static const unsigned char text[] = {0xb8, 0x2a, 0x15, 0, 0, 0xc3}; /* mov $0x152a, %eax; ret */
	char *at = map(PAGE);
	memcpy(at, text, sizeof text);
	MUST(mprotect(at, PAGE, PROT_READ | PROT_EXEC) == 0);
	stop();
	CHECK(((int (*)(void))at)() == 0x152a);
}

/* Advice shows in /proc/PID/smaps, which is compared from outside; here is what
   some of it does. */
static void advice(int argc, char **argv)
{
	static const int kinds[] = {MADV_SEQUENTIAL, MADV_RANDOM, MADV_DONTFORK, MADV_DONTDUMP, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_MERGEABLE, MADV_WIPEONFORK};
	enum { N = sizeof kinds / sizeof *kinds };
	char *at[N];
	for (int i = 0; i < N; i++) {
		at[i] = map(SIZE + PAGE);
		MUST(munmap(at[i] + SIZE, PAGE) == 0); /* so that no two become one */
		MUST(madvise(at[i], SIZE, kinds[i]) == 0 || kinds[i] == MADV_MERGEABLE);
		fill(at[i], SIZE, i);
	}
	stop();
	for (int i = 0; i < N; i++)
		CHECK(differs(at[i], SIZE, i) == -1);
	pid_t child = fork();
	if (child == 0) {
		unsigned char there;
		int wiped = 1;
		for (int i = 0; i < SIZE; i++)
			wiped &= at[7][i] == 0;
		int gone = mincore(at[2], PAGE, &there) == -1 && errno == ENOMEM;
		_exit(wiped && gone ? 0 : 1);
	}
	int status = -1;
	CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static void named(int argc, char **argv)
{
	char *at = map(SIZE), *b = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	fill(at, SIZE, 1);
	fill(b, SIZE, 2);
	prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, at, SIZE, "some name"); /* not in every kernel */
	char *down = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN, -1, 0);
	MUST(down != MAP_FAILED);
	fill(down, SIZE, 3);
	stop();
	CHECK(differs(at, SIZE, 1) == -1 && differs(b, SIZE, 2) == -1 && differs(down, SIZE, 3) == -1);
}

static volatile sig_atomic_t faulted;

static void on_fault(int sig, siginfo_t *info, void *context)
{
	faulted++;
	mprotect((void *)((uintptr_t)info->si_addr & -PAGE), PAGE, PROT_READ | PROT_WRITE);
	if (faulted > 2)
		_exit(9);
	madvise((void *)((uintptr_t)info->si_addr & -PAGE), PAGE, 103 /* MADV_GUARD_REMOVE */);
}

static void guards(int argc, char **argv)
{
	struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
	char *at = map(SIZE);
	fill(at, SIZE, 9);
	MUST(sigaction(SIGSEGV, &action, NULL) == 0);
	MUST(madvise(at + 8 * PAGE, 8 * PAGE, MADV_GUARD_INSTALL) == 0);
	stop();
	CHECK(differs(at, 8 * PAGE, 9) == -1);
	CHECK(differs(at + 16 * PAGE, SIZE - 16 * PAGE, 9 + 16 * 512) == -1);
	CHECK(*(volatile char *)(at + 9 * PAGE) == 0 && faulted == 1);
}

/* A private mapping of a file, some of whose pages were changed; of so many pages
   as the argument says. */
static void private_file(int argc, char **argv)
{
	int fd = open("private", O_RDWR | O_CREAT | O_TRUNC, 0600);
	long pages = argc > 0 ? atol(argv[0]) : 64, size = pages * PAGE;
	char *from = map(size);
	fill(from, size, 21);
	MUST(write(fd, from, size) == size);
	char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	char *second = mmap(NULL, size / 2, PROT_READ, MAP_PRIVATE, fd, size / 2);
	MUST(at != MAP_FAILED && second != MAP_FAILED);
	close(fd);
	for (long p = 3; p < pages; p += 7) {
		fill(at + p * PAGE, PAGE, 1000 + p);
		fill(from + p * PAGE, PAGE, 1000 + p);
	}
	memset(at + 5 * PAGE, 0, PAGE); /* changed to zeros */
	memset(from + 5 * PAGE, 0, PAGE);
	MUST(mprotect(at + 32 * PAGE, 16 * PAGE, PROT_READ) == 0);
	MUST(mprotect(at + size - 16 * PAGE, 16 * PAGE, PROT_READ) == 0);
	stop();
	CHECK(memcmp(at, from, size) == 0);
	fill(from, size, 21);
	CHECK(memcmp(second, from + size / 2, size / 2) == 0);
	at[0] = 1; /* still private */
	fd = open("private", O_RDONLY);
	char *file = map(size);
	CHECK(pread(fd, file, size, 0) == size && memcmp(file, from, size) == 0);
}

static void shared_file(int argc, char **argv)
{
	int fd = open("shared", O_RDWR | O_CREAT | O_TRUNC, 0600);
	uint64_t got = 0;
	MUST(ftruncate(fd, SIZE) == 0);
	char *at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	char *readable = mmap(NULL, SIZE / 2, PROT_READ, MAP_SHARED, fd, PAGE);
	MUST(at != MAP_FAILED && readable != MAP_FAILED);
	fill(at, SIZE, 31);
	stop();
	CHECK(differs(at, SIZE, 31) == -1);
	CHECK(differs(readable, SIZE / 2, 31 + 512) == -1);
	*(uint64_t *)(at + PAGE) = 4711;
	CHECK(pread(fd, &got, 8, PAGE) == 8 && got == 4711);
	CHECK(*(volatile uint64_t *)readable == 4711);
}

/* Shared memory without a name: pieces of it, one twice. */
static void shared_anonymous(int argc, char **argv)
{
	char *at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	MUST(at != MAP_FAILED);
	fill(at, SIZE, 41);
	MUST(madvise(at + 8 * PAGE, PAGE, MADV_REMOVE) == 0); /* a hole */
	char *twice = mremap(at + 16 * PAGE, 0, 8 * PAGE, MREMAP_MAYMOVE);
	MUST(twice != MAP_FAILED);
	MUST(mprotect(at + 4 * PAGE, PAGE, PROT_READ) == 0);
	MUST(madvise(at + 32 * PAGE, PAGE, MADV_REMOVE) == 0); /* what no mapping shows would be eager */
	MUST(munmap(at + 32 * PAGE, PAGE) == 0);
	stop();
	CHECK(at[8 * PAGE] == 0);
	fill(at + 8 * PAGE, PAGE, 41 + 8 * 512);
	CHECK(differs(at, 32 * PAGE, 41) == -1);
	CHECK(differs(at + 33 * PAGE, SIZE - 33 * PAGE, 41 + 33 * 512) == -1);
	CHECK(differs(twice, 8 * PAGE, 41 + 16 * 512) == -1);
	fill(at + 16 * PAGE, 8 * PAGE, 43);
	CHECK(differs(twice, 8 * PAGE, 43) == -1); /* still the same memory */
	pid_t child = fork();
	if (child == 0) {
		fill(twice, 8 * PAGE, 44);
		_exit(0);
	}
	int status = -1;
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	CHECK(differs(at + 16 * PAGE, 8 * PAGE, 44) == -1);
}

/* Shared memory of which a part is mapped no more, and again once it grows. */
static void shared_part(int argc, char **argv)
{
	char *at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	MUST(at != MAP_FAILED);
	fill(at, SIZE, 45);
	MUST(munmap(at + SIZE / 2, SIZE / 2) == 0);
	stop();
	at = mremap(at, SIZE / 2, SIZE, MREMAP_MAYMOVE);
	CHECK(at != MAP_FAILED && differs(at, SIZE, 45) == -1);
}

/* A memory file with a descriptor, mapped in part, its own offset. */
static void memory_file(int argc, char **argv)
{
	static char back[SIZE];
	int fd = memfd_create("in memory", MFD_CLOEXEC);
	MUST(ftruncate(fd, SIZE + 100) == 0);
	char *at = mmap(NULL, SIZE / 2, PROT_READ | PROT_WRITE, MAP_SHARED, fd, SIZE / 2);
	char *own = mmap(NULL, SIZE / 2, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	MUST(at != MAP_FAILED);
	fill(at, SIZE / 2, 51 + SIZE / 16);
	fill(own, SIZE / 2, 51);
	MUST(pwrite(fd, "tail", 4, SIZE + 96) == 4);
	MUST(munmap(own, SIZE / 2) == 0);
	char *last = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, SIZE);
	MUST(last != MAP_FAILED);
	fill(last + 104, PAGE - 104, 53); /* behind the end of the file */
	MUST(lseek(fd, 12345, SEEK_SET) == 12345);
	int again = dup(fd);
	stop();
	CHECK(lseek(again, 0, SEEK_CUR) == 12345);
	CHECK(pread(fd, back, SIZE, 0) == SIZE && differs(back, SIZE, 51) == -1);
	CHECK(differs(at, SIZE / 2, 51 + SIZE / 16) == -1);
	CHECK(pread(fd, back, 8, SIZE + 96) == 4 && memcmp(back, "tail", 4) == 0);
	CHECK(differs(last + 104, PAGE - 104, 53) == -1);
	at[7] = 99;
	CHECK(pread(fd, back, 1, SIZE / 2 + 7) == 1 && back[0] == 99);
	struct stat st;
	CHECK(fstat(fd, &st) == 0 && st.st_size == SIZE + 100);
}

/* A memory file whose descriptor is closed: it may come lazily, and has something behind its end. */
static void memory_file_mapped(int argc, char **argv)
{
	int fd = memfd_create("mapped only", 0);
	MUST(ftruncate(fd, 4 * SIZE - 100) == 0);
	char *a = mmap(NULL, 4 * SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	char *b = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, SIZE);
	MUST(a != MAP_FAILED && b != MAP_FAILED && close(fd) == 0);
	fill(a, SIZE, 61);
	fill(b, SIZE, 62);
	fill(a + 3 * SIZE, SIZE, 63);
	stop();
	CHECK(differs(b, SIZE, 62) == -1);
	CHECK(differs(a, SIZE, 61) == -1);
	CHECK(differs(a + SIZE, SIZE, 62) == -1);
	CHECK(differs(a + 3 * SIZE, SIZE, 63) == -1);
	for (int i = 2 * SIZE; i < 3 * SIZE; i++)
		if (a[i] != 0) {
			bad("byte %d of the hole", i);
			break;
		}
	fill(a + SIZE, SIZE, 64);
	CHECK(differs(b, SIZE, 64) == -1);
}

/* Pages that look alike to a dump: zero, never touched, huge. */
static void sparse(int argc, char **argv)
{
	size_t size = 64 << 20;
	char *at = map(size);
	uint64_t sum = 0;
	for (size_t p = 0; p < size / PAGE; p += 97)
		fill(at + p * PAGE, PAGE, p);
	for (size_t p = 1; p < size / PAGE; p += 97)
		sum += at[p * PAGE]; /* read only: the zero page */
	stop();
	for (size_t p = 0; p < size / PAGE; p++) {
		if (p % 97 == 0)
			CHECK(differs(at + p * PAGE, PAGE, p) == -1);
		else
			sum += at[p * PAGE] + at[p * PAGE + PAGE - 1];
	}
	CHECK(sum == 0);
}

static void huge(int argc, char **argv)
{
	size_t size = 16 << 20;
	char *at = map(size + (2 << 20));
	at = (char *)(((uintptr_t)at + (2 << 20) - 1) & -(uintptr_t)(2 << 20));
	MUST(madvise(at, size, MADV_HUGEPAGE) == 0);
	fill(at, size / 2, 71);
	memset(at + size / 2, 0, size / 2);
	stop();
	CHECK(differs(at, size / 2, 71) == -1);
	for (size_t i = size / 2; i < size; i++)
		if (at[i] != 0) {
			bad("byte %zu is not zero", i);
			break;
		}
}

const struct scene memory_scenes[] = {
	{"protections", protections}, {"neighbours", neighbours}, {"code", code}, {"advice", advice}, {"named", named}, {"guards", guards},
	{"private-file", private_file}, {"shared-file", shared_file}, {"shared-anonymous", shared_anonymous}, {"shared-part", shared_part},
	{"memory-file", memory_file}, {"memory-file-mapped", memory_file_mapped}, {"sparse", sparse},
	{"huge", huge}, {NULL, NULL},
};
