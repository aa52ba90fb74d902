// subject SCENE DIR MIB: a program for CRIU to dump. It fills memory, makes
// DIR/ready, waits for DIR/go, looks whether its memory is what it was, and ends
// with 0 if so. What is wrong stands in DIR/wrong.
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL

static const char *dir;
static size_t mib;

static char *path(char *buf, const char *name) {
	snprintf(buf, 4096, "%s/%s", dir, name);
	return buf;
}

static void fail(const char *format, ...) {
	char buf[4096];
	FILE *f = fopen(path(buf, "wrong"), "a");
	va_list ap;
	va_start(ap, format);
	vfprintf(f, format, ap);
	va_end(ap);
	fprintf(f, " (pid %d, errno %d)\n", getpid(), errno);
	fclose(f);
	_exit(1);
}

static void *need(void *p) {
	if (p == MAP_FAILED || !p) fail("no memory");
	return p;
}

static void tell(const char *name) {
	char buf[4096];
	int fd = open(path(buf, name), O_CREAT | O_WRONLY, 0600);
	if (fd < 0) fail("%s", name);
	close(fd);
}

// await polls: a descriptor to wait on would be state for CRIU to restore.
static void await(const char *name) {
	char buf[4096];
	struct stat st;
	path(buf, name);
	while (stat(buf, &st)) usleep(500);
}

static uint64_t mix(uint64_t x) {
	x ^= x >> 31; x *= 0x9e3779b97f4a7c15ULL;
	x ^= x >> 29; x *= 0xbf58476d1ce4e5b9ULL;
	return x ^ x >> 32;
}

// Page i of seed: every seventh is never touched, every eleventh repeats itself.
static int blank(size_t i) { return i % 7 == 3; }

static void page_of(uint64_t *p, uint64_t seed, size_t i) {
	for (size_t k = 0; k < PAGE / 8; k++)
		p[k] = i % 11 ? mix(seed << 40 ^ i << 9 ^ k) : seed ^ i;
}

static void fill(void *at, size_t n, uint64_t seed) {
	for (size_t i = 0; i < n / PAGE; i++) {
		uint64_t *p = (uint64_t *)((char *)at + i * PAGE);
		if (!blank(i)) page_of(p, seed, i);
		else if (*p) memset(p, 0, PAGE); // filled before, with other blanks
	}
}

// check compares n bytes that were filled with seed, from its page first on.
static void check_from(const char *what, void *at, size_t n, uint64_t seed, size_t first) {
	uint64_t want[PAGE / 8];
	for (size_t i = 0; i < n / PAGE; i++) {
		if (blank(first + i)) memset(want, 0, PAGE);
		else page_of(want, seed, first + i);
		if (memcmp((char *)at + i * PAGE, want, PAGE))
			fail("%s: page %zu of %zu is %#lx, not %#lx", what, i, n / PAGE, *(uint64_t *)((char *)at + i * PAGE), want[0]);
	}
}
static void check(const char *what, void *at, size_t n, uint64_t seed) { check_from(what, at, n, seed, 0); }

static void check_zero(const char *what, void *at, size_t n) {
	for (size_t i = 0; i < n; i += 8)
		if (*(uint64_t *)((char *)at + i)) fail("%s: byte %zu is not zero", what, i);
}

static void *map(size_t n, int flags) {
	return need(mmap(0, n, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0));
}

static void join(pid_t pid, const char *what) {
	int status;
	if (waitpid(pid, &status, 0) != pid) fail("wait for %s", what);
	if (status) fail("%s ended with %#x", what, status);
}

static void plain(void) {
	size_t n = mib << 20;
	char *a = map(n, MAP_PRIVATE), *ro = map(1 << 20, MAP_PRIVATE), *heap = need(malloc(1 << 20));
	fill(a, n, 1);
	fill(ro, 1 << 20, 2);
	memset(heap, 7, 1 << 20);
	mprotect(ro, 1 << 20, PROT_READ);
	tell("ready");
	await("go");
	// From the end on, so that it is not the order of the background.
	for (size_t i = n / PAGE; i-- > 0;) check_from("memory", a + i * PAGE, PAGE, 1, i);
	check("read-only memory", ro, 1 << 20, 2);
	for (size_t i = 0; i < 1 << 20; i++) if (heap[i] != 7) fail("heap at %zu", i);
	fill(a, n, 9);
	check("memory written again", a, n, 9);
}

struct share { char *at; size_t n; uint64_t seed; };

static void *one_thread(void *arg) {
	struct share *s = arg;
	await("go");
	check("memory of a thread", s->at, s->n, s->seed);
	return 0;
}

static void threads(void) {
	enum { N = 8 };
	pthread_t id[N];
	struct share s[N];
	size_t n = (mib << 20) / N;
	for (int i = 0; i < N; i++) {
		s[i] = (struct share){map(n, MAP_PRIVATE), n, i + 1};
		fill(s[i].at, n, s[i].seed);
		if (pthread_create(id + i, 0, one_thread, s + i)) fail("thread");
	}
	tell("ready");
	for (int i = 0; i < N; i++) pthread_join(id[i], 0);
}

// tree: five processes that share memory, and have memory that they have in
// common until one writes to it.
static void tree(void) {
	size_t n = mib << 20;
	char *shared = map(n, MAP_SHARED), *cow = map(n, MAP_PRIVATE);
	volatile int *up = map(PAGE, MAP_SHARED);
	pid_t kids[4];
	fill(shared, n, 1);
	fill(cow, n, 2);
	for (int k = 0; k < 4; k++) {
		if (k == 3 && kids[2]) break; // the fourth is the third's
		kids[k] = fork();
		if (kids[k] < 0) fail("fork");
		if (kids[k]) continue;
		char *own = map(n / 2, MAP_PRIVATE);
		fill(own, n / 2, 10 + k);
		fill(cow + n / 4, n / 4, 20 + k);
		pid_t grandchild = 0;
		if (k == 2) {
			grandchild = fork();
			if (grandchild < 0) fail("fork");
			if (!grandchild) {
				k = 3;
				fill(own + n / 4, n / 8, 30);
			}
		}
		__sync_fetch_and_add(up, 1);
		await("go");
		int was = k == 3 ? 2 : k;
		check("own memory", own, n / 4, 10 + was);
		if (k == 3) {
			check("memory of a grandchild", own + n / 4, n / 8, 30);
			check_from("the rest of it", own + n / 4 + n / 8, n / 8, 12, (n / 4 + n / 8) / PAGE);
		}
		check("memory of the parent", cow, n / 4, 2);
		check("memory that was copied", cow + n / 4, n / 4, 20 + was);
		check_from("memory of the parent", cow + n / 2, n / 2, 2, n / 2 / PAGE);
		check("shared memory", shared, n, 1);
		if (grandchild) join(grandchild, "the grandchild");
		_exit(0);
	}
	while (__sync_fetch_and_add(up, 0) < 4) usleep(500);
	tell("ready");
	await("go");
	for (int k = 0; k < 3; k++) join(kids[k], "a child");
	check("shared memory", shared, n, 1);
	check("private memory", cow, n, 2);
}

// changes does to its memory, while it is missing, all that a process may. If held, it
// touches the last of it when DIR/check comes.
static void changes(int held) {
	size_t n = mib << 20, q = n / 4;
	char *a = map(n, MAP_PRIVATE), *b = map(n, MAP_PRIVATE), *c = map(n, MAP_PRIVATE);
	char *last = held ? map(n, MAP_PRIVATE) : 0;
	if (held) fill(last, n, 4);
	fill(a, n, 1);
	fill(b, n, 2);
	fill(c, n, 3);
	tell("ready");
	await("go");
	pid_t early = fork();
	if (!early) {
		check("memory of an early child", a, n, 1);
		check("memory of an early child", c, n, 3);
		_exit(0);
	}
	if (madvise(a + q, q, MADV_DONTNEED)) fail("madvise");
	check_zero("removed memory", a + q, q);
	char *to = map(n, MAP_PRIVATE);
	if (mremap(b, q, q, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to) fail("mremap");
	check("moved memory", to, q, 2);
	if (munmap(c + q, q)) fail("munmap");
	if (mprotect(c + 2 * q, q, PROT_READ)) fail("mprotect");
	pid_t late = fork();
	if (!late) {
		check("memory of a late child", a, q, 1);
		check_zero("its removed memory", a + q, q);
		check("its moved memory", to, q, 2);
		check_from("its other memory", b + q, n - q, 2, q / PAGE);
		if (fork() == 0) {
			check_from("memory of a grandchild", c + 3 * q, q, 3, 3 * q / PAGE);
			_exit(0);
		}
		int status;
		wait(&status);
		_exit(status != 0);
	}
	char *again = need(mmap(c + q, q, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	check_zero("memory mapped anew", again, q);
	check("memory", a, q, 1);
	check_from("memory", a + 2 * q, n - 2 * q, 1, 2 * q / PAGE);
	check_from("memory", b + q, n - q, 2, q / PAGE);
	check("memory", c, q, 3);
	check_from("memory", c + 2 * q, n - 2 * q, 3, 2 * q / PAGE);
	join(early, "the early child");
	join(late, "the late child");
	if (!held) return;
	await("check");
	check("the last memory", last, n, 4);
}

// event does one thing to its memory when DIR/go comes, says so, and looks at
// its memory when DIR/check does.
static void event(const char *kind) {
	size_t n = mib << 20, q = n / 4;
	char *a = map(n, MAP_PRIVATE), *to = map(q, MAP_PRIVATE);
	pid_t child = 0;
	fill(a, n, 1);
	if (!strcmp(kind, "exit")) {
		child = fork();
		if (!child) {
			fill(a, n, 2);
			tell("forked");
			await("go");
			check("a little of a child's memory", a, 4 * PAGE, 2);
			_exit(0);
		}
		await("forked");
	}
	tell("ready");
	await("go");
	if (!strcmp(kind, "fork")) {
		child = fork();
		if (!child) {
			await("check");
			check("memory of a child", a, n, 1);
			_exit(0);
		}
	} else if (!strcmp(kind, "remap")) {
		if (mremap(a + q, q, q, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to) fail("mremap");
	} else if (!strcmp(kind, "remove")) {
		if (madvise(a + q, q, MADV_DONTNEED)) fail("madvise");
	} else if (!strcmp(kind, "unmap")) {
		if (munmap(a + q, q)) fail("munmap");
		need(mmap(a + q, q, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	} else if (!strcmp(kind, "exit")) {
		join(child, "the child");
		child = 0;
	}
	tell("done");
	await("check");
	check("memory", a, q, 1);
	if (!strcmp(kind, "remap")) check_from("moved memory", to, q, 1, q / PAGE);
	else if (!strcmp(kind, "remove") || !strcmp(kind, "unmap")) check_zero("memory that is gone", a + q, q);
	else check_from("memory", a + q, q, 1, q / PAGE);
	check_from("memory", a + 2 * q, n - 2 * q, 1, 2 * q / PAGE);
	if (child) join(child, "the child");
}

int main(int argc, char **argv) {
	if (argc != 4) return 2;
	dir = argv[2];
	mib = strtoul(argv[3], 0, 10);
	if (!strcmp(argv[1], "plain")) plain();
	else if (!strcmp(argv[1], "threads")) threads();
	else if (!strcmp(argv[1], "tree")) tree();
	else if (!strcmp(argv[1], "changes")) changes(0);
	else if (!strcmp(argv[1], "changes-held")) changes(1);
	else event(argv[1]);
	return 0;
}
