/*
 * sendfile: the least that shipping a file can cost.
 *
 *   sendfile FILE
 *
 * Prints "port N" and sends FILE to each connection to that port of the loopback
 * address, one after the other, until it is killed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static void must(int ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(1);
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t size = sizeof at;
	struct stat st;

	if (argc != 2)
		return 2;
	int file = open(argv[1], O_RDONLY);
	must(file >= 0 && fstat(file, &st) == 0, argv[1]);
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	must(bind(listener, (struct sockaddr *)&at, size) == 0 && listen(listener, 8) == 0 &&
	     getsockname(listener, (struct sockaddr *)&at, &size) == 0, "listen");
	printf("port %d\n", ntohs(at.sin_port));
	fflush(stdout);
	for (;;) {
		int peer = accept(listener, NULL, NULL);
		must(peer >= 0, "accept");
		for (off_t off = 0; off < st.st_size;)
			if (sendfile(peer, file, &off, st.st_size - off) <= 0)
				break; /* the peer has left */
		close(peer);
	}
}
