/* How threads are scheduled, and what they have set about themselves. */
#include <linux/sched.h>
#include <sched.h>
#include <sys/resource.h>

#include "subject.h"

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

const struct scene schedule_scenes[] = {{"scheduling", scheduling}, {NULL, NULL}};
