/*
 * mappings: memory of a given size in a given number of mappings, a loop that
 * reads the clock, and on request touches of that memory, each one timed.
 *
 *   mappings [-m MAPPINGS] [-s MIB] [-t TOUCHES] [-j THREADS] [-d DESCRIPTORS] [-r SEED] [-w]
 *
 * Prints "ready" when all memory is written, then reads the clock into the
 * ring `stamp` in its directory (stamp.h) until a signal comes:
 *
 *   SIGUSR1   touch TOUCHES random pages, each timed; then every page once, in
 *             order; then compare all content with what was written. Prints
 *             one line for each, the last one "result ok" or "result BAD
 *             page", and goes back to the loop. What each touch took is in
 *             the file `took`, 32 bits of nanoseconds each, sorted.
 *   SIGUSR2   leave with status 0.
 *
 * With -w it waits for the signal asleep, and reads the clock but once after each.
 *
 * Memory, as programs have it: half of what a page holds is random, the rest
 * repeats (LZ4 makes about half of it), and one page in 32 was never written.
 */
#define _GNU_SOURCE
#include "stamp.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096, LINE = 64 };

static size_t mappings = 100, mib = 256, touches = 2000, threads, descriptors, pages_each, pages;
static int waits;
static uint64_t seed = 1;
static unsigned char **maps;
static uint32_t *took;
static volatile sig_atomic_t asked, leave;

static void on_usr1(int sig) { (void)sig; asked = 1; }
static void on_usr2(int sig) { (void)sig; leave = 1; }

static void block_signals(void)
{
	sigset_t both;

	sigemptyset(&both);
	sigaddset(&both, SIGUSR1);
	sigaddset(&both, SIGUSR2);
	sigprocmask(SIG_BLOCK, &both, NULL);
}

/* Both signals are blocked but in here, so that none comes before the sleep. */
static void wait_for_signal(void)
{
	sigset_t none;

	sigemptyset(&none);
	if (!asked && !leave)
		sigsuspend(&none);
}

static inline uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

static inline unsigned char *page_at(size_t n)
{
	return maps[n / pages_each] + n % pages_each * PAGE;
}

static inline int is_zero(size_t n) { return n % 32 == 31; }

/* content writes what page n holds to p. */
static void content(size_t n, unsigned char *p)
{
	uint64_t *w = (uint64_t *)p, x = mix(seed + n) | 1, base = mix(x);
	for (size_t line = 0; line < PAGE / LINE; line++, w += LINE / 8) {
		if (line & 1) {
			for (size_t i = 0; i < LINE / 8; i++)
				w[i] = base + i;
			w[0] = line;
			continue;
		}
		for (size_t i = 0; i < LINE / 8; i++) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			w[i] = x;
		}
	}
}

static void *must(void *p, const char *what)
{
	if (p == NULL || p == MAP_FAILED) {
		perror(what);
		exit(1);
	}
	return p;
}

/* fill makes the mappings. Neighbours differ in protection, or the kernel
   would join them into one. */
static void fill(void)
{
	pages_each = (mib << 20) / mappings / PAGE;
	pages = pages_each * mappings;
	maps = must(calloc(mappings, sizeof *maps), "calloc");
	took = must(calloc(touches + 1, sizeof *took), "calloc");
	for (size_t i = 0; i < mappings; i++)
		maps[i] = must(mmap(NULL, pages_each * PAGE, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), "mmap");
	for (size_t n = 0; n < pages; n++)
		if (!is_zero(n))
			content(n, page_at(n));
	for (size_t i = 0; i < mappings; i += 2)
		if (mprotect(maps[i], pages_each * PAGE, PROT_READ) != 0) {
			perror("mprotect");
			exit(1);
		}
}

static int by_size(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return (x > y) - (x < y);
}

static unsigned touch(size_t n)
{
	return *(volatile unsigned char *)page_at(n);
}

/* random_touches visits distinct pages: a linear congruential generator over
   the next power of two comes by each number once, a shift-xor hides that its
   low bits are regular. */
static void random_touches(void)
{
	uint64_t sum = 0, start = stamp_now(), state = mix(seed ^ start), room = 2;
	size_t n = touches < pages ? touches : pages, done = 0;
	unsigned bits = 1;

	for (; room < pages; bits++)
		room <<= 1;
	/* The program's own memory may be missing too. A touch is one page. */
	memset(took, 0, n * sizeof *took);
	for (size_t i = 0; i < mappings; i++)
		sum += ((uintptr_t volatile *)maps)[i];
	sum = 0;
	while (done < n) {
		state = state * 6364136223846793005u + 1442695040888963407u;
		uint64_t at = state & (room - 1);
		at ^= at >> (bits / 2 + 1);
		if (at >= pages)
			continue;
		uint64_t t = stamp_now();
		touch(at);
		took[done++] = (uint32_t)(stamp_now() - t);
	}
	for (size_t i = 0; i < n; i++)
		sum += took[i];
	qsort(took, n, sizeof *took, by_size);
	int fd = open("took", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, took, n * sizeof *took) < 0)
		perror("took");
	close(fd);
	printf("touches n=%zu start_ns=%llu mean_ns=%llu median_ns=%u p99_ns=%u p999_ns=%u max_ns=%u clock_ps=%llu\n", n,
	       (unsigned long long)start, (unsigned long long)(sum / n), took[n / 2],
	       took[n * 99 / 100], took[n * 999 / 1000], took[n - 1], (unsigned long long)stamp_cost());
}

static void sweep(void)
{
	uint64_t start = stamp_now();
	for (size_t n = 0; n < pages; n++)
		touch(n);
	printf("sweep bytes=%zu start_ns=%llu end_ns=%llu\n", pages * PAGE,
	       (unsigned long long)start, (unsigned long long)stamp_now());
}

static void verify(void)
{
	static unsigned char want[PAGE] __attribute__((aligned(64)));
	for (size_t n = 0; n < pages; n++) {
		if (is_zero(n))
			memset(want, 0, PAGE);
		else
			content(n, want);
		if (memcmp(want, page_at(n), PAGE) != 0) {
			printf("result BAD page %zu at %p\n", n, (void *)page_at(n));
			return;
		}
	}
	printf("result ok\n");
}

static size_t number(const char *s)
{
	char *end;
	errno = 0;
	unsigned long long v = strtoull(s, &end, 10);
	if (errno || *end || end == s) {
		fprintf(stderr, "mappings: %s is not a number\n", s);
		exit(2);
	}
	return (size_t)v;
}

static void options(int argc, char **argv)
{
	int c;
	while ((c = getopt(argc, argv, "m:s:t:j:d:r:w")) != -1)
		switch (c) {
		case 'm': mappings = number(optarg); break;
		case 's': mib = number(optarg); break;
		case 't': touches = number(optarg); break;
		case 'j': threads = number(optarg); break;
		case 'd': descriptors = number(optarg); break;
		case 'r': seed = number(optarg); break;
		case 'w': waits = 1; break;
		default: exit(2);
		}
	if (mappings == 0 || (mib << 20) / mappings < PAGE) {
		fprintf(stderr, "mappings: each mapping needs a page\n");
		exit(2);
	}
}

/* Threads that sleep: a restore makes them all. */
static void *sleeper(void *unused)
{
	for (;;)
		pause();
	return unused;
}

static void start_threads(void)
{
	pthread_attr_t small;
	pthread_t id;
	sigset_t all, old;

	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 64 << 10);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	for (size_t i = 0; i < threads; i++)
		if ((errno = pthread_create(&id, &small, sleeper, NULL)) != 0) {
			perror("pthread_create");
			exit(1);
		}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}

/* Descriptors of ten kinds, which a restore opens again. */
static void open_descriptors(void)
{
	struct itimerspec hour = {.it_value = {3600, 0}};
	struct epoll_event in = {.events = EPOLLIN};
	struct rlimit limit = {descriptors + 100, descriptors + 100};
	sigset_t set;
	int e = -1, p[2], fd;

	if (descriptors == 0)
		return;
	setrlimit(RLIMIT_NOFILE, &limit);
	sigemptyset(&set);
	for (size_t i = 0; i < descriptors; i++) {
		switch (i % 10) {
		case 0: fd = e = epoll_create1(0); break;
		case 1: fd = eventfd(i, 0); epoll_ctl(e, EPOLL_CTL_ADD, fd, &in); break;
		case 2: fd = timerfd_create(CLOCK_MONOTONIC, 0); timerfd_settime(fd, 0, &hour, NULL); break;
		case 3: fd = signalfd(-1, &set, 0); break;
		case 4: fd = pipe(p); i++; break;
		case 6: fd = open("/proc/self/exe", O_RDONLY); break;
		case 7: fd = open("/dev/null", O_RDWR); break;
		case 8: fd = socketpair(AF_UNIX, SOCK_STREAM, 0, p); i++; break;
		default: fd = -1;
		}
		if (fd < 0) {
			perror("descriptors");
			exit(1);
		}
	}
}

int main(int argc, char **argv)
{
	struct stamp ring;

	setvbuf(stdout, NULL, _IOLBF, 0); /* somebody waits for each line */
	options(argc, argv);
	fill();
	signal(SIGUSR1, on_usr1);
	signal(SIGUSR2, on_usr2);
	if (waits)
		block_signals();
	start_threads();
	open_descriptors();
	stamp_open(&ring, "stamp");
	printf("ready\n");
	while (!leave) {
		stamp_put(&ring);
		if (waits)
			wait_for_signal();
		if (!asked)
			continue;
		asked = 0;
		if (touches)
			random_touches();
		sweep();
		verify();
	}
	return 0;
}
