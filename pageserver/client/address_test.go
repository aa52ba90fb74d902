package client_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/lazyrestore/lazyrestore/pageserver/client"
)

func TestParseAddress(t *testing.T) {
	tcp := func(host string, port uint16) client.Server {
		return client.Server{Network: "tcp", Host: host, Port: port}
	}
	for _, tt := range []struct {
		in      string
		servers []client.Server
		image   string
		text    string // where it is not in
	}{
		{"tcp://node1:7000/lammps", []client.Server{tcp("node1", 7000)}, "lammps", ""},
		{"tcp://node1/lammps", []client.Server{tcp("node1", 7480)}, "lammps", "tcp://node1:7480/lammps"},
		{"tcp://a:1,b:2/x", []client.Server{tcp("a", 1), tcp("b", 2)}, "x", ""},
		{"tcp://a,b/x", []client.Server{tcp("a", 7480), tcp("b", 7480)}, "x", "tcp://a:7480,b:7480/x"},
		{"tcp://[::1]:9/x", []client.Server{tcp("::1", 9)}, "x", ""},
		{"tcp://[fe80::1]/x", []client.Server{tcp("fe80::1", 7480)}, "x", "tcp://[fe80::1]:7480/x"},
		{"tls://a/x", []client.Server{{Network: "tls", Host: "a", Port: 7480}}, "x", "tls://a:7480/x"},
		{"tcp://a", []client.Server{tcp("a", 7480)}, "", "tcp://a:7480"},
		{"tcp://a:5/", []client.Server{tcp("a", 5)}, "", "tcp://a:5"},
		{"unix:///run/s/x", []client.Server{{Network: "unix", Host: "/run/s"}}, "x", ""},
		{"unix:///run/s,/run/t/x", []client.Server{{Network: "unix", Host: "/run/s"}, {Network: "unix", Host: "/run/t"}}, "x", ""},
	} {
		t.Run(tt.in, func(t *testing.T) {
			a, err := client.ParseAddress(tt.in)
			if err != nil || !reflect.DeepEqual(a.Servers, tt.servers) || a.Image != tt.image {
				t.Fatalf("%+v, %v", a, err)
			}
			if want := max(tt.text, ""); a.String() != want && (want != "" || a.String() != tt.in) {
				t.Errorf("String = %q", a.String())
			}
			if !client.IsAddress(tt.in) {
				t.Error("it is not taken for an address")
			}
		})
	}
}

func TestBadAddresses(t *testing.T) {
	for _, in := range []string{
		"", "tcp://", "tcp:///x", "tcp://:7480/x", "tcp://a:/x", "tcp://a:0/x", "tcp://a:65536/x", "tcp://a:-1/x", "tcp://a:b/x",
		"tcp://a,/x", "tcp://,a/x", "tcp://::1/x", "tcp://[::1/x", "tcp://[::1]x/x", "tcp://[a]/x", "tcp://a/x/y", "tcp://a/..",
		"tcp://a/.", "tcp://a/x y", "tcp://a/x\x00", "tcp://a/" + strings.Repeat("x", 256), "http://a/x", "s3://b/x", "tcp:/a/x",
		"unix://", "unix://x", "unix://run/s/x", "unix:///x", "unix:///" + strings.Repeat("x", 120) + "/y", "/some/directory",
	} {
		if a, err := client.ParseAddress(in); !errors.Is(err, client.ErrAddress) {
			t.Errorf("%q: %+v, %v", in, a, err)
		}
	}
	for _, in := range []string{"dir", "./dir", "/a/b", "", "://x", "a b://c", "C:/x"} {
		if client.IsAddress(in) {
			t.Errorf("%q is taken for an address", in)
		}
	}
}

// What is read is written as it was read.
func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"tcp://a:1,b:1/x", "tls://[::1]/x", "unix:///a,/b/c", "tcp://a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := client.ParseAddress(s)
		if err != nil {
			return
		}
		text := a.String()
		if a.Servers[0].Network == "unix" && a.Image == "" {
			text += "/"
		}
		again, err := client.ParseAddress(text)
		if err != nil || !reflect.DeepEqual(a, again) {
			t.Fatalf("%q is %+v, written %q, and that is %+v, %v", s, a, text, again, err)
		}
	})
}
