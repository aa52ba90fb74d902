package cli

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
	"pgregory.net/rapid"
)

// settings are what the flags of testCommand set.
type settings struct {
	All, Brief bool
	Dir, Mode  string
	Verbose, N int
}

func testCommand(s *settings) *Command {
	s.Mode = "full"
	return &Command{
		Name: "test", Args: "THING...", MinArgs: 0, MaxArgs: -1,
		Flags: []Flag{
			{Name: "all", Short: 'a', Value: Bool(&s.All)},
			{Name: "brief", Value: Bool(&s.Brief)},
			{Name: "dir", Short: 'D', Arg: "DIR", Value: String(&s.Dir)},
			{Name: "mode", Arg: "full|none", Value: Word(&s.Mode, "full", "none")},
			{Name: "verbose", Short: 'v', Value: Count(&s.Verbose)},
			{Name: "number", Short: 'n', Arg: "N", Value: Int(&s.N, 0, 1000)},
		},
		Hints: map[string]string{"-t": "there is no tree"},
	}
}

func TestParse(t *testing.T) {
	tests := []struct {
		args string
		want settings
		rest []string
	}{
		{"", settings{}, nil},
		{"x y", settings{}, []string{"x", "y"}},
		{"-a x --brief y", settings{All: true, Brief: true}, []string{"x", "y"}},
		{"--all=false --brief=true", settings{Brief: true}, nil},
		{"-D here", settings{Dir: "here"}, nil},
		{"-Dhere", settings{Dir: "here"}, nil},
		{"-D=here", settings{Dir: "here"}, nil},
		{"--dir here --dir=there", settings{Dir: "there"}, nil},
		{"-avDhere", settings{All: true, Verbose: 1, Dir: "here"}, nil},
		{"-vv -v", settings{Verbose: 3}, nil},
		{"--verbose=7", settings{Verbose: 7}, nil},
		{"--dir=", settings{}, nil},
		{"-D -a", settings{Dir: "-a"}, nil},
		{"-- -a --dir", settings{}, []string{"-a", "--dir"}},
		{"-", settings{}, []string{"-"}},
		{"--mode none -n 12", settings{Mode: "none", N: 12}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			var got settings
			rest, err := testCommand(&got).Parse(strings.Fields(tt.args))
			if err != nil {
				t.Fatal(err)
			}
			if tt.want.Mode == "" {
				tt.want.Mode = "full"
			}
			if diff := cmp.Diff(tt.want, got); diff != "" || !slices.Equal(rest, tt.rest) {
				t.Errorf("rest %q, want %q; (-want +got):\n%s", rest, tt.rest, diff)
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	tests := []struct{ args, problem, hint string }{
		{"--al", "test has no flag --al", "did you mean --all?"},
		{"--bref", "test has no flag --bref", "did you mean --brief?"},
		{"--zzz", "test has no flag --zzz", "see lazyrestore test --help"},
		{"-ax", "test has no flag -x", "see lazyrestore test --help"},
		{"-t", "test has no flag -t", "there is no tree"},
		{"--dir", "--dir needs a value: DIR", "see lazyrestore test --help"},
		{"-aD", "-D needs a value: DIR", "see lazyrestore test --help"},
		{"--mode non", `--mode "non": one of full, none is expected; did you mean none?`, "see lazyrestore test --help"},
		{"--number x", `--number "x": a number is expected`, "see lazyrestore test --help"},
		{"-n 1001", `-n "1001": at most 1000 is expected`, "see lazyrestore test --help"},
		{"--all=maybe", `--all "maybe": true or false is expected`, "see lazyrestore test --help"},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			_, err := testCommand(new(settings)).Parse(strings.Fields(tt.args))
			var usage *UsageError
			if !errors.As(err, &usage) {
				t.Fatalf("error %v, want a usage error", err)
			}
			if usage.Problem != tt.problem || usage.Hint != tt.hint {
				t.Errorf("got %q, hint %q\nwant %q, hint %q", usage.Problem, usage.Hint, tt.problem, tt.hint)
			}
		})
	}
	for _, args := range []string{"-h", "--help", "-ah"} {
		if _, err := testCommand(new(settings)).Parse([]string{args}); !errors.Is(err, ErrHelp) {
			t.Errorf("%s: error %v, want help", args, err)
		}
	}
}

// TestParseLikePflag holds the parser against pflag, which users know from
// other commands: what both accept means the same, and they accept the same.
func TestParseLikePflag(t *testing.T) {
	words := []string{
		"-a", "-v", "-vv", "-av", "-D", "-Dx", "-D=x", "-aDx", "--all", "--all=false", "--all=no", "--brief", "--dir", "--dir=x", "--dir=",
		"--verbose", "--verbose=3", "-n", "-n3", "--number", "--number=7", "7", "x", "-", "--", "-x", "--none", "-h", "--help", "",
	}
	rapid.Check(t, func(t *rapid.T) {
		args := rapid.SliceOfN(rapid.SampledFrom(words), 0, 6).Draw(t, "args")
		var ours, theirs settings
		rest, err := testCommand(&ours).Parse(args)

		f := pflag.NewFlagSet("test", pflag.ContinueOnError)
		f.SetOutput(nil)
		f.Usage = func() {}
		f.BoolVarP(&theirs.All, "all", "a", false, "")
		f.BoolVar(&theirs.Brief, "brief", false, "")
		f.StringVarP(&theirs.Dir, "dir", "D", "", "")
		f.StringVar(&theirs.Mode, "mode", "full", "")
		f.CountVarP(&theirs.Verbose, "verbose", "v", "")
		f.IntVarP(&theirs.N, "number", "n", 0, "")
		theirErr := f.Parse(args)
		if theirErr == nil && slices.Contains(f.Args(), "") {
			theirErr = errors.New("an argument is empty") // which is all the same to pflag
		}

		if (err == nil) != (theirErr == nil) || errors.Is(err, ErrHelp) != errors.Is(theirErr, pflag.ErrHelp) {
			t.Fatalf("%q: error %v, pflag's %v", args, err, theirErr)
		}
		if err != nil {
			return
		}
		if diff := cmp.Diff(theirs, ours); diff != "" || !slices.Equal(rest, f.Args()) {
			t.Fatalf("%q: rest %q, pflag's %q; (-pflag +ours):\n%s", args, rest, f.Args(), diff)
		}
	})
}

func TestParseSize(t *testing.T) {
	tests := []struct {
		in   string
		want int // -1: an error
	}{
		{"0", 0},
		{"65536", 65536},
		{"64k", 64 << 10},
		{"64K", 64 << 10},
		{"64KiB", 64 << 10},
		{"1MiB", 1 << 20},
		{"2g", 2 << 30},
		{"512B", 512},
		{"", -1},
		{"k", -1},
		{"-1", -1},
		{"1.5M", -1},
		{"64KB", -1},
		{"9999999999G", -1},
		{"99999999999999999999", -1},
	}
	for _, tt := range tests {
		got, err := ParseSize(tt.in)
		if (err != nil) != (tt.want < 0) || err == nil && got != tt.want {
			t.Errorf("ParseSize(%q) = %d, %v, want %d", tt.in, got, err, tt.want)
		}
	}
}

func TestNearest(t *testing.T) {
	words := []string{"checkpoint", "restore", "inspect", "verify", "check", "version", "completion"}
	for in, want := range map[string]string{
		"restor": "restore", "reostre": "restore", "chekpoint": "checkpoint", "chek": "check", "vrsion": "version", "verfiy": "verify",
		"frobnicate": "", "x": "", "": "",
	} {
		if got := Nearest(in, words); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestWrapKeepsWordsAndWidth(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		words := rapid.SliceOf(rapid.StringMatching(`[a-z]{1,20}`)).Draw(t, "words")
		text := wrap(strings.Join(words, " "), 10)
		if !slices.Equal(strings.Fields(text), words) {
			t.Fatalf("%q has other words than %q", text, words)
		}
		for line := range strings.Lines(text) {
			if len(strings.TrimSuffix(line, "\n")) > width {
				t.Fatalf("line %q is longer than %d", line, width)
			}
		}
	})
}
