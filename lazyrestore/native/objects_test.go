package native

import "testing"

func TestObjectName(t *testing.T) {
	for _, tt := range []struct{ link, want string }{
		{"/memfd:heap (deleted)", "heap"},
		{"/memfd: (deleted)", ""},
		{"/memfd:/jit/code (old) (deleted)", "/jit/code (old)"},
		{"/memfd:twice (deleted) (deleted)", "twice (deleted)"},
		{"/dev/zero (deleted)", "zero"},
		{"/tmp/memfd:a/log (deleted)", "log"},
		{"/dev/shm/ring", "ring"},
	} {
		if got := objectName(tt.link); got != tt.want {
			t.Errorf("the object of %q has the name %q, want %q", tt.link, got, tt.want)
		}
	}
}
