package criucli

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// ErrHelp and ErrVersion are what Parse returns for --help and --version.
var (
	ErrHelp    = errors.New("help is wanted")
	ErrVersion = errors.New("the version is wanted")
)

// Options is what a command line said, as far as the verbs that stand in for
// CRIU's look at it.
type Options struct {
	ImagesDir string // "." unless said
	WorkDir   string // where names below are looked for; empty: ImagesDir
	Parent    string // --prev-images-dir

	LogFile   string // empty or "-": standard error
	Verbosity int    // 1 errors, 2 warnings (the default), 3 information, 4 debugging
	Stats     bool   // --display-stats

	Daemon   bool
	PidFile  string
	StatusFD int // -1 unless said

	PageServer bool
	LazyPages  bool
	Address    string
	Port       string
	Socket     int // --ps-socket; -1 unless said
	AutoDedup  bool

	TLS                      bool
	CACert, CACRL, Cert, Key string
	NoCNVerify               bool

	Own  map[string]string // options of our own that were given
	Args []string          // words that are no options
}

// A UsageError is a mistake on the command line.
type UsageError struct{ Problem, Hint string }

// Error is the problem and the hint.
func (e *UsageError) Error() string {
	if e.Hint == "" {
		return e.Problem
	}
	return e.Problem + ": " + e.Hint
}

// An Own is an option that CRIU does not have.
type Own struct {
	Name     string
	Argument bool
}

// Parse reads a command line, without the verb, and the configuration files
// that go before it. own are options beyond CRIU's.
func Parse(args []string, own ...Own) (*Options, error) {
	all := slices.Clone(options)
	for _, o := range own {
		k := known{name: o.Name}
		if o.Argument {
			k.arg = required
		}
		all = append(all, k)
	}
	p := &parser{all: all, own: own, Options: Options{ImagesDir: ".", Verbosity: 2, StatusFD: -1, Socket: -1, Own: map[string]string{}}}
	config, err := configWords(args)
	if err != nil {
		return nil, err
	}
	if err := p.parse(config); err != nil {
		return nil, err
	}
	p.Args, p.verbose = nil, false
	if err := p.parse(args); err != nil {
		return nil, err
	}
	return &p.Options, nil
}

type parser struct {
	Options
	all     []known
	own     []Own
	verbose bool // a -v was seen
}

func (p *parser) parse(args []string) error {
	for len(args) > 0 {
		word := args[0]
		args = args[1:]
		var err error
		switch {
		case word == "--":
			p.Args = append(p.Args, args...)
			return nil
		case strings.HasPrefix(word, "--"):
			args, err = p.long(word[2:], args)
		case len(word) > 1 && word[0] == '-':
			args, err = p.shorts(word[1:], args)
		default:
			p.Args = append(p.Args, word)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// long takes a long option, maybe abbreviated, and returns the words that are
// left.
func (p *parser) long(word string, rest []string) ([]string, error) {
	name, value, has := strings.Cut(word, "=")
	k, on, err := p.find(name)
	if err != nil {
		return nil, err
	}
	switch k.arg {
	case none, flag:
		if has {
			return nil, &UsageError{Problem: "option --" + k.name + " takes no argument"}
		}
	case required:
		if !has {
			if len(rest) == 0 {
				return nil, &UsageError{Problem: "option --" + k.name + " needs an argument"}
			}
			value, rest = rest[0], rest[1:]
		}
	case optional:
	}
	return rest, p.set(k.name, value, on)
}

// find is the option that name is, or is an abbreviation of, and whether it is
// switched on.
func (p *parser) find(name string) (found known, on bool, err error) {
	var names []string
	for _, k := range p.all {
		forms := []string{k.name}
		if k.arg == flag {
			forms = append(forms, "no-"+k.name)
		}
		for i, form := range forms {
			if form == name {
				return k, i == 0, nil
			}
			if strings.HasPrefix(form, name) {
				found, on = k, i == 0
				names = append(names, "--"+form)
			}
		}
	}
	switch len(names) {
	case 0:
		return known{}, false, &UsageError{Problem: "there is no option --" + name, Hint: "see --help"}
	case 1:
		return found, on, nil
	}
	return known{}, false, &UsageError{Problem: "option --" + name + " is ambiguous", Hint: "it may mean " + strings.Join(names, ", ")}
}

// shorts takes a word of short options.
func (p *parser) shorts(word string, rest []string) ([]string, error) {
	for word != "" {
		c := word[0]
		word = word[1:]
		i := slices.IndexFunc(p.all, func(k known) bool { return k.short == c })
		if i < 0 {
			return nil, &UsageError{Problem: "there is no option -" + string(c), Hint: "see --help"}
		}
		k := p.all[i]
		if c == 'd' {
			k.name = "daemon" // which of the two it is the verb says, and ours detach
		}
		value := ""
		switch {
		case k.arg == optional:
			value, word = word, ""
		case k.arg == required && word != "":
			value, word = word, ""
		case k.arg == required:
			if len(rest) == 0 {
				return nil, &UsageError{Problem: "option -" + string(c) + " needs an argument"}
			}
			value, rest = rest[0], rest[1:]
		}
		if err := p.set(k.name, value, true); err != nil {
			return nil, err
		}
	}
	return rest, nil
}

// set notes an option.
func (p *parser) set(name, value string, on bool) error {
	for _, o := range p.own {
		if o.Name == name {
			p.Own[name] = value
			return nil
		}
	}
	if to := p.text(name); to != nil {
		*to = value
		return nil
	}
	if to := p.switches(name); to != nil {
		*to = on
		return nil
	}
	switch name {
	case "help":
		return ErrHelp
	case "version":
		return ErrVersion
	case "verbosity":
		return p.verbosity(value)
	case "status-fd", "ps-socket":
		n, err := strconv.Atoi(value)
		if err != nil || n < 0 {
			return &UsageError{Problem: fmt.Sprintf("option --%s: %q is no descriptor", name, value)}
		}
		if name == "status-fd" {
			p.StatusFD = n
		} else {
			p.Socket = n
		}
	}
	return nil // one of CRIU's that we have no use for
}

// text is where the argument of a plain option goes.
func (p *parser) text(name string) *string {
	switch name {
	case "images-dir":
		return &p.ImagesDir
	case "work-dir":
		return &p.WorkDir
	case "prev-images-dir":
		return &p.Parent
	case "log-file":
		return &p.LogFile
	case "pidfile":
		return &p.PidFile
	case "address":
		return &p.Address
	case "port":
		return &p.Port
	case "tls-cacert":
		return &p.CACert
	case "tls-cacrl":
		return &p.CACRL
	case "tls-cert":
		return &p.Cert
	case "tls-key":
		return &p.Key
	}
	return nil
}

// switches is where a flag goes.
func (p *parser) switches(name string) *bool {
	switch name {
	case "daemon":
		return &p.Daemon
	case "display-stats":
		return &p.Stats
	case "page-server":
		return &p.PageServer
	case "lazy-pages":
		return &p.LazyPages
	case "auto-dedup":
		return &p.AutoDedup
	case "tls":
		return &p.TLS
	case "tls-no-cn-verify":
		return &p.NoCNVerify
	}
	return nil
}

// verbosity reads -v, -vv, -v4 and --verbosity=4: the first -v replaces the
// default, more of them add up.
func (p *parser) verbosity(value string) error {
	if strings.Trim(value, "v") == "" {
		if !p.verbose {
			p.Verbosity = 0
		}
		p.verbose = true
		p.Verbosity += 1 + len(value)
		return nil
	}
	n, err := strconv.Atoi(value)
	if err != nil || n < 0 {
		return &UsageError{Problem: fmt.Sprintf("verbosity %q is no number", value)}
	}
	p.verbose, p.Verbosity = true, n
	return nil
}

// configWords is what the configuration files say, as words of a command line:
// the system's, the user's, the one that CRIU_CONFIG_FILE names, and the one
// that --config does.
func configWords(args []string) ([]string, error) {
	var words []string
	named, defaults := "", true
	for i, a := range args {
		switch {
		case a == "--no-default-config":
			defaults = false
		case a == "--config" && i+1 < len(args):
			named = args[i+1]
		case strings.HasPrefix(a, "--config="):
			named = strings.TrimPrefix(a, "--config=")
		}
	}
	if defaults {
		files := []string{"/etc/criu/default.conf"}
		if home := os.Getenv("HOME"); home != "" {
			files = append(files, home+"/.criu/default.conf")
		}
		for _, f := range files {
			if b, err := os.ReadFile(f); err == nil {
				words = append(words, parseConfig(string(b))...)
			}
		}
	}
	for _, f := range []string{os.Getenv("CRIU_CONFIG_FILE"), named} {
		if f == "" {
			continue
		}
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("configuration file: %w", err)
		}
		words = append(words, parseConfig(string(b))...)
	}
	return words, nil
}

// parseConfig reads a configuration file: an option a line, without its
// dashes, and its argument, which may be quoted; "#" begins a comment.
func parseConfig(text string) (words []string) {
	for line := range strings.Lines(text) {
		fields := splitQuoted(line)
		if len(fields) == 0 {
			continue
		}
		word := "--" + fields[0]
		if len(fields) > 1 {
			word += "=" + strings.Join(fields[1:], " ")
		}
		words = append(words, word)
	}
	return words
}

// splitQuoted splits a line at blanks, up to a comment; double quotes hold
// words together, and a backslash takes the next character as it is.
func splitQuoted(line string) (words []string) {
	var b strings.Builder
	in, quoted := false, false
	for i := 0; i < len(line); i++ {
		c := line[i]
		switch {
		case c == '\\' && i+1 < len(line):
			i++
			b.WriteByte(line[i])
			in = true
		case c == '"':
			quoted, in = !quoted, true
		case quoted:
			b.WriteByte(c)
		case c == '#':
			i = len(line)
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			if in {
				words = append(words, b.String())
				b.Reset()
			}
			in = false
		default:
			b.WriteByte(c)
			in = true
		}
	}
	if in {
		words = append(words, b.String())
	}
	return words
}
