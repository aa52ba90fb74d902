/*
 * copy: a plain TCP copy of one file to many receivers at once, on loopback.
 *
 *   copy [-n RECEIVERS] [-k] FILE
 *
 * Each receiver is a process, and has one that sends the file to it with
 * sendfile(2). A receiver drops what it gets in a buffer, or, with -k, keeps it
 * in memory that is fresh, as a restore has to. Prints
 *
 *   copied n=... bytes=... took_ns=...
 *
 * bytes of all together, and the time from before the first process was started
 * until the last receiver has all of it.
 */
#define _GNU_SOURCE
#include "stamp.h"

#include <arpa/inet.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { BUFFER = 256 << 10 };

static void must(int ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(1);
	}
}

static void give(int peer, int file, off_t size)
{
	for (off_t off = 0; off < size;)
		must(sendfile(peer, file, &off, size - off) > 0, "sendfile");
	exit(0);
}

static void take(struct sockaddr_in *at, off_t size, int keep)
{
	size_t room = keep ? (size_t)size : BUFFER;
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	char *p = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	must(p != MAP_FAILED, "mmap");
	must(fd >= 0 && connect(fd, (struct sockaddr *)at, sizeof *at) == 0, "connect");
	for (off_t have = 0; have < size;) {
		size_t most = size - have < BUFFER ? (size_t)(size - have) : BUFFER;
		ssize_t n = read(fd, keep ? p + have : p, most);
		must(n > 0, "read");
		have += n;
	}
	exit(0);
}

int main(int argc, char **argv)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof at;
	struct stat st;
	int c, n = 1, keep = 0, status;

	while ((c = getopt(argc, argv, "n:k")) != -1)
		switch (c) {
		case 'n': n = atoi(optarg); break;
		case 'k': keep = 1; break;
		default: return 2;
		}
	if (n < 1 || optind + 1 != argc) {
		fprintf(stderr, "copy: needs a file, and receivers\n");
		return 2;
	}
	int file = open(argv[optind], O_RDONLY | O_CLOEXEC);
	must(file >= 0 && fstat(file, &st) == 0, argv[optind]);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	must(listener >= 0 && bind(listener, (struct sockaddr *)&at, length) == 0 && listen(listener, n) == 0 &&
	     getsockname(listener, (struct sockaddr *)&at, &length) == 0, "listen");
	uint64_t begin = stamp_now();
	for (int i = 0; i < n; i++) {
		pid_t pid = fork();
		must(pid >= 0, "fork");
		if (pid == 0)
			take(&at, st.st_size, keep);
	}
	for (int i = 0; i < n; i++) {
		int peer = accept(listener, NULL, NULL);
		must(peer >= 0, "accept");
		pid_t pid = fork();
		must(pid >= 0, "fork");
		if (pid == 0)
			give(peer, file, st.st_size);
		close(peer);
	}
	for (int i = 0; i < 2 * n; i++)
		must(wait(&status) > 0 && status == 0, "a copy");
	printf("copied n=%d bytes=%llu took_ns=%llu\n", n, (unsigned long long)st.st_size * n,
	       (unsigned long long)(stamp_now() - begin));
	return 0;
}
