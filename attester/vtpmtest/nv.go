package vtpmtest

import (
	"encoding/binary"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// Command returns the code of a command.
func Command(cmd []byte) tpm2.TPMCC { return tpm2.TPMCC(binary.BigEndian.Uint32(cmd[6:])) }

// Frame returns an answer with a body after its code. Sessions is whether the
// command had any; the body then is parameters, and the answer has an empty
// password session.
func Frame(code tpm2.TPMRC, sessions bool, body []byte) []byte {
	be := binary.BigEndian
	tag := tpm2.TPMSTNoSessions
	if sessions {
		tag = tpm2.TPMSTSessions
		body = append(be.AppendUint32(nil, uint32(len(body))), body...)
		body = append(body, 0, 0, 1, 0, 0)
	}
	out := be.AppendUint16(nil, uint16(tag))
	out = be.AppendUint32(out, uint32(10+len(body)))
	return append(be.AppendUint32(out, uint32(code)), body...)
}

// IsAbout tells whether cmd reads an NV index or asks about it.
func IsAbout(cmd []byte, index uint32) bool {
	switch Command(cmd) {
	case tpm2.TPMCCNVReadPublic:
		return binary.BigEndian.Uint32(cmd[10:]) == index
	case tpm2.TPMCCNVRead: // the first handle is who authorizes
		return binary.BigEndian.Uint32(cmd[14:]) == index
	}
	return false
}

// ReadOnlyNV answers for an NV index that the TPM itself cannot hold, because
// it is longer than the 2048 bytes of libtpms, say. It asks for the content at
// the start of each read, as a paravisor renews its report then.
func ReadOnlyNV(index uint32, size int, content func() []byte) Hook {
	var now []byte
	be := binary.BigEndian
	return func(cmd []byte) []byte {
		if !IsAbout(cmd, index) {
			return nil
		}
		switch Command(cmd) {
		case tpm2.TPMCCNVReadPublic:
			area := tpm2.Marshal(tpm2.TPMSNVPublic{
				NVIndex: tpm2.TPMHandle(index), NameAlg: tpm2.TPMAlgSHA256,
				Attributes: tpm2.TPMANV{OwnerRead: true, Written: true, PlatformCreate: true}, DataSize: uint16(size),
			})
			body := append(be.AppendUint16(nil, uint16(len(area))), area...)
			name := append([]byte{0, 0x0b}, make([]byte, 32)...)
			return Frame(0, false, append(append(body, 0, byte(len(name))), name...))
		case tpm2.TPMCCNVRead:
			// Size and offset are the last four bytes.
			n, at := int(be.Uint16(cmd[len(cmd)-4:])), int(be.Uint16(cmd[len(cmd)-2:]))
			if at == 0 || now == nil {
				now = content()
			}
			if n > 1024 || at+n > len(now) {
				return Frame(tpm2.TPMRCNVRange, false, nil)
			}
			return Frame(0, true, append(be.AppendUint16(nil, uint16(n)), now[at:at+n]...))
		}
		return nil
	}
}

// NV returns the content of an NV index, nil when there is none.
func (p *TPM) NV(t testing.TB, index uint32) []byte {
	t.Helper()
	pub, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(index)}.Execute(p)
	if err != nil {
		return nil
	}
	area, err := pub.NVPublic.Contents()
	if err != nil {
		t.Error(err)
		return nil
	}
	out, err := tpm2.NVRead{
		AuthHandle: tpm2.TPMRHOwner, NVIndex: tpm2.NamedHandle{Handle: tpm2.TPMHandle(index), Name: pub.NVName}, Size: area.DataSize,
	}.Execute(p)
	if err != nil {
		return nil
	}
	return out.Data.Buffer
}

// Extend extends a PCR of the SHA-256 bank, as another program would.
func (p *TPM) Extend(t testing.TB, pcr uint32, digest [32]byte) {
	t.Helper()
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]}}},
	}.Execute(p)
	if err != nil {
		t.Error(err)
	}
}
