package image

import (
	"strconv"
	"strings"
)

// quickManifest reads a manifest that is laid out as AppendManifest does, to
// the last blank, with nothing escaped. Package encoding/json, which reads any
// other, first finds out about the types, and takes fresh memory for that: it is
// noticed in the time to the first instruction. ok is false for all that is not
// quite so.
func quickManifest(b []byte) (m *Manifest, ok bool) {
	r := &layout{rest: string(b), ok: true}
	m = &Manifest{Layers: []Layer{}, Objects: make(map[string]Object)}
	r.text("{\n  \"format\": ", &m.Format)
	number(r, ",\n  \"version\": ", &m.Version)
	r.text(",\n  \"writer\": ", &m.Writer)
	var created string
	r.text(",\n  \"created\": ", &created)
	r.text(",\n  \"codec\": ", &m.Codec)
	number(r, ",\n  \"chunk_size\": ", &m.ChunkSize)
	r.text(",\n  \"machine\": {\n    \"arch\": ", &m.Machine.Arch)
	number(r, ",\n    \"xfeatures\": ", &m.Machine.XFeatures)
	number(r, ",\n    \"page_size\": ", &m.Machine.PageSize)
	r.text(",\n    \"vdso\": ", &m.Machine.VDSO)
	r.skip("\n  },\n  \"layers\": [],\n  \"objects\": {")
	for before := "\n    "; r.ok; before = ",\n    " {
		var name string
		var o Object
		r.text(before, &name)
		number(r, ": {\n      \"size\": ", &o.Size)
		if r.has(",\n      \"sha256\": ") {
			r.text("", &o.SHA256)
		}
		r.skip("\n    }")
		m.Objects[name] = o
		if r.has("\n  },\n  \"index_root\": ") {
			break
		}
	}
	r.text("", &m.IndexRoot)
	p := &m.Process
	number(r, ",\n  \"process\": {\n    \"pid\": ", &p.PID)
	r.text(",\n    \"comm\": ", &p.Comm)
	number(r, ",\n    \"threads\": ", &p.Threads)
	number(r, ",\n    \"mappings\": ", &p.Mappings)
	number(r, ",\n    \"memory_bytes\": ", &p.MemoryBytes)
	number(r, ",\n    \"zero_bytes\": ", &p.ZeroBytes)
	number(r, ",\n    \"stored_bytes\": ", &p.StoredBytes)
	number(r, ",\n    \"lazy_bytes\": ", &p.LazyBytes)
	number(r, ",\n    \"eager_bytes\": ", &p.EagerBytes)
	var sum string // which checkManifestSum looks at
	r.text("\n  },\n"+checksumField[:len(checksumField)-1], &sum)
	r.skip("\n}\n")
	return m, r.ok && r.rest == "" && m.Created.UnmarshalText([]byte(created)) == nil
}

// A layout is a text of which it is known what follows what. ok is false once
// something else does; what is read from then on means nothing.
type layout struct {
	rest string
	ok   bool
}

// has reports whether s is next, and skips it.
func (r *layout) has(s string) (found bool) {
	r.rest, found = strings.CutPrefix(r.rest, s)
	return found
}

// skip skips s, which is next.
func (r *layout) skip(s string) { r.ok = r.has(s) && r.ok }

// text takes a string of plain characters, which follows before.
func (r *layout) text(before string, to *string) {
	r.skip(before)
	r.skip(`"`)
	special := func(c rune) bool { return c < ' ' || c > '~' || c == '\\' || c == '"' }
	n := strings.IndexFunc(r.rest, special)
	if n < 0 || r.rest[n] != '"' {
		r.ok = false
		return
	}
	*to, r.rest = r.rest[:n], r.rest[n+1:]
}

// number takes a number of no more than 63 bits, which follows before.
func number[T int | int64 | uint64](r *layout, before string, to *T) {
	r.skip(before)
	digits := r.rest[:len(r.rest)-len(strings.TrimLeft(r.rest, "0123456789"))]
	v, err := strconv.ParseUint(digits, 10, 63)
	if err != nil || len(digits) > 1 && digits[0] == '0' {
		r.ok = false
	}
	*to, r.rest = T(v), r.rest[len(digits):]
}
