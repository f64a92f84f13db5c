package vtpm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealpod/sealpod/attester/internal/gate"
	"github.com/sealpod/sealpod/attester/vtpmtest"
	"github.com/sealpod/sealpod/podvm"
)

// script is a TPM that gives prepared answers, then none.
type script struct {
	answers [][]byte
	sent    int
}

func (s *script) Close() error { return nil }

func (s *script) exchange(context.Context, []byte) ([]byte, error) {
	s.sent++
	if len(s.answers) == 0 {
		return nil, io.ErrUnexpectedEOF
	}
	out := s.answers[0]
	s.answers = s.answers[1:]
	return out, nil
}

func scripted(l link) *TPM {
	return &TPM{gate: gate.New(), open: func(context.Context) (link, error) { return l, nil }}
}

// operations are all a caller can do.
var operations = map[string]func(*Conn) error{
	"read NV":   func(c *Conn) error { _, err := c.ReadNV(0x01400001); return err },
	"write NV":  func(c *Conn) error { return c.WriteNV(0x01400001, []byte{1, 2, 3}) },
	"read PCR":  func(c *Conn) error { _, err := c.ReadPCR(8); return err },
	"extend":    func(c *Conn) error { return c.Extend(8, make([]byte, 32)) },
	"init data": func(c *Conn) error { return c.BindInitData(make([]byte, 32)) },
	"quote":     quoteOnce,
}

func TestATPMThatLies(t *testing.T) {
	be := binary.BigEndian
	public := func(index uint32, size int) []byte {
		return vtpmtest.ReadOnlyNV(index, size, nil)(tpm2Command(tpm2.TPMCCNVReadPublic, index))
	}
	noCapability := vtpmtest.Frame(tpm2.TPMRCFailure, false, nil)
	data := func(n int) []byte {
		return vtpmtest.Frame(0, true, append(be.AppendUint16(nil, uint16(n)), make([]byte, n)...))
	}
	pcrs := func(hash tpm2.TPMIAlgHash, mask, sizes []byte) []byte {
		body := append(be.AppendUint32(nil, 7), tpm2.Marshal(tpm2.TPMLPCRSelection{
			PCRSelections: []tpm2.TPMSPCRSelection{{Hash: hash, PCRSelect: mask}}})...)
		body = be.AppendUint32(body, uint32(len(sizes)))
		for _, n := range sizes {
			body = append(be.AppendUint16(body, uint16(n)), make([]byte, n)...)
		}
		return vtpmtest.Frame(0, false, body)
	}
	for name, tt := range map[string]struct {
		operation string
		answers   [][]byte
		want      error
	}{
		"nothing":                       {"read PCR", [][]byte{{}}, ErrAnswer},
		"half a header":                 {"read PCR", [][]byte{make([]byte, 9)}, ErrAnswer},
		"another length":                {"read PCR", [][]byte{append(noCapability, 0)}, ErrAnswer},
		"too long an answer":            {"read PCR", [][]byte{vtpmtest.Frame(0, false, make([]byte, maxResponse))}, ErrAnswer},
		"success without content":       {"read PCR", [][]byte{vtpmtest.Frame(0, false, nil)}, nil},
		"another bank":                  {"read PCR", [][]byte{pcrs(tpm2.TPMAlgSHA1, []byte{0, 1, 0}, []byte{32})}, ErrAnswer},
		"another PCR":                   {"read PCR", [][]byte{pcrs(tpm2.TPMAlgSHA256, []byte{1, 0, 0}, []byte{32})}, ErrAnswer},
		"no PCR":                        {"read PCR", [][]byte{pcrs(tpm2.TPMAlgSHA256, []byte{0, 0, 0}, nil)}, ErrAnswer},
		"a PCR without a value":         {"read PCR", [][]byte{pcrs(tpm2.TPMAlgSHA256, []byte{0, 1, 0}, nil)}, ErrAnswer},
		"a value too many":              {"read PCR", [][]byte{pcrs(tpm2.TPMAlgSHA256, []byte{0, 1, 0}, []byte{32, 32})}, ErrAnswer},
		"a PCR of SHA-1":                {"read PCR", [][]byte{pcrs(tpm2.TPMAlgSHA256, []byte{0, 1, 0}, []byte{20})}, ErrAnswer},
		"an extension without effect":   {"init data", [][]byte{pcrs(tpm2.TPMAlgSHA256, []byte{0, 1, 0}, []byte{32}), vtpmtest.Frame(0, true, nil), pcrs(tpm2.TPMAlgSHA256, []byte{0, 1, 0}, []byte{32})}, ErrInitData},
		"a huge index":                  {"read NV", [][]byte{public(0x01400001, 0xffff)}, podvm.ErrTooLarge},
		"about another index":           {"read NV", [][]byte{public(0x01400009, 8)}, nil},
		"less of an index than asked":   {"read NV", [][]byte{public(0x01400001, 8), noCapability, data(7)}, ErrAnswer},
		"more of an index than asked":   {"read NV", [][]byte{public(0x01400001, 8), noCapability, data(9)}, ErrAnswer},
		"an index that becomes shorter": {"read NV", [][]byte{public(0x01400001, 70), noCapability, data(64), data(0)}, ErrAnswer},
	} {
		t.Run(name, func(t *testing.T) {
			err := scripted(&script{answers: tt.answers}).Do(t.Context(), operations[tt.operation])
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// tpm2Command is a command with one handle.
func tpm2Command(code tpm2.TPMCC, handle uint32) []byte {
	out := binary.BigEndian.AppendUint32([]byte{0x80, 1, 0, 0, 0, 14}, uint32(code))
	return binary.BigEndian.AppendUint32(out, handle)
}

func TestABusyTPMIsAskedAgain(t *testing.T) { synctest.Test(t, busyTPM) }

func busyTPM(t *testing.T) {
	busy := vtpmtest.Frame(tpm2.TPMRCRetry, false, nil)
	s := &script{answers: [][]byte{busy, vtpmtest.Frame(tpm2.TPMRCTesting, false, nil), vtpmtest.Frame(0, true, nil)}}
	if err := scripted(s).Do(t.Context(), operations["extend"]); err != nil || s.sent != 3 {
		t.Errorf("%v after %d", err, s.sent)
	}
	s = &script{}
	for range 100 {
		s.answers = append(s.answers, busy)
	}
	if err := scripted(s).Do(t.Context(), operations["extend"]); !errors.Is(err, tpm2.TPMRCRetry) || s.sent != busyTries {
		t.Errorf("%v after %d", err, s.sent)
	}
}

func TestASilentTPMEndsWithTheContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { // takes the command and says nothing
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = c.Read(make([]byte, 100))
		cancel()
		_, _ = c.Read(make([]byte, 100))
		c.Close()
	}()
	host := podvm.Host{LookupEnv: func(string) (string, bool) { return path, true }}
	if err := New(host).Do(ctx, operations["read PCR"]); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := New(host).Do(ctx, operations["read PCR"]); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// hanging is a TPM behind a device node that takes a command and never answers:
// the call that sent it cannot be called off.
type hanging struct{ asked, answer chan struct{} }

func (h hanging) Close() error { return nil }

func (h hanging) exchange(context.Context, []byte) ([]byte, error) {
	close(h.asked)
	<-h.answer
	return nil, io.ErrUnexpectedEOF
}

// The call that hangs keeps no other waiting past its deadline, and those are
// told why.
func TestATPMThatHangsHoldsUpNobodyPastTheirDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hanging{make(chan struct{}), make(chan struct{})}
		tpm, first := scripted(h), make(chan error)
		go func() { first <- tpm.Do(t.Context(), operations["read PCR"]) }()
		<-h.asked
		for range 3 {
			start := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
			err := Explain(tpm.Do(ctx, operations["quote"]), "the TPM gave no evidence")
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 50*time.Second || podvm.Cause(err) != "the device is busy with other calls" {
				t.Errorf("%v after %s", err, time.Since(start))
			}
			if err := tpm.Registers().Lock(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("registers: %v", err)
			}
		}
		close(h.answer)
		if err := <-first; !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Error(err)
		}
	})
}

// Whatever a TPM answers, an operation ends, with its result or an error.
func FuzzHostileTPM(f *testing.F) {
	pcrs := vtpmtest.Frame(0, false, append([]byte{0, 0, 0, 1, 0, 0, 0, 1, 0, 0x0b, 3, 0, 1, 0, 0, 0, 0, 1, 0, 32}, make([]byte, 32)...))
	f.Add(pcrs, vtpmtest.Frame(0, true, nil), pcrs)
	f.Add(vtpmtest.ReadOnlyNV(0x01400001, 8, nil)(tpm2Command(tpm2.TPMCCNVReadPublic, 0x01400001)),
		vtpmtest.Frame(0, false, []byte{0, 0, 0, 0, 6, 0, 0, 0, 1, 0, 0, 1, 0x2c, 0, 0, 4, 0}),
		vtpmtest.Frame(0, true, []byte{0, 8, 1, 2, 3, 4, 5, 6, 7, 8}))
	key := vtpmtest.AttestationKey()
	key.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: bytes.Repeat([]byte{0xff}, 256)})
	quote := tpm2.Marshal(tpm2.New2B(tpm2.TPMSAttest{
		Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestQuote,
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{PCRSelect: selection(allPCRs)}),
	}))
	signature := tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgRSASSA, Signature: tpm2.NewTPMUSignature(
		tpm2.TPMAlgRSASSA, &tpm2.TPMSSignatureRSA{Hash: tpm2.TPMAlgSHA256, Sig: tpm2.TPM2BPublicKeyRSA{Buffer: []byte{1}}})})
	f.Add(vtpmtest.Frame(0, false, append(tpm2.Marshal(tpm2.New2B(key)), 0, 2, 0, 0x0b, 0, 0)),
		vtpmtest.Frame(0, true, append(quote, signature...)), pcrs)
	f.Fuzz(func(t *testing.T, a, b, c []byte) {
		answers := [][]byte{bytes.Clone(a), bytes.Clone(b), bytes.Clone(c)}
		for _, out := range answers { // past the check of the header
			if len(out) >= headerSize {
				binary.BigEndian.PutUint32(out[2:], uint32(len(out)))
				if busy(tpm2.TPMRC(binary.BigEndian.Uint32(out[6:]))) {
					return
				}
			}
		}
		for _, f := range operations {
			_ = scripted(&script{answers: slices.Clone(answers)}).Do(t.Context(), f)
		}
	})
}
