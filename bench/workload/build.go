package workload

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
)

//go:embed c python lammps gcload/*.go hello/*.go
var sources embed.FS

// A Builder builds programs into a directory and keeps them there: what is
// built already, from the same sources, is not built again. Its methods may
// run in several processes at once.
type Builder struct {
	// Dir is where the programs are put. It is made when it is not there.
	Dir string
	// CC and Go are the compilers; "gcc" and "go" when empty.
	CC, Go string
}

// C builds the program whose source is c/NAME.c, or a shared object when NAME
// ends in .so, and returns its path.
func (b *Builder) C(ctx context.Context, name string) (string, error) {
	cc := b.CC
	if cc == "" {
		cc = "gcc"
	}
	ext := filepath.Ext(name)
	return b.build(ctx, "c", name, func(dir, out string) *exec.Cmd {
		args := []string{"-O2", "-g", "-Wall", "-pthread", "-o", out}
		if ext == ".so" {
			args = append(args, "-shared", "-fPIC")
		}
		source := name[:len(name)-len(ext)] + ".c"
		cmd := exec.CommandContext(ctx, cc, append(args, source, "-lm")...)
		cmd.Dir = dir
		return cmd
	})
}

// GoProgram builds the command NAME, which lies in a directory of that name.
func (b *Builder) GoProgram(ctx context.Context, name string) (string, error) {
	goTool := b.Go
	if goTool == "" {
		goTool = "go"
	}
	return b.build(ctx, name, name, func(dir, out string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, goTool, "build", "-trimpath", "-ldflags=-s -w", "-o", out, ".")
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GO111MODULE=off")
		return cmd
	})
}

// File lays out a source as it is and returns its path: a script, an input.
func (b *Builder) File(name string) (string, error) {
	dir, err := b.layOut(path.Dir(name))
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, path.Base(name)), nil
}

// build compiles the sources in folder to NAME. The place of the program is
// named for the content of its sources, so that an old one is never taken for
// a new one.
func (b *Builder) build(ctx context.Context, folder, name string, compile func(dir, out string) *exec.Cmd) (string, error) {
	dir, err := b.layOut(folder)
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "run-"+name)
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	fresh, err := os.MkdirTemp(dir, ".build-*")
	if err != nil {
		return "", fmt.Errorf("build %s: %w", name, err)
	}
	defer os.RemoveAll(fresh)
	cmd := compile(dir, filepath.Join(fresh, "program"))
	if said, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", name, err, bytes.TrimSpace(said))
	}
	if err := copyProgram(filepath.Join(fresh, "program"), filepath.Join(fresh, "copy")); err != nil {
		return "", fmt.Errorf("build %s: %w", name, err)
	}
	if err := os.Rename(filepath.Join(fresh, "copy"), out); err != nil {
		return "", fmt.Errorf("build %s: %w", name, err)
	}
	return out, ctx.Err()
}

// copyProgram copies a program as an installation does. Of what a linker itself
// has written the page cache has single pages, and it starts slower.
func copyProgram(from, to string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, text, 0o700)
}

// layOut writes the sources of a folder to a directory named for their
// content.
func (b *Builder) layOut(folder string) (string, error) {
	entries, err := sources.ReadDir(folder)
	if err != nil {
		return "", fmt.Errorf("sources of %s: %w", folder, err)
	}
	content := map[string][]byte{}
	sum := sha256.New()
	for _, entry := range entries {
		text, err := fs.ReadFile(sources, path.Join(folder, entry.Name()))
		if err != nil {
			return "", fmt.Errorf("sources of %s: %w", folder, err)
		}
		content[entry.Name()] = text
		fmt.Fprintf(sum, "%s %d\n", entry.Name(), len(text))
		sum.Write(text)
	}
	base, err := filepath.Abs(b.Dir)
	if err != nil {
		return "", fmt.Errorf("directory of programs: %w", err)
	}
	dir := filepath.Join(base, folder+"-"+hex.EncodeToString(sum.Sum(nil)[:6]))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("directory of programs: %w", err)
	}
	for name, text := range content {
		if err := writeOnce(filepath.Join(dir, name), text); err != nil {
			return "", fmt.Errorf("lay out %s/%s: %w", folder, name, err)
		}
	}
	return dir, nil
}

// writeOnce writes a file whole or leaves the one that is there.
func writeOnce(file string, text []byte) error {
	if info, err := os.Stat(file); err == nil && info.Size() == int64(len(text)) {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".source-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}
