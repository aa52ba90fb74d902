// Makes threads, argv[1] in number, and after argv[2] microseconds one of them
// executes the program again, for ever.
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

static char **args;

static void *idle(void *arg) {
	for (;;)
		pause();
}

static void *again(void *arg) {
	usleep(atoi(args[2]));
	execv("/proc/self/exe", args);
	_exit(9);
}

int main(int argc, char **argv) {
	pthread_t t;
	pthread_attr_t small;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	args = argv;
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 65536);
	for (int i = 0; i < atoi(argv[1]); i++)
		pthread_create(&t, &small, idle, 0);
	pthread_create(&t, &small, again, 0);
	for (;;)
		pause();
}
