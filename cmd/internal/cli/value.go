package cli

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"time"
)

type boolValue struct{ p *bool }

// Bool is a flag that stands alone, or with =true or =false.
func Bool(p *bool) Value { return boolValue{p} }

func (v boolValue) Implied() string { return "true" }
func (v boolValue) String() string  { return strconv.FormatBool(*v.p) }

func (v boolValue) Set(s string) error {
	b, err := strconv.ParseBool(s)
	if err != nil {
		return errors.New("true or false is expected")
	}
	*v.p = b
	return nil
}

type countValue struct{ p *int }

// Count is a flag that counts how often it stands: -vv.
func Count(p *int) Value { return countValue{p} }

func (v countValue) Implied() string { return "+1" }
func (v countValue) String() string  { return strconv.Itoa(*v.p) }

func (v countValue) Set(s string) error {
	if s == "+1" {
		*v.p++
		return nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return errors.New("a number is expected")
	}
	*v.p = n
	return nil
}

type stringValue struct{ p *string }

// String is any text.
func String(p *string) Value { return stringValue{p} }

func (v stringValue) String() string     { return *v.p }
func (v stringValue) Set(s string) error { *v.p = s; return nil }

// Word is a string type with a few values.
type wordValue[T ~string] struct {
	p     *T
	words []T
}

// Word is one of a few words.
func Word[T ~string](p *T, words ...T) Value { return wordValue[T]{p, words} }

func (v wordValue[T]) String() string { return string(*v.p) }

func (v wordValue[T]) Set(s string) error {
	texts := make([]string, len(v.words))
	for i, w := range v.words {
		if string(w) == s {
			*v.p = w
			return nil
		}
		texts[i] = string(w)
	}
	text := "one of " + strings.Join(texts, ", ") + " is expected"
	if near := Nearest(s, texts); near != "" {
		text += "; did you mean " + near + "?"
	}
	return errors.New(text)
}

type intValue struct {
	p        *int
	min, max int
}

// Int is a whole number from lowest to highest.
func Int(p *int, lowest, highest int) Value { return intValue{p, lowest, highest} }

func (v intValue) String() string {
	if *v.p == 0 {
		return ""
	}
	return strconv.Itoa(*v.p)
}

func (v intValue) Set(s string) error {
	n, err := strconv.Atoi(s)
	switch {
	case err != nil:
		return errors.New("a number is expected")
	case n < v.min:
		return errors.New("at least " + strconv.Itoa(v.min) + " is expected")
	case n > v.max:
		return errors.New("at most " + strconv.Itoa(v.max) + " is expected")
	}
	*v.p = n
	return nil
}

type sizeValue struct{ p *int }

// Size is a number of bytes: 65536, 64k, 64KiB, 1MiB. The letters mean powers
// of 1024.
func Size(p *int) Value { return sizeValue{p} }

func (v sizeValue) Set(s string) error {
	n, err := ParseSize(s)
	if err != nil {
		return err
	}
	*v.p = n
	return nil
}

func (v sizeValue) String() string {
	n := *v.p
	switch {
	case n == 0:
		return ""
	case n%(1<<20) == 0:
		return strconv.Itoa(n>>20) + "MiB"
	case n%(1<<10) == 0:
		return strconv.Itoa(n>>10) + "KiB"
	}
	return strconv.Itoa(n)
}

// ParseSize reads a number of bytes. A unit is K, M or G, alone or followed by
// iB, in either case; a plain B means bytes.
func ParseSize(s string) (int, error) {
	digits := len(s) - len(strings.TrimLeft(s, "0123456789"))
	n, err := strconv.ParseInt(s[:digits], 10, 64)
	if err != nil {
		return 0, errors.New("a size like 64KiB is expected")
	}
	var shift uint
	switch strings.ToLower(s[digits:]) {
	case "", "b":
	case "k", "kib":
		shift = 10
	case "m", "mib":
		shift = 20
	case "g", "gib":
		shift = 30
	default:
		return 0, errors.New("a size like 64KiB is expected (units are KiB, MiB, GiB)")
	}
	if n > math.MaxInt>>shift {
		return 0, errors.New("the size is too large")
	}
	return int(n) << shift, nil
}

type durationValue struct {
	p       *time.Duration
	minimum time.Duration
}

// Duration is a time like 30s, 2m or 500ms, of at least minimum.
func Duration(p *time.Duration, minimum time.Duration) Value { return durationValue{p, minimum} }

func (v durationValue) String() string {
	if *v.p == 0 {
		return ""
	}
	s := v.p.String()
	// 2m0s is not what people write.
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	return s
}

func (v durationValue) Set(s string) error {
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		return errors.New("a time like 30s is expected")
	case d < v.minimum:
		return errors.New("at least " + v.minimum.String() + " is expected")
	}
	*v.p = d
	return nil
}
