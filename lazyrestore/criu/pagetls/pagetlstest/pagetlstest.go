// Package pagetlstest makes certificates for tests: fresh ones each time, that
// are of no use anywhere else.
package pagetlstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// An Authority signs certificates.
type Authority struct {
	CACert string // its own, a file

	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	last int64
}

// A Pair is a certificate and its key, two files.
type Pair struct {
	Cert, Key string
	serial    *big.Int
}

// New makes an authority, in a directory of the test. All that it makes have one name, as
// those have that are one authority with another key.
func New(t testing.TB) *Authority {
	t.Helper()
	return Named(t, "test authority")
}

// Named makes one of another name.
func Named(t testing.TB, name string) *Authority {
	t.Helper()
	return newAuthority(t, name, nil)
}

// Authority makes one below a, and gives its certificate too, for Revoke.
func (a *Authority) Authority(t testing.TB, name string) (*Authority, Pair) {
	t.Helper()
	a.last++
	below := newAuthority(t, name, a)
	return below, Pair{Cert: below.CACert, serial: below.cert.SerialNumber}
}

// newAuthority makes an authority, that has signed itself if none is above it.
func newAuthority(t testing.TB, name string, above *Authority) *Authority {
	t.Helper()
	a := &Authority{dir: t.TempDir(), last: 1}
	a.key = newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		SubjectKeyId: []byte(name),
	}
	issuer, key := template, a.key
	if above != nil {
		template.SerialNumber, issuer, key = big.NewInt(above.last), above.cert, above.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, &a.key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.CACert = a.write(t, "ca.pem", "CERTIFICATE", der)
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a *Authority) write(t testing.TB, name, kind string, der []byte) string {
	t.Helper()
	name = filepath.Join(a.dir, name)
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// Pair makes a certificate for a host, a name or an address; without one, it has
// only the common name "peer".
func (a *Authority) Pair(t testing.TB, host string) Pair {
	t.Helper()
	a.last++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(a.last), Subject: pkix.Name{CommonName: "peer"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if ip := net.ParseIP(host); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else if host != "" {
		template.DNSNames = []string{host}
	}
	key := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return Pair{
		Cert:   a.write(t, fmt.Sprintf("cert%d.pem", a.last), "CERTIFICATE", der),
		Key:    a.write(t, fmt.Sprintf("key%d.pem", a.last), "PRIVATE KEY", pkcs8),
		serial: template.SerialNumber,
	}
}

// Revoke makes a list with the certificate of p in it, a file.
func (a *Authority) Revoke(t testing.TB, p Pair) string {
	t.Helper()
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: p.serial, RevocationTime: time.Now().Add(-time.Minute)}},
	}, a.cert, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return a.write(t, "crl"+p.serial.String()+".pem", "X509 CRL", der)
}
