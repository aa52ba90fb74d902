package imgfile

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"google.golang.org/protobuf/proto"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// ParentLink is the name, in an image set, of the symbolic link to the set
// that it builds on.
const ParentLink = "parent"

// A Dir is a directory with an image set.
type Dir struct {
	path string // absolute
}

// Open is the image set in the directory at path. It reads nothing of it.
func Open(path string) (*Dir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(abs)
	if err != nil {
		return nil, err
	}
	if !st.IsDir() {
		return nil, &fs.PathError{Op: "open image set", Path: abs, Err: errors.New("not a directory")}
	}
	return &Dir{path: abs}, nil
}

// Path is the absolute path of the directory.
func (d *Dir) Path() string { return d.path }

// File is the absolute path of a file of the set.
func (d *Dir) File(name string) string { return filepath.Join(d.path, name) }

// Parent is the set that this one builds on, nil if there is none.
func (d *Dir) Parent() (*Dir, error) {
	link := d.File(ParentLink)
	if _, err := os.Lstat(link); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	// Resolved, so that its own "parent" is not looked for through this one.
	path, err := filepath.EvalSymlinks(link)
	if err != nil {
		return nil, fmt.Errorf("image set that %s builds on: %w", d.path, err)
	}
	return Open(path)
}

// LinkParent makes the set build on the one at path, which is taken as
// relative to the directory of the set, as CRIU's --prev-images-dir is.
func (d *Dir) LinkParent(path string) error { return os.Symlink(path, d.File(ParentLink)) }

// open opens a file of the set behind a reader of its records.
func (d *Dir) open(name string, magic Magic) (*Reader, io.Closer, error) {
	f, err := OpenFile(d.File(name))
	if err != nil {
		return nil, nil, err
	}
	r, err := NewReader(bufio.NewReaderSize(f, 64<<10), f.Name(), magic)
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return r, f, nil
}

// one reads a file that has one record.
func (d *Dir) one(name string, magic Magic, m proto.Message) error {
	r, c, err := d.open(name, magic)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := r.Decode(m); errors.Is(err, io.EOF) {
		return r.damaged(io.ErrUnexpectedEOF)
	} else if err != nil {
		return err
	}
	return nil
}

// Inventory is what inventory.img says of the whole set.
func (d *Dir) Inventory() (*inventory.InventoryEntry, error) {
	m := new(inventory.InventoryEntry)
	return m, d.one("inventory.img", MagicInventory, m)
}

// Stamps are those of all image files of the set.
func (d *Dir) Stamps() (Stamps, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, err
	}
	all := make(Stamps, len(entries))
	for _, e := range entries {
		if !e.Type().IsRegular() || filepath.Ext(e.Name()) != ".img" {
			continue
		}
		f, err := OpenFile(d.File(e.Name()))
		if err != nil {
			return nil, err
		}
		all[f.Name()], err = StampOf(f)
		f.Close() // only read from
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// Changed is an error if the image files are others than they were.
func (d *Dir) Changed(since Stamps) error {
	now, err := d.Stamps()
	if err != nil {
		return err
	}
	for path := range now {
		if _, ok := since[path]; !ok {
			return &DamagedError{File: path, Err: errChanged}
		}
	}
	return since.Changed()
}

// A Task is an entry of the process tree. Ids are those that the task had,
// and gets again, in its own pid namespace.
type Task struct {
	Pid, Parent, Group, Session int
	Threads                     []int // the task's own id among them
}

// Tasks is the process tree in the order of pstree.img: parents come first.
// Zombies are in it, and have no memory.
func (d *Dir) Tasks() ([]Task, error) {
	r, c, err := d.open("pstree.img", MagicPstree)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var tasks []Task
	seen := map[int]bool{}
	for {
		at := r.off
		var m pstree.PstreeEntry
		if err := r.Decode(&m); errors.Is(err, io.EOF) {
			return tasks, nil
		} else if err != nil {
			return nil, err
		}
		t := Task{Pid: int(m.GetPid()), Parent: int(m.GetPpid()), Group: int(m.GetPgid()), Session: int(m.GetSid())}
		if seen[t.Pid] {
			return nil, &DamagedError{File: r.name, Offset: at, Err: fmt.Errorf("task %d is in the tree twice", t.Pid)}
		}
		seen[t.Pid] = true
		for _, id := range m.GetThreads() {
			t.Threads = append(t.Threads, int(id))
		}
		tasks = append(tasks, t)
	}
}

// MM is what mm-PID.img says of a task's memory as a whole.
func (d *Dir) MM(pid int) (*mm.MmEntry, error) {
	m := new(mm.MmEntry)
	return m, d.one(fmt.Sprintf("mm-%d.img", pid), MagicMM, m)
}

// A VMAStatus says what kind of memory a VMA is (CRIU's include/image.h).
type VMAStatus uint32

// The bits of a VMAStatus that matter to who gives the memory's pages.
const (
	VMARegular     VMAStatus = 1 << 0 // dumped and restored as memory
	VMAVsyscall    VMAStatus = 1 << 2
	VMAVDSO        VMAStatus = 1 << 3
	VMAFilePrivate VMAStatus = 1 << 6
	VMAFileShared  VMAStatus = 1 << 7
	VMAAnonShared  VMAStatus = 1 << 8
	VMAAnonPrivate VMAStatus = 1 << 9
	VMASysVIPC     VMAStatus = 1 << 10
	VMAVVAR        VMAStatus = 1 << 12
	VMAAIORing     VMAStatus = 1 << 13
	VMAMemfd       VMAStatus = 1 << 14
	VMAGuard       VMAStatus = 1 << 16 // guard regions inside of other VMAs
)

// A VMA is one of a task's memory areas.
type VMA struct {
	page.Range
	Prot, Flags uint32 // of mmap(2)
	Status      VMAStatus
	ShmID       uint64 // of the shared memory object, or the file
	Offset      uint64 // in it, in bytes
}

// VMAs is a task's memory areas in the order of the file: ascending, but for
// guard regions, which come last.
func (d *Dir) VMAs(pid int) ([]VMA, error) {
	m, err := d.MM(pid)
	if err != nil {
		return nil, err
	}
	vmas := make([]VMA, 0, len(m.GetVmas()))
	for _, v := range m.GetVmas() {
		r := page.Range{Start: page.Addr(v.GetStart()), End: page.Addr(v.GetEnd())}
		if r.Empty() || !r.Start.Aligned() || !r.End.Aligned() {
			return nil, &DamagedError{File: d.File(fmt.Sprintf("mm-%d.img", pid)), Err: fmt.Errorf("VMA %v is no range of pages", r)}
		}
		vmas = append(vmas, VMA{
			Range: r, Prot: v.GetProt(), Flags: v.GetFlags(), Status: VMAStatus(v.GetStatus()),
			ShmID: v.GetShmid(), Offset: v.GetPgoff(),
		})
	}
	return vmas, nil
}
