package forwarder

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"testing"
	"time"
)

// pair is a certificate and its key in PEM.
type pair struct {
	cert, key []byte
	x509      *x509.Certificate
	private   *ecdsa.PrivateKey
}

// certificate makes a certificate as cloud-api-adaptor does: P-256, PKCS#8, the
// right to sign certificates even for those that are no CA. by nil signs itself.
// Source: cloud-api-adaptor src/cloud-api-adaptor/pkg/util/tlsutil/certgen.go at
// fbdde756.
func certificate(t testing.TB, by *pair, change func(*x509.Certificate)) *pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
	if err != nil {
		t.Fatal(err)
	}
	from := time.Now().Add(-5 * time.Minute)
	c := &x509.Certificate{
		SerialNumber: serial, NotBefore: from, NotAfter: from.AddDate(2, 0, 0),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
	}
	change(c)
	parent, signer := c, key
	if by != nil {
		parent, signer = by.x509, by.private
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &pair{
		cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}),
		x509: parsed, private: key,
	}
}

func newCA(t testing.TB) *pair {
	return certificate(t, nil, func(c *x509.Certificate) {
		c.Subject = pkix.Name{Organization: []string{"agent-protocol-forwarder"}}
		c.IsCA, c.ExtKeyUsage = true, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
}

func newServerPair(t testing.TB, ca *pair, name string) *pair {
	return certificate(t, ca, func(c *x509.Certificate) {
		c.Subject = pkix.Name{Organization: []string{"agent-protocol-forwarder"}, CommonName: name}
		c.DNSNames, c.ExtKeyUsage = []string{name}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
}

// newClientPair makes the adaptor's: it signs itself and is no CA.
func newClientPair(t testing.TB) *pair {
	return certificate(t, nil, adaptorsOwn)
}

func adaptorsOwn(c *x509.Certificate) {
	c.Subject = pkix.Name{Organization: []string{"cloud-api-adaptor"}}
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
}

func expiredClient(t testing.TB) *pair {
	return certificate(t, nil, func(c *x509.Certificate) {
		adaptorsOwn(c)
		c.NotBefore, c.NotAfter = time.Now().AddDate(-2, 0, 0), time.Now().Add(-time.Minute)
	})
}

// worker is an adaptor's side of TLS.
type worker struct {
	ca, server, client *pair
	name               string // that the host checks
}

// autoWorker is an adaptor that made all certificates itself.
func autoWorker(t testing.TB) worker {
	ca, name := newCA(t), "podvm-nginx-0a1b2c3d"
	return worker{ca: ca, server: newServerPair(t, ca, name), client: newClientPair(t), name: name}
}

// manualWorker has certificates by one CA for both sides, as people make them.
func manualWorker(t testing.TB) worker {
	ca := certificate(t, nil, func(c *x509.Certificate) {
		c.Subject, c.IsCA = pkix.Name{CommonName: "peer pods"}, true
	})
	return worker{
		ca: ca, server: newServerPair(t, ca, "podvm-server"), name: "podvm-server",
		client: certificate(t, ca, adaptorsOwn),
	}
}

// config is the client's configuration.
func (w worker) config(t testing.TB) *tls.Config {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(w.ca.x509)
	c := &tls.Config{RootCAs: roots, ServerName: w.name, MinVersion: tls.VersionTLS12}
	if w.client != nil {
		own, err := tls.X509KeyPair(w.client.cert, w.client.key)
		if err != nil {
			t.Fatal(err)
		}
		// Sent whatever issuers the server names.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own, nil }
	}
	return c
}

// file is what the adaptor puts into apf.json.
func (w worker) file() File {
	return File{
		ServerCert: text{w.server.cert}, ServerKey: text{append([]byte(nil), w.server.key...)}, ClientCA: text{w.client.cert},
	}
}
