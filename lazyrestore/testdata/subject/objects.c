/* Descriptors that are more than a file: timers, signals, watches, locks,
   owners. */
#include <dirent.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <time.h>

#include "subject.h"

static char bytes[1 << 16], back[1 << 16];

static int readable(int fd)
{
	struct pollfd p = {fd, POLLIN, 0};
	return poll(&p, 1, 0) == 1 && (p.revents & POLLIN);
}

static void timerfds(int argc, char **argv)
{
	int off = timerfd_create(CLOCK_MONOTONIC, 0), hour = timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK), done = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	int often = timerfd_create(CLOCK_MONOTONIC, 0), wall = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK), past = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK);
	struct itimerspec spec = {.it_value = {3600, 0}, .it_interval = {7, 11}}, got;
	struct timespec now;
	uint64_t n = 0;
	MUST(off >= 0 && hour >= 0 && done >= 0 && often >= 0 && wall >= 0 && past >= 0);
	MUST(timerfd_settime(hour, 0, &spec, NULL) == 0);
	struct itimerspec brief = {.it_value = {0, 1}};
	MUST(timerfd_settime(done, 0, &brief, NULL) == 0);
	struct itimerspec frequent = {.it_value = {0, 1000000}, .it_interval = {0, 1000000}};
	MUST(timerfd_settime(often, 0, &frequent, NULL) == 0);
	clock_gettime(CLOCK_REALTIME, &now);
	struct itimerspec absolute = {.it_value = {now.tv_sec + 1000, 0}};
	MUST(timerfd_settime(wall, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &absolute, NULL) == 0);
	struct itimerspec soon = {.it_value = {now.tv_sec, now.tv_nsec + 1}};
	MUST(timerfd_settime(past, TFD_TIMER_ABSTIME, &soon, NULL) == 0);
	struct pollfd p = {done, POLLIN, 0};
	MUST(poll(&p, 1, 5000) == 1);
	stop();
	CHECK(timerfd_gettime(off, &got) == 0 && got.it_value.tv_sec == 0 && got.it_value.tv_nsec == 0);
	CHECK(timerfd_gettime(hour, &got) == 0 && got.it_value.tv_sec > 3500 && got.it_value.tv_sec < 3600);
	CHECK(got.it_interval.tv_sec == 7 && got.it_interval.tv_nsec == 11);
	CHECK(read(hour, &n, 8) == -1 && errno == EAGAIN);
	CHECK(read(done, &n, 8) == 8 && n == 1);
	CHECK(read(done, &n, 8) == -1 && errno == EAGAIN);
	CHECK(fcntl(done, F_GETFD) == FD_CLOEXEC);
	CHECK(read(often, &n, 8) == 8 && n > 0);
	CHECK(read(often, &n, 8) == 8 && n > 0); /* and goes on */
	CHECK(timerfd_gettime(wall, &got) == 0 && got.it_value.tv_sec > 900 && got.it_value.tv_sec < 1000);
	CHECK(read(past, &n, 8) == 8 && n == 1);
}

static void signalfds(int argc, char **argv)
{
	sigset_t set;
	struct signalfd_siginfo info;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGRTMIN + 3);
	MUST(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
	int fd = signalfd(-1, &set, SFD_NONBLOCK), e = epoll_create1(0);
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = 77}, got;
	MUST(fd >= 0 && epoll_ctl(e, EPOLL_CTL_ADD, fd, &event) == 0);
	MUST(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 4711}) == 0);
	stop();
	CHECK(epoll_wait(e, &got, 1, 1000) == 1 && got.data.u64 == 77);
	CHECK(read(fd, &info, sizeof info) == sizeof info && (int)info.ssi_signo == SIGRTMIN + 3 && info.ssi_int == 4711);
	CHECK(read(fd, &info, sizeof info) == -1 && errno == EAGAIN);
	raise(SIGUSR1);
	CHECK(read(fd, &info, sizeof info) == sizeof info && info.ssi_signo == SIGUSR1);
}

static void inotifies(int argc, char **argv)
{
	struct inotify_event *event = (void *)back;
	MUST(mkdir("watched", 0700) == 0 && mkdir("watched/below", 0700) == 0);
	int file = open("watched/file", O_RDWR | O_CREAT, 0600);
	int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC), empty = inotify_init1(0);
	MUST(file >= 0 && fd >= 0 && empty >= 0);
	for (int i = 0; i < 5; i++) { /* so that the numbers have gaps */
		int wd = inotify_add_watch(fd, "watched", IN_CREATE);
		MUST(wd == i + 1 && inotify_rm_watch(fd, wd) == 0);
	}
	MUST(inotify_add_watch(fd, "watched", IN_ALL_EVENTS) == 6);
	int burned = inotify_add_watch(fd, ".", IN_CREATE);
	MUST(inotify_rm_watch(fd, burned) == 0);
	MUST(inotify_add_watch(fd, "watched/file", IN_ALL_EVENTS) == 8);
	while (read(fd, back, sizeof back) > 0)
		;
	void *at = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, open("watched/mapped", O_RDWR | O_CREAT, 0600), 0);
	MUST(at != MAP_FAILED);
	while (read(fd, back, sizeof back) > 0)
		;
	stop();
	CHECK(read(fd, back, sizeof back) == -1 && errno == EAGAIN); /* nothing but what happens now */
	CHECK(close(open("watched/new", O_CREAT | O_WRONLY, 0600)) == 0);
	CHECK(read(fd, back, sizeof back) > 0 && event->wd == 6 && event->mask == IN_CREATE && strcmp(event->name, "new") == 0);
	while (read(fd, back, sizeof back) > 0)
		;
	CHECK(pwrite(file, "x", 1, 0) == 1);
	CHECK(read(fd, back, sizeof back) > 0 && event->mask == IN_MODIFY);
	CHECK(inotify_add_watch(fd, "watched/below", IN_CREATE) == 9); /* the numbers go on */
	CHECK(fcntl(empty, F_GETFL) == O_RDONLY && fcntl(fd, F_GETFD) == FD_CLOEXEC);
	CHECK(!readable(empty));
}

static void fifos(int argc, char **argv)
{
	MUST(mkfifo("fifo", 0600) == 0 && mkfifo("both", 0600) == 0 && mkfifo("half", 0600) == 0);
	int r = open("fifo", O_RDONLY | O_NONBLOCK), w = open("fifo", O_WRONLY), both = open("both", O_RDWR | O_NONBLOCK);
	MUST(r >= 0 && w >= 0 && both >= 0);
	fill(bytes, 20000, 5);
	MUST(fcntl(w, F_SETPIPE_SZ, 1 << 17) == 1 << 17 && write(w, bytes, 20000) == 20000 && write(both, "both", 4) == 4);
	int reads = open("half", O_RDONLY | O_NONBLOCK), half = open("half", O_WRONLY);
	MUST(write(half, "unread", 6) == 6 && close(reads) == 0);
	stop();
	CHECK(read(r, back, sizeof back) == 20000 && memcmp(back, bytes, 20000) == 0);
	CHECK(read(r, back, 1) == -1 && errno == EAGAIN);
	CHECK(write(w, "more", 4) == 4 && read(r, back, 10) == 4);
	CHECK(fcntl(w, F_GETPIPE_SZ) == 1 << 17 && !(fcntl(w, F_GETFL) & O_NONBLOCK));
	CHECK(read(both, back, 10) == 4 && memcmp(back, "both", 4) == 0);
	reads = open("half", O_RDONLY | O_NONBLOCK);
	CHECK(read(reads, back, 10) == 6 && memcmp(back, "unread", 6) == 0);
	close(w);
	CHECK(read(r, back, 10) == 0);
}

/* One pipe with descriptions of many kinds. */
static void pipes_again(int argc, char **argv)
{
	char name[64];
	int p[2];
	MUST(pipe(p) == 0);
	snprintf(name, sizeof name, "/proc/self/fd/%d", p[0]);
	int second = open(name, O_RDONLY | O_NONBLOCK), both = open(name, O_RDWR);
	MUST(second >= 0 && both >= 0 && write(p[1], "abcd", 4) == 4);
	stop();
	CHECK((fcntl(p[0], F_GETFL) & O_NONBLOCK) == 0);
	CHECK((fcntl(second, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == (O_RDONLY | O_NONBLOCK));
	CHECK((fcntl(both, F_GETFL) & O_ACCMODE) == O_RDWR);
	CHECK(read(second, back, 2) == 2 && memcmp(back, "ab", 2) == 0);
	CHECK(write(both, "ef", 2) == 2);
	CHECK(read(p[0], back, 10) == 4 && memcmp(back, "cdef", 4) == 0);
	CHECK(read(second, back, 2) == -1 && errno == EAGAIN);
}

/* Whether somebody else could lock a file. */
static int lockable(int how)
{
	pid_t child = fork();
	if (child == 0) {
		int fd = open("locked", O_RDWR);
		struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = how, .l_len = 1};
		if (how < 0)
			_exit(flock(fd, LOCK_EX | LOCK_NB) == 0);
		_exit(fcntl(fd, F_SETLK, &lock) == 0);
	}
	int status = -1;
	CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
	return WEXITSTATUS(status);
}

static void locks(int argc, char **argv)
{
	int fd = open("locked", O_RDWR | O_CREAT, 0600), again = open("locked", O_RDWR), third = open("locked", O_RDWR | O_CLOEXEC);
	struct flock record = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 10};
	struct flock open_file = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 100, .l_len = 0};
	MUST(fd >= 0 && again >= 0 && third >= 0);
	MUST(flock(fd, LOCK_EX) == 0 && fcntl(again, F_SETLK, &record) == 0 && fcntl(third, F_OFD_SETLK, &open_file) == 0);
	record.l_start = 30;
	record.l_type = F_RDLCK;
	MUST(fcntl(again, F_SETLK, &record) == 0);
	MUST(!lockable(-1) && lockable(0) && !lockable(10) && !lockable(19) && lockable(20) && !lockable(35) && !lockable(5000));
	stop();
	CHECK(!lockable(-1) && lockable(0) && !lockable(10) && !lockable(19) && lockable(20) && !lockable(35) && !lockable(5000));
	CHECK(flock(again, LOCK_EX | LOCK_NB) == -1);
	open_file.l_type = F_UNLCK;
	CHECK(fcntl(third, F_OFD_SETLK, &open_file) == 0 && lockable(5000)); /* it was that description's */
	CHECK(flock(fd, LOCK_UN) == 0 && lockable(-1));
	record = (struct flock){.l_type = F_UNLCK, .l_whence = SEEK_SET};
	CHECK(fcntl(fd, F_SETLK, &record) == 0 && lockable(10) && lockable(35)); /* and these the process's */
}

static volatile sig_atomic_t broken, got_signal, got_fd;

static void on_break(int sig, siginfo_t *info, void *context)
{
	got_signal = sig;
	got_fd = info->si_fd;
	broken++;
}

static void leases(int argc, char **argv)
{
	struct sigaction action = {.sa_sigaction = on_break, .sa_flags = SA_SIGINFO};
	int fd = open("leased", O_RDWR | O_CREAT, 0600);
	MUST(sigaction(SIGRTMIN + 1, &action, NULL) == 0);
	MUST(close(fd) == 0 && (fd = open("leased", O_RDONLY)) >= 0);
	MUST(fcntl(fd, F_SETSIG, SIGRTMIN + 1) == 0 && fcntl(fd, F_SETLEASE, F_RDLCK) == 0);
	stop();
	CHECK(fcntl(fd, F_GETLEASE) == F_RDLCK);
	CHECK(open("leased", O_WRONLY | O_NONBLOCK) == -1 && errno == EWOULDBLOCK);
	CHECK(broken == 1 && got_signal == SIGRTMIN + 1 && got_fd == fd);
	CHECK(fcntl(fd, F_SETLEASE, F_UNLCK) == 0);
}

static pid_t gettid_(void) { return syscall(SYS_gettid); }

static void owners(int argc, char **argv)
{
	struct sigaction action = {.sa_sigaction = on_break, .sa_flags = SA_SIGINFO};
	int p[2], q[2], file = open("owned", O_RDWR | O_CREAT, 0600);
	struct f_owner_ex thread = {F_OWNER_TID, gettid_()}, got;
	MUST(pipe(p) == 0 && pipe(q) == 0 && file >= 0);
	MUST(sigaction(SIGRTMIN + 2, &action, NULL) == 0);
	MUST(fcntl(p[0], F_SETOWN, getpid()) == 0 && fcntl(p[0], F_SETSIG, SIGRTMIN + 2) == 0);
	MUST(fcntl(p[0], F_SETFL, O_ASYNC | O_NONBLOCK) == 0);
	MUST(fcntl(q[0], F_SETOWN_EX, &thread) == 0 && fcntl(file, F_SETSIG, SIGUSR2) == 0);
	stop();
	CHECK(broken == 0);
	CHECK(write(p[1], "x", 1) == 1);
	CHECK(broken == 1 && got_signal == SIGRTMIN + 2 && got_fd == p[0]);
	CHECK(fcntl(p[0], F_GETFL) == (O_RDONLY | O_ASYNC | O_NONBLOCK));
	CHECK(fcntl(q[0], F_GETOWN_EX, &got) == 0 && got.type == F_OWNER_TID && got.pid == thread.pid);
	CHECK(fcntl(file, F_GETSIG) == SIGUSR2 && fcntl(file, F_GETOWN) == 0);
}

/* Watches on numbers that are something else by now. */
static void epoll_displaced(int argc, char **argv)
{
	int e = epoll_create1(0), a = eventfd(0, EFD_NONBLOCK), b = eventfd(0, EFD_NONBLOCK);
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = 1}, got[4];
	MUST(epoll_ctl(e, EPOLL_CTL_ADD, a, &event) == 0);
	int moved = fcntl(a, F_DUPFD, 200);
	MUST(moved >= 0 && dup2(b, a) == a); /* a is b now */
	event.data.u64 = 2;
	MUST(epoll_ctl(e, EPOLL_CTL_ADD, a, &event) == 0); /* the same number again */
	int gone = eventfd(0, EFD_NONBLOCK), high = fcntl(gone, F_DUPFD, 300), kept = fcntl(gone, F_DUPFD, 10);
	event.data.u64 = 3;
	MUST(epoll_ctl(e, EPOLL_CTL_ADD, high, &event) == 0);
	MUST(close(high) == 0 && close(gone) == 0);
	stop();
	uint64_t one = 1;
	CHECK(epoll_wait(e, got, 4, 0) == 0);
	CHECK(write(moved, &one, 8) == 8 && epoll_wait(e, got, 4, 100) == 1 && got[0].data.u64 == 1);
	CHECK(read(moved, &one, 8) == 8 && write(b, &one, 8) == 8 && epoll_wait(e, got, 4, 100) == 1 && got[0].data.u64 == 2);
	CHECK(read(a, &one, 8) == 8 && write(kept, &one, 8) == 8 && epoll_wait(e, got, 4, 100) == 1 && got[0].data.u64 == 3);
	CHECK(fcntl(high, F_GETFD) == -1);
}

/* A thousand descriptors. */
static void thousand(int argc, char **argv)
{
	enum { N = 140 };
	int first[N], p[N][2], timer[N], event[N], path[N], e = epoll_create1(0);
	char name[32];
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	MUST(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
	for (int i = 0; i < N; i++) {
		struct itimerspec spec = {.it_value = {1000 + i, 0}};
		struct epoll_event watch = {.events = EPOLLIN, .data.u64 = i};
		snprintf(name, sizeof name, "file%d", i % 10);
		MUST((first[i] = open(name, O_RDWR | O_CREAT, 0600)) >= 0 && lseek(first[i], i, SEEK_SET) == i);
		MUST(pipe(p[i]) == 0 && write(p[i][1], &i, sizeof i) == sizeof i);
		MUST((timer[i] = timerfd_create(CLOCK_MONOTONIC, 0)) >= 0 && timerfd_settime(timer[i], 0, &spec, NULL) == 0);
		MUST((event[i] = eventfd(i + 1, 0)) >= 0 && epoll_ctl(e, EPOLL_CTL_ADD, event[i], &watch) == 0);
		MUST(dup(first[i]) >= 0 && (path[i] = open(".", O_PATH)) >= 0 && signalfd(-1, &set, 0) >= 0);
	}
	stop();
	for (int i = 0; i < N; i++) {
		struct itimerspec got;
		int n = -1;
		uint64_t count = 0;
		CHECK(lseek(first[i], 0, SEEK_CUR) == i);
		CHECK(read(p[i][0], &n, sizeof n) == sizeof n && n == i);
		CHECK(timerfd_gettime(timer[i], &got) == 0 && got.it_value.tv_sec > 900 + i && got.it_value.tv_sec <= 1000 + i);
		CHECK(read(event[i], &count, 8) == 8 && (int)count == i + 1);
		CHECK(faccessat(path[i], name, F_OK, 0) == 0);
	}
	uint64_t one = 1;
	struct epoll_event got;
	CHECK(write(event[77], &one, 8) == 8 && epoll_wait(e, &got, 1, 100) == 1 && got.data.u64 == 77);
}

/* The standard input, and a copy of it, are watched beside others. */
static void epoll_stdin(int argc, char **argv)
{
	int e = epoll_create1(0), event = eventfd(0, 0), in = dup(0);
	struct epoll_event watch = {.events = EPOLLIN, .data.u64 = 1}, got[4];
	MUST(epoll_ctl(e, EPOLL_CTL_ADD, 0, &watch) == 0 && epoll_ctl(e, EPOLL_CTL_ADD, in, &watch) == 0);
	int moved = dup2(in, 100); /* its watch stays on the number that it had */
	MUST(moved == 100 && close(in) == 0);
	watch.data.u64 = 2;
	MUST(epoll_ctl(e, EPOLL_CTL_ADD, event, &watch) == 0);
	stop();
	uint64_t one = 1;
	CHECK(write(event, &one, 8) == 8 && epoll_wait(e, got, 4, 1000) == 1 && got[0].data.u64 == 2);
	CHECK(epoll_ctl(e, EPOLL_CTL_DEL, 0, got) == -1 && errno == EPERM);
}

/* More watches, of both kinds, and guard regions than there is anything else of. */
static void many_watches(int argc, char **argv)
{
	enum { N = 60, DIRS = 2000, GUARDS = 2000 };
	int e[N], p[N][2], inotify = inotify_init1(IN_NONBLOCK);
	char name[64];
	char *at = map(2 * GUARDS * PAGE);
	MUST(mkdir("dirs", 0700) == 0);
	for (int i = 0; i < DIRS; i++) {
		snprintf(name, sizeof name, "dirs/directory-with-a-name-of-some-length-%d", i);
		MUST(mkdir(name, 0700) == 0 && inotify_add_watch(inotify, name, IN_CREATE) == i + 1);
	}
	for (int i = 0; i < N; i++)
		MUST(pipe(p[i]) == 0 && (e[i] = epoll_create1(0)) >= 0);
	for (int i = 0; i < N * N; i++) {
		struct epoll_event watch = {.events = EPOLLIN, .data.u64 = i};
		MUST(epoll_ctl(e[i / N], EPOLL_CTL_ADD, p[i % N][0], &watch) == 0);
	}
	int guards = 0;
	for (int i = 0; i < GUARDS; i++)
		guards += madvise(at + 2 * i * PAGE, PAGE, 102 /* MADV_GUARD_INSTALL */) == 0;
	stop();
	struct epoll_event got;
	MUST(write(p[7][1], "x", 1) == 1);
	for (int i = 0; i < N; i++)
		CHECK(epoll_wait(e[i], &got, 1, 0) == 1 && (int)got.data.u64 == N * i + 7);
	MUST(snprintf(name, sizeof name, "dirs/directory-with-a-name-of-some-length-%d/new", DIRS - 1) > 0 && mkdir(name, 0700) == 0);
	struct inotify_event *event = (void *)back;
	CHECK(read(inotify, back, sizeof back) > 0 && event->wd == DIRS);
	for (int i = 0; i < guards; i++)
		CHECK(write(p[0][1], at + 2 * i * PAGE, 1) == -1 && errno == EFAULT);
}

const struct scene object_scenes[] = {
	{"timerfds", timerfds}, {"signalfds", signalfds}, {"inotifies", inotifies}, {"fifos", fifos}, {"pipes-again", pipes_again},
	{"locks", locks}, {"leases", leases}, {"owners", owners}, {"epoll-displaced", epoll_displaced}, {"epoll-stdin", epoll_stdin}, {"many-watches", many_watches}, {"thousand", thousand}, {NULL, NULL},
};
