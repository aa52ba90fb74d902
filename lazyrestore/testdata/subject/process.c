/* What belongs to the process as a whole. */
#include <grp.h>
#include <sched.h>
#include <sys/auxv.h>
#include <sys/personality.h>
#include <sys/resource.h>

#include "subject.h"

static void attributes(int argc, char **argv)
{
	char cwd[256], have_cwd[256];
	struct rlimit limit = {.rlim_cur = 321, .rlim_max = 1000}, core = {0, 0}, have;
	cpu_set_t cpus, got;
	MUST(mkdir("sub", 0700) == 0 || errno == EEXIST);
	MUST(getcwd(cwd, sizeof cwd));
	umask(027);
	MUST(setrlimit(RLIMIT_NOFILE, &limit) == 0);
	MUST(setrlimit(RLIMIT_CORE, &core) == 0);
	MUST(setpriority(PRIO_PROCESS, 0, 7) == 0);
	cpus = first_cpu();
	MUST(sched_setaffinity(0, sizeof cpus, &cpus) == 0);
	MUST(prctl(PR_SET_NAME, "a new name") == 0);
	MUST(prctl(PR_SET_TIMERSLACK, 77777) == 0);
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	MUST(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0);
	MUST(personality(ADDR_NO_RANDOMIZE) >= 0);
	unsigned long hwcap = getauxval(AT_HWCAP);
	stop();
	CHECK(umask(0) == 027);
	CHECK(getcwd(have_cwd, sizeof have_cwd) && strcmp(cwd, have_cwd) == 0);
	CHECK(getrlimit(RLIMIT_NOFILE, &have) == 0 && have.rlim_cur == 321 && have.rlim_max == 1000);
	CHECK(getrlimit(RLIMIT_CORE, &have) == 0 && have.rlim_cur == 0 && have.rlim_max == 0);
	CHECK(getpriority(PRIO_PROCESS, 0) == 7);
	CHECK(sched_getaffinity(0, sizeof got, &got) == 0 && CPU_EQUAL(&cpus, &got));
	CHECK(prctl(PR_GET_TIMERSLACK) == 77777);
	int value = 0;
	CHECK(prctl(PR_GET_CHILD_SUBREAPER, &value) == 0 && value == 1);
	CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);
	CHECK(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 1);
	CHECK(personality(0xffffffff) == ADDR_NO_RANDOMIZE);
	CHECK(getauxval(AT_HWCAP) == hwcap);
}

/* Arguments and environment, on a stack that is mapped long after the first
   mapping. With "fixed" the stack is where that of any program would be. */
static void arguments(int argc, char **argv)
{
	if (strcmp(argv[0], "fixed") == 0) {
		MUST(personality(ADDR_NO_RANDOMIZE) >= 0);
		argv[0] = "there";
		MUST(execv("/proc/self/exe", argv - 2) == 0);
	}
	enum { N = 20 };
	for (int i = 0; i < N; i++) { /* that cannot be joined */
		char *at = map(2 * PAGE);
		fill(at, PAGE, i);
		MUST(mprotect(at, 2 * PAGE, i % 2 ? PROT_READ : PROT_READ | PROT_WRITE) == 0);
	}
	char **last = environ;
	while (last[1])
		last++;
	const char *from = argv[0], *end = *last + strlen(*last);
	MUST(end - from > 16 * PAGE);
	char *copy = map(end - from);
	memcpy(copy, from, end - from);
	stop();
	long wrong = 0;
	for (long i = 0; i < end - from; i++)
		wrong += copy[i] != from[i];
	if (wrong)
		bad("%ld of %ld bytes of arguments and environment", wrong, (long)(end - from));
}

static void not_dumpable(int argc, char **argv)
{
	MUST(prctl(PR_SET_DUMPABLE, 0) == 0);
	stop();
	CHECK(prctl(PR_GET_DUMPABLE) == 0);
}

/* The ids that /proc shows are compared from outside; here is what can be done
   with them. */
static void another_user(int argc, char **argv)
{
	gid_t groups[] = {100, 65533}, have[8];
	MUST(setgroups(2, groups) == 0);
	MUST(setresgid(65534, 65533, 65532) == 0);
	MUST(setresuid(65534, 65534, 65534) == 0);
	MUST(prctl(PR_SET_DUMPABLE, 1) == 0);
	stop();
	uid_t u[3];
	gid_t g[3];
	CHECK(getresuid(&u[0], &u[1], &u[2]) == 0 && u[0] == 65534 && u[1] == 65534 && u[2] == 65534);
	CHECK(getresgid(&g[0], &g[1], &g[2]) == 0 && g[0] == 65534 && g[1] == 65533 && g[2] == 65532);
	CHECK(getgroups(8, have) == 2 && have[0] == 100 && have[1] == 65533);
	CHECK(setuid(0) == -1);
}

/* Bits that decide what becomes of capabilities at a change of user. */
static void secure_bits(int argc, char **argv)
{
	MUST(prctl(PR_SET_SECUREBITS, 1 << 4 | 1 << 5) == 0); /* KEEP_CAPS and its lock */
	stop();
	CHECK(prctl(PR_GET_SECUREBITS) == (1 << 4 | 1 << 5));
}

static void heap(int argc, char **argv)
{
	char *begin = sbrk(1 << 20);
	MUST(begin != (void *)-1);
	fill(begin, 1 << 20, 5);
	char *end = sbrk(0);
	stop();
	CHECK(sbrk(0) == end);
	CHECK(differs(begin, 1 << 20, 5) == -1);
	CHECK(sbrk(3 << 20) == end);
	for (int i = 0; i < 3 << 20; i++)
		if (end[i] != 0) {
			bad("byte %d of the grown heap is %d", i, end[i]);
			break;
		}
	fill(end, 3 << 20, 6);
	CHECK(differs(begin, 1 << 20, 5) == -1 && differs(end, 3 << 20, 6) == -1);
	CHECK(sbrk(-(3 << 20)) == end + (3 << 20) && sbrk(0) == end);
}

static void deep(int depth)
{
	volatile char local[16 << 10];
	local[0] = depth;
	local[sizeof local - 1] = depth;
	if (depth > 0)
		deep(depth - 1);
	CHECK(local[0] == (char)depth && local[sizeof local - 1] == (char)depth);
}

/* Used stack below the stack pointer, and growth far beyond what was mapped. */
static void stack(int argc, char **argv)
{
	deep(20);
	stop();
	deep(400);
}

const struct scene process_scenes[] = {
	{"attributes", attributes}, {"arguments", arguments}, {"not-dumpable", not_dumpable}, {"another-user", another_user},
	{"secure-bits", secure_bits}, {"heap", heap}, {"stack", stack}, {NULL, NULL},
};
