/*
 * kernels: loops of scientific programs over a given amount of memory.
 *
 *   kernels -k stencil|gups|stream|solver [-s MIB] [-n STEPS]
 *
 *   stencil   a Jacobi sweep over a cube, seven points, two grids
 *   gups      exclusive-or into random words of one table
 *   stream    the triad of STREAM over three arrays
 *   solver    conjugate gradients on a sparse matrix (five points, CSR)
 *
 * Prints "step N end_ns=T" after each step, T by the clock of stamp.h, and at
 * the end "result SUM", which depends on nothing but the options. The loops
 * themselves read the clock into the ring `stamp`.
 */
#define _GNU_SOURCE
#include "stamp.h"

#include <math.h>
#include <string.h>
#include <sys/mman.h>

typedef double (*step_fn)(void);

static size_t mib = 256;
static long steps = 1000000;
static struct stamp ring;

static void *array(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED) {
		perror("kernels: mmap");
		exit(1);
	}
	return p;
}

/* Numbers as measurements are: few significant bits, so that they compress. */
static double sample(uint64_t i)
{
	uint64_t x = i * 0x9e3779b97f4a7c15u;
	return (double)((x >> 48) & 0xfff) / 4096.0;
}

static size_t edge;
static double *now, *next;

static void stencil_make(void)
{
	edge = (size_t)cbrt((double)(mib << 20) / 2 / sizeof(double));
	size_t n = edge * edge * edge;
	now = array(n * sizeof *now);
	next = array(n * sizeof *next);
	for (size_t i = 0; i < n; i++)
		now[i] = next[i] = sample(i);
}

static double stencil_step(void)
{
	size_t e = edge, plane = e * e;
	for (size_t z = 1; z + 1 < e; z++)
		for (size_t y = 1; y + 1 < e; y++) {
			const double *p = now + z * plane + y * e;
			double *q = next + z * plane + y * e;
			for (size_t x = 1; x + 1 < e; x++)
				q[x] = 0.4 * p[x] + 0.1 * (p[x - 1] + p[x + 1] + p[x - e] + p[x + e] + p[x - plane] + p[x + plane]);
			if (y % 16 == 0)
				stamp_put(&ring);
		}
	double *t = now;
	now = next;
	next = t;
	return now[plane * (e / 2) + e * (e / 2) + e / 2];
}

static uint64_t *table, words, state = 88172645463325252u;

static void gups_make(void)
{
	words = (mib << 20) / sizeof *table;
	table = array(words * sizeof *table);
	for (uint64_t i = 0; i < words; i++)
		table[i] = i;
}

static double gups_step(void)
{
	for (uint64_t i = 0; i < words / 8; i++) {
		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		table[(uint64_t)(((unsigned __int128)state * words) >> 64)] ^= state;
		if (i % 512 == 0)
			stamp_put(&ring);
	}
	return (double)(table[words / 3] >> 11);
}

static size_t length;
static double *a, *b, *c;

static void stream_make(void)
{
	length = (mib << 20) / 3 / sizeof *a;
	a = array(length * sizeof *a);
	b = array(length * sizeof *b);
	c = array(length * sizeof *c);
	for (size_t i = 0; i < length; i++) {
		a[i] = 0;
		b[i] = sample(i);
		c[i] = 2 * b[i];
	}
}

static double stream_step(void)
{
	for (size_t i = 0; i < length; i += 4096) {
		size_t end = i + 4096 < length ? i + 4096 : length;
		for (size_t k = i; k < end; k++)
			a[k] = b[k] + 3.0 * c[k];
		stamp_put(&ring);
	}
	double *t = a;
	a = c;
	c = b;
	b = t;
	b[length / 2] /= 16;
	return b[length / 3];
}

static size_t rows, side;
static uint64_t *start;
static uint32_t *column;
static double *value, *vx, *vr, *vp, *vq, rho;
static uint64_t shift;

static void solver_make(void)
{
	/* five entries of 12 bytes, one start and four vectors of 8 to a row */
	side = (size_t)sqrt((double)(mib << 20) / 100);
	rows = side * side;
	start = array((rows + 1) * sizeof *start);
	column = array(rows * 5 * sizeof *column);
	value = array(rows * 5 * sizeof *value);
	vx = array(rows * sizeof *vx);
	vr = array(rows * sizeof *vr);
	vp = array(rows * sizeof *vp);
	vq = array(rows * sizeof *vq);
	uint64_t at = 0;
	for (size_t i = 0; i < rows; i++) {
		size_t x = i % side, y = i / side;
		const long where[5] = {y ? -(long)side : 0, x ? -1 : 0, 0, x + 1 < side ? 1 : 0, y + 1 < side ? (long)side : 0};
		start[i] = at;
		for (int k = 0; k < 5; k++) {
			if (k != 2 && where[k] == 0)
				continue;
			column[at] = (uint32_t)((long)i + where[k]);
			value[at++] = k == 2 ? 4.0001 : -1.0;
		}
		vx[i] = 0;
		vr[i] = vp[i] = sample(i);
		rho += vr[i] * vr[i];
	}
	start[rows] = at;
}

static double solver_step(void)
{
	double pq = 0, next_rho = 0;
	for (size_t i = 0; i < rows; i++) {
		double sum = 0;
		for (uint64_t k = start[i]; k < start[i + 1]; k++)
			sum += value[k] * vp[column[k]];
		vq[i] = sum;
		pq += sum * vp[i];
		if (i % 1024 == 0)
			stamp_put(&ring);
	}
	double alpha = rho / pq;
	for (size_t i = 0; i < rows; i++) {
		vx[i] += alpha * vp[i];
		vr[i] -= alpha * vq[i];
		next_rho += vr[i] * vr[i];
	}
	stamp_put(&ring);
	if (next_rho < 1e-12 * (double)rows) { /* solved: the next right side */
		rho = 0;
		for (size_t i = 0; i < rows; i++) {
			vr[i] = vp[i] = sample(i + ++shift);
			rho += vr[i] * vr[i];
		}
		return rho;
	}
	double beta = next_rho / rho;
	for (size_t i = 0; i < rows; i++)
		vp[i] = vr[i] + beta * vp[i];
	rho = next_rho;
	stamp_put(&ring);
	return rho;
}

static const struct kernel {
	const char *name;
	void (*make)(void);
	step_fn step;
} kernels[] = {
	{"stencil", stencil_make, stencil_step},
	{"gups", gups_make, gups_step},
	{"stream", stream_make, stream_step},
	{"solver", solver_make, solver_step},
};

int main(int argc, char **argv)
{
	const struct kernel *k = NULL;
	double sum = 0;
	int o;

	while ((o = getopt(argc, argv, "k:s:n:")) != -1)
		switch (o) {
		case 'k':
			for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++)
				if (strcmp(kernels[i].name, optarg) == 0)
					k = &kernels[i];
			break;
		case 's': mib = strtoul(optarg, NULL, 10); break;
		case 'n': steps = atol(optarg); break;
		default: return 2;
		}
	if (k == NULL || mib == 0 || steps < 1) {
		fprintf(stderr, "kernels: -k stencil|gups|stream|solver, 1 MiB and 1 step or more\n");
		return 2;
	}
	k->make();
	stamp_open(&ring, "stamp");
	for (long n = 1; n <= steps; n++) {
		sum = sum / 2 + k->step();
		printf("step %ld end_ns=%llu\n", n, (unsigned long long)stamp_now());
		fflush(stdout);
	}
	printf("result %.17g\n", sum);
	return 0;
}
