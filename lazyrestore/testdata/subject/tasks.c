/* What threads and processes have besides registers, signals and memory. */
#include <linux/sched.h>
#include <time.h>
#include <poll.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/select.h>

#include "subject.h"

/* Job control: the session and process group are the same, or, with the
   argument "new", those of a process that leads both. */
static void session(int argc, char **argv)
{
	pid_t sid = getsid(0), group = getpgrp();
	say("pid %d", getpid());
	stop();
	if (argc > 0 && strcmp(argv[0], "new") == 0)
		sid = group = getpid();
	if (argc > 0 && strcmp(argv[0], "new-group") == 0)
		group = getpid();
	CHECK(getsid(0) == sid);
	CHECK(getpgrp() == group);
}

/* Threads that count until they are told to end: none may count while the
   process is stopped. */
static volatile int ending;
static volatile unsigned long counts[4];

static void *counter(void *argument)
{
	while (!ending)
		counts[(intptr_t)argument]++;
	return NULL;
}

static void counting(int argc, char **argv)
{
	pthread_t thread[4];
	for (intptr_t i = 0; i < 4; i++)
		MUST(pthread_create(&thread[i], NULL, counter, (void *)i) == 0);
	stop();
	ending = 1;
	for (int i = 0; i < 4; i++)
		CHECK(pthread_join(thread[i], NULL) == 0);
}

/* How each thread is scheduled, and what it has set about itself. Each has its
   own way; set returns 0 where this machine has nothing of the kind. */
struct attr { /* struct sched_attr */
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime, deadline, period;
	uint32_t util_min, util_max;
};

static struct attr attributes_of(void)
{
	struct attr a = {0};
	MUST(syscall(SYS_sched_getattr, 0, &a, sizeof a, 0) == 0);
	return a;
}

static int set_attributes(struct attr a)
{
	a.size = sizeof a;
	MUST(syscall(SYS_sched_setattr, 0, &a, 0) == 0);
	return 1;
}

static int deadline_set(void)
{
	return set_attributes((struct attr){.policy = SCHED_DEADLINE, .runtime = 2000000, .deadline = 20000000, .period = 40000000});
}

static void deadline_check(void)
{
	struct attr a = attributes_of();
	CHECK(a.policy == SCHED_DEADLINE && a.runtime == 2000000 && a.deadline == 20000000 && a.period == 40000000);
}

static int fifo_set(void)
{
	return set_attributes((struct attr){.policy = SCHED_FIFO, .priority = 5, .flags = SCHED_FLAG_RESET_ON_FORK});
}

static void fifo_check(void)
{
	struct attr a = attributes_of();
	CHECK(a.policy == SCHED_FIFO && a.priority == 5 && a.flags == SCHED_FLAG_RESET_ON_FORK);
}

static int idle_set(void) { return set_attributes((struct attr){.policy = SCHED_IDLE}); }
static void idle_check(void) { CHECK(attributes_of().policy == SCHED_IDLE); }

static int slice_set(void)
{
	set_attributes((struct attr){.runtime = 7000000, .nice = 3});
	return attributes_of().runtime == 7000000; /* Linux 6.12 */
}

static void slice_check(void) { CHECK(attributes_of().runtime == 7000000 && attributes_of().nice == 3); }

static int slack_set(void) { return prctl(PR_SET_TIMERSLACK, 123456) == 0; }
static void slack_check(void) { CHECK(prctl(PR_GET_TIMERSLACK) == 123456); }

enum { BEST_EFFORT_6 = 2 << 13 | 6, IDLE_IO = 3 << 13 };

static int io_set(void) { return syscall(SYS_ioprio_set, 1, 0, BEST_EFFORT_6) == 0; }
static void io_check(void) { CHECK(syscall(SYS_ioprio_get, 1, 0) == BEST_EFFORT_6); }
static int io_idle_set(void) { return syscall(SYS_ioprio_set, 1, 0, IDLE_IO) == 0; }
static void io_idle_check(void) { CHECK(syscall(SYS_ioprio_get, 1, 0) == IDLE_IO); }

enum { BIND = 2, INTERLEAVE = 3, STATIC_NODES = 1 << 15 };

static int policy_set(int mode)
{
	unsigned long nodes = 1;
	return syscall(SYS_set_mempolicy, mode, &nodes, 65) == 0; /* or a kernel without NUMA */
}

static void policy_check(int mode)
{
	unsigned long nodes[16] = {0};
	int have = 0;
	CHECK(syscall(SYS_get_mempolicy, &have, nodes, 1024, 0, 0) == 0 && have == mode && nodes[0] == 1);
}

static int bind_set(void) { return policy_set(BIND | STATIC_NODES); }
static void bind_check(void) { policy_check(BIND | STATIC_NODES); }
static int interleave_set(void) { return policy_set(INTERLEAVE); }
static void interleave_check(void) { policy_check(INTERLEAVE); }

static int tsc_set(void) { return prctl(PR_SET_TSC, PR_TSC_SIGSEGV) == 0; }

static void tsc_check(void)
{
	int have = 0;
	CHECK(prctl(PR_GET_TSC, &have) == 0 && have == PR_TSC_SIGSEGV);
}

static int cpuid_set(void) { return syscall(SYS_arch_prctl, 0x1012 /* ARCH_SET_CPUID */, 0) == 0; }
static void cpuid_check(void) { CHECK(syscall(SYS_arch_prctl, 0x1011 /* ARCH_GET_CPUID */) == 0); }
static int memory_error_set(void) { return prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0) == 0; }
static void memory_error_check(void) { CHECK(prctl(PR_MCE_KILL_GET, 0, 0, 0, 0) == PR_MCE_KILL_EARLY); }

static const struct {
	int (*set)(void);
	void (*check)(void);
} ways[] = {
	{interleave_set, interleave_check}, /* the first thread's */
	{deadline_set, deadline_check}, {fifo_set, fifo_check}, {idle_set, idle_check}, {slice_set, slice_check},
	{slack_set, slack_check}, {io_set, io_check}, {io_idle_set, io_idle_check}, {bind_set, bind_check},
	{tsc_set, tsc_check}, {cpuid_set, cpuid_check}, {memory_error_set, memory_error_check},
};
enum { WAYS = sizeof ways / sizeof *ways };

static pthread_barrier_t scheduled, resumed;

static void *in_its_way(void *argument)
{
	int i = (intptr_t)argument, is_set = ways[i].set();
	pthread_barrier_wait(&scheduled);
	pthread_barrier_wait(&resumed);
	if (is_set)
		ways[i].check();
	return NULL;
}

static void scheduling(int argc, char **argv)
{
	pthread_t thread[WAYS];
	MUST(pthread_barrier_init(&scheduled, NULL, WAYS) == 0 && pthread_barrier_init(&resumed, NULL, WAYS) == 0);
	MUST(prctl(PR_SET_TIMERSLACK, 60000) == 0);
	for (intptr_t i = 1; i < WAYS; i++)
		MUST(pthread_create(&thread[i], NULL, in_its_way, (void *)i) == 0);
	int is_set = ways[0].set();
	pthread_barrier_wait(&scheduled);
	stop();
	pthread_barrier_wait(&resumed);
	if (is_set)
		ways[0].check();
	CHECK(prctl(PR_GET_TIMERSLACK) == 60000);
	for (int i = 1; i < WAYS; i++)
		CHECK(pthread_join(thread[i], NULL) == 0);
}

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

/* A file system user that is not the effective one, capabilities that are not
   the user's, bits that lock both; in every thread. */
static volatile int credentials_checked;
static pthread_barrier_t become, look_again;

struct cap_data { uint32_t effective, permitted, inheritable; };
struct cap_header { uint32_t version; int pid; };
enum { CAP_KILL_BIT = 1 << 5, CAP_SETGID_BIT = 1 << 6, CAP_NET_RAW_BIT = 1 << 13, SECURE = 1 << 2 | 1 << 3 };

static void be_somebody(void)
{
	struct cap_header header = {0x20080522, 0};
	struct cap_data data[2] = {{CAP_KILL_BIT, CAP_KILL_BIT | CAP_NET_RAW_BIT, CAP_NET_RAW_BIT}};
	MUST(prctl(PR_SET_SECUREBITS, SECURE) == 0);
	MUST(prctl(PR_CAPBSET_DROP, 20) == 0);
	MUST(syscall(SYS_setresgid, 65531, 65532, 65533) == 0);
	syscall(SYS_setfsgid, 65530);
	MUST(syscall(SYS_setresuid, 65531, 65532, 65533) == 0);
	syscall(SYS_setfsuid, 65530);
	MUST(syscall(SYS_capset, &header, data) == 0);
	MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, 13, 0, 0) == 0);
}

static void be_checked(void)
{
	struct cap_header header = {0x20080522, 0};
	struct cap_data data[2] = {0};
	CHECK(syscall(SYS_setfsuid, -1) == 65530 && syscall(SYS_setfsgid, -1) == 65530);
	CHECK(getuid() == 65531 && geteuid() == 65532 && getgid() == 65531 && getegid() == 65532);
	CHECK(prctl(PR_GET_SECUREBITS) == SECURE);
	CHECK(syscall(SYS_capget, &header, data) == 0);
	CHECK(data[0].effective == CAP_KILL_BIT && data[0].permitted == (CAP_KILL_BIT | CAP_NET_RAW_BIT) && data[0].inheritable == CAP_NET_RAW_BIT);
	CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, 13, 0, 0) == 1);
	CHECK(prctl(PR_CAPBSET_READ, 20) == 0 && prctl(PR_CAPBSET_READ, 21) == 1);
}

static void *somebody(void *unused)
{
	be_somebody();
	pthread_barrier_wait(&become);
	pthread_barrier_wait(&look_again);
	be_checked();
	return NULL;
}

static void credentials(int argc, char **argv)
{
	pthread_t thread[4];
	MUST(pthread_barrier_init(&become, NULL, 5) == 0 && pthread_barrier_init(&look_again, NULL, 5) == 0);
	for (int i = 0; i < 4; i++)
		MUST(pthread_create(&thread[i], NULL, somebody, NULL) == 0);
	be_somebody();
	pthread_barrier_wait(&become);
	MUST(prctl(PR_SET_DUMPABLE, 1) == 0);
	stop();
	pthread_barrier_wait(&look_again);
	be_checked();
	CHECK(prctl(PR_GET_DUMPABLE) == 1); /* each change of credentials clears it */
	for (int i = 0; i < 4; i++)
		CHECK(pthread_join(thread[i], NULL) == 0);
}

/* Signals that are pending although the queue was full when they came. */
static void pending_without_entry(int argc, char **argv)
{
	struct rlimit none = {0, 0};
	struct timespec now = {0, 0};
	sigset_t set;
	siginfo_t info;
	int sent[] = {SIGUSR1, SIGRTMIN + 4, SIGHUP};
	sigemptyset(&set);
	for (int i = 0; i < 3; i++)
		sigaddset(&set, sent[i]);
	MUST(sigprocmask(SIG_BLOCK, &set, NULL) == 0 && setrlimit(RLIMIT_SIGPENDING, &none) == 0);
	MUST(syscall(SYS_tgkill, getpid(), gettid(), sent[0]) == 0);
	MUST(kill(getpid(), sent[1]) == 0);
	MUST(kill(getpid(), sent[2]) == 0);
	stop();
	for (int i = 0; i < 3; i++) {
		sigemptyset(&set);
		sigaddset(&set, sent[i]);
		memset(&info, 1, sizeof info);
		CHECK(syscall(SYS_rt_sigtimedwait, &set, &info, &now, 8) == sent[i]);
		CHECK(info.si_code == SI_USER && info.si_signo == sent[i]);
		CHECK(syscall(SYS_rt_sigtimedwait, &set, &info, &now, 8) == -1);
	}
}

/* More of them than are read, or fit, at once. */
static void many_pending(int argc, char **argv)
{
	enum { MANY = 1000 };
	struct timespec now = {0, 0};
	sigset_t set;
	siginfo_t info;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 1);
	MUST(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
	for (int i = 0; i < MANY; i++)
		MUST(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = i}) == 0);
	stop();
	for (int i = 0; i < MANY; i++)
		CHECK(syscall(SYS_rt_sigtimedwait, &set, &info, &now, 8) == SIGRTMIN + 1 && info.si_value.sival_int == i);
	CHECK(syscall(SYS_rt_sigtimedwait, &set, &info, &now, 8) == -1);
}

/* Parent-death signals, which each thread has of its own, and switches of the
   whole process. */
static volatile int dies;

static void *with_death_signal(void *unused)
{
	int have = 0;
	MUST(prctl(PR_SET_PDEATHSIG, SIGWINCH) == 0);
	dies = 1;
	while (dies < 2)
		usleep(1000);
	CHECK(prctl(PR_GET_PDEATHSIG, &have) == 0 && have == SIGWINCH);
	return NULL;
}

static void death_signal(int argc, char **argv)
{
	enum { EXCEPT_ADVISED = 1 << 1, DISABLE_FLAGS = 1 | EXCEPT_ADVISED };
	pthread_t thread;
	int have = 0;
	MUST(prctl(PR_SET_PDEATHSIG, SIGURG) == 0);
	MUST(pthread_create(&thread, NULL, with_death_signal, NULL) == 0);
	while (!dies)
		usleep(1000);
	int advised = prctl(PR_SET_THP_DISABLE, 1, EXCEPT_ADVISED, 0, 0) == 0; /* Linux 6.18 */
	int merges = prctl(67 /* PR_SET_MEMORY_MERGE */, 1, 0, 0, 0) == 0; /* CAP_SYS_RESOURCE */
	stop();
	CHECK(prctl(PR_GET_PDEATHSIG, &have) == 0 && have == SIGURG);
	CHECK(!advised || prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == DISABLE_FLAGS);
	CHECK(!merges || prctl(68, 0, 0, 0, 0) == 1);
	dies = 2;
	CHECK(pthread_join(thread, NULL) == 0);
}

/* Where the kernel puts what is mapped next: near to what it put there before,
   not in the room that the stack was promised. */
static void layout(int argc, char **argv)
{
	char *before = map(1 << 20);
	stop();
	char *after = map(1 << 20);
	long gap = labs(after - before);
	if (gap > 1l << 40)
		bad("mapped at %p, and %p now", (void *)before, (void *)after);
}

/* Five hundred threads, each with something of its own, that all wait for one
   word. */
enum { CROWD = 500 };
static pthread_mutex_t crowd_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t crowd_word = PTHREAD_COND_INITIALIZER;
static int crowd_there, crowd_told, crowd_sum;
static __thread uint64_t of_my_own[64];

static void *one_of_many(void *argument)
{
	int number = (intptr_t)argument;
	uint64_t local[64];
	fill(of_my_own, sizeof of_my_own, number);
	fill(local, sizeof local, number + 1000);
	pthread_mutex_lock(&crowd_lock);
	crowd_there++;
	while (!crowd_told)
		CHECK(pthread_cond_wait(&crowd_word, &crowd_lock) == 0);
	crowd_sum += number;
	pthread_mutex_unlock(&crowd_lock);
	CHECK(differs(of_my_own, sizeof of_my_own, number) == -1);
	CHECK(differs(local, sizeof local, number + 1000) == -1);
	return argument;
}

static void crowd(int argc, char **argv)
{
	static pthread_t thread[CROWD];
	pthread_attr_t small;
	void *result;
	MUST(pthread_attr_init(&small) == 0 && pthread_attr_setstacksize(&small, 64 << 10) == 0);
	for (intptr_t i = 0; i < CROWD; i++)
		MUST(pthread_create(&thread[i], &small, one_of_many, (void *)i) == 0);
	for (int there = 0; there < CROWD; usleep(1000)) {
		pthread_mutex_lock(&crowd_lock);
		there = crowd_there;
		pthread_mutex_unlock(&crowd_lock);
	}
	stop();
	pthread_mutex_lock(&crowd_lock);
	crowd_told = 1;
	pthread_cond_broadcast(&crowd_word);
	pthread_mutex_unlock(&crowd_lock);
	for (int i = 0; i < CROWD; i++)
		CHECK(pthread_join(thread[i], &result) == 0 && (intptr_t)result == i);
	CHECK(crowd_sum == CROWD * (CROWD - 1) / 2);
}

/* Threads at work that has one result, and hand each other what they have by a
   pipe, while the process is saved and brought back again and again. */
enum { BLOCK = 4096 };
static int handed[2], rounds;
static volatile int work_ends;

static uint64_t round_of(uint64_t x, uint64_t *block)
{
	for (int i = 0; i < BLOCK; i++)
		x = block[i] = (x ^ block[i]) * 0x9e3779b97f4a7c15u + (x >> 29);
	return x;
}

static void *maker(void *block)
{
	uint64_t x = 1;
	for (; !work_ends; rounds++) {
		x = round_of(x, block);
		CHECK(write(handed[1], &x, sizeof x) == sizeof x);
		usleep(100);
	}
	close(handed[1]);
	return NULL;
}

static void *taker(void *sum)
{
	uint64_t x;
	while (read(handed[0], &x, sizeof x) == sizeof x) {
		*(uint64_t *)sum = *(uint64_t *)sum * 31 + x;
	}
	return NULL;
}

static void at_work(int argc, char **argv)
{
	static uint64_t block[BLOCK], again[BLOCK], sum, want, x = 1;
	pthread_t a, b;
	MUST(pipe(handed) == 0);
	MUST(pthread_create(&a, NULL, maker, block) == 0 && pthread_create(&b, NULL, taker, &sum) == 0);
	stop();
	work_ends = 1;
	CHECK(pthread_join(a, NULL) == 0 && pthread_join(b, NULL) == 0);
	for (int i = 0; i < rounds; i++) {
		x = round_of(x, again);
		want = want * 31 + x;
	}
	CHECK(sum == want);
	CHECK(memcmp(block, again, sizeof block) == 0);
	CHECK(rounds > 0);
}

/* Threads that sleep for SLEEP seconds, each in another call. None may wake
   before, or long after, or with an error. */
enum { SLEEP = 6, LATE_MS = 2500 };
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
	if (r != 0 || ms < SLEEP * 1000 - 1 || ms > SLEEP * 1000 + LATE_MS)
		bad("%s gave %d (errno %d) after %ld ms", beds[i].name, r, error, ms);
	return NULL;
}

/* The first thread sleeps in the bed that the argument names, and says nothing
   when it wakes. */
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

const struct scene task_scenes[] = {
	{"timed-sleepers", timed_sleepers},
	{"crowd", crowd}, {"at-work", at_work},
	{"credentials", credentials}, {"pending-without-entry", pending_without_entry}, {"many-pending", many_pending},
	{"death-signal", death_signal}, {"layout", layout},
	{"posix-timers", posix_timers}, {"clocks", clocks},
	{"scheduling", scheduling},
	{"session", session}, {"counting", counting}, {NULL, NULL},
};
