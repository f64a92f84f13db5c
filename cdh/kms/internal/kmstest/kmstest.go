// Package kmstest has the cloud around a KMS client for its tests: one TLS
// server that answers under every host name, a CA for it, a machine with
// credential files and a metadata service, and a clock.
//
// It is for tests only and is linked into no program.
package kmstest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/podvm"
)

// Cloud is what a provider under test sees.
type Cloud struct {
	wire.Env
	// CA is the PEM certificate that signed the server's.
	CA []byte
	// Requests counts what arrived at the server; Metadata at the metadata
	// service.
	Requests, Metadata atomic.Int64

	dialled atomic.Value // a string
	dir     string
}

// Config says how the cloud behaves.
type Config struct {
	Provider string // whose credential files there are
	// Names are in the server's certificate; "*." works.
	Names []string
	// Handler is the server's, Metadata the metadata service's; nil: 404.
	Handler, Metadata http.HandlerFunc
	// Untrusted leaves the CA out of the roots of Env.HTTP.
	Untrusted bool
	// TryTimeout is that of wire.ClientConfig.
	TryTimeout time.Duration
}

// New starts a cloud that the test's end stops.
func New(t testing.TB, cfg Config) *Cloud {
	t.Helper()
	c := &Cloud{}
	roots := x509.NewCertPool()
	cert := c.certify(t, cfg.Names)
	if !cfg.Untrusted {
		roots.AppendCertsFromPEM(c.CA)
	}
	server := c.serve(t, cfg.Handler, &c.Requests, &tls.Config{Certificates: []tls.Certificate{cert}})
	metadata := c.serve(t, cfg.Metadata, &c.Metadata, nil)
	host := podvm.Host{Root: t.TempDir(), IMDS: metadata.URL, LookupEnv: func(string) (string, bool) { return "", false }}
	c.dir = string(wire.CredentialDir(host, cfg.Provider))
	quiet := slog.New(slog.DiscardHandler)
	client := wire.NewClient(wire.ClientConfig{
		Host: host, Log: quiet, Backoff: time.Microsecond, TryTimeout: cfg.TryTimeout, Roots: roots,
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr != metadata.Listener.Addr().String() {
				c.dialled.Store(addr)
				addr = server.Listener.Addr().String()
			}
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		},
	})
	t.Cleanup(client.Close)
	c.Env = wire.Env{Host: host, HTTP: client, Files: wire.CredentialDir(host, cfg.Provider), Now: time.Now, Log: quiet}
	return c
}

func (c *Cloud) serve(t testing.TB, h http.HandlerFunc, count *atomic.Int64, conf *tls.Config) *httptest.Server {
	if h == nil {
		h = http.NotFound
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		count.Add(1)
		h(w, r)
	}))
	s.Config.ErrorLog = log.New(discard{}, "", 0) // refused handshakes are part of tests
	if conf == nil {
		s.Start()
	} else {
		s.TLS = conf
		s.StartTLS()
	}
	t.Cleanup(s.Close)
	return s
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

// certify makes a CA and a server certificate of it.
func (c *Cloud) certify(t testing.TB, names []string) tls.Certificate {
	t.Helper()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: names,
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	caKey, leafKey := newKey(t), newKey(t)
	caDER := sign(t, ca, ca, caKey, caKey)
	c.CA = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})
	return tls.Certificate{Certificate: [][]byte{sign(t, leaf, ca, leafKey, caKey)}, PrivateKey: leafKey}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t testing.TB, cert, parent *x509.Certificate, key, by *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, cert, parent, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// Dialled returns the last address a connection was asked for, metadata service
// aside.
func (c *Cloud) Dialled() string {
	addr, _ := c.dialled.Load().(string)
	return addr
}

// Write places a credential file of the provider.
func (c *Cloud) Write(t testing.TB, name string, content []byte) {
	t.Helper()
	path := filepath.Join(c.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Remove takes a credential file away.
func (c *Cloud) Remove(t testing.TB, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(c.dir, name)); err != nil {
		t.Fatal(err)
	}
}
