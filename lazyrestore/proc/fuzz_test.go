package proc

import (
	"bytes"
	"testing"
)

// fuzz runs a parser on changed captures. It must neither panic nor keep more
// than the input accounts for.
func fuzz[T any](f *testing.F, parse func([]byte) (T, error), check func(*testing.T, []byte, T), names ...string) {
	for _, name := range names {
		f.Add(capture(f, name))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		saved := bytes.Clone(b)
		v, err := parse(b)
		if !bytes.Equal(b, saved) {
			t.Fatal("the parser changed its input")
		}
		if err == nil && check != nil {
			check(t, b, v)
		}
	})
}

func FuzzParseSmaps(f *testing.F) {
	fuzz(f, ParseSmaps, func(t *testing.T, b []byte, s Smaps) {
		if len(s.VMAs)+len(s.Unknown) > bytes.Count(b, []byte("\n"))+1 {
			t.Fatal("more mappings than lines")
		}
		for _, v := range s.VMAs {
			if v.Empty() {
				t.Fatalf("empty mapping %s", v.Range)
			}
		}
	}, "smaps")
}

func FuzzParseMaps(f *testing.F) {
	fuzz(f, ParseMaps, func(t *testing.T, b []byte, vmas []VMA) {
		if len(vmas) > bytes.Count(b, []byte("\n"))+1 {
			t.Fatal("more mappings than lines")
		}
	}, "maps")
}

func FuzzParseStatus(f *testing.F) { fuzz(f, ParseStatus, nil, "status") }
func FuzzParseStat(f *testing.F)   { fuzz(f, ParseStat, nil, "stat") }
func FuzzParseAuxv(f *testing.F)   { fuzz(f, ParseAuxv, nil, "auxv") }
func FuzzParseTimers(f *testing.F) { fuzz(f, ParseTimers, nil, "timers") }
func FuzzParseLimits(f *testing.F) { fuzz(f, ParseLimits, nil, "limits") }

func FuzzParsePersonality(f *testing.F) { fuzz(f, ParsePersonality, nil, "personality") }
func FuzzParseMeminfo(f *testing.F)     { fuzz(f, ParseMeminfo, nil, "meminfo") }
func FuzzParseCgroups(f *testing.F)     { fuzz(f, ParseCgroups, nil, "cgroup") }
func FuzzParseMounts(f *testing.F)      { fuzz(f, ParseMounts, nil, "mountinfo") }

func FuzzParseFDInfo(f *testing.F) {
	fuzz(f, ParseFDInfo, nil, "fdinfo/epoll", "fdinfo/eventfd", "fdinfo/file", "fdinfo/inotify", "fdinfo/timerfd")
}
