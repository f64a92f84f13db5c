package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sealpod/sealpod/kbs/admin"
	"github.com/sealpod/sealpod/podvm"
)

// startRelyingParty runs the command until the test's context ends. It returns
// what stands behind the first two labels, and what stops it.
func startRelyingParty(t *testing.T, args ...string) (url, token string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	out, in := io.Pipe()
	cmd := relyingPartyCommand()
	cmd.SetArgs(append(args, "--listen", "127.0.0.1:0", "--log-level", "off"))
	cmd.SetOut(in)
	cmd.SetErr(io.Discard)
	done := make(chan error, 1)
	go func() {
		err := cmd.ExecuteContext(ctx)
		done <- err
		_ = in.CloseWithError(io.EOF)
	}()
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if v, ok := strings.CutPrefix(lines.Text(), "Relying party  "); ok {
			url = v
		}
		if v, ok := strings.CutPrefix(lines.Text(), "Admin token    "); ok {
			token = v
		}
		if strings.HasPrefix(lines.Text(), "Ctrl-C") {
			break
		}
	}
	return url, token, func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("relying-party %v: %v", args, err)
		}
	}
}

func TestRelyingPartyShowsTheTokenOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "rp")
	url, shown, stop := startRelyingParty(t, "--store", dir)
	token, _, _ := strings.Cut(shown, " ")
	if err := list(t, url, nil, token); err != nil {
		t.Errorf("with the token shown (%q): %v", shown, err)
	}
	stop()
	url, shown, stop = startRelyingParty(t, "--store", dir)
	if !strings.Contains(shown, "--new-admin-token") {
		t.Errorf("second start: %q", shown)
	}
	if err := list(t, url, nil, token); err != nil {
		t.Errorf("the token after a restart: %v", err)
	}
	stop()
}

func TestRelyingPartyOverTLSWithATokenFile(t *testing.T) {
	dir := t.TempDir()
	cert, key := selfSigned(t, dir)
	file := filepath.Join(dir, "token")
	if err := os.WriteFile(file, []byte("an old one, readable by all"), 0o644); err != nil { //nolint:gosec // the case under test
		t.Fatal(err)
	}
	url, shown, stop := startRelyingParty(t, "--store", filepath.Join(dir, "rp"), "--tls-cert", cert, "--tls-key", key, "--admin-token-file", file)
	defer stop()
	if !strings.HasPrefix(url, "https://") || shown != "written to "+file {
		t.Errorf("%q, %q", url, shown)
	}
	token, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 || bytes.ContainsAny(token, " \n") {
		t.Errorf("token file: %v, %v", info.Mode(), err)
	}
	ca, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	if err := list(t, url, ca, string(token)); err != nil {
		t.Error(err)
	}
}

// list makes one call that needs the admin token.
func list(t *testing.T, url string, ca []byte, token string) error {
	t.Helper()
	c, err := admin.New(url, ca, podvm.Secret(token))
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.ListResources(t.Context())
	return err
}

// selfSigned writes a certificate for 127.0.0.1 and its key.
func selfSigned(t *testing.T, dir string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	for file, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: pkcs8},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}
