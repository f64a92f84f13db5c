package podvm

import (
	"fmt"
	"log/slog"
)

const redacted = "[redacted]"

// Secret is bytes that must not reach a log, an error text or a JSON document
// by accident: every formatting route prints "[redacted]". Convert to []byte
// at the one place that needs the bytes. The owner calls Wipe when done.
type Secret []byte

// Wipe overwrites the bytes with zeros. Copies made elsewhere are not reached.
func (s Secret) Wipe() { clear(s) }

// Format implements fmt.Formatter for every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText implements encoding.TextMarshaler, which encoding/json uses too.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
