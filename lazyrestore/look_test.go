package lazyrestore_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A look is what /proc tells of a process, in lines that are the same before
// a checkpoint and after a restore.
type look map[string]string

// lookAt looks at all that /proc has of a process without touching its memory.
func lookAt(t testing.TB, pid int) look {
	t.Helper()
	l := make(look)
	dir := "/proc/" + strconv.Itoa(pid)
	for _, link := range []string{"exe", "cwd", "root"} {
		l[link] = must(os.Readlink(filepath.Join(dir, link)))(t)
	}
	for _, file := range []string{"comm", "auxv", "limits", "personality", "timerslack_ns", "oom_score_adj", "coredump_filter", "loginuid", "cgroup", "uid_map"} {
		text, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			continue // not in every kernel
		}
		l[file] = string(text)
	}
	l.mappings(t, dir)
	l.descriptors(t, dir)
	l.status(t, dir, "process ")
	for _, task := range must(os.ReadDir(filepath.Join(dir, "task")))(t) {
		tid := must(strconv.Atoi(task.Name()))(t)
		l.status(t, filepath.Join(dir, "task", task.Name()), "thread "+task.Name()+" ")
		var cpus unix.CPUSet
		if err := unix.SchedGetaffinity(tid, &cpus); err != nil {
			t.Fatal(err)
		}
		l["thread "+task.Name()+" cpus"] = fmt.Sprint(cpus)
	}
	return l
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// statusLines are those of /proc/PID/status that do not change by themselves.
var statusLines = regexp.MustCompile(`(?m)^(Name|Umask|Tgid|Ngid|Pid|TracerPid|Uid|Gid|FDSize|Groups|NStgid|NSpid|` +
	`Threads|SigPnd|ShdPnd|SigBlk|SigIgn|SigCgt|Cap\w+|NoNewPrivs|Seccomp\w*|Speculation\w+|Cpus_allowed|Mems_allowed|THP_enabled|CoreDumping|VmLck):\s*(.*)$`)

func (l look) status(t testing.TB, dir, prefix string) {
	t.Helper()
	text := must(os.ReadFile(filepath.Join(dir, "status")))(t)
	for _, m := range statusLines.FindAllStringSubmatch(string(text), -1) {
		if m[1] != "FDSize" { // it only ever grows
			l[prefix+m[1]] = m[2]
		}
	}
	stat := string(must(os.ReadFile(filepath.Join(dir, "stat")))(t))
	f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	// See proc(5); f[0] is field 3. nice, code, stack, exit signal, policy,
	// data, brk, arguments, environment.
	for _, n := range []int{19, 26, 27, 28, 38, 40, 41, 45, 46, 47, 48, 49, 50, 51} {
		l[fmt.Sprintf("%sstat field %d", prefix, n)] = f[n-3]
	}
}

var (
	// inodeColumns are the device and inode of a mapping, which are new where
	// the file is the kernel's own.
	inodeColumns  = regexp.MustCompile(` [0-9a-f]+:[0-9a-f]+ \d+ +`)
	smapsLines    = regexp.MustCompile(`(?m)^([0-9a-f]+-[0-9a-f]+ .*|(?:VmFlags|KernelPageSize|THPeligible|ProtectionKey): .*)$`)
	watchedEvents = regexp.MustCompile(`events: *[0-9a-f]+`)
	numbered      = regexp.MustCompile(`\[\d+\]`)
	// madeAnew are names of files of the kernel that a restore makes again.
	madeAnew = regexp.MustCompile(`(/dev/shm/|/dev/|/memfd:|/)([^/]*) \(deleted\)`)
)

// mappings takes maps and the flags of smaps. The lazy ranges of a mapping
// are registered for a while, which parts it: so neighbours that are alike are
// joined, and the flag of the registration is left out.
func (l look) mappings(t testing.TB, dir string) {
	t.Helper()
	text := string(must(os.ReadFile(filepath.Join(dir, "smaps")))(t))
	type mapping struct{ start, end, rest string }
	var all []mapping
	for _, line := range smapsLines.FindAllString(text, -1) {
		if !strings.Contains(line[:min(len(line), 20)], "-") || strings.Contains(line[:14], ":") {
			m := &all[len(all)-1]
			// um: registered; sd: soft-dirty; ac: accounted, which a mapping made
			// without PROT_WRITE is not until it gets it.
			for _, flag := range []string{" um", " sd", " ac"} {
				line = strings.ReplaceAll(line, flag, "")
			}
			if !strings.HasPrefix(line, "THPeligible") { // so is a registered one not
				m.rest += "; " + strings.Join(strings.Fields(line), " ")
			}
			continue
		}
		line = inodeColumns.ReplaceAllString(line, " ")
		line = madeAnew.ReplaceAllString(line, "/$2 (deleted)")
		at, rest, _ := strings.Cut(line, " ")
		start, end, _ := strings.Cut(at, "-")
		all = append(all, mapping{start, end, rest})
	}
	for i := 0; i < len(all); i++ {
		m := all[i]
		for i+1 < len(all) && all[i+1].start == m.end && anonymousAlike(all[i+1].rest, m.rest) {
			i++
			m.end = all[i].end
			m.rest = max(m.rest, all[i].rest) // the one with the name
		}
		l["mapping "+m.start+"-"+m.end] = m.rest
	}
}

// anonymousAlike reports whether two neighbours are one mapping to their
// program: neither has a file, and nothing but the kernel's word for what is in
// them, which goes by one address, tells them apart.
func anonymousAlike(a, b string) bool {
	for _, name := range []string{"[stack]", "[heap]"} {
		a, b = strings.Replace(a, name, "", 1), strings.Replace(b, name, "", 1)
	}
	return a == b && !strings.Contains(a, " /")
}

// withoutAlways leaves EPOLLERR and EPOLLHUP out, which a watch has unless it
// was used up, and again after a restore.
func withoutAlways(events string) string {
	var mask uint32
	_, _ = fmt.Sscanf(events, "events: %x", &mask)
	return fmt.Sprintf("events: %x", mask&^(unix.EPOLLERR|unix.EPOLLHUP))
}

func (l look) descriptors(t testing.TB, dir string) {
	t.Helper()
	for _, fd := range must(os.ReadDir(filepath.Join(dir, "fd")))(t) {
		target := must(os.Readlink(filepath.Join(dir, "fd", fd.Name())))(t)
		target = numbered.ReplaceAllString(target, "[N]")
		target = madeAnew.ReplaceAllString(target, "/$2 (deleted)")
		info := string(must(os.ReadFile(filepath.Join(dir, "fdinfo", fd.Name())))(t))
		var kept []string
		for _, line := range strings.Split(info, "\n") {
			if key, _, _ := strings.Cut(line, ":"); key != "mnt_id" && key != "ino" && key != "eventfd-id" {
				line, _, _ = strings.Cut(line, " pos:")
				kept = append(kept, watchedEvents.ReplaceAllStringFunc(line, withoutAlways))
			}
		}
		slices.Sort(kept) // the watches of an epoll are in no order
		l["descriptor "+fd.Name()] = target + " " + strings.Join(kept, " ")
	}
}

// compareLooks fails the test where two looks differ, but for the names that
// match a pattern of changed.
func compareLooks(t testing.TB, before, after look, changed []string) {
	t.Helper()
	names := slices.Sorted(maps.Keys(before))
	for name := range after {
		if _, ok := before[name]; !ok {
			names = append(names, name)
		}
	}
	for _, name := range names {
		excused := slices.ContainsFunc(changed, func(pattern string) bool { return regexp.MustCompile(pattern).MatchString(name) })
		if before[name] != after[name] && !excused {
			t.Errorf("%s was %q, is %q", name, before[name], after[name])
		}
	}
}
