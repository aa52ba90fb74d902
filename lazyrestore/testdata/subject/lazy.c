/* What a process does while its memory is still missing. */
#include "subject.h"

static size_t size = 48 << 20; /* of the memory that the scenes share */
static char *memory;

static void build(int argc, char **argv)
{
	if (argc > 0)
		size = strtoul(argv[0], NULL, 0) << 20;
	memory = map(size);
	MUST(madvise(memory, size, MADV_NOHUGEPAGE) == 0);
	fill(memory, size, 1);
}

static void all_there(const char *when)
{
	long page = differs(memory, size, 1);
	if (page >= 0)
		bad("%s: page %ld is wrong", when, page);
}

static int wait_for(pid_t child)
{
	int status = -1;
	if (waitpid(child, &status, 0) != child)
		return -1;
	return status;
}

/* Nothing but a look at every byte; each stop is a chance for a checkpoint. */
static void look(int argc, char **argv)
{
	build(argc, argv);
	stop();
	all_there("after a restore");
}

/* Touches a part more at each of argv[1] stops, then looks at all. */
static void part_by_part(int argc, char **argv)
{
	build(argc, argv);
	int stops = argc > 1 ? atoi(argv[1]) : 2;
	size_t part = size / (2 * stops) / PAGE * PAGE;
	for (int i = 0; i < stops; i++) {
		stop();
		/* every second page is read, every fourth written */
		for (size_t p = i * part; p < (i + 1) * part; p += 2 * PAGE) {
			if (differs(memory + p, PAGE, 1 + p / 8) != -1)
				bad("stop %d: page %zu is wrong", i, p / PAGE);
			if (p % (4 * PAGE) == 0)
				fill(memory + p, PAGE, 1 + p / 8);
		}
	}
	stop();
	all_there("at the end");
}

/* Shared memory of which a part is unmapped while it is missing: hidden; hidden, and shown again by a mapping that
 * has grown; the same, and that is all that is left; and missing when it comes to be open. */
static void parted(int argc, char **argv)
{
	enum { OBJECT = 64 * PAGE, HALF = OBJECT / 2 };
	char *at[4], name[64];
	for (int i = 0; i < 4; i++) {
		at[i] = mmap(NULL, OBJECT, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		MUST(at[i] != MAP_FAILED);
		fill(at[i], OBJECT, 50 + i);
	}
	static char end[HALF];
	memcpy(end, at[3] + HALF, HALF);
	stop();
	CHECK(differs(at[0], PAGE, 50) == -1);
	CHECK(munmap(at[0] + HALF, HALF) == 0 && munmap(at[1] + HALF, HALF) == 0);
	at[1] = mremap(at[1], HALF, OBJECT, MREMAP_MAYMOVE);
	CHECK(at[1] != MAP_FAILED);
	CHECK(munmap(at[3] + HALF, HALF) == 0);
	at[3] = mremap(at[3], HALF, OBJECT, MREMAP_MAYMOVE);
	CHECK(at[3] != MAP_FAILED && munmap(at[3], HALF) == 0);
	snprintf(name, sizeof name, "/proc/self/map_files/%lx-%lx", (long)at[2], (long)at[2] + OBJECT);
	int fd = open(name, O_RDONLY);
	CHECK(fd >= 0);
	stop();
	at[0] = mremap(at[0], HALF, OBJECT, MREMAP_MAYMOVE);
	CHECK(at[0] != MAP_FAILED);
	for (int i = 0; i < 3; i++)
		CHECK(differs(at[i], OBJECT, 50 + i) == -1);
	for (int i = HALF; i < OBJECT; i += PAGE)
		CHECK(at[3][i] == end[i - HALF]);
	CHECK(close(fd) == 0);
}

static void forks(int argc, char **argv)
{
	build(argc, argv);
	stop();
	pid_t child = fork();
	if (child == 0) {
		pid_t grandchild = fork();
		if (grandchild == 0) {
			all_there("in the grandchild");
			_exit(losses ? 1 : 0);
		}
		fill(memory + size / 2, size / 4, 5); /* its own copy */
		CHECK(wait_for(grandchild) == 0);
		CHECK(differs(memory + size / 2, size / 4, 5) == -1);
		CHECK(differs(memory, size / 2, 1) == -1);
		_exit(losses ? 1 : 0);
	}
	all_there("in the parent");
	CHECK(wait_for(child) == 0);
	all_there("in the parent, at the end");
}

/* A parent that ends while its child still needs memory. */
static void orphan(int argc, char **argv)
{
	build(argc, argv);
	stop();
	pid_t child = fork();
	if (child == 0) {
		await_file("orphaned");
		all_there("in the orphan");
		say(losses ? "orphan lost" : "orphan well");
		_exit(0);
	}
	say("child %d", child);
}

static void *brief(void *argument)
{
	return (void *)differs(memory + (uintptr_t)argument * (size / 8), size / 8, 1 + (uintptr_t)argument * (size / 8) / 8);
}

/* Threads that all need memory at once, new ones among them. */
static void many(int argc, char **argv)
{
	pthread_t thread[8];
	void *result;
	build(argc, argv);
	stop();
	for (uintptr_t i = 0; i < 8; i++)
		CHECK(pthread_create(&thread[i], NULL, brief, (void *)i) == 0);
	for (int i = 0; i < 8; i++)
		CHECK(pthread_join(thread[i], &result) == 0 && (long)result == -1);
}

static void execs(int argc, char **argv)
{
	build(argc, argv);
	stop();
	CHECK(differs(memory + size / 2, 16 * PAGE, 1 + size / 16) == -1);
	execl("/proc/self/exe", "subject", "hello", NULL);
	bad("exec: %s", strerror(errno));
}

/* Begins a program that has fresh memory where this one misses some, and looks
   once the file is there that it waits for. */
static void execs_anew(int argc, char **argv)
{
	char at[32], bytes[32];
	build(argc, argv);
	stop();
	snprintf(at, sizeof at, "%p", memory);
	snprintf(bytes, sizeof bytes, "%zu", size);
	execl("/proc/self/exe", "subject", "anew", at, bytes, NULL);
	bad("exec: %s", strerror(errno));
}

static void anew(int argc, char **argv)
{
	char *at = (char *)strtoul(argv[0], NULL, 0);
	size_t bytes = strtoul(argv[1], NULL, 0);
	MUST(mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == at);
	at[0] = 1;
	say("begun anew");
	await_file("anew");
	CHECK(at[0] == 1);
	for (size_t i = PAGE; i < bytes; i++)
		if (at[i] != 0) {
			bad("fresh memory has %d at %zu", at[i], i);
			return;
		}
}

static void hello(int argc, char **argv) { say("hello"); }

static void exits(int argc, char **argv)
{
	build(argc, argv);
	stop();
	_exit(memory[size / 2] == 0 ? 1 : 42);
}

/* A mapping whose ends were never touched is one mapping all the same, and can be moved as one. */
static void edges(int argc, char **argv)
{
	enum { PAGES = 64, EDGE = 3 };
	char *room = mmap(NULL, 8 * PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *at = room + PAGES * PAGE, *to = room + 3 * PAGES * PAGE;
	MUST(room != MAP_FAILED && mprotect(at, PAGES * PAGE, PROT_READ | PROT_WRITE) == 0);
	for (int i = EDGE; i < PAGES - EDGE; i++)
		at[i * PAGE] = i;
	stop();
	CHECK(mremap(at, PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
	char *grown = mremap(to, PAGES * PAGE, 2 * PAGES * PAGE, MREMAP_MAYMOVE);
	MUST(grown != MAP_FAILED);
	for (int i = 0; i < 2 * PAGES; i++)
		CHECK(grown[i * PAGE] == (i >= EDGE && i < PAGES - EDGE ? i : 0));
}

/* Shared memory that is mapped beyond the end of its object, with other objects at both sides. */
static void beyond(int argc, char **argv)
{
	enum { PAGES = 32 };
	char *beside[2], *at = NULL;
	for (int k = 0; k < 2; k++) {
		if (k == 1) {
			at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
			MUST(at != MAP_FAILED);
			at[0] = 99;
			at = mremap(at, PAGE, PAGES * PAGE, MREMAP_MAYMOVE);
			MUST(at != MAP_FAILED);
		}
		beside[k] = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		MUST(beside[k] != MAP_FAILED);
		for (int i = 0; i < PAGES; i++)
			beside[k][i * PAGE] = i + k + 1;
	}
	stop();
	for (int i = 0; i < PAGES; i++)
		CHECK(beside[0][i * PAGE] == i + 1 && beside[1][i * PAGE] == i + 2);
	CHECK(at[0] == 99);
}

/* Everything that changes the address space below the pager. */
static void changes(int argc, char **argv)
{
	static const char zero[PAGE];
	build(argc, argv);
	size_t eighth = size / 8;
	stop();
	char *part[8];
	for (int i = 0; i < 8; i++)
		part[i] = memory + i * eighth;
	/* 1: moved away, and grown as it moves */
	char *moved = mremap(part[1], eighth, 2 * eighth, MREMAP_MAYMOVE);
	CHECK(moved != MAP_FAILED && moved != part[1]);
	/* 2: given up; its pages are zero from now on, whatever the image has */
	CHECK(madvise(part[2], eighth, MADV_DONTNEED) == 0);
	/* 3: unmapped in its middle */
	CHECK(munmap(part[3] + eighth / 4, eighth / 4) == 0);
	/* 4: covered by fresh memory */
	CHECK(mmap(part[4], eighth, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == part[4]);
	/* 5: protected */
	CHECK(mprotect(part[5], eighth, PROT_READ) == 0);
	/* 6: moved onto a certain place, over memory that was missing too */
	CHECK(mremap(part[6], eighth / 2, eighth / 2, MREMAP_MAYMOVE | MREMAP_FIXED, part[7] + eighth / 2) == part[7] + eighth / 2);
	/* fresh memory at a place of the kernel's choice */
	char *fresh = map(eighth);
	CHECK(differs(part[0], eighth, 1) == -1);
	CHECK(differs(moved, eighth, 1 + eighth / 8) == -1);
	CHECK(differs(part[3], eighth / 4, 1 + 3 * eighth / 8) == -1);
	CHECK(differs(part[3] + eighth / 2, eighth / 2, 1 + 3 * eighth / 8 + eighth / 16) == -1);
	CHECK(differs(part[5], eighth, 1 + 5 * eighth / 8) == -1);
	CHECK(differs(part[6] + eighth / 2, eighth / 2, 1 + 6 * eighth / 8 + eighth / 16) == -1);
	CHECK(differs(part[7], eighth / 2, 1 + 7 * eighth / 8) == -1);
	CHECK(differs(part[7] + eighth / 2, eighth / 2, 1 + 6 * eighth / 8) == -1);
	for (size_t p = 0; p < eighth; p += PAGE) {
		CHECK(memcmp(moved + eighth + p, zero, PAGE) == 0);
		CHECK(memcmp(part[2] + p, zero, PAGE) == 0);
		CHECK(memcmp(part[4] + p, zero, PAGE) == 0);
		CHECK(memcmp(fresh + p, zero, PAGE) == 0);
		if (losses > 8)
			return;
	}
}

/* Blocks that threads move at the same time, to places of the kernel's choice:
 * often those that another thread's block has just left, or what it had grown by. */
enum { MOVERS = 4, GROWERS = 2, BLOCKS = 64, GROWN = 2 * BLOCKS, BLOCK = 4 * PAGE, MOVES = 12 };
static char *block[MOVERS][BLOCKS];

static void *mover(void *argument)
{
	char **mine = block[(uintptr_t)argument];
	for (int i = 0; i < MOVES * BLOCKS; i++) {
		char **b = &mine[i % BLOCKS];
		char *to = mmap(NULL, BLOCK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		CHECK(to != MAP_FAILED && mremap(*b, BLOCK, BLOCK, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
		*b = to;
	}
	return NULL;
}

/* Makes blocks larger, piece by piece, as realloc does; lets every second one go. */
static void *grower(void *argument)
{
	char **mine = argument;
	for (int i = 0; i < GROWN; i++) {
		for (int n = 1; n < 4; n++) {
			char *to = mremap(mine[i], n * BLOCK, (n + 1) * BLOCK, MREMAP_MAYMOVE);
			CHECK(to != MAP_FAILED);
			mine[i] = to;
		}
		if (i % 2 == 0) {
			CHECK(munmap(mine[i], 4 * BLOCK) == 0);
			mine[i] = NULL;
		}
	}
	return NULL;
}

static void movers(int argc, char **argv)
{
	static char *grown[GROWERS][GROWN], zero[3 * BLOCK];
	pthread_t thread[MOVERS + GROWERS];
	size = (MOVERS * BLOCKS + GROWERS * GROWN) * BLOCK;
	build(0, argv);
	for (int i = 0; i < MOVERS * BLOCKS; i++)
		block[i % MOVERS][i / MOVERS] = memory + i * BLOCK;
	for (int i = 0; i < GROWERS * GROWN; i++)
		grown[i % GROWERS][i / GROWERS] = memory + (MOVERS * BLOCKS + i) * BLOCK;
	stop();
	for (uintptr_t i = 0; i < MOVERS; i++)
		CHECK(pthread_create(&thread[i], NULL, mover, (void *)i) == 0);
	for (int i = 0; i < GROWERS; i++)
		CHECK(pthread_create(&thread[MOVERS + i], NULL, grower, grown[i]) == 0);
	for (int i = 0; i < MOVERS + GROWERS; i++)
		CHECK(pthread_join(thread[i], NULL) == 0);
	for (int i = 0; i < MOVERS * BLOCKS; i++)
		if (differs(block[i % MOVERS][i / MOVERS], BLOCK, 1 + i * BLOCK / 8) != -1)
			bad("block %d of mover %d is wrong", i / MOVERS, i % MOVERS);
	for (int i = 0; i < GROWERS * GROWN; i++) {
		char *b = grown[i % GROWERS][i / GROWERS];
		if (b && (differs(b, BLOCK, 1 + (MOVERS * BLOCKS + i) * (BLOCK / 8)) != -1 || memcmp(b + BLOCK, zero, sizeof zero) != 0))
			bad("block %d of grower %d is wrong", i / GROWERS, i % GROWERS);
	}
}

static void grow(int depth)
{
	volatile char local[32 << 10];
	for (size_t i = 0; i < sizeof local; i += 64)
		local[i] = depth;
	if (depth > 0)
		grow(depth - 1);
	for (size_t i = 0; i < sizeof local; i += 64)
		if (local[i] != (char)depth)
			bad("stack at depth %d", depth);
}

static void grows(int argc, char **argv)
{
	build(argc, argv);
	stop();
	grow(150);
	char *end = sbrk(0);
	CHECK(sbrk(8 << 20) == end);
	for (int i = 0; i < 8 << 20; i += PAGE)
		if (end[i] != 0)
			bad("fresh heap at %d", i);
	all_there("after growth");
}

/* System calls that read and write missing memory in the kernel's name. */
static void kernel_copies(int argc, char **argv)
{
	int p[2];
	char small[PAGE];
	build(argc, argv);
	MUST(pipe(p) == 0);
	int fd = open("copy", O_RDWR | O_CREAT | O_TRUNC, 0600);
	stop();
	CHECK(write(fd, memory, 1 << 20) == 1 << 20);
	CHECK(lseek(fd, 0, SEEK_SET) == 0 && read(fd, memory + (8 << 20) + 100, PAGE) == PAGE);
	CHECK(write(p[1], memory + (4 << 20), PAGE) == PAGE && read(p[0], small, PAGE) == PAGE);
	CHECK(differs(small, PAGE, 1 + (4 << 20) / 8) == -1);
	CHECK(memcmp(memory + (8 << 20) + 100, memory, PAGE) == 0);
	fill(memory + (8 << 20), 2 * PAGE, 1 + (8 << 20) / 8);
	all_there("after system calls");
	CHECK(pread(fd, memory, 1 << 20, 0) == 1 << 20);
	all_there("after reading it back");
}

/* Guards over missing memory: they stay when what is beside them comes, and what they are taken from is zero. */
static void guarded(int argc, char **argv)
{
	enum { every = 160 * PAGE, guards = 3 * PAGE };
	int p[2];
	build(argc, argv);
	MUST(pipe(p) == 0);
	char *zeros = map(guards);
	stop();
	for (size_t i = 5 * PAGE; i + every < size; i += every)
		CHECK(madvise(memory + i, guards, 102 /* MADV_GUARD_INSTALL */) == 0);
	for (size_t i = 5 * PAGE; i + every < size; i += every)
		if (differs(memory + i + guards, every - guards, 1 + (i + guards) / 8) != -1)
			bad("beside the guard at page %zu", i / PAGE);
	for (size_t i = 5 * PAGE; i + every < size; i += every) {
		CHECK(write(p[1], memory + i + PAGE, 1) == -1 && errno == EFAULT);
		CHECK(madvise(memory + i, guards, 103 /* MADV_GUARD_REMOVE */) == 0);
		CHECK(memcmp(memory + i, zeros, guards) == 0);
	}
}

struct kernel_read {
	char *from;
	int to; /* a pipe, or -1 */
};

static void *kernel_reads(void *arg)
{
	struct kernel_read *r = arg;
	char page[PAGE];
	struct iovec here = {page, PAGE}, there = {r->from, PAGE};
	if (r->to >= 0)
		CHECK(write(r->to, r->from, PAGE) == PAGE);
	else
		CHECK(process_vm_readv(getpid(), &here, 1, &there, 1, 0) == PAGE);
	return NULL;
}

/* Has the kernel read its missing memory, by two threads: by process_vm_readv, which waits for it where
   no signal comes through, or by write, which looks for signals but does not leave for them. */
static void kernel_waits(int argc, char **argv)
{
	int p[2][2], writes = argc > 1 && strcmp(argv[1], "write") == 0;
	build(argc, argv);
	MUST(pipe(p[0]) == 0 && pipe(p[1]) == 0);
	for (int i = 0; i < 2; i++) { /* the first has all come that the second needs beside */
		char *from = memory + i * size / 2;
		struct kernel_read read[] = {{from, writes ? p[0][1] : -1}, {from, writes ? p[1][1] : -1}};
		pthread_t other;
		stop();
		CHECK(pthread_create(&other, NULL, kernel_reads, &read[1]) == 0);
		kernel_reads(&read[0]);
		CHECK(pthread_join(other, NULL) == 0);
	}
	all_there("at the end");
}

/* Runs for ever, without changing anything; says where its memory is. */
static void forever(int argc, char **argv)
{
	build(argc, argv);
	say("memory %p %zu", memory, size);
	stop();
	for (size_t i = 0; i < size; i += PAGE) {
		if (differs(memory + i, PAGE, 1 + i / 8) != -1)
			bad("page %zu", i / PAGE);
		if (i % (256 * PAGE) == 0)
			say("at %zu", i / PAGE);
	}
	stop();
}

/* Works without end, and ends at once if it ever finds its memory wrong. */
static void works(int argc, char **argv)
{
	build(argc, argv);
	say("ready 1");
	for (uint64_t round = 1;; round++) {
		for (size_t i = 0; i < size; i += 64 * PAGE)
			if (differs(memory + i, PAGE, 1 + i / 8) != -1) {
				bad("round %lu, page %zu", (unsigned long)round, i / PAGE);
				_exit(1);
			}
		usleep(200);
		if (faccessat(AT_FDCWD, "go1", F_OK, 0) == 0)
			break;
	}
	all_there("at the end");
}

const struct scene lazy_scenes[] = {
	{"look", look}, {"part-by-part", part_by_part}, {"parted", parted}, {"forks", forks}, {"orphan", orphan}, {"many", many},
	{"execs", execs}, {"execs-anew", execs_anew}, {"anew", anew}, {"hello", hello},
	{"exits", exits}, {"changes", changes}, {"edges", edges}, {"beyond", beyond}, {"grows", grows}, {"movers", movers},
	{"kernel-copies", kernel_copies}, {"guarded", guarded}, {"kernel-waits", kernel_waits}, {"forever", forever}, {"works", works}, {NULL, NULL},
};
