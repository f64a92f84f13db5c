package tdx

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"time"
)

// retryAfter is how long refreshes of collateral that failed, or that brought
// collateral out of date, are not repeated.
const retryAfter = time.Minute

// cacheKey names verified collateral: the platform, and the certificates it
// was verified under.
type cacheKey struct {
	platform Platform
	ca, root [sha256.Size]byte
}

// cacheEntry is the collateral of one key. The slot is held while it changes.
type cacheEntry struct {
	slot    chan struct{}
	c       *checked
	at      time.Time // when c was fetched
	tried   time.Time // when fetching failed last
	failure error
}

// cache keeps verified collateral. Its keys come from chains that end at a
// trusted root, so there are as many as there are kinds of platforms.
type cache struct {
	source  Source
	maxAge  time.Duration
	mu      sync.Mutex
	entries map[cacheKey]*cacheEntry
}

// get returns collateral for a chain. Guests of one kind of platform wait for
// one fetch. Collateral that cannot be refreshed serves on; its dates tell.
func (s *cache) get(ctx context.Context, p Platform, ch *chain, now time.Time) (*checked, error) {
	key := cacheKey{p, sha256.Sum256(ch.ca.Raw), sha256.Sum256(ch.root.Raw)}
	s.mu.Lock()
	e := s.entries[key]
	if e == nil {
		e = &cacheEntry{slot: make(chan struct{}, 1)}
		s.entries[key] = e
	}
	s.mu.Unlock()
	select {
	case e.slot <- struct{}{}:
		defer func() { <-e.slot }()
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: waiting for it: %w", ErrCollateral, ctx.Err())
	}
	if e.c != nil {
		serves := s.maxAge
		if now.After(e.c.dates(ch).firstExpiry) {
			serves = retryAfter
		}
		if now.Sub(e.at) < serves {
			return e.c, nil
		}
	}
	if e.failure == nil || now.Sub(e.tried) >= retryAfter {
		fresh, err := s.fetch(ctx, p, ch)
		if err == nil {
			e.c, e.at, e.failure = fresh, now, nil
			return fresh, nil
		}
		if ctx.Err() != nil {
			return nil, err // the guest left; the next one may ask at once
		}
		e.failure, e.tried = err, now
	}
	if e.c != nil {
		return e.c, nil
	}
	return nil, e.failure
}

func (s *cache) fetch(ctx context.Context, p Platform, ch *chain) (*checked, error) {
	raw, err := s.source.Collateral(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("fetching collateral for FMSPC %X: %w", p.FMSPC, err)
	}
	c, err := raw.check(ch)
	if err != nil {
		return nil, fmt.Errorf("%w: FMSPC %X: %w", ErrCollateral, p.FMSPC, err)
	}
	if !strings.EqualFold(c.tcb.Fmspc, hex.EncodeToString(p.FMSPC[:])) {
		return nil, fmt.Errorf("%w: FMSPC %X: the TCB info is for another platform", ErrCollateral, p.FMSPC)
	}
	return c, nil
}
