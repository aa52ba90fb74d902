/* Threads: registers, thread-local storage, futexes that the kernel writes. */
#include <fenv.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/rseq.h>
#include <poll.h>

#include "subject.h"

enum { THREADS = 8, VECTORS = 32 };

static volatile int go;
static pthread_barrier_t all_there;

/* The registers of a thread while it spins: nothing of them is in memory. */
struct registers {
	uint64_t vector[VECTORS][8] __attribute__((aligned(64)));
	uint64_t general[10]; /* rbx rdx rsi rdi r8 r9 r10 r11 r13 r14 */
	uint64_t mask[8];
	uint32_t mxcsr;
	uint16_t x87;
};

#define EACH16(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11) F(12) F(13) F(14) F(15)
#define EACH32(F) EACH16(F) F(16) F(17) F(18) F(19) F(20) F(21) F(22) F(23) F(24) F(25) F(26) F(27) \
	F(28) F(29) F(30) F(31)
#define EACH_MASK(F) F(1) F(2) F(3) F(4) F(5) F(6) F(7)
#define ZLOAD(r) "vmovdqa64 " #r "*64(%%rax), %%zmm" #r "\n\t"
#define ZSAVE(r) "vmovdqa64 %%zmm" #r ", " #r "*64(%%rcx)\n\t"
#define YLOAD(r) "vmovdqa " #r "*64(%%rax), %%ymm" #r "\n\t"
#define YSAVE(r) "vmovdqa %%ymm" #r ", " #r "*64(%%rcx)\n\t"
#define XLOAD(r) "movdqa " #r "*64(%%rax), %%xmm" #r "\n\t"
#define XSAVE(r) "movdqa %%xmm" #r ", " #r "*64(%%rcx)\n\t"
#define MLOAD(r) "kmovw 2128+" #r "*8(%%rax), %%k" #r "\n\t"
#define MSAVE(r) "kmovw %%k" #r ", 2128+" #r "*8(%%rcx)\n\t"
#define GENERAL(OP) \
	OP(2048, rbx) OP(2056, rdx) OP(2064, rsi) OP(2072, rdi) OP(2080, r8) OP(2088, r9) OP(2096, r10) \
	OP(2104, r11) OP(2112, r13) OP(2120, r14)
#define GLOAD(at, r) "mov " #at "(%%rax), %%" #r "\n\t"
#define GSAVE(at, r) "mov %%" #r ", " #at "(%%rcx)\n\t"
#define WAIT "1:\n\tpause\n\tcmpl $0, (%%r12)\n\tje 1b\n\t"
#define CLOBBER(r) "xmm" #r,
#define SPIN(LOAD, SAVE) \
	__asm__ volatile(LOAD GENERAL(GLOAD) WAIT GENERAL(GSAVE) SAVE \
			 : "+a"(in), "+c"(out), "+r"(flag) \
			 : \
			 : EACH16(CLOBBER) "rbx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r13", "r14", \
			   "memory", "cc")

__attribute__((target("avx512f"))) static void spin512(struct registers *in, struct registers *out)
{
	register volatile int *flag __asm__("r12") = &go;
	SPIN(EACH32(ZLOAD) EACH_MASK(MLOAD), EACH32(ZSAVE) EACH_MASK(MSAVE) "vzeroupper\n\t");
}

__attribute__((target("avx"))) static void spin256(struct registers *in, struct registers *out)
{
	register volatile int *flag __asm__("r12") = &go;
	SPIN(EACH16(YLOAD), EACH16(YSAVE) "vzeroupper\n\t");
}

static void spin128(struct registers *in, struct registers *out)
{
	register volatile int *flag __asm__("r12") = &go;
	SPIN(EACH16(XLOAD), EACH16(XSAVE));
}

static void *spinner(void *argument)
{
	static const int rounding[] = {FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};
	struct registers in, out;
	memset(&out, 0, sizeof out);
	fill(&in, sizeof in, (uintptr_t)argument * 1000003);
	fesetround(rounding[(uintptr_t)argument % 4]);
	size_t width = __builtin_cpu_supports("avx512f") ? 64 : __builtin_cpu_supports("avx") ? 32 : 16;
	pthread_barrier_wait(&all_there);
	if (width == 64)
		spin512(&in, &out);
	else if (width == 32)
		spin256(&in, &out);
	else
		spin128(&in, &out);
	for (int r = 0; r < (width == 64 ? 32 : 16); r++)
		CHECK(memcmp(in.vector[r], out.vector[r], width) == 0);
	CHECK(memcmp(in.general, out.general, sizeof in.general) == 0);
	for (int k = 1; width == 64 && k < 8; k++)
		CHECK((uint16_t)in.mask[k] == (uint16_t)out.mask[k]);
	CHECK(fegetround() == rounding[(uintptr_t)argument % 4]);
	return NULL;
}

static void registers(int argc, char **argv)
{
	pthread_t thread[THREADS];
	_Static_assert(offsetof(struct registers, general) == 2048 && offsetof(struct registers, mask) == 2128, "layout");
	MUST(pthread_barrier_init(&all_there, NULL, THREADS + 1) == 0);
	for (uintptr_t i = 0; i < THREADS; i++)
		MUST(pthread_create(&thread[i], NULL, spinner, (void *)(i + 1)) == 0);
	pthread_barrier_wait(&all_there);
	stop();
	go = 1;
	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_join(thread[i], NULL) == 0);
}

/* Threads that sleep in the kernel, each in another call, none of which may
   return early or with an error that a program without signals never sees. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t woken = PTHREAD_COND_INITIALIZER;
static int ends[2], polled[2], epoll_ends[2];

static void *in_futex(void *argument)
{
	pthread_mutex_lock(&lock);
	pthread_barrier_wait(&all_there);
	while (!go)
		CHECK(pthread_cond_wait(&woken, &lock) == 0);
	pthread_mutex_unlock(&lock);
	return NULL;
}

static void *in_read(void *argument)
{
	char c = 0;
	pthread_barrier_wait(&all_there);
	CHECK(read(ends[0], &c, 1) == 1 && c == 'r');
	return NULL;
}

static void *in_poll(void *argument)
{
	struct pollfd p = {.fd = polled[0], .events = POLLIN};
	pthread_barrier_wait(&all_there);
	CHECK(poll(&p, 1, 100000) == 1 && p.revents == POLLIN);
	return NULL;
}

static void *in_epoll(void *argument)
{
	struct epoll_event e = {.events = EPOLLIN, .data.u64 = 0x123456789abcdef0};
	int fd = epoll_create1(EPOLL_CLOEXEC);
	MUST(epoll_ctl(fd, EPOLL_CTL_ADD, epoll_ends[0], &e) == 0);
	memset(&e, 0, sizeof e);
	pthread_barrier_wait(&all_there);
	int n;
	/* A stop ends it, as signal(7) says, even that of a debugger. */
	while ((n = epoll_wait(fd, &e, 1, 100000)) < 0 && errno == EINTR)
		;
	CHECK(n == 1 && e.data.u64 == 0x123456789abcdef0);
	return NULL;
}

static void *in_sigwait(void *argument)
{
	sigset_t set;
	int sig = 0;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 3);
	pthread_barrier_wait(&all_there);
	CHECK(sigwait(&set, &sig) == 0 && sig == SIGRTMIN + 3);
	return NULL;
}

static void *in_absolute_sleep(void *argument)
{
	struct timespec until;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_nsec += 900 * 1000000;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	pthread_barrier_wait(&all_there);
	CHECK(clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &until, NULL) == 0);
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	CHECK(now.tv_sec > until.tv_sec || (now.tv_sec == until.tv_sec && now.tv_nsec >= until.tv_nsec));
	/* It may be over before the last look at all threads. */
	pthread_mutex_lock(&lock);
	while (!go)
		CHECK(pthread_cond_wait(&woken, &lock) == 0);
	pthread_mutex_unlock(&lock);
	return NULL;
}

static void sleepers(int argc, char **argv)
{
	void *(*const bodies[])(void *) = {in_futex, in_read, in_poll, in_epoll, in_sigwait, in_absolute_sleep};
	enum { N = sizeof bodies / sizeof *bodies };
	pthread_t thread[N];
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 3);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	MUST(pipe(ends) == 0 && pipe(polled) == 0 && pipe(epoll_ends) == 0);
	MUST(pthread_barrier_init(&all_there, NULL, N + 1) == 0);
	for (int i = 0; i < N; i++)
		MUST(pthread_create(&thread[i], NULL, bodies[i], NULL) == 0);
	pthread_barrier_wait(&all_there);
	stop();
	pthread_mutex_lock(&lock);
	go = 1;
	pthread_cond_broadcast(&woken);
	pthread_mutex_unlock(&lock);
	CHECK(write(ends[1], "r", 1) == 1);
	CHECK(write(polled[1], "p", 1) == 1);
	CHECK(write(epoll_ends[1], "e", 1) == 1);
	CHECK(kill(getpid(), SIGRTMIN + 3) == 0);
	for (int i = 0; i < N; i++)
		CHECK(pthread_join(thread[i], NULL) == 0);
}

/* What belongs to a thread alone. */
static __thread uint64_t own[1024];
static __thread int number;

static void *owner(void *argument)
{
	char name[16], want[16];
	struct sched_param param;
	sigset_t set, have;
	int policy;
	number = (intptr_t)argument;
	fill(own, sizeof own, number);
	snprintf(want, sizeof want, "own thread %d", number);
	MUST(prctl(PR_SET_NAME, want) == 0);
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + number);
	MUST(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
	MUST(setpriority(PRIO_PROCESS, gettid(), number) == 0);
	cpu_set_t cpus, got;
	CPU_ZERO(&cpus);
	CPU_SET(number % sysconf(_SC_NPROCESSORS_ONLN), &cpus);
	MUST(sched_setaffinity(0, sizeof cpus, &cpus) == 0);
	if (number == 2) {
		param.sched_priority = 0;
		MUST(sched_setscheduler(0, SCHED_BATCH, &param) == 0);
	}
	pid_t tid = syscall(SYS_gettid);
	pthread_barrier_wait(&all_there);
	while (!go)
		usleep(1000);
	CHECK(differs(own, sizeof own, number) == -1);
	CHECK(prctl(PR_GET_NAME, name) == 0 && strcmp(name, want) == 0);
	pthread_sigmask(SIG_BLOCK, NULL, &have);
	for (int s = 1; s < 65; s++)
		CHECK(s == 32 || s == 33 || sigismember(&have, s) == (s == SIGRTMIN + number));
	CHECK(getpriority(PRIO_PROCESS, 0) == number);
	CHECK(sched_getaffinity(0, sizeof got, &got) == 0 && CPU_EQUAL(&cpus, &got));
	policy = sched_getscheduler(0);
	CHECK(policy == (number == 2 ? SCHED_BATCH : SCHED_OTHER));
	CHECK(syscall(SYS_gettid) == tid);
	return (void *)(intptr_t)(number * 7);
}

static void own_things(int argc, char **argv)
{
	pthread_t thread[THREADS];
	void *result;
	MUST(pthread_barrier_init(&all_there, NULL, THREADS + 1) == 0);
	for (intptr_t i = 0; i < THREADS; i++)
		MUST(pthread_create(&thread[i], NULL, owner, (void *)(i + 1)) == 0);
	pthread_barrier_wait(&all_there);
	stop();
	go = 1;
	for (int i = 0; i < THREADS; i++) /* clear_child_tid: a join hangs without it */
		CHECK(pthread_join(thread[i], &result) == 0 && (intptr_t)result == (i + 1) * 7);
}

/* A thread that ends with robust mutexes held: the kernel has to find them. */
static pthread_mutex_t *robust[64];

static void *holder(void *argument)
{
	for (int i = 0; i < 64; i++)
		MUST(pthread_mutex_lock(robust[i]) == 0);
	pthread_barrier_wait(&all_there);
	while (!go)
		usleep(1000);
	return NULL;
}

static void robust_mutexes(int argc, char **argv)
{
	pthread_mutexattr_t attributes;
	pthread_t thread;
	char *pages = map(64 * 2 * PAGE); /* each mutex in a page of its own */
	fill(pages, 64 * 2 * PAGE, 3);
	pthread_mutexattr_init(&attributes);
	MUST(pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST) == 0);
	for (int i = 0; i < 64; i++) {
		robust[i] = (pthread_mutex_t *)(pages + i * 2 * PAGE + 128);
		MUST(pthread_mutex_init(robust[i], &attributes) == 0);
	}
	MUST(pthread_barrier_init(&all_there, NULL, 2) == 0);
	MUST(pthread_create(&thread, NULL, holder, NULL) == 0);
	pthread_barrier_wait(&all_there);
	stop();
	go = 1;
	CHECK(pthread_join(thread, NULL) == 0);
	for (int i = 0; i < 64; i++)
		CHECK(pthread_mutex_trylock(robust[i]) == EOWNERDEAD);
}

/* Restartable sequences: the kernel keeps the CPU's number in the thread's
   area, and knows that the area is registered. */
static void restartable(int argc, char **argv)
{
	volatile struct rseq *area = (volatile struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
	MUST(__rseq_size > 0);
	stop();
	errno = 0;
	long r = syscall(SYS_rseq, area, 32, 0, RSEQ_SIG);
	CHECK(r == -1 && errno == EBUSY);
	for (int cpu = 0; cpu < sysconf(_SC_NPROCESSORS_ONLN); cpu++) {
		cpu_set_t set;
		CPU_ZERO(&set);
		CPU_SET(cpu, &set);
		CHECK(sched_setaffinity(0, sizeof set, &set) == 0);
		CHECK(area->cpu_id == (uint32_t)cpu);
	}
}

/* The first thread of many does something grave with its first instructions,
   while the restore is still about the others: forks, execs, ends, signals them
   all, or has the process stopped again and again. */
enum { IDLERS = 500 }; /* at most */

static atomic_int nudged;

static void on_nudge(int sig)
{
	CHECK(sig == SIGUSR1);
	nudged++;
}

static void *idler(void *argument)
{
	for (;;)
		pause();
	return argument;
}

static int maps_show(const char *word)
{
	char line[512];
	int shown = 0;
	FILE *maps = fopen("/proc/self/maps", "r");
	MUST(maps != NULL);
	while (fgets(line, sizeof line, maps) != NULL)
		shown |= strstr(line, word) != NULL;
	fclose(maps);
	return shown;
}

static void haste(int argc, char **argv)
{
	pthread_t thread[IDLERS];
	pthread_attr_t small;
	int status;
	pid_t child;
	int idlers;
	MUST(signal(SIGUSR1, on_nudge) != SIG_ERR);
	MUST(argc > 1 && (idlers = atoi(argv[1])) <= IDLERS);
	MUST(pthread_attr_init(&small) == 0 && pthread_attr_setstacksize(&small, 64 << 10) == 0);
	for (int i = 0; i < idlers; i++)
		MUST(pthread_create(&thread[i], &small, idler, NULL) == 0);
	say("set");
	while (access("go1", F_OK) != 0)
		;
	if (strcmp(argv[0], "exec") == 0) {
		execl("/bin/true", "true", (char *)NULL);
		MUST(0);
	}
	if (strcmp(argv[0], "end") == 0)
		_exit(0);
	if (strcmp(argv[0], "signal") == 0) {
		for (int i = 0; i < idlers; i++)
			CHECK(pthread_kill(thread[i], SIGUSR1) == 0);
		while (nudged < idlers)
			sched_yield();
	}
	if (strcmp(argv[0], "stop") == 0) {
		MUST((child = fork()) >= 0);
		for (int i = 0; child == 0 && i < 50; i++) {
			CHECK(kill(getppid(), SIGSTOP) == 0);
			sched_yield();
			CHECK(kill(getppid(), SIGCONT) == 0);
			sched_yield();
		}
		if (child == 0)
			_exit(0);
		CHECK(waitpid(child, &status, 0) == child && status == 0);
	}
	for (int i = 0; i < 20; i++) {
		MUST((child = fork()) >= 0);
		if (child == 0)
			_exit(maps_show("lazyrestore-table"));
		CHECK(waitpid(child, &status, 0) == child && status == 0);
	}
	for (int i = 0; i < idlers; i++)
		CHECK(pthread_cancel(thread[i]) == 0 && pthread_join(thread[i], NULL) == 0);
	CHECK(!maps_show("lazyrestore-table"));
}

const struct scene thread_scenes[] = {
	{"registers", registers}, {"sleepers", sleepers}, {"own-things", own_things},
	{"robust-mutexes", robust_mutexes}, {"restartable-sequences", restartable},
	{"haste", haste}, {NULL, NULL},
};
