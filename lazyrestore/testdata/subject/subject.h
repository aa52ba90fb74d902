/* What the scenes share. A scene is a function that builds some state, calls
   stop, at which it is checkpointed and restored, and looks whether the state
   is still there. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096 };

struct scene {
	const char *name;
	void (*run)(int argc, char **argv);
};

extern const struct scene thread_scenes[], signal_scenes[], process_scenes[], memory_scenes[],
	file_scenes[], lazy_scenes[], refused_scenes[], holder_scenes[], task_scenes[],
	schedule_scenes[], time_scenes[],
	object_scenes[], mapped_scenes[], socket_scenes[];

/* stop says "ready N" (N counts the calls from 1) and waits until there is a
   file named goN. await_file is the second half. */
void stop(void);
void await_file(const char *name);

/* say prints a line at once. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* bad notes that something was lost; the process ends with 1 then. */
void bad(const char *format, ...) __attribute__((format(printf, 1, 2)));
extern int losses;

#define CHECK(condition) \
	do { \
		if (!(condition)) \
			bad("%s:%d: %s (errno %d)", __func__, __LINE__, #condition, errno); \
	} while (0)

/* MUST is for what has to work for the scene to mean anything. */
#define MUST(condition) \
	do { \
		if (!(condition)) { \
			say("cannot: %s:%d: %s: %s", __func__, __LINE__, #condition, strerror(errno)); \
			_exit(3); \
		} \
	} while (0)

/* fill writes a pattern that differs in each word; differs gives the number of
   the first page that does not hold it, or -1. */
void fill(void *at, size_t bytes, uint64_t seed);
long differs(const void *at, size_t bytes, uint64_t seed);

/* first_cpu is the first of the processors that the process may run on. */
cpu_set_t first_cpu(void);

/* map is memory of the process's own. */
void *map(size_t bytes);
