package snp

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-sev-guest/abi"
)

// ReportSize is the length of a report in bytes.
const ReportSize = abi.ReportSize

// The keys that sign reports, as in bits 2 to 4 of KEY_INFO.
const (
	ByVCEK = 0
	ByVLEK = 1
)

// maxVMPL is the least privileged level of a guest.
const maxVMPL = 3

// ErrVMPL says that a report was asked for at a level that no guest has.
var ErrVMPL = errors.New("no such VMPL")

// Fields are what a report says. Tests change them for reports that no chip
// would make.
type Fields struct {
	Version uint32
	Policy  uint64
	// VMPL is the level at which it was asked for, 0 to 3.
	VMPL     uint32
	Platform uint64
	// Signer is ByVCEK or ByVLEK.
	Signer uint32
	// ReportData has at most 64 bytes, Measurement 48, HostData 32 and ChipID 64;
	// what is missing is zero.
	ReportData, Measurement, HostData, ChipID []byte
	// TCB stands for all four: current, reported, committed and at launch.
	TCB TCB

	product product
}

// Fields returns what the chip's report of a guest says.
func (c *Chip) Fields(g *Guest, reportData [64]byte, vmpl uint32) Fields {
	return Fields{
		Version: c.version, Policy: g.policy, VMPL: vmpl, Platform: platformSMT | platformTSME, Signer: ByVCEK,
		ReportData: slices.Clone(reportData[:]), Measurement: slices.Clone(g.measurement[:]), HostData: slices.Clone(g.hostData[:]),
		ChipID: c.HardwareID(), TCB: c.TCB(g), product: c.product,
	}
}

// Report returns the report of a guest for a VMPL from 0 to 3, signed with the
// VCEK of the firmware it runs on: ReportSize bytes. Errors: ErrVMPL.
func (c *Chip) Report(g *Guest, reportData [64]byte, vmpl uint32) ([]byte, error) {
	if vmpl > maxVMPL {
		return nil, fmt.Errorf("%w: %d", ErrVMPL, vmpl)
	}
	key, err := c.private(endorsement(c.id, c.TCB(g)))
	if err != nil {
		return nil, err
	}
	return c.Fields(g, reportData, vmpl).Sign(key)
}

// Sign lays a report out and signs it with a key on P-384.
// Source: AMD 56860, table of the attestation report; the layout is written once
// more here, so that attester and verifier have something to be held against.
func (f Fields) Sign(key *ecdsa.PrivateKey) ([]byte, error) {
	r := make([]byte, ReportSize)
	le, turin := binary.LittleEndian, f.product.name == Turin
	le.PutUint32(r, f.Version)
	le.PutUint64(r[0x08:], f.Policy)
	le.PutUint32(r[0x30:], f.VMPL)
	le.PutUint32(r[0x34:], abi.SignEcdsaP384Sha384)
	le.PutUint64(r[0x40:], f.Platform)
	le.PutUint32(r[0x48:], f.Signer<<2)
	copy(r[0x50:0x90], f.ReportData)
	copy(r[0x90:0xC0], f.Measurement)
	copy(r[0xC0:0xE0], f.HostData)
	if f.Version >= 3 {
		r[0x188], r[0x189], r[0x18A] = f.product.family, f.product.model, f.product.step
	}
	copy(r[0x1A0:0x1E0], f.ChipID)
	for _, at := range []int{0x38, 0x180, 0x1E0, 0x1F0} {
		copy(r[at:], f.TCB.bytes(turin))
	}
	version := []byte{31, 55, 1} // of the firmware: build, minor, major
	copy(r[0x1E8:], version)
	copy(r[0x1EC:], version)
	if f.Version >= 5 { // mitigations in force at launch and now
		le.PutUint64(r[0x1F8:], 1)
		le.PutUint64(r[0x200:], 3)
	}
	hash := sha512.Sum384(abi.SignedComponent(r))
	a, b, err := ecdsa.Sign(rand.Reader, key, hash[:])
	if err == nil {
		err = abi.SetSignature(a, b, r)
	}
	if err != nil {
		return nil, fmt.Errorf("signing a report: %w", err)
	}
	return r, nil
}
