/* Sockets that have nobody outside at their other end. */
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "subject.h"

static char bytes[1 << 17], back[1 << 18];

static int option(int fd, int level, int name)
{
	int v = -1;
	socklen_t n = sizeof v;
	return getsockopt(fd, level, name, &v, &n) == 0 ? v : -1;
}

static int set(int fd, int level, int name, int v) { return setsockopt(fd, level, name, &v, sizeof v); }

static void pairs(int argc, char **argv)
{
	int s[2], d[2], q[2], ended[2], half[2];
	struct timeval tv = {3, 0};
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = 9}, got;
	MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s) == 0 && socketpair(AF_UNIX, SOCK_DGRAM, 0, d) == 0);
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, q) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, ended) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, half) == 0);
	fill(bytes, sizeof bytes, 4);
	MUST(set(s[0], SOL_SOCKET, SO_SNDBUF, 300000) == 0);
	for (int i = 0; i < 3; i++)
		MUST(write(s[0], bytes + i * 40000, 40000) == 40000);
	MUST(write(s[1], "back", 4) == 4);
	MUST(send(d[0], "one", 3, 0) == 3 && send(d[0], "second", 6, 0) == 6 && send(q[1], "packet", 6, 0) == 6 && send(q[1], bytes, 50000, 0) == 50000);
	MUST(write(ended[0], "last", 4) == 4 && close(ended[0]) == 0);
	MUST(write(half[0], "end", 3) == 3 && shutdown(half[0], SHUT_WR) == 0);
	MUST(setsockopt(s[1], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv) == 0 && set(d[1], SOL_SOCKET, SO_PASSCRED, 0) == 0);
	int again = dup(s[0]), e = epoll_create1(0);
	MUST(epoll_ctl(e, EPOLL_CTL_ADD, q[0], &event) == 0);
	signal(SIGPIPE, SIG_IGN);
	stop();
	size_t n = 0;
	while (n < 120000) {
		ssize_t r = read(s[1], back + n, sizeof back - n);
		MUST(r > 0);
		n += r;
	}
	CHECK(n == 120000 && memcmp(back, bytes, n) == 0);
	CHECK(recv(s[1], back, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
	CHECK(read(again, back, 10) == 4 && memcmp(back, "back", 4) == 0);
	CHECK(option(s[0], SOL_SOCKET, SO_SNDBUF) == 600000);
	socklen_t size = sizeof tv;
	CHECK(getsockopt(s[1], SOL_SOCKET, SO_RCVTIMEO, &tv, &size) == 0 && tv.tv_sec == 3);
	CHECK(read(d[1], back, 100) == 3 && memcmp(back, "one", 3) == 0 && read(d[1], back, 100) == 6 && memcmp(back, "second", 6) == 0);
	CHECK(epoll_wait(e, &got, 1, 1000) == 1 && got.data.u64 == 9);
	CHECK(read(q[0], back, sizeof back) == 6 && read(q[0], back, sizeof back) == 50000 && memcmp(back, bytes, 50000) == 0);
	CHECK(read(q[0], back, 1) == -1 && errno == EAGAIN);
	CHECK(read(ended[1], back, 10) == 4 && read(ended[1], back, 10) == 0 && write(ended[1], "x", 1) == -1 && errno == EPIPE);
	CHECK(read(half[1], back, 10) == 3 && read(half[1], back, 10) == 0 && write(half[0], "x", 1) == -1 && errno == EPIPE);
	CHECK(write(half[1], "ok", 2) == 2 && read(half[0], back, 10) == 2);
	CHECK(fcntl(s[0], F_GETFD) == FD_CLOEXEC && (fcntl(s[0], F_GETFL) & O_NONBLOCK) == 0 && (fcntl(q[1], F_GETFL) & O_NONBLOCK));
	CHECK(write(s[1], "more", 4) == 4 && read(s[0], back, 10) == 4);
}

static int port(int fd)
{
	struct sockaddr_storage a;
	socklen_t n = sizeof a;
	MUST(getsockname(fd, (struct sockaddr *)&a, &n) == 0);
	return ntohs(a.ss_family == AF_INET ? ((struct sockaddr_in *)&a)->sin_port : ((struct sockaddr_in6 *)&a)->sin6_port);
}

/* Whether somebody answers at an address. */
static int answers(int listener, const struct sockaddr *a, socklen_t n)
{
	int c = socket(a->sa_family, SOCK_STREAM, 0), got = -1;
	if (connect(c, a, n) == 0)
		got = accept(listener, NULL, NULL);
	int ok = got >= 0 && write(c, "hi", 2) == 2 && read(got, back, 10) == 2;
	close(c);
	close(got);
	return ok;
}

/* An address of the loopback interface that no other process has: what a checkpoint has
   left free is given to nobody before the restore. */
static struct in_addr own_address(void) { return (struct in_addr){htonl(0x7f400000 | getpid())}; }

static void listeners(int argc, char **argv)
{
	struct sockaddr_in a4 = {.sin_family = AF_INET, .sin_addr = own_address()};
	struct sockaddr_in6 a6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
	struct sockaddr_un path = {.sun_family = AF_UNIX}, name = {.sun_family = AF_UNIX};
	int t4 = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), t6 = socket(AF_INET6, SOCK_STREAM, 0), u = socket(AF_UNIX, SOCK_STREAM, 0), abstract = socket(AF_UNIX, SOCK_SEQPACKET, 0);
	int bound = socket(AF_INET, SOCK_STREAM, 0), fresh = socket(AF_INET, SOCK_STREAM, 0), plain = socket(AF_UNIX, SOCK_DGRAM, 0);
	snprintf(path.sun_path, sizeof path.sun_path, "/tmp/lr-subject-%d", getpid());
	unlink(path.sun_path);
	snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "lr-subject-%d", getpid());
	MUST(set(t4, SOL_SOCKET, SO_REUSEADDR, 1) == 0 && set(t4, IPPROTO_TCP, TCP_NODELAY, 1) == 0 && set(t4, IPPROTO_TCP, TCP_KEEPIDLE, 77) == 0 && set(t4, SOL_SOCKET, SO_KEEPALIVE, 1) == 0);
	MUST(bind(t4, (void *)&a4, sizeof a4) == 0 && listen(t4, 7) == 0);
	MUST(set(t6, IPPROTO_IPV6, IPV6_V6ONLY, 1) == 0 && bind(t6, (void *)&a6, sizeof a6) == 0 && listen(t6, 5) == 0);
	MUST(bind(u, (void *)&path, sizeof path) == 0 && chmod(path.sun_path, 0610) == 0 && listen(u, 3) == 0);
	socklen_t abstract_size = sizeof(sa_family_t) + 1 + strlen(name.sun_path + 1);
	MUST(bind(abstract, (void *)&name, abstract_size) == 0 && listen(abstract, 3) == 0);
	MUST(bind(bound, (void *)&a4, sizeof a4) == 0 && set(fresh, SOL_SOCKET, SO_RCVBUF, 50000) == 0 && plain >= 0);
	int p4 = port(t4), p6 = port(t6), pb = port(bound);
	say("bound to %s:%d", inet_ntoa(a4.sin_addr), pb);
	stop();
	struct stat st;
	CHECK(port(t4) == p4 && port(t6) == p6 && port(bound) == pb);
	CHECK(option(t4, SOL_SOCKET, SO_REUSEADDR) == 1 && option(t4, IPPROTO_TCP, TCP_NODELAY) == 1 && option(t4, IPPROTO_TCP, TCP_KEEPIDLE) == 77 && option(t4, SOL_SOCKET, SO_KEEPALIVE) == 1);
	CHECK(option(t6, IPPROTO_IPV6, IPV6_V6ONLY) == 1 && option(fresh, SOL_SOCKET, SO_RCVBUF) == 100000);
	CHECK(accept(t4, NULL, NULL) == -1 && errno == EAGAIN);
	struct tcp_info info;
	socklen_t n = sizeof info;
	CHECK(getsockopt(t4, IPPROTO_TCP, TCP_INFO, &info, &n) == 0 && info.tcpi_sacked == 7);
	a4.sin_port = htons(p4);
	a6.sin6_port = htons(p6);
	int flags = fcntl(t4, F_GETFL);
	CHECK((flags & O_NONBLOCK) && fcntl(t4, F_SETFL, flags & ~O_NONBLOCK) == 0);
	CHECK(answers(t4, (void *)&a4, sizeof a4));
	CHECK(answers(t6, (void *)&a6, sizeof a6));
	CHECK(answers(u, (void *)&path, sizeof path));
	CHECK(stat(path.sun_path, &st) == 0 && (st.st_mode & 07777) == 0610);
	int c = socket(AF_UNIX, SOCK_SEQPACKET, 0);
	CHECK(connect(c, (void *)&name, abstract_size) == 0);
	CHECK(listen(bound, 1) == 0);
	unlink(path.sun_path);
}

/* Listening sockets of multipath TCP, where the kernel has it. */
static void multipath(int argc, char **argv)
{
	enum { MULTIPATH = 262 }; /* IPPROTO_MPTCP */
	struct sockaddr_in a4 = {.sin_family = AF_INET, .sin_addr = own_address()};
	struct sockaddr_in6 a6 = {.sin6_family = AF_INET6};
	a6.sin6_addr.s6_addr[10] = a6.sin6_addr.s6_addr[11] = 0xff;
	memcpy(a6.sin6_addr.s6_addr + 12, &a4.sin_addr, 4);
	int four = socket(AF_INET, SOCK_STREAM, MULTIPATH), six = socket(AF_INET6, SOCK_STREAM, MULTIPATH);
	if (four < 0 || six < 0) {
		MUST(errno == EPROTONOSUPPORT || errno == ENOPROTOOPT || errno == EINVAL);
		stop();
		return;
	}
	MUST(set(four, SOL_SOCKET, SO_REUSEADDR, 1) == 0 && set(four, IPPROTO_TCP, TCP_NODELAY, 1) == 0);
	MUST(bind(four, (void *)&a4, sizeof a4) == 0 && listen(four, 7) == 0);
	MUST(set(six, IPPROTO_IPV6, IPV6_V6ONLY, 0) == 0 && bind(six, (void *)&a6, sizeof a6) == 0 && listen(six, 5) == 0);
	a4.sin_port = htons(port(four));
	a6.sin6_port = htons(port(six));
	stop();
	struct tcp_info info;
	socklen_t n = sizeof info;
	CHECK(port(four) == ntohs(a4.sin_port) && port(six) == ntohs(a6.sin6_port));
	CHECK(option(four, SOL_SOCKET, SO_PROTOCOL) == MULTIPATH && option(six, SOL_SOCKET, SO_PROTOCOL) == MULTIPATH);
	CHECK(option(four, SOL_SOCKET, SO_REUSEADDR) == 1 && option(four, IPPROTO_TCP, TCP_NODELAY) == 1);
	CHECK(getsockopt(four, IPPROTO_TCP, TCP_INFO, &info, &n) == 0 && info.tcpi_sacked == 7);
	CHECK(answers(four, (void *)&a4, sizeof a4));
	CHECK(answers(six, (void *)&a6, sizeof a6));
}

static void datagrams(int argc, char **argv)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr = own_address()};
	int in = socket(AF_INET, SOCK_DGRAM, 0), out = socket(AF_INET, SOCK_DGRAM, 0), six = socket(AF_INET6, SOCK_DGRAM, 0);
	MUST(bind(in, (void *)&a, sizeof a) == 0 && set(in, SOL_SOCKET, SO_RCVBUF, 60000) == 0 && set(out, SOL_SOCKET, SO_BROADCAST, 1) == 0 && set(out, IPPROTO_IP, IP_TTL, 7) == 0 && six >= 0);
	/* An interface that only a socket takes that is not bound yet. */
	int device = socket(AF_INET, SOCK_DGRAM, 0);
	MUST(set(device, IPPROTO_IP, IP_UNICAST_IF, htonl(if_nametoindex("lo"))) == 0 && setsockopt(device, SOL_SOCKET, SO_BINDTODEVICE, "lo", 3) == 0);
	a.sin_port = htons(port(in));
	stop();
	char bound[IFNAMSIZ] = "";
	socklen_t n = sizeof bound;
	CHECK(option(device, IPPROTO_IP, IP_UNICAST_IF) == (int)htonl(if_nametoindex("lo")));
	CHECK(getsockopt(device, SOL_SOCKET, SO_BINDTODEVICE, bound, &n) == 0 && strcmp(bound, "lo") == 0);
	CHECK(port(in) == ntohs(a.sin_port) && option(in, SOL_SOCKET, SO_RCVBUF) == 120000);
	CHECK(option(out, SOL_SOCKET, SO_BROADCAST) == 1 && option(out, IPPROTO_IP, IP_TTL) == 7);
	CHECK(sendto(out, "hello", 5, 0, (void *)&a, sizeof a) == 5 && recv(in, back, 10, 0) == 5);
}

/* Sockets that have an address, and no port before they are connected; the last has taken
   back the option for that. And unix sockets that are shut down, of which nobody is connected. */
static void portless(int argc, char **argv)
{
	enum { NO_PORT = 24 }; /* IP_BIND_ADDRESS_NO_PORT */
	struct sockaddr_in a4 = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK + 8)}}, has4;
	struct sockaddr_in6 a6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT}, has6;
	int t = socket(AF_INET, SOCK_STREAM, 0), u = socket(AF_INET, SOCK_DGRAM, 0), six = socket(AF_INET6, SOCK_STREAM, 0), back_again = socket(AF_INET, SOCK_STREAM, 0);
	MUST(set(t, IPPROTO_IP, NO_PORT, 1) == 0 && set(u, IPPROTO_IP, NO_PORT, 1) == 0 && set(six, IPPROTO_IP, NO_PORT, 1) == 0 && set(back_again, IPPROTO_IP, NO_PORT, 1) == 0);
	MUST(bind(t, (void *)&a4, sizeof a4) == 0 && bind(u, (void *)&a4, sizeof a4) == 0 && bind(six, (void *)&a6, sizeof a6) == 0 && bind(back_again, (void *)&a4, sizeof a4) == 0);
	MUST(set(back_again, IPPROTO_IP, NO_PORT, 0) == 0);
	struct sockaddr_un name = {.sun_family = AF_UNIX};
	socklen_t name_size = sizeof(sa_family_t) + 1 + snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "lr-subject-%d", getpid());
	int d = socket(AF_UNIX, SOCK_DGRAM, 0), l = socket(AF_UNIX, SOCK_STREAM, 0);
	MUST(bind(l, (void *)&name, name_size) == 0 && listen(l, 1) == 0 && shutdown(l, SHUT_RDWR) == 0 && shutdown(d, SHUT_WR) == 0);
	stop();
	int fds[] = {t, u, back_again};
	for (int i = 0; i < 3; i++) {
		socklen_t n = sizeof has4;
		CHECK(getsockname(fds[i], (void *)&has4, &n) == 0 && has4.sin_addr.s_addr == a4.sin_addr.s_addr && has4.sin_port == 0);
		CHECK(option(fds[i], IPPROTO_IP, NO_PORT) == (i < 2));
	}
	socklen_t n = sizeof has6;
	CHECK(getsockname(six, (void *)&has6, &n) == 0 && memcmp(&has6.sin6_addr, &a6.sin6_addr, sizeof a6.sin6_addr) == 0 && has6.sin6_port == 0);
	signal(SIGPIPE, SIG_IGN);
	CHECK(sendto(d, "x", 1, 0, (void *)&name, name_size) == -1 && errno == EPIPE);
	CHECK(accept(l, NULL, NULL) == -1 && errno == EINVAL);
}

/* Options by their numbers, which the headers may not have, each of a socket of its own. */
static const struct {
	int family, type, level, name, bytes;
	unsigned value[2];
} options[] = {
	{AF_UNIX, SOCK_STREAM, SOL_SOCKET, 42, 4, {5}}, /* SO_PEEK_OFF */
	{AF_UNIX, SOCK_DGRAM, SOL_SOCKET, 76, 4, {1}}, /* SO_PASSPIDFD */
	{AF_INET, SOCK_STREAM, SOL_SOCKET, 60, 4, {1}}, /* SO_ZEROCOPY */
	{AF_INET, SOCK_DGRAM, SOL_SOCKET, 61, 8, {1, 0}}, /* SO_TXTIME: CLOCK_MONOTONIC */
	{AF_INET, SOCK_DGRAM, SOL_SOCKET, 69, 4, {1}}, /* SO_PREFER_BUSY_POLL */
	{AF_INET, SOCK_STREAM, SOL_SOCKET, 47, 8, {100000, 0}}, /* SO_MAX_PACING_RATE */
	{AF_INET, SOCK_DGRAM, IPPROTO_IP, 20, 4, {1}}, /* IP_RECVORIGDSTADDR */
	{AF_INET, SOCK_DGRAM, IPPROTO_IP, 32, 4, {0x0100007f}}, /* IP_MULTICAST_IF: 127.0.0.1 */
	{AF_INET, SOCK_DGRAM, IPPROTO_IP, 50, 4, {0x01000000}}, /* IP_UNICAST_IF */
	{AF_INET, SOCK_STREAM, IPPROTO_IP, 51, 4, {3000 << 16 | 2000}}, /* IP_LOCAL_PORT_RANGE */
	{AF_INET6, SOCK_DGRAM, IPPROTO_IP, 20, 4, {1}},
	{AF_INET6, SOCK_DGRAM, IPPROTO_IPV6, 17, 4, {1}}, /* IPV6_MULTICAST_IF */
	{AF_INET6, SOCK_DGRAM, IPPROTO_IPV6, 29, 4, {0}}, /* IPV6_MULTICAST_ALL */
	{AF_INET6, SOCK_DGRAM, IPPROTO_IPV6, 62, 4, {1}}, /* IPV6_DONTFRAG */
	{AF_INET6, SOCK_STREAM, IPPROTO_IPV6, 73, 4, {5}}, /* IPV6_MINHOPCOUNT */
	{AF_INET6, SOCK_DGRAM, IPPROTO_IPV6, 74, 4, {1}}, /* IPV6_RECVORIGDSTADDR */
	{AF_INET6, SOCK_STREAM, IPPROTO_IPV6, 75, 4, {1}}, /* IPV6_TRANSPARENT */
	{AF_INET6, SOCK_DGRAM, IPPROTO_IPV6, 76, 4, {0x01000000}}, /* IPV6_UNICAST_IF */
	{AF_INET6, SOCK_STREAM, IPPROTO_IPV6, 78, 4, {1}}, /* IPV6_FREEBIND */
	{AF_INET, SOCK_STREAM, IPPROTO_TCP, 36, 4, {1}}, /* TCP_INQ */
	{AF_INET, SOCK_STREAM, SOL_SOCKET, 74, 4, {0}}, /* SO_TXREHASH */
	{AF_INET, SOCK_DGRAM, IPPROTO_IP, 6, 4, {1}}, /* IP_RECVOPTS */
	{AF_INET, SOCK_DGRAM, IPPROTO_IP, 7, 4, {1}}, /* IP_RETOPTS */
	{AF_INET, SOCK_DGRAM, IPPROTO_IP, 23, 4, {1}}, /* IP_CHECKSUM */
	{AF_INET6, SOCK_DGRAM, IPPROTO_IPV6, 53, 4, {1}}, /* IPV6_RECVHOPOPTS */
	{AF_INET6, SOCK_DGRAM, IPPROTO_IPV6, 56, 4, {1}}, /* IPV6_RECVRTHDR */
	{AF_INET6, SOCK_DGRAM, IPPROTO_IPV6, 58, 4, {1}}, /* IPV6_RECVDSTOPTS */
	{AF_INET6, SOCK_DGRAM, IPPROTO_IPV6, 60, 4, {1}}, /* IPV6_RECVPATHMTU */
	{AF_INET6, SOCK_DGRAM, IPPROTO_IPV6, 70, 4, {0}}, /* IPV6_AUTOFLOWLABEL */
	{AF_INET6, SOCK_DGRAM, IPPROTO_IPV6, 72, 4, {0x401}}, /* IPV6_ADDR_PREFERENCES: a temporary address */
	{AF_INET6, SOCK_DGRAM, IPPROTO_IPV6, 77, 4, {1}}, /* IPV6_RECVFRAGSIZE */
	{AF_INET, SOCK_STREAM, IPPROTO_TCP, 30, 4, {1}}, /* TCP_FASTOPEN_CONNECT */
	{AF_INET, SOCK_STREAM, IPPROTO_TCP, 34, 4, {1}}, /* TCP_FASTOPEN_NO_COOKIE */
	{AF_INET, SOCK_STREAM, IPPROTO_TCP, 37, 4, {1000}}, /* TCP_TX_DELAY */
};

/* Those that this kernel does not have are left out. */
static void socket_options(int argc, char **argv)
{
	enum { N = sizeof options / sizeof *options };
	int fd[N], set[N], some = 0;
	for (int i = 0; i < N; i++) {
		fd[i] = socket(options[i].family, options[i].type, 0);
		MUST(fd[i] >= 0);
		set[i] = setsockopt(fd[i], options[i].level, options[i].name, options[i].value, options[i].bytes) == 0;
		MUST(set[i] || errno == ENOPROTOOPT);
		some += set[i];
	}
	MUST(some > N / 2);
	stop();
	for (int i = 0; i < N; i++) {
		unsigned have[2] = {77, 77};
		socklen_t n = options[i].bytes;
		if (!set[i])
			continue;
		if (getsockopt(fd[i], options[i].level, options[i].name, have, &n) != 0 || memcmp(have, options[i].value, options[i].bytes) != 0)
			bad("option %d of level %d of family %d: %x %x (errno %d)", options[i].name, options[i].level, options[i].family, have[0], have[1], errno);
	}
}

/* An address of an interface that it may not have: with an index nobody looks. */
static void multicast_address(int argc, char **argv)
{
	struct ip_mreqn m = {.imr_address.s_addr = inet_addr("10.99.99.99"), .imr_ifindex = if_nametoindex("lo")};
	struct in_addr have = {0};
	socklen_t n = sizeof have;
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	MUST(setsockopt(fd, IPPROTO_IP, IP_MULTICAST_IF, &m, sizeof m) == 0);
	stop();
	CHECK(getsockopt(fd, IPPROTO_IP, IP_MULTICAST_IF, &have, &n) == 0 && have.s_addr == m.imr_address.s_addr);
}

/* A socket of a connection that is over, with all that was said in it unread. */
static void ended_connection(int argc, char **argv)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	int l = socket(AF_INET, SOCK_STREAM, 0), c = socket(AF_INET, SOCK_STREAM, 0);
	MUST(bind(l, (void *)&a, sizeof a) == 0 && listen(l, 1) == 0);
	a.sin_port = htons(port(l));
	MUST(connect(c, (void *)&a, sizeof a) == 0);
	int s = accept(l, NULL, NULL);
	MUST(s >= 0 && write(c, "data", 4) == 4 && shutdown(c, SHUT_WR) == 0 && shutdown(s, SHUT_WR) == 0);
	struct tcp_info info = {0};
	while (info.tcpi_state != TCP_CLOSE) {
		socklen_t n = sizeof info;
		MUST(getsockopt(s, IPPROTO_TCP, TCP_INFO, &info, &n) == 0 && usleep(100) == 0);
	}
	close(c);
	close(l);
	stop();
	CHECK(read(s, back, 10) == 4 && memcmp(back, "data", 4) == 0 && read(s, back, 10) == 0);
}

/* A connection that nobody takes, which the program has not looked at yet. */
static void refused_connection(int argc, char **argv)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	int nobody = socket(AF_INET, SOCK_STREAM, 0), c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	MUST(bind(nobody, (void *)&a, sizeof a) == 0);
	a.sin_port = htons(port(nobody));
	MUST(connect(c, (void *)&a, sizeof a) == -1 && errno == EINPROGRESS);
	struct pollfd p = {c, POLLOUT, 0};
	MUST(poll(&p, 1, -1) == 1);
	stop();
	CHECK(option(c, SOL_SOCKET, SO_ERROR) == ECONNREFUSED);
}

/* An error of a packet that was sent, which waits to be read; a packet that is not sent yet. */
static void unread_error(int argc, char **argv)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	int other = socket(AF_INET, SOCK_DGRAM, 0), c = socket(AF_INET, SOCK_DGRAM, 0);
	MUST(bind(other, (void *)&a, sizeof a) == 0 && set(c, IPPROTO_IP, IP_RECVERR, 1) == 0);
	a.sin_port = htons(port(other));
	MUST(connect(other, (void *)&a, sizeof a) == 0); /* it takes packets of its own only */
	MUST(sendto(c, "x", 1, 0, (void *)&a, sizeof a) == 1);
	struct pollfd p = {c, 0, 0};
	MUST(poll(&p, 1, 10000) == 1 && p.revents == POLLERR && close(other) == 0);
	stop();
	CHECK(recv(c, back, 10, MSG_ERRQUEUE | MSG_DONTWAIT) == 1);
}

static void corked(int argc, char **argv)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	int in = socket(AF_INET, SOCK_DGRAM, 0), out = socket(AF_INET, SOCK_DGRAM, 0);
	MUST(bind(in, (void *)&a, sizeof a) == 0);
	a.sin_port = htons(port(in));
	MUST(sendto(out, "one ", 4, MSG_MORE, (void *)&a, sizeof a) == 4);
	stop();
	CHECK(sendto(out, "packet", 6, 0, (void *)&a, sizeof a) == 6 && recv(in, back, 20, 0) == 10 && memcmp(back, "one packet", 10) == 0);
}

/* What is queued is being read ahead: each look at it goes on where the last one ended. */
static void peek_offset(int argc, char **argv)
{
	int s[2], q[2];
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, s) == 0 && socketpair(AF_UNIX, SOCK_SEQPACKET, 0, q) == 0);
	MUST(set(s[0], SOL_SOCKET, SO_PEEK_OFF, 0) == 0 && write(s[1], "abcdef", 6) == 6 && recv(s[0], back, 2, MSG_PEEK) == 2);
	MUST(set(q[0], SOL_SOCKET, SO_PEEK_OFF, 0) == 0 && write(q[1], "packet", 6) == 6);
	stop();
	CHECK(option(s[0], SOL_SOCKET, SO_PEEK_OFF) == 2 && recv(s[0], back, 10, MSG_PEEK) == 4 && memcmp(back, "cdef", 4) == 0);
	CHECK(option(q[0], SOL_SOCKET, SO_PEEK_OFF) == 0 && recv(q[0], back, 10, MSG_PEEK) == 6);
}

/* Messages without a byte, of a pair and of one that is bound. */
static void empty_message(int argc, char **argv)
{
	int type = strcmp(argv[0], "packets") ? SOCK_DGRAM : SOCK_SEQPACKET, d[2];
	MUST(socketpair(AF_UNIX, type, 0, d) == 0);
	MUST(send(d[1], "a", 1, 0) == 1 && send(d[1], "", 0, 0) == 0 && send(d[1], "b", 1, 0) == 1);
	if (argc > 1)
		MUST(shutdown(d[0], SHUT_RD) == 0);
	stop();
	CHECK(option(d[0], SOL_SOCKET, SO_PEEK_OFF) == -1);
	CHECK(recv(d[0], back, 10, 0) == 1 && recv(d[0], back, 10, 0) == 0 && recv(d[0], back, 10, 0) == 1);
}

static void empty_to_name(int argc, char **argv)
{
	struct sockaddr_un name = {.sun_family = AF_UNIX};
	int u = socket(AF_UNIX, SOCK_DGRAM, 0), out = socket(AF_UNIX, SOCK_DGRAM, 0);
	snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "lr-subject-%d", getpid());
	MUST(bind(u, (void *)&name, sizeof name) == 0);
	MUST(sendto(out, "", 0, 0, (void *)&name, sizeof name) == 0 && sendto(out, "second", 6, 0, (void *)&name, sizeof name) == 6 && close(out) == 0);
	stop();
	CHECK(recv(u, back, 10, 0) == 0 && recv(u, back, 10, 0) == 6);
}

const struct scene socket_scenes[] = {
	{"peek-offset", peek_offset}, {"empty-message", empty_message}, {"empty-to-name", empty_to_name},
	{"ended-connection", ended_connection}, {"refused-connection", refused_connection}, {"unread-error", unread_error}, {"corked", corked},
	{"multicast-address", multicast_address},
	{"socket-options", socket_options}, {"socket-pairs", pairs}, {"listeners", listeners}, {"multipath", multipath}, {"datagrams", datagrams}, {"portless", portless}, {NULL, NULL},
};
