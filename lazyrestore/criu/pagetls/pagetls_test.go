package pagetls

import (
	"crypto/tls"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pagetls/pagetlstest"
)

func options(d *pagetlstest.Authority, who pagetlstest.Pair) Options {
	return Options{CACert: d.CACert, Cert: who.Cert, Key: who.Key}
}

// shake runs a handshake and gives both sides' errors.
func shake(t *testing.T, server, client *tls.Config) (atServer, atClient error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer conn.Close()
		s := tls.Server(conn, server)
		if err = s.Handshake(); err == nil {
			_, err = s.Write([]byte{1})
		}
		done <- err
	}()
	conn, err := tls.Dial("tcp", l.Addr().String(), client)
	if err == nil {
		// With TLS 1.3 a client hears of its refusal when it reads.
		_, err = io.ReadFull(conn, make([]byte, 1))
		conn.Close()
	}
	return <-done, err
}

func TestHandshake(t *testing.T) {
	a, other := pagetlstest.New(t), pagetlstest.New(t)
	here, gone, foreign := a.Pair(t, "127.0.0.1"), a.Pair(t, "127.0.0.1"), other.Pair(t, "127.0.0.1")
	elsewhere, byName := a.Pair(t, "example.org"), a.Pair(t, "")
	crl := a.Revoke(t, gone)
	for _, c := range []struct {
		name           string
		server, client Options
		host           string
		wantServer     bool
		wantClient     string // what its error says
	}{
		{"both known", options(a, here), options(a, here), "127.0.0.1", true, ""},
		{"client of another authority", options(a, here), options(a, foreign), "127.0.0.1", false, "remote error"},
		{"server of another authority", options(a, foreign), options(a, here), "127.0.0.1", false, "unknown authority"},
		{"server of another address", options(a, elsewhere), options(a, here), "127.0.0.1", false, "127.0.0.1"},
		{"the same, not looked at", options(a, elsewhere), func() Options { o := options(a, here); o.NoName = true; return o }(), "127.0.0.1", true, ""},
		{"known by its common name", options(a, byName), options(a, here), "PEER", true, ""},
		{"another common name", options(a, byName), options(a, here), "other", false, "not for other"},
		{"revoked client", func() Options { o := options(a, here); o.CACRL = crl; return o }(), options(a, gone), "127.0.0.1", false, "remote error"},
		{"revoked server", options(a, gone), func() Options { o := options(a, here); o.CACRL = crl; return o }(), "127.0.0.1", false, "revoked"},
		{"somebody else is revoked", func() Options { o := options(a, here); o.CACRL = crl; return o }(), options(a, here), "127.0.0.1", true, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			server, err := c.server.Server()
			if err != nil {
				t.Fatal(err)
			}
			client, err := c.client.Client(c.host)
			if err != nil {
				t.Fatal(err)
			}
			atServer, atClient := shake(t, server, client)
			if (atServer == nil) != c.wantServer {
				t.Errorf("server: %v", atServer)
			}
			if c.wantClient == "" && atClient != nil || c.wantClient != "" && (atClient == nil || !strings.Contains(atClient.Error(), c.wantClient)) {
				t.Errorf("client: %v", atClient)
			}
		})
	}
}

// join makes one file of several.
func join(t *testing.T, files ...string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "joined.pem")
	var all []byte
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(append(all, "# "+f+"\n"...), b...)
	}
	if err := os.WriteFile(name, all, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// Each authority has a list of its own, and all that are in the file count. The numbers in one
// say nothing of certificates of an authority of another name; one of the same name is the same
// with another key.
func TestSeveralLists(t *testing.T) {
	a, b := pagetlstest.New(t), pagetlstest.Named(t, "another authority")
	here := a.Pair(t, "127.0.0.1")
	firstA, firstB := a.Pair(t, ""), b.Pair(t, "127.0.0.1")
	secondB := b.Pair(t, "127.0.0.1")
	below, itself := a.Authority(t, "authority below")
	ofBelow := below.Pair(t, "127.0.0.1")
	newA := pagetlstest.New(t)
	newA.Pair(t, "")
	sameNumber, anotherNumber := newA.Pair(t, ""), newA.Pair(t, "") // as firstA has
	for _, c := range []struct {
		name    string
		lists   []string
		who     pagetlstest.Pair
		revoked bool
	}{
		{"in the first list", []string{b.Revoke(t, secondB), a.Revoke(t, firstA)}, secondB, true},
		{"in the second list", []string{a.Revoke(t, here), b.Revoke(t, secondB)}, secondB, true},
		{"in no list", []string{a.Revoke(t, firstA), b.Revoke(t, secondB)}, firstB, false},
		{"in the other one's list", []string{a.Revoke(t, here)}, firstB, false},
		{"in the list with a new key", []string{newA.Revoke(t, sameNumber)}, firstA, true},
		{"in another list with a new key", []string{newA.Revoke(t, anotherNumber)}, firstA, false},
		{"a trusted authority is in the list", []string{a.Revoke(t, itself)}, ofBelow, true},
		{"no authority is in the list", []string{a.Revoke(t, here)}, ofBelow, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			cas := join(t, a.CACert, b.CACert, newA.CACert, below.CACert)
			server, err := Options{CACert: cas, CACRL: join(t, c.lists...), Cert: firstA.Cert, Key: firstA.Key, NoName: true}.Server()
			if err != nil {
				t.Fatal(err)
			}
			client, err := Options{CACert: cas, Cert: c.who.Cert, Key: c.who.Key, NoName: true}.Client("127.0.0.1")
			if err != nil {
				t.Fatal(err)
			}
			if atServer, atClient := shake(t, server, client); (atServer != nil) != c.revoked || (atClient != nil) != c.revoked {
				t.Errorf("server: %v, client: %v; revoked is %t", atServer, atClient, c.revoked)
			}
		})
	}
}

func TestClientWithoutCertificate(t *testing.T) {
	a := pagetlstest.New(t)
	server, err := options(a, a.Pair(t, "127.0.0.1")).Server()
	if err != nil {
		t.Fatal(err)
	}
	atServer, atClient := shake(t, server, &tls.Config{InsecureSkipVerify: true})
	if atServer == nil || atClient == nil {
		t.Errorf("server: %v, client: %v", atServer, atClient)
	}
}

func TestFilesThatCannotBe(t *testing.T) {
	a, other := pagetlstest.New(t), pagetlstest.New(t)
	p := a.Pair(t, "127.0.0.1")
	good := options(a, p)
	list := a.Revoke(t, a.Pair(t, ""))
	part := join(t, list)
	if err := os.Truncate(part, 200); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]Options{
		"no authority":      {CACert: "/nonexistent", Cert: p.Cert, Key: p.Key},
		"key as authority":  {CACert: p.Key, Cert: p.Cert, Key: p.Key},
		"no key":            {CACert: a.CACert, Cert: p.Cert, Key: "/nonexistent"},
		"no list":           {CACert: a.CACert, Cert: p.Cert, Key: p.Key, CACRL: "/nonexistent"},
		"another's list":    {CACert: a.CACert, Cert: p.Cert, Key: p.Key, CACRL: other.Revoke(t, other.Pair(t, ""))},
		"not a list at all": {CACert: a.CACert, Cert: p.Cert, Key: p.Key, CACRL: p.Cert},
		"another's behind":  {CACert: a.CACert, Cert: p.Cert, Key: p.Key, CACRL: join(t, list, other.Revoke(t, other.Pair(t, "")))},
		"a part of a list":  {CACert: a.CACert, Cert: p.Cert, Key: p.Key, CACRL: join(t, list, part)},
	} {
		if _, err := o.Server(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := good.Server(); err != nil {
		t.Error(err)
	}
}
