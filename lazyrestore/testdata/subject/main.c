/*
 * subject: programs that hold one kind of state each.
 *
 *   subject SCENE [ARGUMENT...]
 *
 * Prints "ready 1", waits for a file go1, looks at what it has, prints what is
 * lost, and ends with 0 if nothing is.
 */
#include <stdarg.h>

#include "subject.h"

int losses;

void say(const char *format, ...)
{
	char line[512];
	va_list args;
	va_start(args, format);
	int n = vsnprintf(line, sizeof line - 1, format, args);
	va_end(args);
	if (n > (int)sizeof line - 2)
		n = sizeof line - 2;
	line[n] = '\n';
	if (write(1, line, n + 1) < 0)
		_exit(4);
}

void bad(const char *format, ...)
{
	char line[400];
	va_list args;
	va_start(args, format);
	vsnprintf(line, sizeof line, format, args);
	va_end(args);
	__atomic_add_fetch(&losses, 1, __ATOMIC_SEQ_CST);
	say("lost: %s", line);
}

void await_file(const char *name)
{
	struct timespec moment = {0, 1000000};
	while (faccessat(AT_FDCWD, name, F_OK, 0) != 0)
		nanosleep(&moment, NULL);
}

void stop(void)
{
	static int calls;
	char name[32];
	snprintf(name, sizeof name, "go%d", ++calls);
	say("ready %d", calls);
	await_file(name);
}

void fill(void *at, size_t bytes, uint64_t seed)
{
	uint64_t *word = at;
	for (size_t i = 0; i < bytes / 8; i++)
		word[i] = (seed + i + 1) * 0x9e3779b97f4a7c15u;
}

long differs(const void *at, size_t bytes, uint64_t seed)
{
	const volatile uint64_t *word = at;
	for (size_t i = 0; i < bytes / 8; i++)
		if (word[i] != (seed + i + 1) * 0x9e3779b97f4a7c15u)
			return i * 8 / PAGE;
	return -1;
}

void *map(size_t bytes)
{
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	MUST(at != MAP_FAILED);
	return at;
}

cpu_set_t first_cpu(void)
{
	cpu_set_t may, first;
	int cpu = 0;
	MUST(sched_getaffinity(0, sizeof may, &may) == 0);
	while (!CPU_ISSET(cpu, &may))
		cpu++;
	CPU_ZERO(&first);
	CPU_SET(cpu, &first);
	return first;
}

static void play(const struct scene *list, int argc, char **argv)
{
	for (; list->name; list++) {
		if (strcmp(list->name, argv[1]) != 0)
			continue;
		list->run(argc - 2, argv + 2);
		say("done");
		_exit(losses ? 1 : 0);
	}
}

int main(int argc, char **argv)
{
	if (argc < 2)
		return 2;
	const struct scene *const all[] = {
		thread_scenes, signal_scenes, process_scenes, memory_scenes, file_scenes, lazy_scenes, refused_scenes, holder_scenes,
		task_scenes, schedule_scenes, time_scenes, object_scenes, mapped_scenes, socket_scenes,
	};
	for (size_t i = 0; i < sizeof all / sizeof *all; i++)
		play(all[i], argc, argv);
	say("no scene %s", argv[1]);
	return 2;
}
