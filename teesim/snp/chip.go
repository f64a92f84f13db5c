package snp

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/sealpod/sealpod/teesim/internal/identity"
)

// Options choose a chip. The zero value is a Milan.
type Options struct {
	// Product is Milan, Genoa or Turin; "" means Milan.
	Product string
	// ReportVersion is 2, 3 or 5; 0 means 3, and 5 on Turin.
	ReportVersion uint32
	// Now is the clock by which a new identity is dated; nil means time.Now.
	Now func() time.Time
}

// Key is a private key and the certificate of its public half.
type Key struct {
	Certificate *x509.Certificate
	Private     *ecdsa.PrivateKey
}

// Makers are the keys of the chip's maker: the root key, and the keys it
// certified for signing VCEKs and VLEKs.
type Makers struct{ ARK, ASK, ASVK Key }

// Chip is a simulated chip and its maker. It is safe for concurrent use.
type Chip struct {
	product product
	version uint32
	secret  []byte
	made    time.Time
	id      []byte
	makers  Makers
}

// seed is the whole identity, as DIR/keys/snp-PRODUCT.json keeps it.
type seed struct {
	// Secret is what all keys follow from, 32 bytes.
	Secret []byte `json:"secret"`
	// Made is when: certificates are valid for five years before and after.
	Made time.Time `json:"made"`
}

const secretSize = 32

// Open returns the chip of a product whose identity is in dir, and makes it if
// there is none. It publishes what a relying party needs:
//
//	DIR/trust/snp-PRODUCT.pem       ARK, ASK and ASVK
//	DIR/trust/vcek/HWID/*_vcek.der  the VCEKs of current and stale firmware
//
// HWID and file names are those of the KDS: lower case hexadecimal, and versions
// of two decimal digits. With dir "" everything stays in memory.
func Open(dir string, o Options) (*Chip, error) {
	p, err := productOf(o.Product)
	if err != nil {
		return nil, err
	}
	c := &Chip{product: p, version: o.ReportVersion}
	switch {
	case c.version == 0 && p.name == Turin:
		c.version = 5
	case c.version == 0:
		c.version = 3
	case c.version != 2 && c.version != 3 && c.version != 5:
		return nil, fmt.Errorf("report version %d: it must be 2, 3 or 5", c.version)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	text, err := identity.Load(dir, "snp-"+p.name+".json", func() ([]byte, error) {
		s := seed{make([]byte, secretSize), o.Now().UTC().Truncate(time.Second)}
		_, _ = rand.Read(s.Secret) // it never fails
		return json.Marshal(s)
	})
	if err != nil {
		return nil, err
	}
	var s seed
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, fmt.Errorf("keys/snp-%s.json: %w: remove the file to get another one", p.name, err)
	}
	if len(s.Secret) != secretSize || s.Made.IsZero() {
		return nil, fmt.Errorf("keys/snp-%s.json: not the identity of a simulated %s: remove the file to get another one", p.name, p.name)
	}
	c.secret, c.made = s.Secret, s.Made
	if c.id, err = c.derive("hardware id", p.idSize); err != nil {
		return nil, err
	}
	if c.makers, err = c.makeMakers(); err != nil {
		return nil, fmt.Errorf("making the keys of the simulated %s: %w", p.name, err)
	}
	return c, c.publish(dir)
}

func (c *Chip) publish(dir string) error {
	if dir == "" {
		return nil
	}
	var text []byte
	for _, k := range []Key{c.makers.ARK, c.makers.ASK, c.makers.ASVK} {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: k.Certificate.Raw})...)
	}
	store := filepath.Join("vcek", hex.EncodeToString(c.id))
	err := errors.Join(identity.Publish(dir, "snp-"+c.product.name+".pem", text), os.MkdirAll(filepath.Join(dir, "trust", store), 0o755))
	for _, t := range []TCB{c.product.current(), c.product.stale()} {
		name := fmt.Sprintf("bl%02d_tee%02d_snp%02d_ucode%02d", t.Bootloader, t.TEE, t.SNP, t.Microcode)
		if c.product.name == Turin {
			name += fmt.Sprintf("_fmc%02d", t.FMC)
		}
		k, kerr := c.Endorse(c.id, t)
		if err = errors.Join(err, kerr); err == nil {
			err = identity.Publish(dir, filepath.Join(store, name+"_vcek.der"), k.Certificate.Raw)
		}
	}
	return err
}

// Product is Milan, Genoa or Turin.
func (c *Chip) Product() string { return c.product.name }

// HardwareID names the chip: 64 bytes, 8 on Turin.
func (c *Chip) HardwareID() []byte { return append([]byte(nil), c.id...) }

// Makers returns the keys of the maker, for tests that sign what it would not.
func (c *Chip) Makers() Makers { return c.makers }

// Roots returns the certificates of the maker.
func (c *Chip) Roots() (ark, ask, asvk *x509.Certificate) {
	return c.makers.ARK.Certificate, c.makers.ASK.Certificate, c.makers.ASVK.Certificate
}

// TCB returns the firmware under which a guest runs.
func (c *Chip) TCB(g *Guest) TCB {
	if g.stale {
		return c.product.stale()
	}
	return c.product.current()
}

// VCEK returns the certificate of the key with which the chip signs reports
// under that firmware.
func (c *Chip) VCEK(t TCB) (*x509.Certificate, error) {
	k, err := c.Endorse(c.id, t)
	return k.Certificate, err
}
