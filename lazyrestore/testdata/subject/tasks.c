/* What threads and processes have besides registers, signals and memory. */
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

const struct scene task_scenes[] = {
	{"session", session}, {"counting", counting}, {NULL, NULL},
};
