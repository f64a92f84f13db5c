package image

import (
	"bytes"
	"crypto"
	_ "crypto/sha256" // the banks of TPMs
	_ "crypto/sha512" // RTMRs
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"unicode/utf16"
)

// Measurements are what registers of the guest hold once its kernel runs, in
// hex. They depend on the image alone where that is possible; the rest is said
// at each.
type Measurements struct {
	// PCR4 is of SHA-256 and holds what firmware starts: the unified kernel image
	// and the kernel in it. The first value is for firmware that starts the image
	// at its first attempt, the others for one that has tried one boot option more
	// each before, such as a disk of user data, and found nothing to start there.
	// Firmware must record all that as PC Client firmware does.
	PCR4 [bootAttempts]string `json:"pcr4"`
	// PCR9 is of SHA-256: initrd and command line, as the kernel records them.
	PCR9 string `json:"pcr9"`
	// PCR11 is of SHA-256 and holds the parts of the unified kernel image. It does
	// not depend on firmware.
	PCR11 string `json:"pcr11"`
	// RTMR2 is of SHA-384: the same as PCR 11 and 9 in a TD without TPM. RTMR 0
	// and 1 hold firmware, its settings and the partition table besides, and are
	// to be taken from a machine that runs.
	RTMR2 string `json:"rtmr2"`
}

// bootAttempts is how many boot options firmware may try, the image's included.
const bootAttempts = 4

// measured are the sections that systemd's stub measures, in its order.
// Source: systemd v257 src/fundamental/uki.c.
var measured = []string{
	".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey", ".profile", ".dtbauto", ".hwids",
}

// Measure computes what booting a unified kernel image leaves in the registers.
func Measure(uki []byte) (*Measurements, error) {
	pcr9, pcr11, rtmr2 := newRegister(crypto.SHA256), newRegister(crypto.SHA256), newRegister(crypto.SHA384)
	kernel, err := sectionData(uki, ".linux")
	if err != nil {
		return nil, err
	}
	pcr4, err := bootRegisters(uki, kernel)
	if err != nil {
		return nil, err
	}
	for _, name := range measured {
		data, err := sectionData(uki, name)
		if errors.Is(err, errSection) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, r := range []*register{pcr11, rtmr2} {
			r.extend(append([]byte(name), 0))
			r.extend(data)
		}
	}
	cmdline, err := sectionData(uki, ".cmdline")
	if err != nil {
		return nil, err
	}
	initrd, err := sectionData(uki, ".initrd")
	if err != nil {
		return nil, err
	}
	osrel, err := sectionData(uki, ".osrel")
	if err != nil {
		return nil, err
	}
	// The kernel records what the stub hands to it.
	// Source: linux v6.12 drivers/firmware/efi/libstub/efi-stub-helper.c.
	for _, r := range []*register{pcr9, rtmr2} {
		r.extend(utf16z(string(cmdline)))
		r.extend(append(padTo(slices.Clone(initrd), 4), extraInitrd(osrel)...))
	}
	return &Measurements{PCR4: pcr4, PCR9: pcr9.String(), PCR11: pcr11.String(), RTMR2: rtmr2.String()}, nil
}

// bootRegisters are the values of Measurements.PCR4.
// Source: TCG PC Client Platform Firmware Profile 1.06, section 8.2.4; edk2
// SecurityPkg/Tcg/Tcg2Dxe/Tcg2Dxe.c, stable202211.
func bootRegisters(uki, kernel []byte) (out [bootAttempts]string, err error) {
	const calling, returning = "Calling EFI Application from Boot Option", "Returning from EFI Application from Boot Option"
	for failed := range out {
		r := newRegister(crypto.SHA256)
		r.extend([]byte(calling))
		r.extend([]byte{0, 0, 0, 0}) // the end of what firmware does of its own
		for range failed {
			r.extend([]byte(returning))
			r.extend([]byte(calling))
		}
		for _, program := range [][]byte{uki, kernel} {
			digest, err := authenticode(program)
			if err != nil {
				return out, err
			}
			r.extendDigest(digest)
		}
		out[failed] = r.String()
	}
	return out, nil
}

// extraInitrd is the archive that systemd's stub puts behind the initrd, which
// has the section .osrel as a file.
// Source: systemd v257 src/boot/cpio.c.
func extraInitrd(osrel []byte) []byte {
	var out bytes.Buffer
	entry := func(inode, mode, links int, name, nameSize string, data []byte) {
		fmt.Fprintf(&out, "070701%08x%08x%08x%08x%08x%08x%08x", inode, mode, 0, 0, links, 0, len(data))
		fmt.Fprintf(&out, "%08x%08x%08x%08x%s%08x%s\x00", 0, 0, 0, 0, nameSize, 0, name)
		out.Write(make([]byte, -out.Len()&3))
		out.Write(data)
		out.Write(make([]byte, -out.Len()&3))
	}
	entry(1, 0o40555, 1, ".extra", "00000007", nil)
	entry(2, 0o100444, 1, ".extra/os-release", "00000012", osrel)
	entry(0, 0, 1, "TRAILER!!!", "0000000B", nil)
	return out.Bytes()
}

// utf16z is how firmware passes a command line on: UTF-16 with a zero.
func utf16z(s string) []byte {
	var out bytes.Buffer
	for _, u := range append(utf16.Encode([]rune(s)), 0) {
		out.Write([]byte{byte(u), byte(u >> 8)})
	}
	return out.Bytes()
}

// register is a register that starts with zeros.
type register struct {
	alg   crypto.Hash
	value []byte
}

func newRegister(alg crypto.Hash) *register { return &register{alg, make([]byte, alg.Size())} }

func (r *register) extend(data []byte) {
	h := r.alg.New()
	h.Write(data)
	r.extendDigest(h.Sum(nil))
}

func (r *register) extendDigest(digest []byte) {
	h := r.alg.New()
	h.Write(r.value)
	h.Write(digest)
	r.value = h.Sum(nil)
}

func (r *register) String() string { return hex.EncodeToString(r.value) }

// ReferenceValues are the measurements under the names that the default
// attestation policy knows, as sealctl kbs set-reference-values takes them.
func (m *Measurements) ReferenceValues() map[string][]string {
	return map[string][]string{
		"snp_pcr04": m.PCR4[:], "snp_pcr11": {m.PCR11},
		"tdx_pcr04": m.PCR4[:], "tdx_pcr11": {m.PCR11},
		"tpm_pcr04": m.PCR4[:], "tpm_pcr11": {m.PCR11},
		"rtmr_2": {m.RTMR2},
	}
}
