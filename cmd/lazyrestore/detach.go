package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/cmd/internal/verb"
	"github.com/lazyrestore/lazyrestore/lazyrestore"
	"github.com/lazyrestore/lazyrestore/lazyrestore/pager"
)

// reportFlag names the pipe on which a detached restore tells the command that
// launched it how it went.
const reportFlag = "detached-report-fd"

// A detachedReport is the one message on that pipe.
type detachedReport struct {
	Result   *lazyrestore.RestoreResult `json:"result,omitempty"`
	Failure  *verb.Failure              `json:"failure,omitempty"`
	ExitCode int                        `json:"exit_code"`
}

// launch starts this command again in a session of its own and returns when
// that one says that the process runs.
func (v *restoreVerb) launch() error {
	// Until it reports, what ends this command ends the restore. Nothing is made before.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, verb.NotIgnored(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM)...)
	dir, err := runtimeDir()
	if err != nil {
		return err
	}
	log, err := os.CreateTemp(dir, "restore-*.log")
	if err != nil {
		return err
	}
	defer log.Close()
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()

	cmd := exec.Command("/proc/self/exe", append([]string{"restore", "--" + reportFlag + "=3"}, os.Args[2:]...)...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdout, cmd.Stderr = v.detachedStdio(os.Stdout, log), v.detachedStdio(os.Stderr, log)
	if v.opts.Stdio == lazyrestore.StdioInherit {
		cmd.Stdin = os.Stdin
	}
	cmd.ExtraFiles = []*os.File{write, log}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = pager.WithOwnSlack(cmd.Start)
	write.Close()
	if err != nil {
		return err
	}
	reported := make(chan struct{})
	var interrupted atomic.Value // the last of them
	go func() {
		for {
			select {
			case sig := <-signals:
				interrupted.Store(sig)
				cmd.Process.Signal(unix.SIGTERM)
			case <-reported:
				return
			}
		}
	}()
	text, err := io.ReadAll(read)
	close(reported)
	if err != nil {
		return fmt.Errorf("wait for the detached restore: %w", err)
	}
	by, _ := interrupted.Load().(unix.Signal)
	return v.reported(text, log.Name(), by)
}

// detachedStdio is what a detached process writes to: ours, unless that is a
// pipe, whose reader would wait for the end of the process.
func (v *restoreVerb) detachedStdio(f, log *os.File) *os.File {
	info, err := f.Stat()
	if err == nil && info.Mode()&(os.ModeNamedPipe|os.ModeSocket) == 0 || v.opts.Stdio == lazyrestore.StdioInherit {
		return f
	}
	return log
}

// reported acts on the message of the detached restore. There is none where that has ended
// before it could tell, as a signal has it that is passed on before anybody listens there.
func (v *restoreVerb) reported(text []byte, log string, interrupted unix.Signal) error {
	var r detachedReport
	if err := json.Unmarshal(text, &r); err != nil {
		if info, err := os.Stat(log); interrupted != 0 && err == nil && info.Size() == 0 {
			os.Remove(log)
			return fmt.Errorf("interrupted by %s", unix.SignalName(interrupted))
		}
		return fmt.Errorf("the detached restore ended before the process ran; its log is %s", log)
	}
	if r.Failure != nil {
		os.Remove(log)
		if v.JSON {
			v.PrintJSON(r.Failure)
		}
		r.Failure.Write(v.Stderr, "restore", "")
		return verb.Status(r.ExitCode)
	}
	v.Acted = true
	v.warn(*r.Result)
	// Under the pid it is found, and the next restore of it takes its place.
	if err := nameLog(log, r.Result.PID); err != nil && !errors.Is(err, os.ErrNotExist) {
		v.Note("warning: " + err.Error())
	}
	if v.JSON {
		v.PrintJSON(r.Result)
	} else {
		v.Print(strconv.Itoa(r.Result.PID) + "\n")
	}
	return nil
}

// daemon is the detached restore itself.
func (v *restoreVerb) daemon() error {
	pipe := os.NewFile(uintptr(v.report), "report")
	log := os.NewFile(uintptr(v.report+1), "log")
	syscall.CloseOnExec(v.report)
	syscall.CloseOnExec(v.report + 1)
	v.Stderr, v.JSON = log, false // the command that launched it prints the object
	v.opts.Logger = v.Logger(log)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()

	verb.OutliveReaders()
	s, err := v.start(ctx, nil)
	report := detachedReport{ExitCode: verb.ExitCode(err)}
	if err != nil {
		f := verb.DescribeFailure(err)
		report.Failure = &f
	} else {
		result := s.Result()
		report.Result = &result
	}
	text, jsonErr := json.Marshal(report)
	if jsonErr == nil {
		_, jsonErr = pipe.Write(text)
	}
	pipe.Close()
	if err != nil {
		return errors.Join(err, jsonErr)
	}
	if jsonErr != nil {
		return errors.Join(fmt.Errorf("the command that asked for it has ended before it was told that process %d runs: %w", s.PID(), jsonErr), s.undo())
	}
	stop()
	err = s.untilResident()
	if err == nil {
		dropLog(log)
	}
	if dir, dirErr := runtimeDir(); dirErr == nil {
		sweepLogs(dir)
	}
	return err
}

// undo ends a process of which nobody has been told: what ends the command that launched
// this one ends the restore.
func (s *supervised) undo() error {
	err := s.Signal(unix.SIGKILL)
	_, waitErr := s.Wait()
	err = errors.Join(err, waitErr, s.WaitPager())
	s.writeStats()
	return errors.Join(err, s.Close())
}

// dropLog removes a log that is empty and that the process does not write to.
func dropLog(log *os.File) {
	info, err := log.Stat()
	if err != nil || info.Size() > 0 {
		return
	}
	for _, f := range []*os.File{os.Stdout, os.Stderr} {
		if other, err := f.Stat(); err == nil && os.SameFile(info, other) {
			return
		}
	}
	if path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(log.Fd()))); err == nil {
		os.Remove(path)
	}
}

// untilResident looks after a detached process until it needs nobody: one that asks for
// a signal when its parent ends needs it for as long as it lives.
func (s *supervised) untilResident() error {
	ended := make(chan struct{})
	go func() { // reaps it, should it end before its pager
		defer close(ended)
		_, _ = s.Wait()
	}()
	err := s.WaitPager()
	s.writeStats()
	err = errors.Join(err, s.Close()) // the image is not held for the life of the process
	if s.DeathSignal() {
		<-ended
	}
	return err
}

// runtimeDir makes the directory where logs and sockets of restores are, if it is
// not there, and sees that nobody else writes to it.
func runtimeDir() (string, error) {
	dir := lazyrestore.RunDir()
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return "", fmt.Errorf("look at %s: %w", dir, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Uid != uint32(os.Geteuid()) || st.Mode&0o022 != 0 {
		return "", fmt.Errorf("%s is not a directory that only we write to", dir)
	}
	return dir, nil
}
