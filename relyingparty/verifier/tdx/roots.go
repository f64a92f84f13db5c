package tdx

import (
	"bytes"
	"crypto/x509"
	_ "embed" // Intel's root certificate
	"fmt"

	"github.com/sealpod/sealpod/podvm"
)

// intelRoot is as Intel publishes it at
// certificates.trustedservices.intel.com/Intel_SGX_Provisioning_Certification_RootCA.pem.
//
//go:embed intel_root.pem
var intelRoot []byte

// IntelRoot returns the certificate "Intel SGX Root CA".
func IntelRoot() (*x509.Certificate, error) {
	certs, err := parsePEM(intelRoot, 1)
	if err != nil {
		return nil, fmt.Errorf("reading Intel's root: %w", err)
	}
	return certs[0], nil
}

// ParseRoots reads trusted roots from PEM, one or more certificates and nothing
// else.
func ParseRoots(text []byte) ([]*x509.Certificate, error) {
	roots, err := parsePEM(text, max(1, bytes.Count(text, []byte("-----BEGIN"))))
	if err != nil {
		return nil, fmt.Errorf("reading trusted TDX roots: %w", err)
	}
	for _, root := range roots {
		if err := issuedBy(root, root); err != nil {
			return nil, fmt.Errorf("reading trusted TDX roots: %q is no root: %w", podvm.Printable(root.Subject.CommonName, 64), err)
		}
	}
	return roots, nil
}
