/* Prints the numbers of <linux/userfaultfd.h>, one "name value" a line, for
 * TestABIHeader. What the header is too old for is left out. */
#include <stddef.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <linux/types.h>
#include <linux/userfaultfd.h>

#define SHOW(name) printf("%s 0x%llx\n", #name, (unsigned long long)(name))
#define SIZE(type) printf("sizeof(%s) 0x%zx\n", #type, sizeof(struct type))
#define AT(type, field) printf("%s.%s 0x%zx\n", #type, #field, offsetof(struct type, field))

int main(void)
{
	SHOW(UFFD_API);
	SHOW(UFFDIO_API);
	SHOW(UFFDIO_REGISTER);
	SHOW(UFFDIO_UNREGISTER);
	SHOW(UFFDIO_WAKE);
	SHOW(UFFDIO_COPY);
	SHOW(UFFDIO_ZEROPAGE);

	SIZE(uffdio_api);
	AT(uffdio_api, api);
	AT(uffdio_api, features);
	AT(uffdio_api, ioctls);
	SIZE(uffdio_range);
	AT(uffdio_range, start);
	AT(uffdio_range, len);
	SIZE(uffdio_register);
	AT(uffdio_register, range);
	AT(uffdio_register, mode);
	AT(uffdio_register, ioctls);
	SIZE(uffdio_copy);
	AT(uffdio_copy, dst);
	AT(uffdio_copy, src);
	AT(uffdio_copy, len);
	AT(uffdio_copy, mode);
	AT(uffdio_copy, copy);
	SIZE(uffdio_zeropage);
	AT(uffdio_zeropage, range);
	AT(uffdio_zeropage, mode);
	AT(uffdio_zeropage, zeropage);

	SIZE(uffd_msg);
	AT(uffd_msg, event);
	AT(uffd_msg, arg.pagefault.flags);
	AT(uffd_msg, arg.pagefault.address);
	AT(uffd_msg, arg.pagefault.feat.ptid);
	AT(uffd_msg, arg.fork.ufd);
	AT(uffd_msg, arg.remap.from);
	AT(uffd_msg, arg.remap.to);
	AT(uffd_msg, arg.remap.len);
	AT(uffd_msg, arg.remove.start);
	AT(uffd_msg, arg.remove.end);

	SHOW(UFFD_EVENT_PAGEFAULT);
	SHOW(UFFD_EVENT_FORK);
	SHOW(UFFD_EVENT_REMAP);
	SHOW(UFFD_EVENT_REMOVE);
	SHOW(UFFD_EVENT_UNMAP);
	SHOW(UFFD_PAGEFAULT_FLAG_WRITE);
	SHOW(UFFD_PAGEFAULT_FLAG_WP);
	SHOW(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	SHOW(UFFD_FEATURE_EVENT_FORK);
	SHOW(UFFD_FEATURE_EVENT_REMAP);
	SHOW(UFFD_FEATURE_EVENT_REMOVE);
	SHOW(UFFD_FEATURE_MISSING_HUGETLBFS);
	SHOW(UFFD_FEATURE_MISSING_SHMEM);
	SHOW(UFFD_FEATURE_EVENT_UNMAP);
	SHOW(UFFD_FEATURE_SIGBUS);
	SHOW(UFFD_FEATURE_THREAD_ID);
	SHOW(UFFDIO_REGISTER_MODE_MISSING);
	SHOW(UFFDIO_REGISTER_MODE_WP);
	SHOW(UFFDIO_COPY_MODE_DONTWAKE);
	SHOW(UFFDIO_ZEROPAGE_MODE_DONTWAKE);

#ifdef UFFDIO_WRITEPROTECT /* Linux 5.7 */
	SHOW(UFFDIO_WRITEPROTECT);
	SIZE(uffdio_writeprotect);
	AT(uffdio_writeprotect, range);
	AT(uffdio_writeprotect, mode);
	SHOW(UFFDIO_COPY_MODE_WP);
	SHOW(UFFDIO_WRITEPROTECT_MODE_WP);
	SHOW(UFFDIO_WRITEPROTECT_MODE_DONTWAKE);
#endif
#ifdef UFFD_USER_MODE_ONLY /* 5.11 */
	SHOW(UFFD_USER_MODE_ONLY);
#endif
#ifdef UFFDIO_CONTINUE /* 5.13 */
	SHOW(UFFDIO_CONTINUE);
	SIZE(uffdio_continue);
	AT(uffdio_continue, range);
	AT(uffdio_continue, mode);
	AT(uffdio_continue, mapped);
	SHOW(UFFD_PAGEFAULT_FLAG_MINOR);
	SHOW(UFFD_FEATURE_MINOR_HUGETLBFS);
	SHOW(UFFDIO_REGISTER_MODE_MINOR);
	SHOW(UFFDIO_CONTINUE_MODE_DONTWAKE);
#endif
#ifdef UFFD_FEATURE_MINOR_SHMEM /* 5.14 */
	SHOW(UFFD_FEATURE_MINOR_SHMEM);
#endif
#ifdef UFFD_FEATURE_EXACT_ADDRESS /* 5.18 */
	SHOW(UFFD_FEATURE_EXACT_ADDRESS);
#endif
#ifdef UFFD_FEATURE_WP_HUGETLBFS_SHMEM /* 5.19 */
	SHOW(UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
#endif
#ifdef USERFAULTFD_IOC_NEW /* 6.1 */
	SHOW(USERFAULTFD_IOC_NEW);
#endif
#ifdef UFFD_FEATURE_WP_UNPOPULATED /* 6.4 */
	SHOW(UFFD_FEATURE_WP_UNPOPULATED);
	SHOW(UFFDIO_CONTINUE_MODE_WP);
#endif
#ifdef UFFDIO_POISON /* 6.6 */
	SHOW(UFFDIO_POISON);
	SIZE(uffdio_poison);
	AT(uffdio_poison, range);
	AT(uffdio_poison, mode);
	AT(uffdio_poison, updated);
	SHOW(UFFD_FEATURE_POISON);
	SHOW(UFFDIO_POISON_MODE_DONTWAKE);
#endif
#ifdef UFFD_FEATURE_WP_ASYNC /* 6.7 */
	SHOW(UFFD_FEATURE_WP_ASYNC);
#endif
#ifdef UFFDIO_MOVE /* 6.8 */
	SHOW(UFFDIO_MOVE);
	SIZE(uffdio_move);
	AT(uffdio_move, dst);
	AT(uffdio_move, src);
	AT(uffdio_move, len);
	AT(uffdio_move, mode);
	AT(uffdio_move, move);
	SHOW(UFFD_FEATURE_MOVE);
	SHOW(UFFDIO_MOVE_MODE_DONTWAKE);
	SHOW(UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES);
#endif
	return 0;
}
