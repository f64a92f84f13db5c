package tdx

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	// maxQuote bounds a quote in bytes; real ones have about 5000.
	maxQuote   = 64 << 10
	headerSize = 48
	// The lengths of the body in TDX 1.0 and 1.5.
	bodySize10 = 584
	bodySize15 = 648

	teeTDX         = 0x81
	keyP256        = 2
	certQEReport   = 6
	certPCKChain   = 5
	qeReportSize   = 384
	bodyType10     = 2
	bodyType15     = 3
	quoteVersion4  = 4
	quoteVersion5  = 5
	signatureBytes = 64
)

// Quote is a quote taken apart. Its slices are copies of the raw fields.
type Quote struct {
	// Version is 4 or 5.
	Version uint16
	// Header has 48 bytes, Body 584 (TDX 1.0) or 648 (TDX 1.5).
	Header, Body []byte
	// BodyType and BodySize are the raw fields of version 5, empty in 4.
	BodyType, BodySize []byte

	signed      []byte // what the attestation key signed
	signature   []byte
	key         []byte // the attestation key, X and Y
	qeReport    []byte
	qeSignature []byte
	qeAuth      []byte
	chain       []byte // PEM
}

// The fields of the body, by offset. Source: Intel TDX DCAP A.3.2.
func (q *Quote) field(at, size int) []byte { return q.Body[at : at+size] }

// TCBSVN returns TEE_TCB_SVN, 16 bytes.
func (q *Quote) TCBSVN() []byte { return q.field(0, 16) }

// MRConfigID returns MRCONFIGID, 48 bytes.
func (q *Quote) MRConfigID() []byte { return q.field(184, 48) }

// RTMR returns a runtime measurement register, 0 to 3, 48 bytes.
func (q *Quote) RTMR(i int) []byte { return q.field(328+48*i, 48) }

// ReportData returns REPORTDATA, 64 bytes.
func (q *Quote) ReportData() []byte { return q.field(520, 64) }

// tcbSVN2 is TEE_TCB_SVN_2 of TDX 1.5, nil before.
func (q *Quote) tcbSVN2() []byte {
	if len(q.Body) < bodySize15 {
		return nil
	}
	return q.field(584, 16)
}

// cutter takes fields off the front and keeps the first error.
type cutter struct {
	rest []byte
	err  error
}

func (c *cutter) bytes(n uint32) []byte {
	if c.err != nil || uint64(n) > uint64(len(c.rest)) {
		if c.err == nil {
			c.err = fmt.Errorf("truncated: %d bytes where %d are announced", len(c.rest), n)
		}
		return make([]byte, min(n, bodySize15)) // callers may index fixed fields
	}
	out := c.rest[:n:n]
	c.rest = c.rest[n:]
	return out
}

func (c *cutter) u16() uint16 { return binary.LittleEndian.Uint16(c.bytes(2)) }
func (c *cutter) u32() uint32 { return binary.LittleEndian.Uint32(c.bytes(4)) }

func (c *cutter) must(ok bool, format string, args ...any) {
	if c.err == nil && !ok {
		c.err = fmt.Errorf(format, args...)
	}
}

// parseQuote reads a quote of version 4 or 5. Bytes behind it are ignored: some
// hosts hand out their whole buffer.
func parseQuote(raw []byte) (*Quote, error) {
	if len(raw) == 0 {
		return nil, errors.New("the quote is empty: the guest's TSM gave none")
	}
	if len(raw) > maxQuote {
		return nil, fmt.Errorf("quote of %d bytes, at most %d are read", len(raw), maxQuote)
	}
	raw = bytes.Clone(raw)
	c := &cutter{rest: raw}
	q := &Quote{Header: c.bytes(headerSize)}
	le := binary.LittleEndian
	q.Version = le.Uint16(q.Header)
	c.must(q.Version == quoteVersion4 || q.Version == quoteVersion5, "quote version %d, known are 4 and 5 (3 is of SGX)", q.Version)
	c.must(le.Uint32(q.Header[4:]) == teeTDX, "the quote is of TEE type %#x, not of a TDX guest", le.Uint32(q.Header[4:]))
	c.must(le.Uint16(q.Header[2:]) == keyP256, "attestation key of type %d, known is 2 (P-256)", le.Uint16(q.Header[2:]))
	size := uint32(bodySize10)
	if q.Version == quoteVersion5 {
		q.BodyType, q.BodySize = c.bytes(2), c.bytes(4)
		kind := le.Uint16(q.BodyType)
		c.must(kind == bodyType10 || kind == bodyType15, "body type %d, known are 2 (TDX 1.0) and 3 (TDX 1.5)", kind)
		if kind == bodyType15 {
			size = bodySize15
		}
		c.must(le.Uint32(q.BodySize) == size, "body of %d bytes, type %d has %d", le.Uint32(q.BodySize), kind, size)
	}
	q.Body = c.bytes(size)
	q.signed = raw[:len(raw)-len(c.rest)]
	sig := &cutter{rest: c.bytes(c.u32())}
	sig.err = c.err
	q.signature, q.key = sig.bytes(signatureBytes), sig.bytes(64)
	kind := sig.u16()
	sig.must(kind == certQEReport, "certification data of type %d, known is 6 (QE report)", kind)
	n := sig.u32()
	sig.must(int64(n) == int64(len(sig.rest)), "certification data of %d bytes, %d are announced", len(sig.rest), n)
	q.qeReport, q.qeSignature = sig.bytes(qeReportSize), sig.bytes(signatureBytes)
	q.qeAuth = sig.bytes(uint32(sig.u16()))
	kind = sig.u16()
	sig.must(kind == certPCKChain, "the quote carries no PCK chain (certification data of type %d): the host's quote provider must embed it", kind)
	n = sig.u32()
	sig.must(int64(n) == int64(len(sig.rest)), "PCK chain of %d bytes, %d are announced", len(sig.rest), n)
	q.chain = sig.rest
	if sig.err != nil {
		return nil, sig.err
	}
	return q, nil
}
