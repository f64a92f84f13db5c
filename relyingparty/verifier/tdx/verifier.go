package tdx

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"time"

	"github.com/sealpod/sealpod/relyingparty/verifier"
	"github.com/sealpod/sealpod/relyingparty/verifier/ccel"
)

const (
	// maxEvidence bounds the JSON of one guest: a quote and an event log.
	maxEvidence = 8 << 20
	// maxAge is how long collateral is used before it is asked for again.
	maxAge = 24 * time.Hour
)

// Config says what to trust and where to look.
type Config struct {
	// Roots are the trusted roots; none means Intel's. With the root of a
	// simulator here, Intel's is trusted only when it is here too.
	Roots []*x509.Certificate
	// Source finds collateral; required.
	Source Source
	// MaxAge is how long collateral is used before it is asked for again; 0
	// means a day.
	MaxAge time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Verifier verifies the evidence of the TEE "tdx".
type Verifier struct {
	config Config
	cache  *cache
}

var _ verifier.Verifier = (*Verifier)(nil)

// New returns a verifier for that configuration.
func New(c Config) (*Verifier, error) {
	if c.Source == nil {
		return nil, errors.New("TDX needs a source of collateral: Intel's service, a caching service or a file")
	}
	if len(c.Roots) == 0 {
		root, err := IntelRoot()
		if err != nil {
			return nil, err
		}
		c.Roots = []*x509.Certificate{root}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.MaxAge == 0 {
		c.MaxAge = maxAge
	}
	return &Verifier{c, &cache{source: c.Source, maxAge: c.MaxAge, entries: map[cacheKey]*cacheEntry{}}}, nil
}

// TEE implements verifier.Verifier.
func (*Verifier) TEE() string { return "tdx" }

// evidence is the JSON of the attester. Members not known are ignored.
type evidence struct {
	Quote    *string `json:"quote"`
	EventLog *string `json:"cc_eventlog"`
}

func parseEvidence(raw json.RawMessage) (quote, eventLog []byte, err error) {
	if len(raw) > maxEvidence {
		return nil, nil, fmt.Errorf("TDX evidence of %d bytes, at most %d are read", len(raw), maxEvidence)
	}
	var e evidence
	d := json.NewDecoder(bytes.NewReader(raw))
	if err := d.Decode(&e); err != nil {
		return nil, nil, fmt.Errorf("reading TDX evidence: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, nil, errors.New("data after TDX evidence")
	}
	if e.Quote == nil {
		return nil, nil, errors.New("no quote: this is not the evidence of a TDX guest")
	}
	if quote, err = base64.StdEncoding.Strict().DecodeString(*e.Quote); err != nil {
		return nil, nil, fmt.Errorf("decoding quote: %w", err)
	}
	if e.EventLog != nil {
		if eventLog, err = base64.StdEncoding.Strict().DecodeString(*e.EventLog); err != nil {
			return nil, nil, fmt.Errorf("decoding cc_eventlog: %w", err)
		}
	}
	return quote, eventLog, nil
}

// Verify implements verifier.Verifier. Missing or invalid collateral is
// ErrCollateral and not the guest's fault. A guest may send no event log; then
// there is no claim uefi_event_logs. The claim init_data_binding is there when
// the guest sent init data.
func (v *Verifier) Verify(ctx context.Context, raw json.RawMessage, want verifier.Expected) ([]verifier.Claims, error) {
	rawQuote, rawLog, err := parseEvidence(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", verifier.ErrEvidence, err)
	}
	q, claims, err := v.VerifyQuote(ctx, rawQuote)
	if err != nil {
		return nil, err
	}
	if err := q.bound(want.ReportData); err != nil {
		return nil, fmt.Errorf("%w: %w", verifier.ErrEvidence, err)
	}
	var log *ccel.Log
	if len(rawLog) > 0 {
		var events []any
		if log, events, err = q.eventLog(rawLog); err != nil {
			return nil, fmt.Errorf("%w: %w", verifier.ErrEvidence, err)
		}
		claims["uefi_event_logs"] = events
	}
	if want.InitData != nil {
		binding, err := q.initDataBinding(want.InitData, log)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", verifier.ErrEvidence, err)
		}
		claims["init_data_binding"] = binding
		if binding == bindingRTMR3 {
			claims["init_data"] = hex.EncodeToString(want.InitData)
		}
	}
	return []verifier.Claims{{Class: verifier.CPU, Values: claims}}, nil
}

// VerifyQuote verifies a quote and returns it with its claims. The caller
// compares report data and MRCONFIGID. A quote that does not hold is
// verifier.ErrEvidence.
func (v *Verifier) VerifyQuote(ctx context.Context, raw []byte) (*Quote, map[string]any, error) {
	bad := func(err error) (*Quote, map[string]any, error) {
		return nil, nil, fmt.Errorf("%w: TDX quote: %w", verifier.ErrEvidence, err)
	}
	q, err := parseQuote(raw)
	if err != nil {
		return bad(err)
	}
	ch, err := parseChain(q.chain, v.config.Roots)
	if err != nil {
		return bad(err)
	}
	info, err := parsePCK(ch.pck)
	if err != nil {
		return bad(err)
	}
	if err := q.checkSignatures(ch.pck); err != nil {
		return bad(err)
	}
	now := v.config.Now()
	for _, cert := range []*x509.Certificate{ch.pck, ch.ca, ch.root} {
		if now.Before(cert.NotBefore) {
			return bad(fmt.Errorf("certificate %q is valid from %s on, now is %s: check the clock", cert.Subject.CommonName, cert.NotBefore, now))
		}
	}
	platform := Platform{FMSPC: [6]byte(info.fmspc), CA: ch.caType}
	var c *checked
	verifier.Wait(ctx, func() { c, err = v.cache.get(ctx, platform, ch, now) })
	if err != nil {
		return nil, nil, err
	}
	if revoked(c.rootCRL, ch.ca) || revoked(c.pckCRL, ch.pck) {
		return bad(errors.New("its PCK certificate is revoked: the platform is not to be trusted any more"))
	}
	verdict, err := c.judge(q, info)
	if err != nil {
		return bad(err)
	}
	claims := q.claims()
	maps.Copy(claims, platformClaims(info, ch, c, verdict, now))
	return q, claims, nil
}

// bound compares REPORTDATA with what it must be.
func (q *Quote) bound(want []byte) error {
	if n := len(want); n == 0 || n > len(q.ReportData()) {
		return fmt.Errorf("expected report data has %d bytes, TDX quotes carry 1 to %d", n, len(q.ReportData()))
	}
	if !bytes.Equal(padded(want, len(q.ReportData())), q.ReportData()) {
		return errors.New("REPORTDATA is not that of this handshake: the quote was made for another nonce or TEE key")
	}
	return nil
}

// padded fills up with zeros, or cuts, as the guest does.
func padded(b []byte, size int) []byte {
	out := make([]byte, size)
	copy(out, b)
	return out
}

// eventLog replays the log over all four RTMRs and returns it with its claims.
func (q *Quote) eventLog(raw []byte) (*ccel.Log, []any, error) {
	log, err := ccel.Parse(raw)
	if err != nil {
		return nil, nil, err
	}
	registers := ccel.Registers{}
	for i := range 4 {
		registers[uint32(i+1)] = q.RTMR(i)
	}
	if err := log.Match(ccel.SHA384, registers); err != nil {
		return nil, nil, err
	}
	return log, log.Claims(ccel.SHA384, registers), nil
}
