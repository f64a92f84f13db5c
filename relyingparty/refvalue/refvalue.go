// Package refvalue is the reference value provider: the measurements and
// versions that the owner expects, which attestation policies compare claims
// with.
//
// Place in the data path: administrators register messages; the builtin
// query_reference_value of attestation policies reads values.
//
// Trust: messages come from authenticated administrators, values may be of any
// JSON type. An expiry date is recorded and, as in Trustee, not enforced.
//
// Source: trustee rvps/src at 78962cd4.
package refvalue

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/relyingparty/store"
)

// What callers tell apart.
var (
	// ErrMessage says that a registration cannot be read.
	ErrMessage = errors.New("not a reference value message")
	// ErrNotFound says that there is no value of that name.
	ErrNotFound = errors.New("no such reference value")
)

// version is the only version of messages and of stored values.
const version = "0.1.0"

// Provider keeps reference values in a store. It may be used by any number of
// goroutines.
type Provider struct {
	store store.Store
	now   func() time.Time
}

// New returns the provider over a store with the clock now, nil for time.Now.
func New(s store.Store, now func() time.Time) *Provider {
	if now == nil {
		now = time.Now
	}
	return &Provider{store: s, now: now}
}

// message is a registration.
type message struct {
	Version string `json:"version"`
	Type    string `json:"type"`
	Payload string `json:"payload"`
}

// stored is one value as the store has it.
type stored struct {
	Version    string          `json:"version"`
	Name       string          `json:"name"`
	Expiration string          `json:"expiration"` // RFC 3339, UTC, whole seconds
	Value      json.RawMessage `json:"value"`
}

// Register reads a message {"version":"0.1.0","type":"sample","payload":P}
// where P is padded standard base64 of a JSON object from names to values, and
// stores each value for twelve months. Nothing is stored when one of the names
// or values is refused. Other types ("swid", "corim") are not supported. A
// message that cannot be read is ErrMessage.
func (p *Provider) Register(ctx context.Context, raw []byte) error {
	m := message{Version: version}
	if err := strictJSON(raw, &m); err != nil {
		return fmt.Errorf("%w: %w", ErrMessage, err)
	}
	if m.Version != version {
		return fmt.Errorf("%w: version %q, want %s", ErrMessage, podvm.Printable(m.Version, 32), version)
	}
	if m.Type != "sample" {
		return fmt.Errorf("%w: type %q, want sample", ErrMessage, podvm.Printable(m.Type, 32))
	}
	payload, err := base64.StdEncoding.DecodeString(m.Payload)
	if err != nil {
		return fmt.Errorf("%w: payload: %w", ErrMessage, err)
	}
	var values map[string]json.RawMessage
	if err := strictJSON(payload, &values); err != nil || values == nil {
		return fmt.Errorf("%w: payload is not a JSON object of values", ErrMessage)
	}
	for name := range values {
		if err := store.CheckKey(name); err != nil {
			return fmt.Errorf("%w: name: %w", ErrMessage, err)
		}
	}
	expiration := p.now().UTC().AddDate(1, 0, 0).Format("2006-01-02T15:04:05Z")
	for name, value := range values {
		doc, err := json.Marshal(stored{version, name, expiration, value})
		if err != nil {
			return fmt.Errorf("encoding reference value %s: %w", name, err)
		}
		if err := p.store.Put(ctx, store.ReferenceValue, name, doc); err != nil {
			return fmt.Errorf("storing reference value %s: %w", name, err)
		}
	}
	return nil
}

// Raw returns the JSON text of the value of that name, or ErrNotFound.
func (p *Provider) Raw(ctx context.Context, name string) (json.RawMessage, error) {
	raw, err := p.store.Get(ctx, store.ReferenceValue, name)
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrKey) {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, podvm.Printable(name, 128))
	}
	if err != nil {
		return nil, fmt.Errorf("reading reference value %s: %w", name, err)
	}
	var s stored
	if err := json.Unmarshal(raw, &s); err != nil || len(s.Value) == 0 {
		return nil, fmt.Errorf("reading reference value %s: the stored document is damaged", name)
	}
	return s.Value, nil
}

// Query returns the value of that name, nil if there is none: it is the
// policy.Reference of attestation policies. Numbers are json.Number.
func (p *Provider) Query(ctx context.Context, name string) (any, error) {
	raw, err := p.Raw(ctx, name)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, fmt.Errorf("reading reference value %s: %w", name, err)
	}
	return v, nil
}

// strictJSON decodes exactly one JSON value.
func strictJSON(raw []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data after the JSON value")
	}
	return nil
}
