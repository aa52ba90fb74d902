/*
 * reply: a bare request and its reply over TCP on loopback, with nothing of
 * ours in between.
 *
 *   reply [-n COUNT] [-b BYTES] [-s]
 *
 * A server in a process of its own takes requests of 64 bytes, one after the
 * other, and answers each with BYTES; it sleeps in between. So does the client,
 * or, with -s, it spins until the reply is there, as a pager does. Prints
 *
 *   replies n=... mean_ns=... median_ns=... p99_ns=...
 */
#define _GNU_SOURCE
#include "stamp.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>

enum { REQUEST = 64 };

static size_t count = 2000, bytes = 32768;
static int spin; /* do not sleep while there is nothing to read */

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void *room(size_t n)
{
	void *p = calloc(n, 1);
	if (p == NULL)
		die("calloc");
	return p;
}

/* get reads n bytes; 0 at the end of the connection. */
static int get(int fd, char *p, size_t n)
{
	while (n > 0) {
		ssize_t got = recv(fd, p, n, spin ? MSG_DONTWAIT : 0);
		if (got < 0 && spin && errno == EAGAIN)
			continue;
		if (got < 0)
			die("recv");
		if (got == 0)
			return 0;
		p += got;
		n -= (size_t)got;
	}
	return 1;
}

static void put(int fd, const char *p, size_t n)
{
	while (n > 0) {
		ssize_t gone = write(fd, p, n);
		if (gone < 0)
			die("write");
		p += gone;
		n -= (size_t)gone;
	}
}

static void serve(int listener)
{
	char *ask = room(REQUEST), *answer = room(bytes);
	int on = 1, fd = accept(listener, NULL, NULL);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (fd < 0)
		die("accept");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	while (get(fd, ask, REQUEST))
		put(fd, answer, bytes);
	exit(0);
}

static int by_size(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof at;
	uint64_t sum = 0;
	int c, on = 1, asked = 0;

	while ((c = getopt(argc, argv, "n:b:s")) != -1)
		switch (c) {
		case 'n': count = strtoul(optarg, NULL, 10); break;
		case 'b': bytes = strtoul(optarg, NULL, 10); break;
		case 's': asked = 1; break;
		default: return 2;
		}
	if (count == 0 || bytes == 0) {
		fprintf(stderr, "reply: needs replies and bytes\n");
		return 2;
	}
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (listener < 0 || bind(listener, (struct sockaddr *)&at, size) != 0 || listen(listener, 1) != 0 ||
	    getsockname(listener, (struct sockaddr *)&at, &size) != 0)
		die("listen");
	pid_t pid = fork();
	if (pid < 0)
		die("fork");
	if (pid == 0)
		serve(listener);
	spin = asked;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&at, size) != 0)
		die("connect");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	char *ask = room(REQUEST), *got = room(bytes);
	uint32_t *took = room(count * sizeof *took);
	for (size_t i = 0; i < count; i++) {
		uint64_t t = stamp_now();
		put(fd, ask, REQUEST);
		if (!get(fd, got, bytes)) {
			fprintf(stderr, "reply: the server has ended\n");
			return 1;
		}
		took[i] = (uint32_t)(stamp_now() - t);
		sum += took[i];
	}
	close(fd);
	qsort(took, count, sizeof *took, by_size);
	printf("replies n=%zu mean_ns=%llu median_ns=%u p99_ns=%u\n", count, (unsigned long long)(sum / count),
	       took[count / 2], took[count * 99 / 100]);
	return 0;
}
