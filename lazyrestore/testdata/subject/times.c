/* Timers, clocks, and sleeps that end some time. */
#include <poll.h>
#include <sys/select.h>
#include <time.h>

#include "subject.h"

/* Timers of timer_create: ids with gaps, ways of telling, times that are left. */
static volatile int told[4], told_tid, told_value;

static void timer_told(int sig, siginfo_t *info, void *context)
{
	told[sig - SIGRTMIN - 1]++;
	if (sig == SIGRTMIN + 2) {
		told_tid = gettid();
		told_value = info->si_value.sival_int;
	}
}

static volatile int timer_thread_tid, timer_thread_ends;

static void *timer_thread(void *argument)
{
	timer_thread_tid = gettid();
	while (!timer_thread_ends)
		usleep(1000);
	return NULL;
}

static int make_timer(clockid_t clock, int notify, int sig, int tid, long ms, long interval_ms)
{
	struct sigevent event = {.sigev_notify = notify, .sigev_signo = sig, .sigev_value.sival_int = 4242};
	struct itimerspec when = {{interval_ms / 1000, interval_ms % 1000 * 1000000}, {ms / 1000, ms % 1000 * 1000000}};
	int id;
	event._sigev_un._tid = tid;
	MUST(syscall(SYS_timer_create, clock, &event, &id) == 0); /* the C library hides the id */
	if (ms)
		MUST(syscall(SYS_timer_settime, id, 0, &when, NULL) == 0);
	return id;
}

static long left_ms(int id)
{
	struct itimerspec have = {0};
	CHECK(syscall(SYS_timer_gettime, id, &have) == 0);
	return have.it_value.tv_sec * 1000 + have.it_value.tv_nsec / 1000000;
}

static void posix_timers(int argc, char **argv)
{
	pthread_t thread;
	struct sigaction action = {.sa_sigaction = timer_told, .sa_flags = SA_SIGINFO | SA_RESTART};
	for (int s = SIGRTMIN + 1; s < SIGRTMIN + 4; s++)
		MUST(sigaction(s, &action, NULL) == 0);
	MUST(pthread_create(&thread, NULL, timer_thread, NULL) == 0);
	while (!timer_thread_tid)
		usleep(1000);
	for (int i = 0; i < 3; i++)
		MUST(syscall(SYS_timer_delete, make_timer(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0, 0, 0)) == 0);
	int quick = make_timer(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 1, 0, 20, 20);
	int to_thread = make_timer(CLOCK_REALTIME, SIGEV_THREAD_ID, SIGRTMIN + 2, timer_thread_tid, 30, 30);
	for (int i = 0; i < 5; i++)
		MUST(syscall(SYS_timer_delete, make_timer(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0, 0, 0)) == 0);
	int slow = make_timer(CLOCK_BOOTTIME, SIGEV_SIGNAL, SIGRTMIN + 3, 0, 4000000, 5000000);
	int quiet = make_timer(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0, 3000000, 0);
	int cpu = make_timer(CLOCK_PROCESS_CPUTIME_ID, SIGEV_NONE, 0, 0, 2000000, 0);
	int of_thread = make_timer((~timer_thread_tid << 3) | 6, SIGEV_NONE, 0, 0, 1000000, 0);
	int unset = make_timer(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 3, 0, 0, 0);
	MUST(quick == 3 && to_thread == 4 && slow == 10);
	stop();
	told[0] = told[1] = told_tid = told_value = 0;
	CHECK(left_ms(slow) > 3990000 && left_ms(slow) <= 4000000);
	CHECK(left_ms(quiet) > 2990000 && left_ms(quiet) <= 3000000);
	CHECK(left_ms(cpu) > 1990000 && left_ms(cpu) <= 2000000);
	CHECK(left_ms(of_thread) > 990000 && left_ms(of_thread) <= 1000000);
	CHECK(left_ms(unset) == 0);
	for (int i = 0; i < 500 && (told[0] < 3 || told[1] < 3); i++)
		usleep(10000);
	CHECK(told[0] >= 3 && told[1] >= 3);
	CHECK(told_tid == timer_thread_tid && told_value == 4242);
	CHECK(told[2] == 0);
	CHECK(make_timer(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0, 0, 0) > unset);
	timer_thread_ends = 1;
	CHECK(pthread_join(thread, NULL) == 0);
}

/* Clocks that only ever go on, also where they are read without the kernel. */
static void clocks(int argc, char **argv)
{
	clockid_t ids[] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC_COARSE, CLOCK_MONOTONIC_RAW};
	struct timespec before[4], now, by_call;
	for (int i = 0; i < 4; i++)
		MUST(clock_gettime(ids[i], &before[i]) == 0);
	stop();
	for (int i = 0; i < 4; i++) {
		CHECK(clock_gettime(ids[i], &now) == 0);
		CHECK(syscall(SYS_clock_gettime, ids[i], &by_call) == 0);
		CHECK(now.tv_sec > before[i].tv_sec || (now.tv_sec == before[i].tv_sec && now.tv_nsec >= before[i].tv_nsec));
		CHECK(by_call.tv_sec - now.tv_sec <= 1 && by_call.tv_sec >= now.tv_sec);
		CHECK(now.tv_sec - before[i].tv_sec < 100);
	}
}

/* Threads that sleep for SLEEP seconds, each in another call. None may wake
   before, or with an error; whoever reads what they say knows how long the process
   was not there, and whether they have slept for longer. */
enum { SLEEP = 6 };
static uint32_t never;
static int empty[2];

static int in_nanosleep(void) { return syscall(SYS_nanosleep, &(struct timespec){SLEEP, 0}, NULL); }

static int in_nanosleep_with_rest(void)
{
	struct timespec rest = {0};
	return syscall(SYS_nanosleep, &(struct timespec){SLEEP, 0}, &rest);
}

static int in_clock_nanosleep(void) { return syscall(SYS_clock_nanosleep, CLOCK_REALTIME, 0, &(struct timespec){SLEEP, 0}, NULL); }
static int in_boot_nanosleep(void) { return syscall(SYS_clock_nanosleep, CLOCK_BOOTTIME, 0, &(struct timespec){SLEEP, 0}, NULL); }

static int in_timed_poll(void)
{
	struct pollfd p = {.fd = empty[0], .events = POLLIN};
	int n = poll(&p, 1, SLEEP * 1000);
	return n == 0 && p.revents == 0 && p.fd == empty[0] ? 0 : -1;
}

static int in_select(void)
{
	struct timeval time = {SLEEP, 0};
	fd_set set;
	FD_ZERO(&set);
	FD_SET(empty[0], &set);
	return select(empty[0] + 1, &set, NULL, NULL, &time);
}

static int in_ppoll(void)
{
	struct pollfd p = {.fd = empty[0], .events = POLLIN};
	return ppoll(&p, 1, &(struct timespec){SLEEP, 0}, NULL);
}

static int in_timed_futex(void)
{
	int r = syscall(SYS_futex, &never, 0 /* FUTEX_WAIT */, 0, &(struct timespec){SLEEP, 0}, NULL, 0);
	return r == -1 && errno == ETIMEDOUT ? 0 : -1;
}

static int in_timed_condition(void)
{
	static pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
	static pthread_cond_t c = PTHREAD_COND_INITIALIZER;
	struct timespec until;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += SLEEP;
	pthread_mutex_lock(&m);
	int r = pthread_cond_timedwait(&c, &m, &until);
	pthread_mutex_unlock(&m);
	return r == ETIMEDOUT ? 0 : -1;
}

static const struct {
	const char *name;
	int (*sleep)(void);
} beds[] = {
	{"nanosleep", in_nanosleep}, {"nanosleep-with-rest", in_nanosleep_with_rest}, {"clock_nanosleep", in_clock_nanosleep},
	{"clock_nanosleep-boottime", in_boot_nanosleep}, {"poll", in_timed_poll}, {"select", in_select}, {"ppoll", in_ppoll},
	{"futex", in_timed_futex}, {"condition", in_timed_condition},
};
enum { BEDS = sizeof beds / sizeof *beds };

static void *sleep_in(void *argument)
{
	int i = (intptr_t)argument;
	struct timespec begin, end;
	clock_gettime(CLOCK_BOOTTIME, &begin);
	int r = beds[i].sleep();
	int error = errno;
	clock_gettime(CLOCK_BOOTTIME, &end);
	long ms = (end.tv_sec - begin.tv_sec) * 1000 + (end.tv_nsec - begin.tv_nsec) / 1000000;
	if (r != 0 || ms < SLEEP * 1000 - 1)
		bad("%s gave %d (errno %d) after %ld ms", beds[i].name, r, error, ms);
	say("%s slept for %d of %d ms", beds[i].name, (int)ms, SLEEP * 1000);
	return NULL;
}

/* The first thread sleeps in the bed that the argument names, beside one in each of all. */
static void timed_sleepers(int argc, char **argv)
{
	pthread_t thread[BEDS];
	int own = 0;
	while (strcmp(beds[own].name, argv[0]) != 0)
		MUST(++own < BEDS);
	MUST(pipe(empty) == 0);
	for (intptr_t i = 0; i < BEDS; i++)
		MUST(pthread_create(&thread[i], NULL, sleep_in, (void *)i) == 0);
	say("ready 1");
	sleep_in((void *)(intptr_t)own);
	for (int i = 0; i < BEDS; i++)
		CHECK(pthread_join(thread[i], NULL) == 0);
}

const struct scene time_scenes[] = {
	{"posix-timers", posix_timers}, {"clocks", clocks}, {"timed-sleepers", timed_sleepers}, {NULL, NULL},
};
