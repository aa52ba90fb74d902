package main

import (
	"runtime"
	"runtime/debug"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
)

// Set by the linker in builds by the Makefile; else the build info speaks.
var (
	buildVersion string
	buildCommit  string
)

// versionInfo is what version --json prints.
type versionInfo struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
	Format  int    `json:"image_format"` // the newest image format that is written and read
}

func (c *command) version() *cli.Command {
	return &cli.Command{
		Name:  "version",
		Short: "print the version",
		Long:  "Prints the version of lazyrestore, of the Go that built it, and of the image format that it writes.",
		Objects: []cli.Object{{Of: "--json", Rows: `
			version       of lazyrestore
			commit        that it was built from, if that is known
			go            the Go that built it
			os            the system that it is for
			arch          the processor that it is for
			image_format  the newest image format that it writes and reads`}},
		Flags: c.Command.Flags(),
		Run: func([]string) error {
			v := currentVersion()
			if c.JSON {
				c.PrintJSON(v)
				return nil
			}
			text := "lazyrestore " + v.Version
			if v.Commit != "" {
				text += " (" + v.Commit + ")"
			}
			c.Print(text + " " + v.Go + " " + v.OS + "/" + v.Arch + "\n")
			return nil
		},
	}
}

// currentVersion prefers what the linker wrote to the build info.
func currentVersion() versionInfo {
	v := versionInfo{
		Version: buildVersion, Commit: buildCommit,
		Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH, Format: image.FormatVersion,
	}
	if v.Version != "" {
		return v
	}
	v.Version = "devel"
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if m := info.Main.Version; m != "" && m != "(devel)" {
		v.Version = m
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v.Commit = s.Value
		}
	}
	return v
}
