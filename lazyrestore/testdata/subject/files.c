/* Descriptors. */
#include <dirent.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "subject.h"

static char bytes[1 << 17], back[1 << 17];

static void pipes(int argc, char **argv)
{
	int p[2], full[2], packets[2], empty[2];
	MUST(pipe(p) == 0 && pipe2(full, O_NONBLOCK) == 0 && pipe2(packets, O_DIRECT) == 0 && pipe2(empty, O_CLOEXEC | O_NONBLOCK) == 0);
	fill(bytes, sizeof bytes, 1);
	MUST(write(p[1], bytes, 30000) == 30000);
	MUST(read(p[0], back, 777) == 777); /* the first page is read in part */
	MUST(fcntl(full[1], F_SETPIPE_SZ, 1 << 17) == 1 << 17);
	MUST(write(full[1], bytes, 1 << 17) == 1 << 17);
	stop();
	CHECK(read(p[0], back, sizeof back) == 30000 - 777 && memcmp(back, bytes + 777, 30000 - 777) == 0);
	CHECK(write(p[1], "x", 1) == 1 && read(p[0], back, 2) == 1 && back[0] == 'x');
	CHECK(fcntl(full[0], F_GETPIPE_SZ) == 1 << 17);
	CHECK(write(full[1], "x", 1) == -1 && errno == EAGAIN);
	CHECK(read(full[0], back, sizeof back) == 1 << 17 && memcmp(back, bytes, 1 << 17) == 0);
	CHECK(write(packets[1], "one", 3) == 3 && write(packets[1], "second", 6) == 6);
	CHECK(read(packets[0], back, 100) == 3 && memcmp(back, "one", 3) == 0);
	CHECK(read(packets[0], back, 100) == 6 && memcmp(back, "second", 6) == 0);
	CHECK(read(empty[0], back, 1) == -1 && errno == EAGAIN);
	CHECK(fcntl(empty[0], F_GETFD) == FD_CLOEXEC && fcntl(p[0], F_GETFD) == 0);
	CHECK((fcntl(p[0], F_GETFL) & O_NONBLOCK) == 0);
}

/* A pipe of which one end is closed. */
static void half_pipes(int argc, char **argv)
{
	int ended[2], broken[2];
	MUST(pipe(ended) == 0 && pipe(broken) == 0);
	MUST(write(ended[1], "rest", 4) == 4);
	close(ended[1]);
	close(broken[0]);
	signal(SIGPIPE, SIG_IGN);
	stop();
	CHECK(read(ended[0], back, 10) == 4 && memcmp(back, "rest", 4) == 0);
	CHECK(read(ended[0], back, 10) == 0); /* and then its end */
	CHECK(write(broken[1], "x", 1) == -1 && errno == EPIPE);
}

static void eventfds(int argc, char **argv)
{
	int a = eventfd(41, EFD_NONBLOCK), b = eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC), c = eventfd(0, EFD_NONBLOCK);
	uint64_t v = 0;
	MUST(a >= 0 && b >= 0 && c >= 0);
	stop();
	CHECK(read(a, &v, 8) == 8 && v == 41);
	CHECK(read(a, &v, 8) == -1 && errno == EAGAIN);
	for (int i = 0; i < 3; i++)
		CHECK(read(b, &v, 8) == 8 && v == 1);
	CHECK(read(b, &v, 8) == -1 && errno == EAGAIN);
	CHECK(read(c, &v, 8) == -1 && errno == EAGAIN);
	CHECK(fcntl(b, F_GETFD) == FD_CLOEXEC);
}

static void epolls(int argc, char **argv)
{
	int outer = epoll_create1(EPOLL_CLOEXEC), inner = epoll_create1(0), e = eventfd(0, EFD_NONBLOCK), once = eventfd(7, 0), p[2];
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0xfedcba9876543210};
	struct epoll_event got[4];
	MUST(pipe(p) == 0 && write(p[1], "x", 1) == 1);
	MUST(epoll_ctl(inner, EPOLL_CTL_ADD, e, &event) == 0);
	event.data.u64 = 2;
	event.events = EPOLLIN | EPOLLET;
	MUST(epoll_ctl(inner, EPOLL_CTL_ADD, p[0], &event) == 0);
	MUST(epoll_wait(inner, got, 4, 0) == 1); /* the edge is used up */
	event.data.u64 = 3;
	event.events = EPOLLIN | EPOLLONESHOT;
	MUST(epoll_ctl(inner, EPOLL_CTL_ADD, once, &event) == 0);
	MUST(epoll_wait(inner, got, 4, 0) == 1 && got[0].data.u64 == 3); /* switched off now */
	event.data.u64 = 4;
	event.events = EPOLLIN;
	MUST(epoll_ctl(outer, EPOLL_CTL_ADD, inner, &event) == 0);
	/* One that is used up and hung up, before one that is neither. */
	int spent = epoll_create1(0), ready = eventfd(1, 0), q[2];
	event = (struct epoll_event){.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 6};
	MUST(pipe(q) == 0 && epoll_ctl(spent, EPOLL_CTL_ADD, q[0], &event) == 0 && write(q[1], "x", 1) == 1);
	MUST(epoll_wait(spent, got, 4, 0) == 1 && close(q[1]) == 0 && epoll_wait(spent, got, 4, 0) == 0);
	event.data.u64 = 7;
	MUST(epoll_ctl(spent, EPOLL_CTL_ADD, ready, &event) == 0);
	stop();
	CHECK(epoll_wait(spent, got, 4, 0) == 1 && got[0].data.u64 == 7 && epoll_wait(spent, got, 4, 0) == 0);
	event.data.u64 = 8;
	CHECK(epoll_ctl(spent, EPOLL_CTL_MOD, q[0], &event) == 0 && epoll_wait(spent, got, 4, 0) == 1 && got[0].data.u64 == 8);
	uint64_t v = 1;
	CHECK(write(e, &v, 8) == 8);
	memset(got, 0, sizeof got);
	CHECK(epoll_wait(outer, got, 4, 1000) == 1 && got[0].data.u64 == 4);
	int n = epoll_wait(inner, got, 4, 0), others = 0;
	for (int i = 0; i < n; i++) {
		/* A new watch tells of an edge once more; a one-shot may not. */
		CHECK(got[i].data.u64 != 3);
		others += got[i].data.u64 == 0xfedcba9876543210;
	}
	CHECK(others == 1);
	event.data.u64 = 5;
	event.events = EPOLLIN;
	CHECK(epoll_ctl(inner, EPOLL_CTL_MOD, once, &event) == 0);
	CHECK(epoll_ctl(inner, EPOLL_CTL_ADD, e, &event) == -1 && errno == EEXIST);
}

static void regular(int argc, char **argv)
{
	int a = open("plain", O_RDWR | O_CREAT | O_TRUNC, 0640), b = dup(a), c = open("plain", O_RDONLY), high = fcntl(a, F_DUPFD_CLOEXEC, 700);
	int log = open("log", O_WRONLY | O_CREAT | O_APPEND, 0600);
	struct stat st;
	fill(bytes, 5000, 9);
	MUST(write(a, bytes, 5000) == 5000 && write(log, "begin ", 6) == 6);
	MUST(lseek(a, 1234, SEEK_SET) == 1234 && lseek(c, 77, SEEK_SET) == 77);
	int path = open("plain", O_PATH | O_CLOEXEC), direct = open(".", O_RDONLY | O_DIRECTORY);
	struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "socket"};
	int bound = socket(AF_UNIX, SOCK_DGRAM, 0);
	MUST(bind(bound, (void *)&name, sizeof name) == 0 && close(bound) == 0 && mkfifo("fifo", 0600) == 0);
	int socket_ = open("socket", O_PATH), fifo = open("fifo", O_PATH), null = open("/dev/null", O_PATH), tty = open("/dev/tty", O_PATH);
	MUST(path >= 0 && direct >= 0 && socket_ >= 0 && fifo >= 0 && null >= 0 && tty >= 0);
	stop();
	const int paths[] = {socket_, fifo, null, tty}, types[] = {S_IFSOCK, S_IFIFO, S_IFCHR, S_IFCHR};
	for (int i = 0; i < 4; i++)
		CHECK((fcntl(paths[i], F_GETFL) & O_PATH) && fstat(paths[i], &st) == 0 && (int)(st.st_mode & S_IFMT) == types[i]);
	CHECK(lseek(a, 0, SEEK_CUR) == 1234 && lseek(c, 0, SEEK_CUR) == 77);
	CHECK(read(a, back, 10) == 10 && memcmp(back, bytes + 1234, 10) == 0);
	CHECK(lseek(b, 0, SEEK_CUR) == 1244); /* one offset for both */
	CHECK(lseek(high, 0, SEEK_CUR) == 1244 && fcntl(high, F_GETFD) == FD_CLOEXEC);
	CHECK(lseek(c, 0, SEEK_CUR) == 77);
	CHECK((fcntl(log, F_GETFL) & (O_APPEND | O_ACCMODE)) == (O_APPEND | O_WRONLY));
	CHECK(lseek(log, 0, SEEK_SET) == 0 && write(log, "end", 3) == 3);
	log = open("log", O_RDONLY);
	CHECK(read(log, back, 100) == 9 && memcmp(back, "begin end", 9) == 0);
	CHECK((fcntl(path, F_GETFL) & O_PATH) && fstat(path, &st) == 0 && st.st_size == 5000);
	CHECK(read(path, back, 1) == -1 && errno == EBADF);
	CHECK(faccessat(direct, "plain", F_OK, 0) == 0);
}

/* A directory that was read in part goes on where it was. */
static void directory(int argc, char **argv)
{
	char name[32];
	int before = 0, after = 0;
	MUST(mkdir("many", 0700) == 0);
	for (int i = 0; i < 3000; i++) {
		snprintf(name, sizeof name, "many/entry%04d", i);
		int fd = open(name, O_CREAT | O_WRONLY, 0600);
		MUST(fd >= 0 && close(fd) == 0);
	}
	int fd = open("many", O_RDONLY | O_DIRECTORY);
	char buffer[8192];
	struct { uint64_t ino; int64_t off; uint16_t length; uint8_t type; char name[]; } *entry;
	long n = syscall(SYS_getdents64, fd, buffer, sizeof buffer);
	MUST(n > 0);
	for (long at = 0; at < n; at += entry->length, before++)
		entry = (void *)(buffer + at);
	stop();
	while ((n = syscall(SYS_getdents64, fd, buffer, sizeof buffer)) > 0)
		for (long at = 0; at < n; at += entry->length, after++)
			entry = (void *)(buffer + at);
	CHECK(before + after == 3002);
}

static void devices(int argc, char **argv)
{
	int null = open("/dev/null", O_RDWR), zero = open("/dev/zero", O_RDONLY), full = open("/dev/full", O_WRONLY), random = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
	MUST(null >= 0 && zero >= 0 && full >= 0 && random >= 0);
	stop();
	memset(back, 1, 16);
	CHECK(write(null, "x", 1) == 1 && read(null, back, 1) == 0);
	CHECK(read(zero, back, 16) == 16 && back[7] == 0);
	CHECK(write(full, "x", 1) == -1 && errno == ENOSPC);
	CHECK(read(random, back, 16) == 16);
	CHECK(fcntl(random, F_GETFD) == FD_CLOEXEC);
}

static volatile int other, seen;

static void *looked_at(void *unused)
{
	other = syscall(SYS_gettid);
	while (!seen)
		usleep(1000);
	return NULL;
}

/* Files of /proc about the process itself, and about a thread of it. */
static void proc_itself(int argc, char **argv)
{
	char name[64], line[64];
	pthread_t thread;
	struct epoll_event event = {.events = EPOLLPRI, .data.u64 = 5}, got;
	MUST(pthread_create(&thread, NULL, looked_at, NULL) == 0);
	while (!other)
		usleep(100);
	snprintf(name, sizeof name, "/proc/self/task/%d/stat", other);
	int status = open("/proc/self/status", O_RDONLY), again = fcntl(status, F_DUPFD_CLOEXEC, 90), of_thread = open(name, O_RDONLY | O_CLOEXEC);
	int tasks = open("/proc/self/task", O_RDONLY | O_DIRECTORY), mounts = open("/proc/mounts", O_RDONLY), net = open("/proc/net/dev", O_RDONLY);
	int path = open("/proc/self", O_PATH), memory = open("/proc/self/mem", O_RDONLY), plain = open("/proc/meminfo", O_RDONLY), e = epoll_create1(0);
	MUST(status >= 0 && again >= 0 && of_thread >= 0 && tasks >= 0 && mounts >= 0 && net >= 0 && path >= 0 && memory >= 0 && plain >= 0);
	MUST(epoll_ctl(e, EPOLL_CTL_ADD, mounts, &event) == 0 && read(status, back, 6) == 6);
	MUST(lseek(memory, (long)name, SEEK_SET) == (long)name);
	stop();
	CHECK(read(again, back, 8) == 8 && memcmp(back, "subject\n", 8) == 0 && lseek(status, 0, SEEK_CUR) == 14);
	snprintf(line, sizeof line, "\nPid:\t%d\n", getpid());
	CHECK(pread(status, back, 4000, 0) > 0 && strstr(back, line));
	snprintf(line, sizeof line, "%d (subject)", other);
	CHECK(read(of_thread, back, 100) > 0 && strncmp(back, line, strlen(line)) == 0);
	snprintf(line, sizeof line, "%d", other);
	CHECK(faccessat(tasks, line, F_OK, 0) == 0 && fcntl(tasks, F_GETFL) & O_DIRECTORY);
	CHECK(read(mounts, back, 100) > 0 && read(net, back, 100) > 0 && read(plain, back, 100) > 0);
	CHECK(epoll_ctl(e, EPOLL_CTL_DEL, mounts, &got) == 0);
	CHECK(fcntl(path, F_GETFL) & O_PATH && faccessat(path, "stat", F_OK, 0) == 0);
	CHECK(read(memory, back, 11) == 11 && memcmp(back, "/proc/self/", 11) == 0);
	CHECK(fcntl(of_thread, F_GETFD) == FD_CLOEXEC && fcntl(again, F_GETFD) == FD_CLOEXEC && fcntl(status, F_GETFD) == 0);
	seen = 1;
	CHECK(pthread_join(thread, NULL) == 0);
}

/* Files that were removed while open; argv[0] is where. */
static void unlinked(int argc, char **argv)
{
	char name[256];
	struct stat st;
	snprintf(name, sizeof name, "%s/unlinked-%d", argv[0], getpid());
	int fd = open(name, O_RDWR | O_CREAT | O_EXCL, 0640), again = open(name, O_RDONLY);
	MUST(fd >= 0 && again >= 0 && unlink(name) == 0);
	fill(bytes, sizeof bytes, 17);
	MUST(pwrite(fd, bytes, sizeof bytes - 13, 0) == sizeof bytes - 13);
	MUST(ftruncate(fd, 4 * sizeof bytes) == 0); /* with a hole at its end */
	char *at = mmap(NULL, sizeof bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	MUST(at != MAP_FAILED);
	MUST(lseek(fd, 100, SEEK_SET) == 100 && lseek(again, 200, SEEK_SET) == 200);
	stop();
	CHECK(lseek(fd, 0, SEEK_CUR) == 100 && lseek(again, 0, SEEK_CUR) == 200);
	CHECK(pread(again, back, sizeof back, 0) == sizeof back && memcmp(back, bytes, sizeof back - 13) == 0);
	CHECK(back[sizeof back - 1] == 0);
	CHECK(memcmp(at, bytes, sizeof bytes - 13) == 0);
	at[5] = 123;
	CHECK(pread(again, back, 1, 5) == 1 && back[0] == 123);
	CHECK(write(again, "x", 1) == -1 && errno == EBADF);
	CHECK(fstat(fd, &st) == 0 && st.st_size == 4 * (off_t)sizeof bytes && st.st_nlink == 0);
}

const struct scene file_scenes[] = {
	{"pipes", pipes}, {"half-pipes", half_pipes}, {"eventfds", eventfds}, {"epolls", epolls},
	{"regular", regular}, {"directory", directory}, {"devices", devices}, {"proc-itself", proc_itself}, {"unlinked", unlinked}, {NULL, NULL},
};
