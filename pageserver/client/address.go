package client

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// An Address is where an image is: on one or several servers, which all have
// it under the same name.
type Address struct {
	Servers []Server // at least one
	Image   string   // the image's name; empty for the servers alone
}

// A Server is where one server listens.
type Server struct {
	Network string // "tcp", "tls" or "unix"
	Host    string // a name or an IP address; of a unix socket its path
	Port    uint16 // 0 of a unix socket
}

// String is the server as in an address: "tcp://node1:7480".
func (s Server) String() string {
	if s.Network == "unix" {
		return "unix://" + s.Host
	}
	host := s.Host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return s.Network + "://" + host + ":" + strconv.Itoa(int(s.Port))
}

// String is the address as ParseAddress reads it.
func (a Address) String() string {
	var b strings.Builder
	for i, s := range a.Servers {
		text := s.String()
		if i > 0 {
			_, text, _ = strings.Cut(text, "://")
			b.WriteByte(',')
		}
		b.WriteString(text)
	}
	if a.Image != "" {
		b.WriteString("/" + a.Image)
	}
	return b.String()
}

// IsAddress reports whether s is meant to be an address, not a directory.
func IsAddress(s string) bool {
	scheme, _, ok := strings.Cut(s, "://")
	if !ok || scheme == "" {
		return false
	}
	for _, c := range scheme {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '+' {
			return false
		}
	}
	return true
}

// ErrAddress is wrapped by every error of ParseAddress.
var ErrAddress = errors.New("not the address of an image")

func badAddress(s, format string, args ...any) error {
	return fmt.Errorf("%q is %w: %w", s, ErrAddress, fmt.Errorf(format, args...))
}

// ParseAddress reads
//
//	tcp://HOST[:PORT][,HOST[:PORT]...][/NAME]
//	tls://HOST[:PORT][,HOST[:PORT]...][/NAME]
//	unix:///PATH[,/PATH...]/NAME
//
// An IPv6 address as HOST is in brackets. The port is wire.DefaultPort unless
// given. The name is what follows the last slash; in the address of unix
// sockets it may be empty, but not its slash. Errors wrap ErrAddress.
func ParseAddress(s string) (Address, error) {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return Address{}, badAddress(s, "it has no scheme, as in tcp://HOST:PORT/NAME")
	}
	if wire.HasBlanks(rest) {
		return Address{}, badAddress(s, "it has spaces or control characters")
	}
	switch scheme {
	case "tcp", "tls":
	case "unix":
		return parseUnix(s, rest)
	default:
		return Address{}, badAddress(s, "its scheme is none of tcp, tls and unix")
	}
	hosts, name, _ := strings.Cut(rest, "/")
	a := Address{Image: name}
	for host := range strings.SplitSeq(hosts, ",") {
		server, err := parseHost(host)
		if err != nil {
			return Address{}, badAddress(s, "%w", err)
		}
		server.Network = scheme
		a.Servers = append(a.Servers, server)
	}
	return a, checkName(s, name)
}

func parseUnix(s, rest string) (Address, error) {
	i := strings.LastIndexByte(rest, '/')
	if i <= 0 {
		return Address{}, badAddress(s, "it is of the form unix:///PATH/NAME")
	}
	a := Address{Image: rest[i+1:]}
	for path := range strings.SplitSeq(rest[:i], ",") {
		if !strings.HasPrefix(path, "/") || len(path) > 107 {
			return Address{}, badAddress(s, "%q is not the absolute path of a socket, of 107 bytes at most", path)
		}
		a.Servers = append(a.Servers, Server{Network: "unix", Host: path})
	}
	return a, checkName(s, a.Image)
}

// checkName refuses names that no server has.
func checkName(s, name string) error {
	switch {
	case name == "." || name == ".." || strings.Contains(name, "/"):
		return badAddress(s, "%q is not the name of an image, which has no directories", name)
	case len(name) > wire.MaxName:
		return badAddress(s, "the name has %d bytes, at most %d are allowed", len(name), wire.MaxName)
	}
	return nil
}

// parseHost reads HOST[:PORT].
func parseHost(s string) (Server, error) {
	host, port, hasPort := s, "", false
	if inner, ok := strings.CutPrefix(s, "["); ok {
		var after string
		if host, after, ok = strings.Cut(inner, "]"); !ok || !strings.Contains(host, ":") {
			return Server{}, fmt.Errorf("%q is not an IPv6 address in brackets", s)
		}
		if after != "" {
			if port, hasPort = strings.CutPrefix(after, ":"); !hasPort {
				return Server{}, fmt.Errorf("%q follows the brackets of %q", after, s)
			}
		}
	} else if i := strings.LastIndexByte(s, ':'); i >= 0 {
		host, port, hasPort = s[:i], s[i+1:], true
		if strings.Contains(host, ":") {
			return Server{}, fmt.Errorf("%q has to be in brackets, if it is an IPv6 address", s)
		}
	}
	if host == "" {
		return Server{}, errors.New("a host is missing")
	}
	server := Server{Host: host, Port: wire.DefaultPort}
	if hasPort {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return Server{}, fmt.Errorf("%q is not a port", port)
		}
		server.Port = uint16(n)
	}
	return server, nil
}
