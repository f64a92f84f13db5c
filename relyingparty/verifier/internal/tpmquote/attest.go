package tpmquote

import (
	"encoding/binary"
	"fmt"
)

// Constants and lengths of TPMS_ATTEST, which is big-endian.
// Source: TCG TPM 2.0 Library Part 2 §6.2, §6.3, §6.9 and §10.11.
const (
	generated   = 0xFF544347 // TPM_GENERATED_VALUE
	attestQuote = 0x8018     // TPM_ST_ATTEST_QUOTE
	algSHA256   = 0x000B     // TPM_ALG_SHA256
	algRSASSA   = 0x0014     // TPM_ALG_RSASSA
	clockSize   = 8 + 4 + 4  // clock, reset count, restart count
	maxName     = 2 + 64     // TPM2B_NAME: an algorithm and a digest
	maxNonce    = 64         // TPM2B_DATA with the hashes of today's TPMs
)

// attest is a TPMS_ATTEST over the registers 0 to 23 of the SHA-256 bank. Its
// slices are parts of the message.
type attest struct {
	nonce  []byte // extraData, at most 64 bytes
	digest []byte // pcrDigest, 32 bytes
}

// cutter takes big-endian fields off the front and keeps the first error.
type cutter struct {
	rest []byte
	err  error
}

func (c *cutter) must(ok bool, format string, args ...any) {
	if c.err == nil && !ok {
		c.err = fmt.Errorf(format, args...)
	}
}

func (c *cutter) bytes(name string, n int) []byte {
	c.must(n <= len(c.rest), "truncated at %s: %d bytes where %d are announced", name, len(c.rest), n)
	if c.err != nil {
		return nil
	}
	out := c.rest[:n:n]
	c.rest = c.rest[n:]
	return out
}

func (c *cutter) number(name string, size int) uint32 {
	var b [4]byte
	copy(b[4-size:], c.bytes(name, size))
	return binary.BigEndian.Uint32(b[:])
}

// sized reads a TPM2B: two bytes of length and as many bytes.
func (c *cutter) sized(name string, limit int) []byte {
	n := int(c.number(name, 2))
	c.must(n <= limit, "%s of %d bytes, at most %d are read", name, n, limit)
	return c.bytes(name, n)
}

// parseAttest reads the message of a quote. Every byte of it has a meaning or
// it is refused.
func parseAttest(message []byte) (attest, error) {
	c := &cutter{rest: message}
	magic, kind := c.number("magic", 4), c.number("type", 2)
	c.must(magic == generated, "magic %#x: a TPM did not make this message", magic)
	c.must(kind == attestQuote, "attestation of type %#x, a quote has %#x", kind, attestQuote)
	c.sized("qualifiedSigner", maxName)
	var a attest
	a.nonce = c.sized("extraData", maxNonce)
	c.bytes("clockInfo", clockSize)
	safe := c.number("clockInfo.safe", 1)
	c.must(safe <= 1, "clockInfo.safe is %d, not 0 or 1", safe)
	c.bytes("firmwareVersion", 8)
	banks := c.number("pcrSelect", 4)
	c.must(banks == 1, "registers of %d banks, must be of SHA-256 alone", banks)
	bank := c.number("pcrSelect.hash", 2)
	c.must(bank == algSHA256, "registers of bank %#x, must be of SHA-256 (%#x)", bank, algSHA256)
	size := int(c.number("pcrSelect.sizeofSelect", 1))
	c.must(size == Registers/8, "selection of %d bytes, must be of %d", size, Registers/8)
	for _, b := range c.bytes("pcrSelect.pcrSelect", size) {
		c.must(b == 0xFF, "the quote leaves registers out, must cover 0 to %d", Registers-1)
	}
	a.digest = c.sized("pcrDigest", RegisterSize)
	c.must(len(a.digest) == RegisterSize, "pcrDigest of %d bytes, must be of %d", len(a.digest), RegisterSize)
	c.must(len(c.rest) == 0, "%d bytes behind the quote", len(c.rest))
	return a, c.err
}

// ParseSignature returns the bare signature in a TPMT_SIGNATURE, which must be
// of RSASSA with SHA-256. Source: TCG TPM 2.0 Library Part 2 §11.3.4.
func ParseSignature(b []byte) ([]byte, error) {
	c := &cutter{rest: b}
	scheme, hash := c.number("sigAlg", 2), c.number("hash", 2)
	c.must(scheme == algRSASSA && hash == algSHA256, "signature of scheme %#x with hash %#x, must be RSASSA (%#x) with SHA-256 (%#x)",
		scheme, hash, algRSASSA, algSHA256)
	out := c.sized("sig", maxKeyBits/8)
	c.must(len(c.rest) == 0, "%d bytes behind the signature", len(c.rest))
	return out, c.err
}
