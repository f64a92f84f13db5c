package snp

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/uuid"
)

// ErrCertTable says that the host's certificate table is malformed.
var ErrCertTable = errors.New("invalid certificate table")

// Caps of the certificate table. A real one has three or four certificates of
// under 2 KiB each; the text of evidence is four times as long.
const (
	maxCertTable = 64 << 10 // bytes
	maxCerts     = 16
)

// Certificate is one certificate of the host's.
type Certificate struct {
	Type CertType `json:"cert_type"`
	Data Octets   `json:"data"` // DER
}

// CertType is "ARK", "ASK", "VCEK", "VLEK" or "CRL", or a UUID for others.
type CertType string

// MarshalJSON returns the name as text, a UUID as {"OTHER": UUID}.
func (c CertType) MarshalJSON() ([]byte, error) {
	if len(c) == 36 {
		return fmt.Appendf(nil, `{"OTHER":%q}`, string(c)), nil
	}
	return fmt.Appendf(nil, "%q", string(c)), nil
}

// certType names what a table entry is.
// Source: AMD 56421 (GHCB); virtee/sev src/firmware/host/types/snp.rs at v6.3.0.
func certType(id uuid.UUID) CertType {
	switch s := id.String(); s {
	case "63da758d-e664-4564-adc5-f4b93be8accd":
		return "VCEK"
	case "a8074bc2-a25a-483e-aae6-39c045a0b8a1":
		return "VLEK"
	case "4ab7b379-bbac-4fe4-a02f-05aef327c782":
		return "ASK"
	case "c0b406a4-a803-4952-9743-3fb6014cd0ae":
		return "ARK"
	case "92f81bc3-5811-4d3d-97ff-d19f88dc67ea":
		return "CRL"
	default:
		return CertType(s)
	}
}

// parseCertTable returns the certificates of a table, nil if it has no VCEK and
// no VLEK. The table is a list of 24-byte entries, each a GUID, an offset and a
// length as little-endian u32, ended by one of zeros, and the data they point
// to. go-sev-guest's parser is not used: an offset near 2^32 makes it panic,
// and the host chooses the offsets. Errors: ErrCertTable.
func parseCertTable(table []byte) ([]Certificate, error) {
	if len(table) > maxCertTable {
		return nil, fmt.Errorf("%w: %d bytes", ErrCertTable, len(table))
	}
	if len(table) == 0 {
		return nil, nil
	}
	var out []Certificate
	leaf, total := false, 0
	for rest := table; ; rest = rest[24:] {
		if len(rest) < 24 {
			return nil, fmt.Errorf("%w: it has no end", ErrCertTable)
		}
		if [24]byte(rest) == [24]byte{} {
			break
		}
		start := uint64(binary.LittleEndian.Uint32(rest[16:]))
		end := start + uint64(binary.LittleEndian.Uint32(rest[20:]))
		if end > uint64(len(table)) {
			return nil, fmt.Errorf("%w: entry %d points at bytes %d to %d of %d", ErrCertTable, len(out), start, end, len(table))
		}
		c := Certificate{certType(uuid.UUID(rest[:16])), table[start:end]}
		// Entries may not overlap so much that the text outgrows the table.
		if total += len(c.Data); total > len(table) || len(out) == maxCerts {
			return nil, fmt.Errorf("%w: too many certificates", ErrCertTable)
		}
		leaf = leaf || len(c.Data) > 0 && (c.Type == "VCEK" || c.Type == "VLEK")
		out = append(out, c)
	}
	if !leaf {
		return nil, nil
	}
	return out, nil
}
