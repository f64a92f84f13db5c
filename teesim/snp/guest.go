package snp

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
)

// Bits of a guest policy and of PLATFORM_INFO.
// Source: AMD 56860 §4.3 and table of the attestation report.
const (
	policyABI      = 0<<8 | 31 // lowest major and minor version of the ABI
	policySMT      = 1 << 16
	policyReserved = 1 << 17 // must be set
	policyMigrate  = 1 << 18
	policyDebug    = 1 << 19

	platformSMT  = 1 << 0
	platformTSME = 1 << 1
)

// Launch is what the host starts a guest with.
type Launch struct {
	// Firmware is what the guest starts with; nil is one of our own.
	Firmware []byte
	// Kernel, Initrd and CommandLine are started directly, so that the
	// firmware's page of hashes covers them.
	Kernel, Initrd []byte
	CommandLine    string
	// InitData is the digest that becomes HOST_DATA, cut or padded with zeros
	// to 32 bytes.
	InitData []byte
	// Debug lets the host read the guest's memory, Migrate lets a migration
	// agent move it.
	Debug, Migrate bool
	// StaleTCB runs it on a machine with old firmware.
	StaleTCB bool
}

// Guest is a launched guest. It does not change.
type Guest struct {
	policy      uint64
	measurement [48]byte
	hostData    [32]byte
	stale       bool
}

// NewGuest launches a guest.
func NewGuest(l Launch) *Guest {
	g := &Guest{policy: policyABI | policySMT | policyReserved, stale: l.StaleTCB}
	if l.Debug {
		g.policy |= policyDebug
	}
	if l.Migrate {
		g.policy |= policyMigrate
	}
	copy(g.hostData[:], l.InitData)
	firmware := l.Firmware
	if firmware == nil {
		firmware = []byte("firmware of a simulated SNP guest")
	}
	const pageSize = 4096
	address := uint64(0xFFC00000)
	for len(firmware) > 0 {
		page := make([]byte, pageSize)
		firmware = firmware[copy(page, firmware):]
		g.measure(page, address)
		address += pageSize
	}
	kernel, initrd, line := sha256.Sum256(l.Kernel), sha256.Sum256(l.Initrd), sha256.Sum256(append([]byte(l.CommandLine), 0))
	hashes := append(bytes.Join([][]byte{line[:], initrd[:], kernel[:]}, nil), make([]byte, pageSize-3*32)...)
	g.measure(hashes, 0x80D000)
	return g
}

// measure extends the launch digest by a normal page, as SNP_LAUNCH_UPDATE does.
// Source: AMD 56860 §8.17.2, PAGE_INFO.
func (g *Guest) measure(page []byte, address uint64) {
	contents := sha512.Sum384(page)
	info := append(g.measurement[:], contents[:]...)
	info = binary.LittleEndian.AppendUint16(info, 0x70) // its own length
	info = append(info, 1, 0, 0, 0, 0, 0)               // PAGE_TYPE_NORMAL; no image of a migration agent, no VMPL permissions
	info = binary.LittleEndian.AppendUint64(info, address)
	g.measurement = sha512.Sum384(info)
}

// Measurement is the launch digest.
func (g *Guest) Measurement() [48]byte { return g.measurement }

// HostData is what the host bound the guest to.
func (g *Guest) HostData() [32]byte { return g.hostData }

// ReferenceValues are what a relying party with the default policy must know to
// affirm a guest with that software, on a machine with current firmware and with
// a policy that keeps the host out: they do not excuse Debug, Migrate or
// StaleTCB. Names: trustee attestation-service/docs/policy.md at 78962cd4.
func (g *Guest) ReferenceValues() map[string]any {
	tcb := product{}.current()
	return map[string]any{
		"snp_launch_measurement": []string{hex.EncodeToString(g.measurement[:])},
		"snp_bootloader":         []int{int(tcb.Bootloader)},
		"snp_tee_svn":            []int{int(tcb.TEE)},
		"snp_snp_svn":            []int{int(tcb.SNP)},
		"snp_microcode":          []int{int(tcb.Microcode)},
		"snp_smt_enabled":        true,
		"snp_tsme_enabled":       true,
		"snp_guest_abi_major":    policyABI >> 8,
		"snp_guest_abi_minor":    policyABI & 0xFF,
		"snp_single_socket":      false,
		"snp_smt_allowed":        true,
	}
}
