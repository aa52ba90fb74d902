// Package clitest holds what verbs print against what their manual says. Tests alone import it.
package clitest

import (
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
)

// Documented fails the test where a field of an object that a verb prints, of the type of v, has no row
// in its table, or a row no field. What is below a field that opaque names has none.
func Documented(t *testing.T, object cli.Object, v any, opaque ...string) {
	t.Helper()
	full := reflect.New(reflect.TypeOf(v))
	fill(full.Elem(), 0)
	text, err := json.Marshal(full.Interface())
	if err != nil {
		t.Fatal(err)
	}
	var printed any
	if err := json.Unmarshal(text, &printed); err != nil {
		t.Fatal(err)
	}
	fields := make(map[string]bool)
	flatten(printed, "", fields, opaque)
	for _, f := range object.Fields() {
		if !fields[f.Name] || f.Means == "" {
			t.Errorf("%s: %q is told of (%q), and no such field is printed", object.Of, f.Name, f.Means)
		}
		delete(fields, f.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		t.Errorf("%s: %q is printed, and nothing tells of it", object.Of, name)
	}
}

// fill sets all that can be set of v, so that nothing is left out of its JSON; a map has the key NAME.
func fill(v reflect.Value, depth int) {
	const deepest = 12
	switch {
	case !v.CanSet(), depth > deepest:
		return
	case v.Type() == reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf(time.Unix(1, 0)))
		return
	case v.Type() == reflect.TypeFor[error]():
		v.Set(reflect.ValueOf(errors.New("one")))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), depth+1)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), depth+1)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), depth+1)
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i), depth+1)
		}
	case reflect.Map:
		elem := reflect.New(v.Type().Elem()).Elem()
		fill(elem, depth+1)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("NAME").Convert(v.Type().Key()), elem)
	case reflect.String:
		v.SetString("text")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Float32, reflect.Float64:
		v.SetFloat(1)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(1)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(1)
	default: // functions and the like, which JSON has none of
	}
}

// flatten names all fields below v, which is at path, that have a value of their own.
func flatten(v any, path string, into map[string]bool, opaque []string) {
	if !slices.Contains(opaque, path) {
		switch v := v.(type) {
		case map[string]any:
			for name, value := range v {
				flatten(value, strings.TrimPrefix(path+"."+name, "."), into, opaque)
			}
			return
		case []any:
			for _, value := range v {
				flatten(value, path+"[]", into, opaque)
			}
			return
		}
	}
	into[path] = true
}
