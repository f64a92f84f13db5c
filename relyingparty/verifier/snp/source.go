package snp

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/sealpod/sealpod/podvm"
)

// ErrNoKey says that a guest sent no endorsement key and no source has it.
var ErrNoKey = errors.New("no endorsement key for this chip and firmware")

// DefaultKDS is AMD's key distribution service.
const DefaultKDS = "https://kdsintf.amd.com"

const (
	kdsTimeout = 20 * time.Second
	maxCRL     = 1 << 20
	kdsCalls   = 4    // at the same time; AMD throttles
	kdsCached  = 1024 // endorsement keys, which never change
	crlFresh   = time.Hour
)

// Chip names the VCEK of one chip at given firmware versions.
type Chip struct {
	Product string
	// ID is the hardware id: 64 bytes, 8 on Turin.
	ID  []byte
	TCB TCB
}

// Source finds VCEKs. What it returns need not be trusted. It must be usable by
// any number of goroutines.
type Source interface {
	// VCEK returns the certificate as DER. ErrNoKey when there is none.
	VCEK(ctx context.Context, chip Chip) ([]byte, error)
}

// Revocations finds revocation lists. It must be usable by any number of
// goroutines.
type Revocations interface {
	// CRL returns the list that the ARK of a product signed, as DER.
	CRL(ctx context.Context, product string) ([]byte, error)
}

// OfflineStore is a directory with endorsement keys, a Source and Revocations
// without a network. The files:
//
//	vcek/HWID/bl%02d_tee%02d_snp%02d_ucode%02d[_fmc%02d]_vcek.der
//	vcek/HWID/vcek.der    the fallback
//	crl/PRODUCT.der
//
// HWID is lower case hexadecimal; fmc is in the names of Turin only.
type OfflineStore string

// VCEK implements Source.
func (s OfflineStore) VCEK(_ context.Context, chip Chip) ([]byte, error) {
	name := fmt.Sprintf("bl%02d_tee%02d_snp%02d_ucode%02d", chip.TCB.Bootloader, chip.TCB.TEE, chip.TCB.SNP, chip.TCB.Microcode)
	if chip.Product == Turin {
		name += fmt.Sprintf("_fmc%02d", chip.TCB.FMC)
	}
	dir := filepath.Join(string(s), "vcek", hex.EncodeToString(chip.ID))
	for _, file := range []string{name + "_vcek.der", "vcek.der"} {
		der, err := podvm.ReadFileMax(filepath.Join(dir, file), maxCertificate)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading the VCEK from the offline store: %w", err)
		}
		return der, nil
	}
	return nil, fmt.Errorf("%w: %s has neither %s_vcek.der nor vcek.der", ErrNoKey, dir, name)
}

// CRL implements Revocations.
func (s OfflineStore) CRL(_ context.Context, product string) ([]byte, error) {
	return podvm.ReadFileMax(filepath.Join(string(s), "crl", product+".der"), maxCRL)
}

// KDS is a key distribution service with AMD's HTTP interface, a Source and
// Revocations. VCEKs are cached without end, revocation lists for an hour.
type KDS struct {
	base   string
	client *http.Client
	keys   *lru.Cache[string, []byte]
	crls   *lru.Cache[string, datedCRL]
	now    func() time.Time
	slots  chan struct{}
}

type datedCRL struct {
	der []byte
	at  time.Time
}

// NewKDS returns a client of the service at base, as in DefaultKDS. A nil
// client is one with system roots and a timeout of its own; nil now is
// time.Now.
func NewKDS(base string, client *http.Client, now func() time.Time) (*KDS, error) {
	if client == nil {
		client = &http.Client{Timeout: kdsTimeout}
	}
	if now == nil {
		now = time.Now
	}
	keys, err := lru.New[string, []byte](kdsCached)
	if err != nil {
		return nil, err
	}
	crls, err := lru.New[string, datedCRL](8)
	if err != nil {
		return nil, err
	}
	return &KDS{base: strings.TrimRight(base, "/"), client: client, keys: keys, crls: crls, now: now, slots: make(chan struct{}, kdsCalls)}, nil
}

// VCEK implements Source.
func (k *KDS) VCEK(ctx context.Context, chip Chip) ([]byte, error) {
	t := chip.TCB
	url := fmt.Sprintf("%s/vcek/v1/%s/%x?", k.base, chip.Product, chip.ID)
	if chip.Product == Turin {
		url += fmt.Sprintf("fmcSPL=%02d&", t.FMC)
	}
	url += fmt.Sprintf("blSPL=%02d&teeSPL=%02d&snpSPL=%02d&ucodeSPL=%02d", t.Bootloader, t.TEE, t.SNP, t.Microcode)
	if der, ok := k.keys.Get(url); ok {
		return der, nil
	}
	der, err := k.get(ctx, url, maxCertificate)
	if err != nil {
		return nil, err
	}
	if _, err := x509.ParseCertificate(der); err != nil { // of a proxy, perhaps: not to be kept
		return nil, fmt.Errorf("the key server answered with no certificate: %w", err)
	}
	k.keys.Add(url, der)
	return der, nil
}

// CRL implements Revocations.
func (k *KDS) CRL(ctx context.Context, product string) ([]byte, error) {
	if c, ok := k.crls.Get(product); ok && k.now().Sub(c.at) < crlFresh {
		return c.der, nil
	}
	der, err := k.get(ctx, fmt.Sprintf("%s/vcek/v1/%s/crl", k.base, product), maxCRL)
	if err != nil {
		return nil, err
	}
	k.crls.Add(product, datedCRL{der, k.now()})
	return der, nil
}

// get fetches a small document, bounded in time, size and number.
func (k *KDS) get(ctx context.Context, url string, limit int64) (body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, kdsTimeout)
	defer cancel()
	select {
	case k.slots <- struct{}{}:
		defer func() { <-k.slots }()
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for the key server: %w", ctx.Err())
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("asking the key server: %w", err)
	}
	resp, err := k.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("asking the key server: %w", err)
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	switch {
	case resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusBadRequest:
		return nil, fmt.Errorf("%w: the key server answered %s to %s", ErrNoKey, resp.Status, url)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("asking the key server: %s (AMD limits the rate of questions; an offline store does not)", resp.Status)
	}
	if body, err = podvm.ReadMax(resp.Body, limit); err != nil {
		return nil, fmt.Errorf("reading the answer of the key server: %w", err)
	}
	return body, nil
}
