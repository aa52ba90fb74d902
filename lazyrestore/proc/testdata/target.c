// A program whose threads notice when they are disturbed. It prints the
// address of its counters, one per thread, and runs until it is killed; a
// thread that finds a wrong register, or a system call that did not end as it
// should, says so and ends the program with status 1.
//
//     target [lenient] KIND...    KIND: avx sleep futex pipe handler mask vfork pause
//
// With lenient, a sleep may end with EINTR.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { THREADS = 64, PAD = 8 };
static volatile uint64_t count[THREADS * PAD];

static int lenient;

static void bad(const char *what, long got) {
	printf("bad %s %ld errno %d\n", what, got, errno);
	fflush(stdout);
	_exit(1);
}

struct state {
	uint8_t z[32][64];
	uint64_t r[8];
	uint16_t k[8];
	uint32_t mxcsr;
	uint32_t pad;
};

#define Z(n) "vmovdqu64 " #n "*64(%[p]), %%zmm" #n "\n"
#define ZS(n) "vmovdqu64 %%zmm" #n ", " #n "*64(%[q])\n"
#define Y(n) "vmovdqu " #n "*64(%[p]), %%ymm" #n "\n"
#define YS(n) "vmovdqu %%ymm" #n ", " #n "*64(%[q])\n"
#define R(n, i) "mov 2048+" #i "*8(%[p]), %%" #n "\n"
#define RS(n, i) "mov %%" #n ", 2048+" #i "*8(%[q])\n"
#define LOW(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11) F(12) F(13) F(14) F(15)
#define HIGH(F) F(16) F(17) F(18) F(19) F(20) F(21) F(22) F(23) F(24) F(25) F(26) F(27) F(28) F(29) F(30) F(31)
#define GP(F) F(r8, 0) F(r9, 1) F(r10, 2) F(r11, 3) F(r12, 4) F(r13, 5) F(r14, 6) F(r15, 7)
#define K(n) "kmovw 2112+" #n "*2(%[p]), %%k" #n "\n"
#define KS(n) "kmovw %%k" #n ", 2112+" #n "*2(%[q])\n"
#define MASKS(F) F(1) F(2) F(3) F(4) F(5) F(6) F(7)
#define SPIN "mov $20000, %%ecx\n1: dec %%ecx\njnz 1b\n"
#define GPCLOBBER "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rcx", "memory", "cc"
#define XMM "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

__attribute__((target("avx512f"))) static void hold512(struct state *p, struct state *q) {
	__asm__ volatile("ldmxcsr 2128(%[p])\n" LOW(Z) HIGH(Z) MASKS(K) GP(R) SPIN GP(RS) LOW(ZS) HIGH(ZS) MASKS(KS) "stmxcsr 2128(%[q])\n"
			 : : [p] "D"(p), [q] "S"(q)
			 : GPCLOBBER, XMM, "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26",
			   "xmm27", "xmm28", "xmm29", "xmm30", "xmm31", "k1", "k2", "k3", "k4", "k5", "k6", "k7");
}

__attribute__((target("avx2"))) static void hold256(struct state *p, struct state *q) {
	__asm__ volatile("ldmxcsr 2128(%[p])\n" LOW(Y) GP(R) SPIN GP(RS) LOW(YS) "stmxcsr 2128(%[q])\n"
			 : : [p] "D"(p), [q] "S"(q) : GPCLOBBER, XMM);
}

static void avx(int i) {
	static struct state in[THREADS], out[THREADS];
	struct state *p = &in[i], *q = &out[i];
	int wide = __builtin_cpu_supports("avx512f");
	uint64_t seed = 88172645463325252ull + i;
	for (;;) {
		for (size_t n = 0; n < sizeof *p / 8; n++) {
			seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
			((uint64_t *)p)[n] = seed;
		}
		p->mxcsr = 0x1f80 | (seed & 0x6000); // rounding mode
		memcpy(q, p, sizeof *p);
		if (wide)
			hold512(p, q);
		else
			hold256(p, q);
		if (memcmp(p, q, sizeof *p))
			bad("register", i);
		count[i * PAD]++;
	}
}

static double now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static void sleeper(int i) {
	for (;;) {
		struct timespec t = {0, 5000000}, rem = {0, 0};
		double start = now();
		long r = syscall(SYS_nanosleep, &t, &rem);
		if (r && !(lenient && errno == EINTR))
			bad("nanosleep", r);
		if (!r && now() - start < 0.005)
			bad("nanosleep too short", (now() - start) * 1e6);
		count[i * PAD]++;
	}
}

static int word;

static void futex(int i) {
	for (;;) {
		long r = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
		if (r)
			bad("futex wait", r);
		count[i * PAD]++;
	}
}

static int ends[2];

static void pipereader(int i) {
	char c;
	for (;;) {
		long r = read(ends[0], &c, 1);
		if (r != 1 || c != 'x')
			bad("read", r);
		count[i * PAD]++;
	}
}

static volatile sig_atomic_t handled, mismatch;

static void handler(int sig, siginfo_t *info, void *ctx) {
	(void)ctx;
	handled++;
	if (info->si_pid != getpid() || sig != SIGUSR1)
		mismatch = 1;
}

// Sends signals to itself; each must be handled once.
static void selfsignal(int i) {
	struct sigaction sa = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART};
	sigaction(SIGUSR1, &sa, NULL);
	for (uint64_t n = 1;; n++) {
		syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGUSR1);
		if ((uint64_t)handled != n || mismatch)
			bad("signals handled", handled);
		count[i * PAD]++;
	}
}

// Blocks signals; they must stay blocked, and no others.
static void masker(int i) {
	sigset_t want, got;
	sigemptyset(&want);
	sigaddset(&want, SIGUSR2);
	sigaddset(&want, SIGURG);
	pthread_sigmask(SIG_SETMASK, &want, NULL);
	for (;;) {
		pthread_sigmask(SIG_SETMASK, NULL, &got);
		if (memcmp(&want, &got, 8))
			bad("signal mask", *(long *)&got);
		count[i * PAD]++;
	}
}

// Waits in the kernel, where no signal comes through but one that kills, for a child
// that ends with it.
static void waiter(int i) {
	if (!vfork()) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	bad("vfork", i);
}

static void *run(void *arg) {
	char **v = arg;
	int i = (int)(intptr_t)v[1];
	if (!strcmp(v[0], "avx"))
		avx(i);
	else if (!strcmp(v[0], "sleep"))
		sleeper(i);
	else if (!strcmp(v[0], "futex"))
		futex(i);
	else if (!strcmp(v[0], "pipe"))
		pipereader(i);
	else if (!strcmp(v[0], "handler"))
		selfsignal(i);
	else if (!strcmp(v[0], "mask"))
		masker(i);
	else if (!strcmp(v[0], "vfork"))
		waiter(i);
	else
		for (;;) {
			pause();
			bad("pause", i);
		}
	return NULL;
}

int main(int argc, char **argv) {
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (pipe(ends))
		return 2;
	if (argc > 1 && !strcmp(argv[1], "lenient"))
		lenient = 1, argc--, argv++;
	for (int i = 1; i < argc; i++) {
		pthread_t t;
		char **v = malloc(2 * sizeof *v);
		v[0] = argv[i];
		v[1] = (char *)(intptr_t)i;
		if (pthread_create(&t, NULL, run, v))
			return 2;
	}
	printf("%lx %d\n", (unsigned long)count, PAD);
	fflush(stdout);
	// The first thread wakes the others.
	for (;;) {
		struct timespec t = {0, 2000000};
		long r = syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &t, NULL);
		if (r && !(lenient && errno == EINTR))
			bad("clock_nanosleep", r);
		syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1000, NULL, NULL, 0);
		if (write(ends[1], "x", 1) != 1)
			bad("write", 0);
		count[0]++;
	}
}
