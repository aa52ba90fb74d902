/* What threads and processes have besides registers, signals, memory, schedules and timers. */
#include <sys/resource.h>

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

/* What a thread has from the one that makes it, unless it is given its own. */
struct inherited {
	char name[16];
	int nice, slack;
	cpu_set_t cpus;
};

static struct inherited inherited(void)
{
	struct inherited is = {.nice = getpriority(PRIO_PROCESS, gettid()), .slack = prctl(PR_GET_TIMERSLACK)};
	MUST(prctl(PR_GET_NAME, is.name) == 0);
	MUST(sched_getaffinity(0, sizeof is.cpus, &is.cpus) == 0);
	return is;
}

/* The thread that makes half of the others in a restore has none of what they have. */
static void stand_apart(void)
{
	const cpu_set_t first = first_cpu();
	MUST(prctl(PR_SET_NAME, "second") == 0);
	MUST(setpriority(PRIO_PROCESS, gettid(), 5) == 0);
	MUST(prctl(PR_SET_TIMERSLACK, 77777) == 0);
	MUST(sched_setaffinity(0, sizeof first, &first) == 0);
}

static void *one_of_many(void *argument)
{
	int number = (intptr_t)argument;
	uint64_t local[64];
	if (number == 0)
		stand_apart();
	struct inherited before = inherited();
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
	struct inherited after = inherited();
	CHECK(strcmp(after.name, before.name) == 0);
	CHECK(after.nice == before.nice);
	CHECK(after.slack == before.slack);
	CHECK(CPU_EQUAL(&after.cpus, &before.cpus));
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

const struct scene task_scenes[] = {
	{"crowd", crowd}, {"at-work", at_work},
	{"credentials", credentials}, {"pending-without-entry", pending_without_entry}, {"many-pending", many_pending},
	{"death-signal", death_signal}, {"layout", layout},
	{"session", session}, {"counting", counting}, {NULL, NULL},
};
