package harness

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Machine is what figures were taken on and with.
type Machine struct {
	OS     string `json:"goos"`
	Arch   string `json:"goarch"`
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Memory uint64 `json:"memory_bytes"`
	Kernel string `json:"kernel"`
	// Images is where images lie and what the page cache has of them before a
	// restore.
	Images string `json:"images"`
	// Version is that of the command under test, CRIU that of the other one with
	// the flags that it is run with, or why there is none.
	Version string    `json:"lazyrestore"`
	CRIU    string    `json:"criu"`
	Load    string    `json:"load"` // of the machine when the run began
	Began   time.Time `json:"began"`
}

// Machine looks at the machine.
func (e *Env) Machine() Machine {
	m := Machine{
		OS: runtime.GOOS, Arch: runtime.GOARCH, CPU: cpuModel(), Cores: runtime.NumCPU(),
		Kernel: "unknown", Began: time.Now(), CRIU: "none found",
		Images: e.fileSystem() + ", page cache " + string(e.opts.Cache) + " before each restore",
	}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		m.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.Memory = info.Totalram * uint64(info.Unit)
	}
	if e.onTmpfs() {
		m.Images = "tmpfs: the page cache is all there is"
	}
	if argv, err := findCRIU(e.opts.CRIU); err == nil {
		m.CRIU = criuVersion(argv) + "; " + criuFlags
	}
	if text, err := exec.Command(e.opts.Lazyrestore, "version").Output(); err == nil {
		m.Version, _, _ = strings.Cut(strings.TrimSpace(string(text)), "\n")
	}
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.Load = strings.Join(strings.Fields(string(text))[:3], " ")
	}
	return m
}

// Lines are the facts with their names, as configuration lines of Go's benchmark
// format have them.
func (m *Machine) Lines() [][2]string {
	return [][2]string{
		{"goos", m.OS},
		{"goarch", m.Arch},
		{"pkg", "github.com/lazyrestore/lazyrestore/bench"},
		{"cpu", m.CPU},
		{"cores", fmt.Sprint(m.Cores)},
		{"memory", show(float64(m.Memory), "B")},
		{"kernel", m.Kernel},
		{"lazyrestore", m.Version},
		{"criu", m.CRIU},
		{"images", m.Images},
		{"load", m.Load + " (1, 5, 15 minutes before)"},
		{"began", m.Began.UTC().Format(time.RFC3339)},
	}
}

// Describe writes the lines.
func (m *Machine) Describe(w io.Writer) {
	for _, line := range m.Lines() {
		fmt.Fprintf(w, "%s: %s\n", line[0], line[1])
	}
}

func cpuModel() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

// fileSystem names the one that images lie on.
func (e *Env) fileSystem() string {
	var info unix.Statfs_t
	if unix.Statfs(e.dir, &info) != nil {
		return "a disk"
	}
	switch info.Type {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlayfs"
	case unix.NFS_SUPER_MAGIC:
		return "nfs"
	}
	return fmt.Sprintf("a file system of type %#x", info.Type)
}
