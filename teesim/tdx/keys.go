package tdx

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// keys are what a platform keeps to itself, and its certificates.
type keys struct {
	root, ca, pck, signer *ecdsa.PrivateKey
	// attest is the key of the quoting enclave.
	attest *ecdsa.PrivateKey
	// report is the key of the CPU for the MAC of TDREPORTs, 32 bytes.
	report []byte
	Certificates
}

// private are the keys in the order of the file.
func (k *keys) private() []**ecdsa.PrivateKey {
	return []**ecdsa.PrivateKey{&k.root, &k.ca, &k.pck, &k.signer, &k.attest}
}

// certs are the certificates in the order of the file, and of the first keys.
func (k *keys) certs() []**x509.Certificate {
	return []**x509.Certificate{&k.Root, &k.CA, &k.PCK, &k.Signer}
}

// generateKeys makes a platform and returns its file.
func generateKeys(now time.Time, processor bool) ([]byte, error) {
	k := &keys{}
	for _, to := range k.private() {
		key, err := newKey()
		if err != nil {
			return nil, err
		}
		*to = key
	}
	kind := "Platform"
	if processor {
		kind = "Processor"
	}
	ext, err := extension(processor)
	if err != nil {
		return nil, fmt.Errorf("encoding the SGX extension: %w", err)
	}
	var errs [4]error
	k.Root, errs[0] = issue("Simulated SGX Root CA", rootSerial, k.root.Public(), nil, k.root, now)
	k.CA, errs[1] = issue("Intel SGX PCK "+kind+" CA", caSerial, k.ca.Public(), k.Root, k.root, now)
	k.PCK, errs[2] = issue("Intel SGX PCK Certificate", pckSerial, k.pck.Public(), k.CA, k.ca, now, ext)
	k.Signer, errs[3] = issue("Simulated SGX TCB Signing", signerSerial, k.signer.Public(), k.Root, k.root, now)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	var out []byte
	for _, key := range k.private() {
		der, err := x509.MarshalPKCS8PrivateKey(*key)
		if err != nil {
			return nil, err
		}
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)
	}
	return append(out, PEM(k.Root, k.CA, k.PCK, k.Signer)...), nil
}

// errKeys says that a file is not the keys of a platform.
var errKeys = errors.New("not the keys of a simulated TDX platform: remove the file to get another one")

// parseKeys reads the file of generateKeys.
func parseKeys(text []byte, now time.Time) (*keys, error) {
	k := &keys{}
	take := func(kind string) []byte {
		block, rest := pem.Decode(text)
		if text = rest; block == nil || block.Type != kind {
			return nil
		}
		return block.Bytes
	}
	for _, to := range k.private() {
		key, err := x509.ParsePKCS8PrivateKey(take("PRIVATE KEY"))
		ec, ok := key.(*ecdsa.PrivateKey)
		if err != nil || !ok {
			return nil, errKeys
		}
		*to = ec
	}
	for i, to := range k.certs() {
		cert, err := x509.ParseCertificate(take("CERTIFICATE"))
		if err != nil || !(*k.private()[i]).PublicKey.Equal(cert.PublicKey) {
			return nil, errKeys
		}
		if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
			return nil, fmt.Errorf("%w: the certificate %q is valid from %s to %s", errKeys, cert.Subject.CommonName, cert.NotBefore, cert.NotAfter)
		}
		*to = cert
	}
	if len(bytes.TrimSpace(text)) > 0 {
		return nil, errKeys
	}
	secret, err := k.pck.Bytes()
	if err != nil {
		return nil, errKeys
	}
	k.report, err = hkdf.Key(sha256.New, secret, nil, "MAC of TDREPORTs", sha256.Size)
	return k, err
}
