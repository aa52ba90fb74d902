/*
 * floor: what the machine can do, with nothing of ours in between.
 *
 *   floor [-s MIB] [-t TOUCHES] [-o FILE]
 *
 * A parent serves the missing memory of a child: one thread that spins on a
 * userfaultfd in non-blocking mode and copies one page to each fault out of
 * memory that it has. That is as quick as a handler in another process gets.
 * Then the rate of UFFDIO_COPY in large pieces into the rest of the child, on
 * one core, and the rate of memcpy into resident memory. Prints
 *
 *   touches n=... mean_ns=... median_ns=... p99_ns=... max_ns=... clock_ps=...
 *   bulk_copy bytes=... ns=...
 *   memcpy bytes=... ns=...
 *
 * FILE gets what each touch took, 32 bits of nanoseconds each, sorted.
 */
#define _GNU_SOURCE
#include "stamp.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { PAGE = 4096, PIECE = 1 << 20 };

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

struct shared {
	volatile int phase; /* 0 setting up, 1 registered, 2 served, 3 touched */
	int uffd;
	unsigned char *base;
};

static size_t mib = 1024, touches = 2000;
static const char *took_file;
static struct shared *shared;

static int phase(void) { return __atomic_load_n(&shared->phase, __ATOMIC_SEQ_CST); }
static void set(int p) { __atomic_store_n(&shared->phase, p, __ATOMIC_SEQ_CST); }

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void *map(size_t bytes, int flags)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		die("mmap");
	return p;
}

static int open_uffd(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	int fd = dev >= 0 ? ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK)
			  : (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) != 0)
		die("userfaultfd");
	return fd;
}

static int by_size(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return (x > y) - (x < y);
}

/* child touches random pages of memory that it has registered, and waits. */
static void child(size_t bytes)
{
	uint32_t *took = map((touches + 1) * sizeof *took, MAP_PRIVATE | MAP_POPULATE);
	unsigned char *base = map(bytes, MAP_PRIVATE);
	uint64_t state = 88172645463325252u, sum = 0;
	struct uffdio_register reg = {
		.range = {(uintptr_t)base, bytes}, .mode = UFFDIO_REGISTER_MODE_MISSING};

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	shared->uffd = open_uffd();
	shared->base = base;
	if (ioctl(shared->uffd, UFFDIO_REGISTER, &reg) != 0)
		die("UFFDIO_REGISTER");
	set(1);
	while (phase() != 2)
		;
	for (size_t i = 0; i < touches; i++) {
		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		volatile unsigned char *p = base + state % (bytes / PAGE) * PAGE;
		uint64_t t = stamp_now();
		*p;
		took[i] = (uint32_t)(stamp_now() - t);
		sum += took[i];
	}
	qsort(took, touches, sizeof *took, by_size);
	printf("touches n=%zu mean_ns=%llu median_ns=%u p99_ns=%u max_ns=%u clock_ps=%llu\n", touches,
	       (unsigned long long)(sum / touches), took[touches / 2], took[touches * 99 / 100],
	       took[touches - 1], (unsigned long long)stamp_cost());
	fflush(stdout);
	int out = took_file ? open(took_file, O_WRONLY | O_CREAT | O_TRUNC, 0600) : -1;
	if (took_file && (out < 0 || write(out, took, touches * sizeof *took) < 0))
		die(took_file);
	set(3);
	for (;;)
		pause();
}

/* copy installs n bytes; what is there already is passed over. */
static size_t copy(int fd, uintptr_t to, unsigned char *from, size_t n)
{
	size_t done = 0, got = 0;
	while (done < n) {
		struct uffdio_copy c = {to + done, (uintptr_t)from + done, n - done, 0, 0};
		if (ioctl(fd, UFFDIO_COPY, &c) == 0)
			return got + n - done;
		if (c.copy > 0) {
			done += (size_t)c.copy;
			got += (size_t)c.copy;
		} else if (c.copy == -EEXIST) {
			done += PAGE;
		} else if (c.copy != -EAGAIN) {
			errno = (int)-c.copy;
			die("UFFDIO_COPY");
		}
	}
	return got;
}

static void serve(int fd, unsigned char *base, unsigned char *source)
{
	struct uffd_msg m;
	set(2);
	while (phase() != 3) {
		ssize_t n = read(fd, &m, sizeof m);
		if (n == (ssize_t)sizeof m && m.event == UFFD_EVENT_PAGEFAULT) {
			uintptr_t at = (uintptr_t)m.arg.pagefault.address & ~(uintptr_t)(PAGE - 1);
			copy(fd, at, source + (at - (uintptr_t)base), PAGE);
		} else if (n < 0 && errno != EAGAIN) {
			die("read userfaultfd");
		}
	}
}

static void rates(int fd, unsigned char *base, unsigned char *source, size_t bytes)
{
	uint64_t t = stamp_now();
	size_t got = 0;
	for (size_t at = 0; at < bytes; at += PIECE)
		got += copy(fd, (uintptr_t)base + at, source + at, PIECE);
	printf("bulk_copy bytes=%zu ns=%llu\n", got, (unsigned long long)(stamp_now() - t));

	size_t half = bytes / 2;
	t = stamp_now();
	memcpy(source, source + half, half);
	__asm__ volatile("" ::: "memory");
	printf("memcpy bytes=%zu ns=%llu\n", half, (unsigned long long)(stamp_now() - t));
}

int main(int argc, char **argv)
{
	int c;
	while ((c = getopt(argc, argv, "s:t:o:")) != -1)
		switch (c) {
		case 's': mib = strtoul(optarg, NULL, 10); break;
		case 't': touches = strtoul(optarg, NULL, 10); break;
		case 'o': took_file = optarg; break;
		default: return 2;
		}
	if (mib == 0 || touches == 0) {
		fprintf(stderr, "floor: needs memory and touches\n");
		return 2;
	}
	size_t bytes = mib << 20;
	shared = map(PAGE, MAP_SHARED);
	pid_t pid = fork();
	if (pid < 0)
		die("fork");
	if (pid == 0)
		child(bytes);
	unsigned char *source = map(bytes, MAP_PRIVATE);
	memset(source, 0x5a, bytes);
	while (phase() == 0)
		if (waitpid(pid, NULL, WNOHANG) != 0)
			return 1;
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	int fd = (int)syscall(SYS_pidfd_getfd, pidfd, shared->uffd, 0);
	if (fd < 0)
		die("pidfd_getfd");
	serve(fd, shared->base, source);
	rates(fd, shared->base, source, bytes);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	return 0;
}
