package forwarder

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/sealpod/sealpod/podvm"
)

// TLS is what the command line says about it.
type TLS struct {
	// CertFile and KeyFile are the server's pair in PEM; both or it is that of
	// apf.json. CAFile is what certificates of clients are verified against.
	CertFile, KeyFile, CAFile string
	// Off serves plain TCP.
	Off bool
	// SkipVerify is upstream's flag: there must be no CA then.
	SkipVerify bool
	// AnyClient serves clients without a certificate.
	AnyClient bool
}

// maxPEM caps each PEM file, in bytes.
const maxPEM = 1 << 20

// maxAnchors caps the certificates that clients are verified against.
const maxAnchors = 64

// ErrNoClientAuth says that nothing would tell the adaptor from a stranger.
var ErrNoClientAuth = errors.New("clients would not be authenticated: there is no CA for their certificates")

// The words of Go's own listener for a server without a pair, which is what
// upstream ends with.
var errNoPair = errors.New("tls: neither Certificates, GetCertificate, nor GetConfigForClient set in Config")

// config returns the server's side of TLS, nil for plain TCP.
//
// Client and server certificates are judged as Go does: one that is its own
// issuer, is no CA and is among the anchors is good, as cloud-api-adaptor's
// automatic mode has it. Source: cloud-api-adaptor src/cloud-api-adaptor
// pkg/util/tlsutil, pkg/util/tlsconfig and pkg/adaptor/cloud at fbdde756.
func (t TLS) config(f File, log *slog.Logger) (*tls.Config, error) {
	if t.Off {
		log.Warn("TLS is off: whoever reaches the port owns the pod, and reads what it says")
		return nil, nil
	}
	c := &tls.Config{
		// One connection for the life of a pod resumes nothing.
		SessionTicketsDisabled: true,
		// Nobody reads half a frame, so small records first serve nobody.
		DynamicRecordSizingDisabled: true,
	}
	if err := t.profile(c, f, log); err != nil {
		return nil, fmt.Errorf("%w: invalid TLS profile: %w", ErrConfig, err)
	}
	if err := t.clients(c, f, log); err != nil {
		return nil, err
	}
	pair, err := t.pair(f, log)
	if err != nil {
		return nil, err
	}
	c.Certificates = []tls.Certificate{pair}
	return c, nil
}

// profile sets versions and cipher suites.
func (t TLS) profile(c *tls.Config, f File, log *slog.Logger) error {
	switch f.MinVersion {
	case "", "VersionTLS12":
		c.MinVersion = tls.VersionTLS12
	case "VersionTLS13":
		c.MinVersion = tls.VersionTLS13
		if len(f.CipherSuites) > 0 {
			return errors.New("cipher suites cannot be chosen for VersionTLS13")
		}
	case "VersionTLS10", "VersionTLS11":
		return fmt.Errorf("minimum version %q: TLS 1.0 and 1.1 are not supported, use VersionTLS12 or VersionTLS13", f.MinVersion)
	default:
		return fmt.Errorf("minimum version %q: want VersionTLS12 or VersionTLS13", podvm.Printable(f.MinVersion, 50))
	}
	for _, name := range f.CipherSuites {
		id, secure, err := suite(name)
		switch {
		case err != nil:
			return err
		case !secure:
			log.Warn("A cipher suite is left out: it is not secure", "suite", name)
		default:
			c.CipherSuites = append(c.CipherSuites, id)
		}
	}
	if len(f.CipherSuites) > 0 && len(c.CipherSuites) == 0 {
		return errors.New("no cipher suite of the list is secure")
	}
	return nil
}

// oldNames are names of Kubernetes for suites that got a longer one.
var oldNames = map[string]uint16{
	"TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305":   tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305": tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
}

// suite returns the cipher suite of that name.
func suite(name string) (id uint16, secure bool, err error) {
	if id, ok := oldNames[name]; ok {
		return id, true, nil
	}
	named := func(s *tls.CipherSuite) bool { return s.Name == name }
	if all := tls.CipherSuites(); slices.ContainsFunc(all, named) {
		return all[slices.IndexFunc(all, named)].ID, true, nil
	}
	if slices.ContainsFunc(tls.InsecureCipherSuites(), named) {
		return 0, false, nil
	}
	return 0, false, fmt.Errorf("cipher suite %q is not known", podvm.Printable(name, 80))
}

// clients sets who may connect.
func (t TLS) clients(c *tls.Config, f File, log *slog.Logger) error {
	anchors := []byte(f.ClientCA.Secret)
	if t.CAFile != "" {
		var err error
		if anchors, err = podvm.ReadFileMax(t.CAFile, maxPEM); err != nil {
			return fmt.Errorf("reading the CA of clients: %w", err)
		}
	}
	switch {
	case t.CAFile == "" && len(anchors) == 0:
		if !t.AnyClient && !t.SkipVerify {
			return fmt.Errorf("%w (set -ca-cert-file, or tls-client-ca in apf.json; -insecure-no-client-auth serves everyone)", ErrNoClientAuth)
		}
		log.Warn("Clients are not authenticated: whoever reaches the port owns the pod")
		return nil
	case t.SkipVerify:
		return fmt.Errorf("%w: specifying a root certificates file with the insecure flag is not allowed: -tls-skip-verify and a CA for clients", ErrConfig)
	}
	pool, err := parseAnchors(anchors)
	if err != nil {
		return fmt.Errorf("%w: reading the CA of clients: %w", ErrConfig, err)
	}
	c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, pool
	return nil
}

// parseAnchors takes nothing but certificates, all of them readable.
func parseAnchors(text []byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	for n := 0; ; n++ {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			switch {
			case n == 0:
				return nil, errors.New("no PEM block in it")
			case bytes.Contains(text, []byte("-----BEGIN ")):
				return nil, fmt.Errorf("PEM block %d is cut off or malformed", n+1)
			}
			return pool, nil
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("PEM block %d is %q, want CERTIFICATE", n+1, podvm.Printable(block.Type, 50))
		}
		if n == maxAnchors {
			return nil, fmt.Errorf("%w: more than %d certificates", podvm.ErrTooLarge, maxAnchors)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", n+1, err)
		}
		pool.AddCert(cert)
	}
}

// pair returns the server's certificate and key.
func (t TLS) pair(f File, log *slog.Logger) (tls.Certificate, error) {
	cert, key := []byte(f.ServerCert.Secret), f.ServerKey.Secret
	switch {
	case t.CertFile != "" && t.KeyFile != "":
		var err error
		if cert, err = podvm.ReadFileMax(t.CertFile, maxPEM); err == nil {
			key, err = podvm.ReadFileMax(t.KeyFile, maxPEM)
		}
		if err != nil {
			return tls.Certificate{}, fmt.Errorf("reading the server's certificate and key: %w", err)
		}
	case t.CertFile != "" || t.KeyFile != "":
		log.Warn("The server's pair is that of apf.json: -cert-file and -cert-key count together only")
	}
	defer key.Wipe()
	if len(cert) == 0 || len(key) == 0 {
		return tls.Certificate{}, fmt.Errorf("%w: %w (set -cert-file and -cert-key, or tls-server-cert and tls-server-key in apf.json)", ErrConfig, errNoPair)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("%w: reading the server's certificate and key: %w", ErrConfig, err)
	}
	return pair, nil
}
