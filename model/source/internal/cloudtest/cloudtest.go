// Package cloudtest lets tests meet clouds under their real names: connections go
// to a server of the test, which has a certificate for those names. It is for
// tests alone.
package cloudtest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sealpod/sealpod/model/source/settings"
	"github.com/sealpod/sealpod/podvm"
)

// Certificate writes a certificate for names, cabundle.crt, and its key, key.pem,
// into a folder of the test and returns that.
func Certificate(t testing.TB, names ...string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: names, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	must(t, err)
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "cabundle.crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), 0o600))
	return dir
}

// Serve runs an HTTPS server with the certificate in dir until the test ends and
// returns its address.
func Serve(t testing.TB, dir string, h http.HandlerFunc) string {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "cabundle.crt"), filepath.Join(dir, "key.pem"))
	must(t, err)
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// Environ is a machine with only these variables, which trusts the certificate in
// dir and is led by hosts, from names with ports, or "", to addresses.
func Environ(t testing.TB, dir string, hosts map[string]string, vars map[string]string) *settings.Env {
	t.Helper()
	env, err := settings.Load(podvm.Host{LookupEnv: func(name string) (string, bool) {
		switch name {
		case "CA_BUNDLE_CONFIGMAP_NAME", "CA_BUNDLE_VOLUME_MOUNT_POINT":
			return dir, dir != ""
		}
		v, ok := vars[name]
		return v, ok
	}}, slog.New(slog.DiscardHandler))
	must(t, err)
	env.Backoff = time.Millisecond
	env.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		to, ok := hosts[addr]
		if !ok {
			if to, ok = hosts[""]; !ok {
				to = addr
			}
		}
		return (&net.Dialer{}).DialContext(ctx, network, to)
	}
	return env
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Trust is a client's configuration that trusts the certificate in dir.
func Trust(t testing.TB, dir string) *tls.Config {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "cabundle.crt"))
	must(t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(raw)
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
}
