package criucli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// defaults is what nothing said gives.
func defaults(change func(o *Options)) Options {
	o := Options{ImagesDir: ".", Verbosity: 2, StatusFD: -1, Socket: -1, Own: map[string]string{}}
	change(&o)
	return o
}

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want Options
	}{
		{"", defaults(func(o *Options) {})},
		{"-D /tmp/x -W w", defaults(func(o *Options) { o.ImagesDir, o.WorkDir = "/tmp/x", "w" })},
		{"-D/tmp/x --work-dir=w", defaults(func(o *Options) { o.ImagesDir, o.WorkDir = "/tmp/x", "w" })},
		{"--images x --pidf p", defaults(func(o *Options) { o.ImagesDir, o.PidFile = "x", "p" })},
		{"-d -o log", defaults(func(o *Options) { o.Daemon, o.LogFile = true, "log" })},
		{"-dolog", defaults(func(o *Options) { o.Daemon, o.LogFile = true, "log" })},
		{"--daemon --no-daemon", defaults(func(o *Options) {})},
		{"--no-dae --dae", defaults(func(o *Options) { o.Daemon = true })},
		{"-v", defaults(func(o *Options) { o.Verbosity = 1 })},
		{"-v4", defaults(func(o *Options) { o.Verbosity = 4 })},
		{"-vvv", defaults(func(o *Options) { o.Verbosity = 3 })},
		{"-v -v", defaults(func(o *Options) { o.Verbosity = 2 })},
		{"--verbosity=3", defaults(func(o *Options) { o.Verbosity = 3 })},
		{"--verbosity", defaults(func(o *Options) { o.Verbosity = 1 })},
		{"--status-fd 5 --ps-socket=6", defaults(func(o *Options) { o.StatusFD, o.Socket = 5, 6 })},
		{"--page-server --address a --port 7 --tls --tls-cace c --tls-cert d --tls-key e --tls-no-cn-verify", defaults(func(o *Options) {
			o.PageServer, o.Address, o.Port, o.TLS = true, "a", "7", true
			o.CACert, o.Cert, o.Key, o.NoCNVerify = "c", "d", "e", true
		})},
		// One of CRIU's that we have no use for takes its argument along.
		{"-t 1 --shell-job --ext-unix-sk -x -x=s -jx --external x --no-tcp-close -j -M y --skip-mnt z", defaults(func(o *Options) {})},
		{"--mine x word --flag -- -D", defaults(func(o *Options) {
			o.Own = map[string]string{"mine": "x", "flag": ""}
			o.Args = []string{"word", "-D"}
		})},
	} {
		t.Run(tt.in, func(t *testing.T) {
			got, err := Parse(append([]string{"--no-default-config"}, strings.Fields(tt.in)...), Own{"mine", true}, Own{"flag", false})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, *got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for _, in := range []string{
		"--nonsense", "-X", "--tls-ca x", "--images-dir", "-D", "--daemon=yes", "--status-fd x", "--status-fd -3",
		"--verbosity=much", "--no-images-dir", "--no-lazy-pages", "--l",
	} {
		if o, err := Parse(append([]string{"--no-default-config"}, strings.Fields(in)...)); err == nil {
			t.Errorf("%s: %+v", in, o)
		}
	}
}

func TestConfigurationFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "criu.conf")
	text := "# of ours\nverbosity 4   # much\nwork-dir \"/tmp/a b\"\n\ntcp-established\npidfile with\\ blank\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := Parse([]string{"--no-default-config", "--config", file, "-W", "w"})
	if err != nil {
		t.Fatal(err)
	}
	if o.Verbosity != 4 || o.WorkDir != "w" || o.PidFile != "with blank" {
		t.Errorf("%+v: the file goes first, and the command line over it", o)
	}
	if _, err := Parse([]string{"--config", file + "x"}); err == nil {
		t.Error("a configuration file that is not there is no error")
	}
}
