// Makes and ends threads as fast as it can.
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>

static void *end(void *arg) { return arg; }

static void *churn(void *arg) {
	for (;;) {
		pthread_t t[4];
		for (int i = 0; i < 4; i++)
			pthread_create(&t[i], 0, end, 0);
		for (int i = 0; i < 4; i++)
			pthread_join(t[i], 0);
	}
	return arg;
}

int main(void) {
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	pthread_t t;
	pthread_create(&t, 0, churn, 0);
	churn(0);
}
