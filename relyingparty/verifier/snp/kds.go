package snp

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/sealpod/sealpod/podvm"
)

// DefaultKDS is AMD's key distribution service.
const DefaultKDS = "https://kdsintf.amd.com"

const (
	kdsTimeout = 20 * time.Second
	maxCRL     = 1 << 20
	kdsCalls   = 4    // at the same time; AMD throttles
	kdsCached  = 1024 // endorsement keys, which never change
	crlFresh   = time.Hour
	crlRetry   = time.Minute // how long a failure is not repeated
)

// KDS is a key distribution service with AMD's HTTP interface, a Source and
// Revocations. VCEKs are cached without end, revocation lists for an hour; a
// list that cannot be refreshed serves on, and its date tells how long. Both are
// kept in memory only: after a start AMD must answer once.
type KDS struct {
	base   string
	client *http.Client
	keys   *lru.Cache[string, []byte]
	now    func() time.Time
	slots  chan struct{}

	mu   sync.Mutex
	crls map[Issuer]*crlEntry // as many as there are products with a root
}

// crlEntry is the list of one issuer. The slot is held while it changes.
type crlEntry struct {
	slot      chan struct{}
	der       []byte
	at, tried time.Time // when der was fetched; when fetching failed last
	failure   error
}

var _ Revocations = (*KDS)(nil)

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
	return &KDS{
		base: strings.TrimRight(base, "/"), client: client, keys: keys, now: now,
		slots: make(chan struct{}, kdsCalls), crls: map[Issuer]*crlEntry{},
	}, nil
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
	if errors.Is(err, errMissing) {
		return nil, fmt.Errorf("%w: %w", ErrNoKey, err)
	}
	if err != nil {
		return nil, err
	}
	if _, err := x509.ParseCertificate(der); err != nil { // of a proxy, perhaps: not to be kept
		return nil, fmt.Errorf("the key server answered with no certificate: %w", err)
	}
	k.keys.Add(url, der)
	return der, nil
}

// CRL implements Revocations. Guests of one product wait for one fetch. It is
// never ErrNoList: AMD has a list for every issuer, and who says otherwise may
// want to keep it from us.
func (k *KDS) CRL(ctx context.Context, of Issuer) ([]byte, error) {
	k.mu.Lock()
	e := k.crls[of]
	if e == nil {
		e = &crlEntry{slot: make(chan struct{}, 1)}
		k.crls[of] = e
	}
	k.mu.Unlock()
	select {
	case e.slot <- struct{}{}:
		defer func() { <-e.slot }()
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for the key server: %w", ctx.Err())
	}
	now := k.now()
	if e.der != nil && now.Sub(e.at) < crlFresh {
		return e.der, nil
	}
	if e.failure == nil || now.Sub(e.tried) >= crlRetry {
		kind := "vcek"
		if of.VLEK {
			kind = "vlek"
		}
		der, err := k.get(ctx, fmt.Sprintf("%s/%s/v1/%s/crl", k.base, kind, of.Product), maxCRL)
		if err == nil {
			_, err = x509.ParseRevocationList(der) // of a proxy, perhaps
		}
		if err == nil {
			e.der, e.at, e.failure = der, now, nil
			return der, nil
		}
		if ctx.Err() != nil {
			return nil, err // the guest left; the next one may ask at once
		}
		e.failure, e.tried = err, now
	}
	if e.der != nil {
		return e.der, nil
	}
	return nil, e.failure
}

// errMissing is what the service says of a document that it does not have.
var errMissing = errors.New("the key server has no such document")

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
		return nil, fmt.Errorf("%w: it answered %s to %s", errMissing, resp.Status, url)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("asking the key server: %s (AMD limits the rate of questions; an offline store does not)", resp.Status)
	}
	if body, err = podvm.ReadMax(resp.Body, limit); err != nil {
		return nil, fmt.Errorf("reading the answer of the key server: %w", err)
	}
	return body, nil
}
