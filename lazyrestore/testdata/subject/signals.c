/* Signals: actions, masks, what is pending, the alternate stack, timers. */
#include "subject.h"

static volatile sig_atomic_t seen[65];
static volatile int seen_value;

static void note(int sig, siginfo_t *info, void *context)
{
	seen[sig]++;
	if (info->si_code == SI_QUEUE)
		seen_value = info->si_value.sival_int;
}

static void actions(int argc, char **argv)
{
	struct sigaction want[65], have;
	memset(want, 0, sizeof want);
	for (int s = 1; s < 65; s++) {
		if (s == SIGKILL || s == SIGSTOP || s == 32 || s == 33)
			continue;
		if (s % 5 == 0) {
			want[s].sa_handler = SIG_IGN;
		} else {
			want[s].sa_sigaction = note;
			want[s].sa_flags = SA_SIGINFO | (s % 2 ? SA_RESTART : 0) | (s % 3 ? 0 : SA_NODEFER) | (s % 7 ? 0 : SA_ONSTACK);
			sigemptyset(&want[s].sa_mask);
			sigaddset(&want[s].sa_mask, s % 31 + 1);
		}
		MUST(sigaction(s, &want[s], NULL) == 0);
		MUST(sigaction(s, NULL, &want[s]) == 0); /* as the kernel has it */
	}
	stop();
	for (int s = 1; s < 65; s++) {
		if (s == SIGKILL || s == SIGSTOP || s == 32 || s == 33)
			continue;
		CHECK(sigaction(s, NULL, &have) == 0);
		CHECK(have.sa_sigaction == want[s].sa_sigaction);
		CHECK(have.sa_flags == want[s].sa_flags);
		CHECK(memcmp(&have.sa_mask, &want[s].sa_mask, 8) == 0);
	}
	CHECK(raise(SIGUSR1) == 0 && seen[SIGUSR1] == 0); /* 10: ignored */
	CHECK(raise(SIGUSR2) == 0 && seen[SIGUSR2] == 1);
}

static sigset_t some;

static void block_some(void)
{
	sigemptyset(&some);
	for (int s = SIGRTMIN; s <= SIGRTMIN + 6; s++)
		sigaddset(&some, s);
	sigaddset(&some, SIGUSR1);
	sigaddset(&some, SIGUSR2);
	sigaddset(&some, SIGCONT);
	MUST(sigprocmask(SIG_SETMASK, &some, NULL) == 0);
}

/* take takes one pending signal, without waiting. */
static int take(int sig, siginfo_t *info)
{
	sigset_t one;
	struct timespec now = {0, 0};
	sigemptyset(&one);
	sigaddset(&one, sig);
	memset(info, 0, sizeof *info);
	/* the C library's own would hide SI_TKILL */
	return syscall(SYS_rt_sigtimedwait, &one, info, &now, 8);
}

static volatile int other_tid, release;

static void *with_pending(void *argument)
{
	siginfo_t info;
	other_tid = gettid();
	while (!release)
		usleep(1000);
	for (int i = 0; i < 3; i++)
		CHECK(take(SIGRTMIN + 2, &info) == SIGRTMIN + 2 && info.si_code == SI_QUEUE && info.si_value.sival_int == 50 + i);
	CHECK(take(SIGUSR1, &info) == SIGUSR1 && info.si_code == SI_TKILL && info.si_pid == getpid());
	CHECK(take(SIGUSR1, &info) == -1);
	CHECK(take(SIGCONT, &info) == SIGCONT && info.si_code == SI_TKILL && info.si_pid == getpid());
	return NULL;
}

static void pending(int argc, char **argv)
{
	pthread_t thread;
	siginfo_t info;
	sigset_t have;
	block_some();
	MUST(pthread_create(&thread, NULL, with_pending, NULL) == 0);
	while (!other_tid)
		usleep(1000);
	for (int i = 0; i < 5; i++)
		MUST(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = 1000 + i}) == 0);
	MUST(kill(getpid(), SIGUSR2) == 0);
	for (int i = 0; i < 3; i++)
		MUST(pthread_sigqueue(thread, SIGRTMIN + 2, (union sigval){.sival_int = 50 + i}) == 0);
	MUST(syscall(SYS_tgkill, getpid(), other_tid, SIGUSR1) == 0);
	MUST(kill(getpid(), SIGCONT) == 0 && syscall(SYS_tgkill, getpid(), other_tid, SIGCONT) == 0);
	MUST(syscall(SYS_tgkill, getpid(), gettid(), SIGRTMIN + 5) == 0);
	stop();
	sigprocmask(SIG_BLOCK, NULL, &have);
	CHECK(memcmp(&have, &some, 8) == 0);
	for (int i = 0; i < 5; i++)
		CHECK(take(SIGRTMIN + 1, &info) == SIGRTMIN + 1 && info.si_code == SI_QUEUE && info.si_value.sival_int == 1000 + i && info.si_pid == getpid());
	CHECK(take(SIGRTMIN + 1, &info) == -1);
	CHECK(take(SIGUSR2, &info) == SIGUSR2 && info.si_code == SI_USER && info.si_pid == getpid());
	CHECK(take(SIGUSR2, &info) == -1);
	CHECK(take(SIGRTMIN + 5, &info) == SIGRTMIN + 5 && info.si_code == SI_TKILL);
	CHECK(take(SIGCONT, &info) == SIGCONT && info.si_code == SI_USER && info.si_pid == getpid());
	CHECK(take(SIGRTMIN + 2, &info) == -1); /* it is the other thread's */
	release = 1;
	CHECK(pthread_join(thread, NULL) == 0);
}

/* A signal sent from outside keeps its sender. */
static void pending_outside(int argc, char **argv)
{
	siginfo_t info;
	block_some();
	say("pid %d", getpid());
	await_file("sent");
	stop();
	CHECK(take(SIGUSR1, &info) == SIGUSR1 && info.si_code == SI_USER && info.si_pid == atoi(argv[0]));
}

static char *alternate;

static void on_stack(int sig)
{
	uint64_t local[512];
	CHECK((char *)local > alternate && (char *)local < alternate + (64 << 10));
	fill(local, sizeof local, 77);
	stop();
	CHECK(differs(local, sizeof local, 77) == -1);
	stack_t have;
	CHECK(sigaltstack(NULL, &have) == 0 && (have.ss_flags & SS_ONSTACK));
}

static void alternate_stack(int argc, char **argv)
{
	stack_t want = {.ss_size = 64 << 10}, have;
	struct sigaction action = {.sa_handler = on_stack, .sa_flags = SA_ONSTACK};
	uint64_t local[512];
	double product = 1.0 / argc;
	alternate = map(want.ss_size);
	want.ss_sp = alternate;
	MUST(sigaltstack(&want, NULL) == 0);
	MUST(sigaction(SIGUSR2, &action, NULL) == 0);
	fill(local, sizeof local, 78);
	MUST(raise(SIGUSR2) == 0); /* stops within the handler */
	CHECK(differs(local, sizeof local, 78) == -1);
	CHECK(product == 1.0 / argc);
	CHECK(sigaltstack(NULL, &have) == 0);
	CHECK(have.ss_sp == alternate && have.ss_size == want.ss_size && have.ss_flags == 0);
	stop();
	CHECK(sigaltstack(NULL, &have) == 0);
	CHECK(have.ss_sp == alternate && have.ss_size == want.ss_size && have.ss_flags == 0);
}

static void timers(int argc, char **argv)
{
	struct sigaction action = {.sa_sigaction = note, .sa_flags = SA_SIGINFO | SA_RESTART};
	struct itimerval quick = {{0, 20000}, {0, 20000}}, slow = {{5000, 0}, {4000, 0}}, have;
	MUST(sigaction(SIGALRM, &action, NULL) == 0);
	MUST(setitimer(ITIMER_REAL, &quick, NULL) == 0);
	MUST(setitimer(ITIMER_VIRTUAL, &slow, NULL) == 0);
	slow.it_value.tv_sec = 3000;
	MUST(setitimer(ITIMER_PROF, &slow, NULL) == 0);
	stop();
	CHECK(getitimer(ITIMER_VIRTUAL, &have) == 0);
	CHECK(have.it_interval.tv_sec == 5000 && have.it_value.tv_sec >= 3990 && have.it_value.tv_sec <= 4000);
	CHECK(getitimer(ITIMER_PROF, &have) == 0);
	CHECK(have.it_interval.tv_sec == 5000 && have.it_value.tv_sec >= 2990 && have.it_value.tv_sec <= 3000);
	int before = seen[SIGALRM];
	for (int i = 0; i < 500 && seen[SIGALRM] < before + 3; i++)
		usleep(10000);
	CHECK(seen[SIGALRM] >= before + 3);
}

/* What comes while the process stands still: signals to it and to one of its threads,
   which are sent, and those of two timers, which come once and at their time. */
static timer_t alarm_clock;
static volatile pid_t told;

static void ring(int sig)
{
	struct itimerval real = {{1, 0}, {1, 0}};
	struct itimerspec left = {{1, 0}, {1, 0}};
	if (sig == SIGALRM)
		CHECK(getitimer(ITIMER_REAL, &real) == 0 && real.it_value.tv_sec == 0 && real.it_value.tv_usec == 0);
	if (sig == SIGRTMIN)
		CHECK(timer_gettime(alarm_clock, &left) == 0 && left.it_value.tv_sec == 0 && left.it_value.tv_nsec == 0);
	if (sig == SIGUSR2)
		told = gettid();
	seen[sig]++;
}

static void *listener(void *unused)
{
	say("listener %d", other_tid = gettid());
	while (!release)
		usleep(1000);
	return NULL;
}

static void arrivals(int argc, char **argv)
{
	pthread_t thread;
	struct sigaction action = {.sa_handler = ring, .sa_flags = SA_RESTART};
	struct itimerval real = {{0, 0}, {1, 0}};
	struct itimerspec posix = {{0, 0}, {1, 0}};
	struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
	for (int i = 0; i < 5; i++)
		MUST(sigaction((int[]){SIGALRM, SIGRTMIN, SIGUSR1, SIGUSR2, SIGHUP}[i], &action, NULL) == 0);
	MUST(pthread_create(&thread, NULL, listener, NULL) == 0);
	while (!other_tid)
		usleep(1000);
	MUST(timer_create(CLOCK_MONOTONIC, &event, &alarm_clock) == 0);
	MUST(setitimer(ITIMER_REAL, &real, NULL) == 0 && timer_settime(alarm_clock, 0, &posix, NULL) == 0);
	stop();
	while (!seen[SIGALRM] || !seen[SIGRTMIN])
		usleep(1000);
	CHECK(seen[SIGALRM] == 1 && seen[SIGRTMIN] == 1 && seen[SIGUSR1] == 1 && seen[SIGHUP] == 0);
	CHECK(seen[SIGUSR2] == 1 && told == other_tid);
	release = 1;
	pthread_join(thread, NULL);
}

const struct scene signal_scenes[] = {
	{"actions", actions}, {"pending", pending}, {"pending-outside", pending_outside},
	{"alternate-stack", alternate_stack}, {"timers", timers},
	{"arrivals", arrivals}, {NULL, NULL},
};
