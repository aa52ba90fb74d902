package native

import (
	"bytes"
	"errors"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
)

func TestEqualIn(t *testing.T) {
	const size = 2*compareStep + 100
	content := bytes.Repeat([]byte("memory "), size/7+1)[:size]
	with := func(at int) []byte {
		b := bytes.Clone(content)
		b[at]++
		return b
	}
	tests := []struct {
		name string
		file []byte
		off  int64
		want bool
	}{
		{"the same", content, 0, true},
		{"the same further on", append(make([]byte, 5), content...), 5, true},
		{"first byte", with(0), 0, false},
		{"last of the first step", with(firstCompare - 1), 0, false},
		{"first of the second step", with(firstCompare), 0, false},
		{"last of the second step", with(firstCompare + compareStep - 1), 0, false},
		{"last byte", with(size - 1), 0, false},
		{"shorter", content[:size-1], 0, false},
		{"within the first step", content[:10], 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := equalIn(bytes.NewReader(tt.file), tt.off, bytes.NewReader(content), 0, size)
			if got != tt.want || err != nil {
				t.Errorf("equalIn = %v, %v; want %v", got, err, tt.want)
			}
		})
	}
	if got, err := equalIn(bytes.NewReader(content), 0, bytes.NewReader(content[:9]), 0, size); !errors.Is(err, image.ErrDamaged) {
		t.Errorf("equalIn with a kept content that is short = %v, %v; want an error that says damaged", got, err)
	}
}
