package tdx

import (
	"crypto/ecdsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"sync"
	"time"

	"github.com/sealpod/sealpod/teesim/internal/identity"
)

// The files of a platform. Those below trust are named after what they are.
const (
	keysFile       = "tdx.pem"             // below keys
	rootFile       = "tdx-root.pem"        // below trust
	collateralFile = "tdx-collateral.json" // below trust
)

// Options say what a platform is like. The zero value is a platform of today.
type Options struct {
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// QuoteVersion is that of its quotes: 4, also for 0, with the body of TDX
	// 1.0, or 5 with that of TDX 1.5.
	QuoteVersion uint16
	// Processor makes a new platform one of the Processor CA, for machines of
	// one socket, instead of the Platform CA. A platform that is in the
	// directory stays what it is.
	Processor bool
}

// Platform is a simulated machine with TDX. It is safe for concurrent use.
type Platform struct {
	keys    *keys
	dir     string
	now     func() time.Time
	version uint16
	// certified is the certification data of every quote: the quoting enclave
	// got it when it made its attestation key.
	certified []byte

	mu         sync.Mutex // of the two
	collateral []byte
	refresh    time.Time // when it is signed anew
}

// Open returns the platform whose identity is in dir, and makes one if there is
// none: dir/keys/tdx.pem is private, dir/trust/tdx-root.pem and
// dir/trust/tdx-collateral.json are what a relying party needs. An empty dir
// keeps it in memory. Its certificates are valid for 5 years before and after
// it was made.
func Open(dir string, o Options) (*Platform, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.QuoteVersion == 0 {
		o.QuoteVersion = 4
	}
	if o.QuoteVersion != 4 && o.QuoteVersion != 5 {
		return nil, fmt.Errorf("opening a TDX platform: quotes of version %d, must be 4 or 5", o.QuoteVersion)
	}
	now := o.Now()
	text, err := identity.Load(dir, keysFile, func() ([]byte, error) { return generateKeys(now, o.Processor) })
	if err != nil {
		return nil, fmt.Errorf("opening a TDX platform: %w", err)
	}
	p := &Platform{dir: dir, now: o.Now, version: o.QuoteVersion}
	if p.keys, err = parseKeys(text, now); err != nil {
		return nil, fmt.Errorf("opening a TDX platform: %s: %w", keysFile, err)
	}
	if p.certified, err = p.certify(p.Parts(Body{})); err != nil {
		return nil, fmt.Errorf("opening a TDX platform: %w", err)
	}
	if err := identity.Publish(dir, rootFile, PEM(p.Root())); err != nil {
		return nil, fmt.Errorf("opening a TDX platform: %w", err)
	}
	if _, err := p.CollateralJSON(); err != nil {
		return nil, fmt.Errorf("opening a TDX platform: %w", err)
	}
	return p, nil
}

// Root returns the certificate a relying party must trust.
func (p *Platform) Root() *x509.Certificate { return p.keys.Root }

// Certificates returns all certificates of the platform.
func (p *Platform) Certificates() Certificates { return p.keys.Certificates }

// FMSPC returns what names the kind of the platform in collateral, as 12
// hexadecimal digits.
func (p *Platform) FMSPC() string { return hex.EncodeToString(fmspc[:]) }

// IssuePCK returns another certificate of the platform's PCK key, with those
// extensions only.
func (p *Platform) IssuePCK(ext ...pkix.Extension) (*x509.Certificate, error) {
	return issue("Intel SGX PCK Certificate", otherSerial, p.keys.pck.Public(), p.keys.CA, p.keys.ca, p.now(), ext...)
}

// NewKey returns a key that could be one of a platform, for Parts.
func NewKey() (*ecdsa.PrivateKey, error) { return newKey() }
