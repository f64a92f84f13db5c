package ccel

import (
	"bytes"
	"crypto"
	_ "crypto/sha1" // the hashes of the TCG
	_ "crypto/sha256"
	_ "crypto/sha512"
	"fmt"
)

// hash is the function of an algorithm, 0 when there is none here (SM3).
func (a Algorithm) hash() crypto.Hash {
	switch a {
	case SHA1:
		return crypto.SHA1
	case SHA256:
		return crypto.SHA256
	case SHA384:
		return crypto.SHA384
	case SHA512:
		return crypto.SHA512
	}
	return 0
}

func (a Algorithm) sum(parts ...[]byte) []byte {
	h := a.hash().New()
	for _, p := range parts {
		_, _ = h.Write(p) // hashes do not fail
	}
	return h.Sum(nil)
}

// Registers are the values of measurement registers by number, all of one
// algorithm.
type Registers map[uint32][]byte

// extended says whether the firmware or the guest extended a register with the
// event. With EV_NO_ACTION they never do.
func (e Event) extended(a Algorithm) bool { return e.Type != evNoAction && e.digest(a) != nil }

// bound says whether an event was extended into one of the registers.
func (e Event) bound(a Algorithm, registers Registers) bool {
	_, ok := registers[e.Register]
	return ok && e.extended(a)
}

// Replay computes the value of a register: all zeros at first, then for each
// event the digest of the value and the digest of the event. The algorithm is
// one of SHA-1, SHA-256, SHA-384 and SHA-512.
func (l *Log) Replay(a Algorithm, register uint32) []byte {
	value := make([]byte, algorithms[a].size)
	for _, e := range l.Events {
		if e.Register == register && e.extended(a) {
			value = a.sum(value, e.digest(a))
		}
	}
	return value
}

// Match compares the replay of the log with the registers of a verified report
// and the events of the attestation agent with their digests. ErrLog names the
// register that differs.
func (l *Log) Match(a Algorithm, registers Registers) error {
	if a.hash() == 0 {
		return fmt.Errorf("%w: no hash function for algorithm %#x", ErrLog, uint16(a))
	}
	for register, want := range registers {
		if got := l.Replay(a, register); !bytes.Equal(got, want) {
			return fmt.Errorf("%w: replaying register %d gives %x, the report has %x: an event is missing, added or changed", ErrLog, register, got, want)
		}
	}
	for i, e := range l.Events {
		if e.bound(a, registers) && e.isAgent() && !bytes.Equal(a.sum(e.Data), e.digest(a)) {
			return fmt.Errorf("%w: event %d of the attestation agent is not what was measured", ErrLog, i)
		}
	}
	return nil
}
