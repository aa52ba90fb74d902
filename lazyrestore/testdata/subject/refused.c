/* State that an image cannot hold. Each scene builds it and waits. */
#include <asm/ldt.h>
#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sched.h>
#include <time.h>

#include <sys/personality.h>

#include "subject.h"

/* Two that are connected, in one process. */
static void connected_(int argc, char **argv)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	socklen_t n = sizeof a;
	int l = socket(AF_INET, SOCK_STREAM, 0), c = socket(AF_INET, SOCK_STREAM, 0);
	MUST(bind(l, (void *)&a, sizeof a) == 0 && listen(l, 1) == 0 && getsockname(l, (void *)&a, &n) == 0);
	MUST(connect(c, (void *)&a, sizeof a) == 0 && accept(l, NULL, NULL) >= 0 && close(l) == 0);
}

static void tcp(int argc, char **argv)
{
	connected_(argc, argv);
	stop();
}

/* A descriptor on its way. */
static void socket_rights(int argc, char **argv)
{
	int p[2];
	char control[CMSG_SPACE(sizeof(int))] = {0}, byte = 1;
	struct iovec iov = {&byte, 1};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	struct cmsghdr *c = CMSG_FIRSTHDR(&message);
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, p) == 0);
	c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &p[0], sizeof(int));
	MUST(sendmsg(p[0], &message, 0) == 1);
	stop();
}

static void proc_of_other(int argc, char **argv)
{
	char name[32];
	snprintf(name, sizeof name, "/proc/%d/stat", getppid());
	MUST(open(name, O_RDONLY) >= 0 && open("/proc/1", O_RDONLY | O_DIRECTORY) >= 0);
	int back = open(".", O_RDONLY | O_DIRECTORY);
	MUST(chdir("/proc/1") == 0);
	say("ready 1");
	struct timespec moment = {0, 1000000};
	while (faccessat(back, "go1", F_OK, 0) != 0)
		nanosleep(&moment, NULL);
}

static void netlink(int argc, char **argv)
{
	MUST(socket(AF_NETLINK, SOCK_RAW, 0) >= 0);
	stop();
}

static void pending_connection(int argc, char **argv)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	socklen_t n = sizeof a;
	int l = socket(AF_INET, SOCK_STREAM, 0);
	MUST(bind(l, (void *)&a, sizeof a) == 0 && listen(l, 1) == 0 && getsockname(l, (void *)&a, &n) == 0);
	int c = socket(AF_INET, SOCK_STREAM, 0);
	MUST(connect(c, (void *)&a, sizeof a) == 0 && close(c) == 0);
	stop();
}

static void child(int argc, char **argv)
{
	pid_t pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		await_file("go1");
		_exit(0);
	}
	stop();
	int status = -1;
	CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

static void seccomp(int argc, char **argv)
{
	struct sock_filter allow = {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW};
	struct sock_fprog program = {1, &allow};
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
	stop();
}

static volatile int waiting;

/* A filter of one thread alone, which ends the process for all but what the thread still does. */
static void *filtered(void *unused)
{
	struct sock_filter few[] = {
		{BPF_LD | BPF_W | BPF_ABS, 0, 0, 0 /* the number of the call */},
		{BPF_JMP | BPF_JEQ | BPF_K, 3, 0, SYS_futex}, {BPF_JMP | BPF_JEQ | BPF_K, 2, 0, SYS_exit},
		{BPF_JMP | BPF_JEQ | BPF_K, 1, 0, SYS_restart_syscall},
		{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_KILL_PROCESS}, {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
	};
	struct sock_fprog program = {sizeof few / sizeof *few, few};
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
	waiting = 1;
	syscall(SYS_futex, &waiting, FUTEX_WAIT, 1, NULL, NULL, 0);
	syscall(SYS_exit, 0);
	return NULL;
}

static void thread_seccomp(int argc, char **argv)
{
	pthread_t thread;
	MUST(pthread_create(&thread, NULL, filtered, NULL) == 0);
	while (!waiting)
		usleep(1000);
	stop();
}

static void *waits(void *unused)
{
	waiting = 1;
	await_file("go1");
	return NULL;
}

/* The kernel does not tell which thread's time it is. */
static void thread_cpu_timer(int argc, char **argv)
{
	timer_t timer;
	pthread_t thread;
	struct sigevent event = {.sigev_notify = SIGEV_NONE};
	MUST(pthread_create(&thread, NULL, waits, NULL) == 0);
	while (!waiting)
		usleep(100); /* until then it has all signals blocked */
	MUST(timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer) == 0);
	stop();
	CHECK(pthread_join(thread, NULL) == 0);
}

static void userfaultfd(int argc, char **argv)
{
	MUST(syscall(SYS_userfaultfd, O_CLOEXEC) >= 0);
	stop();
}

static void io_uring(int argc, char **argv)
{
	char parameters[256] = {0};
	MUST(syscall(425 /* io_uring_setup */, 4, parameters) >= 0);
	stop();
}

/* Rings that threads have registered, of which no descriptor is left. */
static void register_ring(unsigned slot)
{
	char parameters[256] = {0};
	int fd = syscall(425 /* io_uring_setup */, 4, parameters);
	struct { unsigned offset, reserved; uint64_t data; } ring = {slot, 0, fd};
	MUST(fd >= 0 && syscall(427 /* io_uring_register */, fd, 20 /* IORING_REGISTER_RING_FDS */, &ring, 1) == 1 && close(fd) == 0);
}

static void enter_ring(unsigned slot)
{
	CHECK(syscall(426 /* io_uring_enter */, slot, 0, 0, 16 /* IORING_ENTER_REGISTERED_RING */, NULL, 0) == 0);
}

static void *registers(void *unused)
{
	register_ring(3);
	waits(NULL);
	enter_ring(3);
	return NULL;
}

static void io_uring_registered(int argc, char **argv)
{
	pthread_t thread;
	register_ring(0);
	MUST(pthread_create(&thread, NULL, registers, NULL) == 0);
	while (!waiting)
		usleep(100);
	stop();
	enter_ring(0);
	pthread_join(thread, NULL);
}

static void sysv(int argc, char **argv)
{
	int id = shmget(IPC_PRIVATE, PAGE, IPC_CREAT | 0600);
	MUST(id >= 0);
	void *at = shmat(id, NULL, 0);
	MUST(shmctl(id, IPC_RMID, NULL) == 0 && at != (void *)-1);
	stop();
}

static void guard_shared(int argc, char **argv)
{
	char *at = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	MUST(at != MAP_FAILED && madvise(at + PAGE, PAGE, 102 /* MADV_GUARD_INSTALL */) == 0);
	stop();
}

static void removed_directory(int argc, char **argv)
{
	MUST(mkdir("removed", 0700) == 0);
	int back = open(".", O_RDONLY | O_DIRECTORY);
	MUST(chdir("removed") == 0 && rmdir("../removed") == 0);
	say("ready 1");
	struct timespec moment = {0, 1000000};
	while (faccessat(back, "go1", F_OK, 0) != 0)
		nanosleep(&moment, NULL);
}

static void namespace_(int argc, char **argv)
{
	MUST(unshare(CLONE_NEWUTS) == 0);
	stop();
}

static void aio(int argc, char **argv)
{
	unsigned long context = 0;
	MUST(syscall(SYS_io_setup, 4, &context) == 0);
	stop();
}

/* What was written at once is read at once: the borders cannot be seen. */
static void packet_pipe(int argc, char **argv)
{
	int p[2];
	MUST(pipe2(p, O_DIRECT) == 0 && write(p[1], "one", 3) == 3 && write(p[1], "second", 6) == 6);
	stop();
}

static void outside_pipe(int argc, char **argv)
{
	/* the test has given it one end of a pipe as descriptor 3 */
	stop();
}

/* A file, argv[0], mapped twice, between which another one may have taken its name. */
static void mapped_twice(int argc, char **argv)
{
	for (int i = 0; i < 2; i++) {
		int fd = open(argv[0], O_RDONLY);
		MUST(fd >= 0 && mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0) != MAP_FAILED && close(fd) == 0);
		stop();
	}
}

static void pid_namespace(int argc, char **argv)
{
	MUST(unshare(CLONE_NEWPID) == 0); /* of its children: it has none yet */
	stop();
}

static void inotify_unread(int argc, char **argv)
{
	int fd = inotify_init1(0);
	MUST(inotify_add_watch(fd, ".", IN_CREATE) >= 0 && mkdir("made", 0700) == 0);
	stop();
}

static void owned_by_other(int argc, char **argv)
{
	int fd = open("/dev/zero", O_RDONLY);
	MUST(fcntl(fd, F_SETOWN, getppid()) == 0);
	stop();
}

static void dnotify(int argc, char **argv)
{
	int fd = open("/", O_RDONLY | O_DIRECTORY);
	MUST(fcntl(fd, F_NOTIFY, DN_RENAME | DN_MULTISHOT) == 0);
	stop();
}

static void *elsewhere(void *unused)
{
	MUST(unshare(CLONE_NEWUTS) == 0);
	__atomic_store_n((int *)unused, 1, __ATOMIC_SEQ_CST);
	await_file("go1");
	return NULL;
}

static pthread_t part_thread(void)
{
	static int parted;
	pthread_t thread;
	MUST(pthread_create(&thread, NULL, elsewhere, &parted) == 0);
	while (!__atomic_load_n(&parted, __ATOMIC_SEQ_CST))
		usleep(1000);
	return thread;
}

static void thread_namespace(int argc, char **argv)
{
	pthread_t thread = part_thread();
	stop();
	CHECK(pthread_join(thread, NULL) == 0);
}

static void *without_privileges(void *unused)
{
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	__atomic_store_n((int *)unused, 1, __ATOMIC_SEQ_CST);
	await_file("go1");
	return NULL;
}

static void *another_person(void *unused)
{
	MUST(personality(ADDR_NO_RANDOMIZE) != -1);
	__atomic_store_n((int *)unused, 1, __ATOMIC_SEQ_CST);
	await_file("go1");
	return NULL;
}

/* Threads that have set for themselves what mostly all threads have. */
static void thread_itself(int argc, char **argv)
{
	static int set[2];
	pthread_t threads[2];
	MUST(pthread_create(&threads[0], NULL, without_privileges, &set[0]) == 0);
	MUST(pthread_create(&threads[1], NULL, another_person, &set[1]) == 0);
	while (!__atomic_load_n(&set[0], __ATOMIC_SEQ_CST) || !__atomic_load_n(&set[1], __ATOMIC_SEQ_CST))
		usleep(1000);
	stop();
	CHECK(pthread_join(threads[0], NULL) == 0 && pthread_join(threads[1], NULL) == 0);
}

static void deny_write_execute(int argc, char **argv)
{
	MUST(prctl(65 /* PR_SET_MDWE */, 1, 0, 0, 0) == 0);
	stop();
}

static void segment_set(void)
{
	struct user_desc d = {.entry_number = 3, .limit = 1, .seg_32bit = 1, .limit_in_pages = 1, .useable = 1};
	MUST(syscall(SYS_modify_ldt, 1, &d, sizeof d) == 0);
}

static void descriptor_table(int argc, char **argv)
{
	segment_set();
	stop();
}

/* All in one message. */
static void many_things(int argc, char **argv)
{
	pthread_t thread = part_thread();
	segment_set();
	connected_(argc, argv);
	int shm = shmget(IPC_PRIVATE, PAGE, IPC_CREAT | 0600);
	void *at = shmat(shm, NULL, 0);
	MUST(shmctl(shm, IPC_RMID, NULL) == 0 && at != (void *)-1);
	child(argc, argv); /* stops */
	CHECK(pthread_join(thread, NULL) == 0);
}

static void hugetlb_shared(int argc, char **argv)
{
	MUST(mmap(NULL, 2 << 20, PROT_READ, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE, -1, 0) != MAP_FAILED);
	stop();
}

/* By no more than a name that leads nowhere. */
static void nameless(int argc, char **argv)
{
	int p[2];
	char name[64];
	MUST(pipe(p) == 0);
	snprintf(name, sizeof name, "/proc/self/fd/%d", p[0]);
	MUST(open(name, O_PATH) == 5);
	stop();
}

/* None of it is mapped. */
static void hugetlb_file(int argc, char **argv)
{
	int fd = memfd_create("huge", MFD_HUGETLB);
	MUST(fd >= 0 && ftruncate(fd, 2 << 20) == 0);
	stop();
}

/* Which has lost its name, as a file may that is preserved. */
static void message_queue(int argc, char **argv)
{
	char name[32];
	snprintf(name, sizeof name, "subject-%d", getpid());
	MUST(syscall(SYS_mq_open, name, O_RDWR | O_CREAT | O_EXCL, 0600, NULL) == 3);
	MUST(syscall(SYS_mq_unlink, name) == 0);
	MUST(syscall(SYS_mq_timedsend, 3, "news", 4, 0, NULL) == 0);
	stop();
	char got[1 << 16];
	MUST(syscall(SYS_mq_timedreceive, 3, got, sizeof got, NULL, NULL) == 4 && memcmp(got, "news", 4) == 0);
}

/* A robust mutex in a file, which is held. */
static void held_mutex(int argc, char **argv)
{
	pthread_mutexattr_t attributes;
	int fd = open("mutex", O_RDWR | O_CREAT | O_EXCL, 0600);
	MUST(fd >= 0 && ftruncate(fd, PAGE) == 0);
	pthread_mutex_t *mutex = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	MUST(mutex != MAP_FAILED && close(fd) == 0);
	MUST(pthread_mutexattr_init(&attributes) == 0);
	MUST(pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST) == 0);
	MUST(pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED) == 0);
	MUST(pthread_mutex_init(mutex, &attributes) == 0);
	MUST(pthread_mutex_lock(mutex) == 0);
	stop();
	CHECK(pthread_mutex_unlock(mutex) == 0);
	stop();
	CHECK(pthread_mutex_trylock(mutex) == 0);
}

static void *awaits(void *mutex)
{
	CHECK(pthread_mutex_lock(mutex) == 0);
	CHECK(pthread_mutex_unlock(mutex) == 0);
	return NULL;
}

/* A priority-inheriting mutex in a file, which is held, and which threads wait for. */
static void awaited_mutex(int argc, char **argv)
{
	pthread_mutexattr_t attributes;
	pthread_t threads[2];
	int fd = open("mutex", O_RDWR | O_CREAT | O_EXCL, 0600);
	MUST(fd >= 0 && ftruncate(fd, PAGE) == 0);
	pthread_mutex_t *mutex = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	MUST(mutex != MAP_FAILED && close(fd) == 0);
	MUST(pthread_mutexattr_init(&attributes) == 0);
	MUST(pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT) == 0);
	MUST(pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED) == 0);
	MUST(pthread_mutex_init(mutex, &attributes) == 0);
	MUST(pthread_mutex_lock(mutex) == 0);
	for (int i = 0; i < 2; i++)
		MUST(pthread_create(&threads[i], NULL, awaits, mutex) == 0);
	volatile unsigned *word = (unsigned *)mutex;
	while (!(*word & 0x80000000u)) /* FUTEX_WAITERS */
		usleep(1000);
	stop();
	CHECK(*word == (0x80000000u | (unsigned)getpid()));
	CHECK(pthread_mutex_unlock(mutex) == 0);
	for (int i = 0; i < 2; i++)
		MUST(pthread_join(threads[i], NULL) == 0);
	CHECK(pthread_mutex_trylock(mutex) == 0);
}

static void secret(int argc, char **argv)
{
	int fd = syscall(447 /* memfd_secret */, 0);
	MUST(fd >= 0 && ftruncate(fd, PAGE) == 0);
	char *at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	MUST(at != MAP_FAILED);
	at[0] = 7;
	stop();
	CHECK(at[0] == 7);
}

static void two(int argc, char **argv)
{
	connected_(argc, argv);
	MUST(syscall(SYS_userfaultfd, O_CLOEXEC) >= 0);
	stop();
}

const struct scene refused_scenes[] = {
	{"socket-rights", socket_rights}, {"netlink", netlink}, {"proc-of-other", proc_of_other}, {"pending-connection", pending_connection},
	{"tcp", tcp}, {"child", child}, {"seccomp", seccomp}, {"thread-seccomp", thread_seccomp}, {"thread-cpu-timer", thread_cpu_timer},
	{"userfaultfd", userfaultfd}, {"io-uring", io_uring}, {"io-uring-registered", io_uring_registered}, {"sysv", sysv}, {"guard-shared", guard_shared},
	{"removed-directory", removed_directory}, {"namespace", namespace_},
	{"aio", aio}, {"outside-pipe", outside_pipe}, {"mapped-twice", mapped_twice}, {"pid-namespace", pid_namespace},
	{"thread-namespace", thread_namespace}, {"thread-itself", thread_itself}, {"deny-write-execute", deny_write_execute},
	{"descriptor-table", descriptor_table}, {"many-things", many_things},
	{"packet-pipe", packet_pipe}, {"inotify-unread", inotify_unread},
	{"owned-by-other", owned_by_other}, {"dnotify", dnotify}, {"hugetlb-shared", hugetlb_shared}, {"hugetlb-file", hugetlb_file}, {"nameless", nameless}, {"secret", secret}, {"message-queue", message_queue}, {"held-mutex", held_mutex}, {"awaited-mutex", awaited_mutex}, {"two", two}, {NULL, NULL},
};
