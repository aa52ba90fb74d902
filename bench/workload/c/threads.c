/*
 * threads: threads that keep their state in vector registers.
 *
 *   threads [-t THREADS] [-n STEPS] [-i ITERATIONS]
 *
 * Each thread loads the widest vector registers that the CPU has, all of them,
 * and then works in them for ITERATIONS rounds without touching memory; so a
 * checkpoint finds the state there and nowhere else. Between steps the threads
 * meet at a barrier (some are then asleep in the kernel), a random number of
 * bytes goes through a pipe from each to the next, and each adds up floating
 * point numbers in a rounding mode of its own. Prints "step N" as steps
 * are done, then "result CHECKSUM", which depends on nothing but the options
 * and the width of the registers.
 */
#define _GNU_SOURCE
#include <fenv.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_THREADS = 64, REGISTERS = 32, WORDS = 8 };

typedef void (*rounds_fn)(uint64_t *state, uint64_t iterations);

struct worker {
	pthread_t id;
	int number;
	uint64_t state[REGISTERS * WORDS] __attribute__((aligned(64)));
	double sum;
};

static struct worker workers[MAX_THREADS];
static int pipes[MAX_THREADS][2];
static pthread_barrier_t meet;
static __thread uint64_t own; /* thread-local storage has to come back too */
static long threads = 8, steps = 200;
static uint64_t iterations = 2000000;
static rounds_fn rounds;

/* The pieces of the loops below, written out for each register. */
#define EACH16(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11) F(12) F(13) F(14) F(15)
#define EACH32(F) EACH16(F) F(16) F(17) F(18) F(19) F(20) F(21) F(22) F(23) F(24) F(25) F(26) F(27) \
	F(28) F(29) F(30) F(31)
#define PAIRS16(F) F(0, 1) F(1, 2) F(2, 3) F(3, 4) F(4, 5) F(5, 6) F(6, 7) F(7, 8) F(8, 9) F(9, 10) \
	F(10, 11) F(11, 12) F(12, 13) F(13, 14) F(14, 15) F(15, 0)
#define PAIRS32(F) F(0, 1) F(1, 2) F(2, 3) F(3, 4) F(4, 5) F(5, 6) F(6, 7) F(7, 8) F(8, 9) F(9, 10) \
	F(10, 11) F(11, 12) F(12, 13) F(13, 14) F(14, 15) F(15, 16) F(16, 17) F(17, 18) F(18, 19) \
	F(19, 20) F(20, 21) F(21, 22) F(22, 23) F(23, 24) F(24, 25) F(25, 26) F(26, 27) F(27, 28) \
	F(28, 29) F(29, 30) F(30, 31) F(31, 0)

#define ZLOAD(r) "vmovdqa64 " #r "*64(%[s]), %%zmm" #r "\n\t"
#define ZSAVE(r) "vmovdqa64 %%zmm" #r ", " #r "*64(%[s])\n\t"
#define ZSTEP(a, b) "vpaddq %%zmm" #a ", %%zmm" #b ", %%zmm" #a "\n\tvprolq $13, %%zmm" #a ", %%zmm" #a "\n\t"
#define YLOAD(r) "vmovdqa " #r "*64(%[s]), %%ymm" #r "\n\t"
#define YSAVE(r) "vmovdqa %%ymm" #r ", " #r "*64(%[s])\n\t"
#define YSTEP(a, b) "vpaddq %%ymm" #a ", %%ymm" #b ", %%ymm" #a "\n\tvpshufd $0x39, %%ymm" #a ", %%ymm" #a "\n\t"
#define XLOAD(r) "movdqa " #r "*64(%[s]), %%xmm" #r "\n\t"
#define XSAVE(r) "movdqa %%xmm" #r ", " #r "*64(%[s])\n\t"
#define XSTEP(a, b) "paddq %%xmm" #b ", %%xmm" #a "\n\tpshufd $0x39, %%xmm" #a ", %%xmm" #a "\n\t"

#define CLOBBER_X(r) "xmm" #r,
#define CLOBBER_Z(r) "zmm" #r,

/* AVX-512: 32 registers of 64 bytes, and a mask register that decides which
   lanes take part in one of the additions. */
__attribute__((target("avx512f"))) static void rounds_avx512(uint64_t *s, uint64_t n)
{
	__asm__ volatile(EACH32(ZLOAD)
			 "mov $0xa5, %%eax\n\t"
			 "kmovw %%eax, %%k3\n"
			 "1:\n\t" PAIRS32(ZSTEP)
			 "vpaddq %%zmm7, %%zmm3, %%zmm3%{%%k3%}\n\t"
			 "dec %[n]\n\t"
			 "jnz 1b\n\t" EACH32(ZSAVE) "vzeroupper"
			 : [n] "+r"(n)
			 : [s] "r"(s)
			 : EACH32(CLOBBER_Z) "k3", "rax", "memory", "cc");
}

__attribute__((target("avx2"))) static void rounds_avx2(uint64_t *s, uint64_t n)
{
	__asm__ volatile(EACH16(YLOAD) "1:\n\t" PAIRS16(YSTEP)
			 "dec %[n]\n\t"
			 "jnz 1b\n\t" EACH16(YSAVE) "vzeroupper"
			 : [n] "+r"(n)
			 : [s] "r"(s)
			 : EACH16(CLOBBER_X) "memory", "cc");
}

static void rounds_sse2(uint64_t *s, uint64_t n)
{
	__asm__ volatile(EACH16(XLOAD) "1:\n\t" PAIRS16(XSTEP)
			 "dec %[n]\n\t"
			 "jnz 1b\n\t" EACH16(XSAVE)
			 : [n] "+r"(n)
			 : [s] "r"(s)
			 : EACH16(CLOBBER_X) "memory", "cc");
}

static const char *choose(void)
{
	__builtin_cpu_init();
	if (__builtin_cpu_supports("avx512f")) {
		rounds = rounds_avx512;
		return "avx512";
	}
	if (__builtin_cpu_supports("avx2")) {
		rounds = rounds_avx2;
		return "avx2";
	}
	rounds = rounds_sse2;
	return "sse2";
}

/* pass sends some words to the next thread and takes as many from the one
   before: what lies in a pipe at a checkpoint has to be there afterwards. */
static void pass(struct worker *w)
{
	uint64_t out[64], in[64];
	size_t bytes = (1 + w->state[0] % 63) * 8, want;
	int next = (w->number + 1) % (int)threads;

	for (size_t i = 0; i < bytes / 8; i++)
		out[i] = w->state[i] ^ own;
	out[0] = bytes;
	if (write(pipes[next][1], out, bytes) != (ssize_t)bytes)
		abort();
	if (read(pipes[w->number][0], in, 8) != 8)
		abort();
	want = in[0] - 8;
	for (size_t got = 0; got < want;) {
		ssize_t n = read(pipes[w->number][0], (char *)in + got, want - got);
		if (n <= 0)
			abort();
		got += (size_t)n;
	}
	for (size_t i = 0; i < want / 8; i++)
		w->state[i] += in[i];
}

static void *work(void *arg)
{
	static const int modes[] = {FE_TONEAREST, FE_DOWNWARD, FE_UPWARD, FE_TOWARDZERO};
	struct worker *w = arg;

	own = 0x9e3779b97f4a7c15u * (uint64_t)(w->number + 1);
	for (int i = 0; i < REGISTERS * WORDS; i++)
		w->state[i] = own * (uint64_t)(i + 1);
	fesetround(modes[w->number % 4]);
	for (long step = 1; step <= steps; step++) {
		rounds(w->state, iterations);
		own = own * 6364136223846793005u + 1442695040888963407u;
		w->sum += 1.0 / (double)(1 + w->state[1] % 1000) + 1e-17;
		pthread_barrier_wait(&meet);
		pass(w);
		if (pthread_barrier_wait(&meet) == PTHREAD_BARRIER_SERIAL_THREAD) {
			printf("step %ld\n", step);
			fflush(stdout);
		}
	}
	w->state[0] ^= own;
	return NULL;
}

static uint64_t checksum(void)
{
	uint64_t h = 1469598103934665603u, bits;
	for (long t = 0; t < threads; t++) {
		for (int i = 0; i < REGISTERS * WORDS; i++)
			h = (h ^ workers[t].state[i]) * 1099511628211u;
		memcpy(&bits, &workers[t].sum, sizeof bits);
		h = (h ^ bits) * 1099511628211u;
	}
	return h;
}

int main(int argc, char **argv)
{
	int c;
	while ((c = getopt(argc, argv, "t:n:i:")) != -1)
		switch (c) {
		case 't': threads = atol(optarg); break;
		case 'n': steps = atol(optarg); break;
		case 'i': iterations = strtoull(optarg, NULL, 10); break;
		default: return 2;
		}
	if (threads < 1 || threads > MAX_THREADS || steps < 1 || iterations < 1) {
		fprintf(stderr, "threads: 1 to %d threads, 1 step or more\n", MAX_THREADS);
		return 2;
	}
	printf("registers %s\n", choose());
	fflush(stdout);
	pthread_barrier_init(&meet, NULL, (unsigned)threads);
	for (long t = 0; t < threads; t++)
		if (pipe(pipes[t]) != 0)
			abort();
	for (long t = 0; t < threads; t++) {
		workers[t].number = (int)t;
		if (pthread_create(&workers[t].id, NULL, work, &workers[t]) != 0)
			abort();
	}
	for (long t = 0; t < threads; t++)
		pthread_join(workers[t].id, NULL);
	printf("result %016llx\n", (unsigned long long)checksum());
	return 0;
}
