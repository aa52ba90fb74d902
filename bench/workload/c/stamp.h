/*
 * How a program under measurement shows that it runs.
 *
 * The program's own loop reads the clock and writes each reading, eight bytes
 * of nanoseconds, into the next slot of a ring in a regular file of fixed size
 * that it holds open for writing. The harness looks for the first reading that
 * is later than the moment at which it started the restore command. A restore
 * has to give the descriptor and its file back; nothing else is asked of it.
 *
 * The clock is CLOCK_REALTIME: CLOCK_MONOTONIC differs between time namespaces,
 * and a restore may make one. The harness watches that nobody sets it.
 */
#ifndef STAMP_H
#define STAMP_H

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { STAMP_SLOTS = 8192 }; /* 160 ms at a reading every 20 us */

struct stamp {
	int fd;
	uint32_t next;
	uint64_t last;
};

static inline uint64_t stamp_now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* stamp_cost is what one reading of the clock takes, in picoseconds: some 30,000
   where the kernel has mapped it into the process (the vDSO), ten times that and
   more where each is a system call. Each timed touch has one in it. */
static inline uint64_t stamp_cost(void)
{
	enum { READINGS = 2048 };
	uint64_t begin = stamp_now(), end = begin;
	for (int i = 0; i < READINGS; i++)
		end = stamp_now();
	return (end - begin) * 1000 / READINGS;
}

static inline void stamp_open(struct stamp *s, const char *path)
{
	s->next = 0;
	s->last = 0;
	s->fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (s->fd < 0 || ftruncate(s->fd, STAMP_SLOTS * sizeof(uint64_t)) != 0) {
		perror(path);
		exit(1);
	}
}

/* stamp_put records the clock, but no more often than every 20 us. */
static inline void stamp_put(struct stamp *s)
{
	uint64_t now = stamp_now();
	if (now - s->last < 20000)
		return;
	s->last = now;
	if (pwrite(s->fd, &now, sizeof now, (off_t)(s->next++ % STAMP_SLOTS) * 8) != 8) {
		perror("stamp");
		exit(1);
	}
}

#endif
