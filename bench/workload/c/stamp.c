/*
 * stamp.so: a thread that reads the clock, for programs that are not ours.
 * Loaded with LD_PRELOAD into LAMMPS, Python and others; see stamp.h. The thread naps
 * for 50 us between two readings, which is the error of what it shows.
 */
#define _GNU_SOURCE
#include "stamp.h"

#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>

static struct stamp ring;

static void *stamps(void *unused)
{
	const struct timespec nap = {0, 50000};
	(void)unused;
	prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
	for (;;) {
		stamp_put(&ring);
		nanosleep(&nap, NULL);
	}
	return NULL;
}

__attribute__((constructor)) static void start(void)
{
	const char *path = getenv("LAZYRESTORE_STAMP");
	pthread_t t;
	sigset_t all, old;

	if (!path)
		return;
	/* Programs that the program starts are not the ones measured. */
	unsetenv("LD_PRELOAD");
	stamp_open(&ring, path);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	if (pthread_create(&t, NULL, stamps, NULL) != 0)
		perror("stamp thread");
	else
		pthread_detach(t);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}
