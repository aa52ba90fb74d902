package main

import (
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Where Yama keeps processes of one user apart, none but CAP_SYS_PTRACE helps, and check says so.
func TestTraceScope(t *testing.T) {
	tests := []struct {
		caps     uint64
		scope    string
		ok       bool // the capability is there
		required bool // for a checkpoint
		found    string
	}{
		{0, "0", false, false, ""},
		{1 << unix.CAP_SYS_PTRACE, "0", true, false, ""},
		{0, "1", false, true, "ptrace_scope is 1"},
		{1 << unix.CAP_SYS_PTRACE, "1", true, true, ""},
	}
	_, after, ok := strings.Cut(string(readFile("/proc/self/status")), "CapEff:")
	if !ok {
		t.Fatal("/proc/self/status has no capabilities")
	}
	line, _, _ := strings.Cut(after, "\n")
	for _, tt := range tests {
		caps := strconv.FormatUint(tt.caps|1<<63, 16)[1:] // 16 digits
		status := strings.Replace(string(readFile("/proc/self/status")), "CapEff:"+line, "CapEff:\t0"+caps, 1)
		f := probeCapabilities([]byte(status), tt.scope)[0]
		if f.Name != "CAP_SYS_PTRACE" || f.OK != tt.ok || f.Checkpoint != tt.required || !strings.Contains(f.Found, tt.found) || (f.Found == "") != (tt.found == "") {
			t.Errorf("capabilities %x, scope %s: %+v", tt.caps, tt.scope, f)
		}
	}
}
