/* State that another process has too: an orphan, which is no child. */
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ptrace.h>
#include <sched.h>

#include "subject.h"

/* orphan leaves a process behind that has all that this one has by now, and
   says its id. */
static pid_t orphan(void)
{
	int told[2];
	pid_t id = 0;
	MUST(pipe(told) == 0);
	pid_t child = fork();
	if (child == 0) {
		if (fork() != 0)
			_exit(0);
		id = setsid(); /* lest it hold this one's session id */
		alarm(120);
		if (write(told[1], &id, sizeof id) != sizeof id)
			_exit(1);
		close(told[0]);
		close(told[1]);
		await_file("go1");
		_exit(0);
	}
	int status = -1;
	MUST(waitpid(child, &status, 0) == child && status == 0);
	MUST(read(told[0], &id, sizeof id) == sizeof id);
	close(told[0]);
	close(told[1]);
	say("orphan %d", id);
	return id;
}

static void held_pipe(int argc, char **argv)
{
	int p[2];
	MUST(pipe(p) == 0);
	orphan();
	stop();
}

static void held_eventfds(int argc, char **argv)
{
	for (int i = 0; i < 20; i++)
		MUST(eventfd(i, 0) >= 0);
	orphan();
	for (int i = 0; i < 20; i++)
		MUST(eventfd(i, 0) >= 0); /* these it does not have */
	stop();
}

static void held_epoll(int argc, char **argv)
{
	MUST(epoll_create1(0) >= 0);
	orphan();
	stop();
}

static void held_file(int argc, char **argv)
{
	MUST(open("held", O_RDWR | O_CREAT, 0600) >= 0);
	orphan();
	stop();
}

static void held_memory(int argc, char **argv)
{
	MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0) != MAP_FAILED);
	orphan();
	stop();
}

/* Mapped here, a descriptor there. */
static void held_memory_file(int argc, char **argv)
{
	int fd = memfd_create("held", 0);
	MUST(ftruncate(fd, PAGE) == 0);
	orphan();
	MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED);
	close(fd);
	stop();
}

/* What may be shared: a file that is only appended to, devices, private memory. */
static void held_harmless(int argc, char **argv)
{
	MUST(open("appended", O_WRONLY | O_CREAT | O_APPEND, 0600) >= 0 && open("/dev/null", O_RDWR) >= 0);
	int other = open("appended", O_RDONLY);
	orphan();
	close(other);
	MUST(open("appended", O_RDONLY) >= 0); /* a description of its own */
	map(PAGE);
	stop();
}

/* A thread with descriptors of its own. */
static void *apart(void *unused)
{
	MUST(unshare(CLONE_FILES) == 0);
	say("apart");
	await_file("go1");
	return NULL;
}

static void thread_apart(int argc, char **argv)
{
	pthread_t thread;
	MUST(pthread_create(&thread, NULL, apart, NULL) == 0);
	stop();
	pthread_join(thread, NULL);
}

/* A tracer is a thread. With its end what it traces would be killed. */
static void *traces(void *id)
{
	MUST(ptrace(PTRACE_SEIZE, *(pid_t *)id, NULL, PTRACE_O_EXITKILL) == 0);
	say("traces");
	await_file("go1");
	int status = -1;
	CHECK(waitpid(*(pid_t *)id, &status, __WALL) == *(pid_t *)id && status == 0); /* it ends by itself */
	return NULL;
}

static void tracer(int argc, char **argv)
{
	pid_t id = orphan();
	pthread_t thread;
	MUST(pthread_create(&thread, NULL, traces, &id) == 0);
	stop();
	pthread_join(thread, NULL);
}

const struct scene holder_scenes[] = {
	{"held-pipe", held_pipe}, {"held-eventfds", held_eventfds}, {"held-epoll", held_epoll}, {"held-file", held_file},
	{"held-memory", held_memory}, {"held-memory-file", held_memory_file}, {"held-harmless", held_harmless},
	{"thread-apart", thread_apart}, {"tracer", tracer}, {NULL, NULL},
};
