package vtpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/attester/eventlog"
	"github.com/sealpod/sealpod/attester/vtpmtest"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const ak = 0x81010002

// with runs f on a connection to the TPM of host.
func with(t *testing.T, host podvm.Host, f func(*Conn) error) error {
	t.Helper()
	return New(host).Do(t.Context(), f)
}

func TestNV(t *testing.T) {
	tpm := vtpmtest.Start(t, testenv.Tool(t, "swtpm"))
	var commands []tpm2.TPMCC
	host := tpm.Machine(t, func(cmd []byte) []byte {
		commands = append(commands, vtpmtest.Command(cmd))
		return nil
	})
	const index = 0x01400002
	if err := with(t, host, func(c *Conn) error { _, err := c.ReadNV(index); return err }); !errors.Is(err, ErrNoIndex) {
		t.Errorf("an index that is not there: %v", err)
	}
	short, long := []byte("48 bytes, or not"), bytes.Repeat([]byte("0123456789"), 204)
	for name, data := range map[string][]byte{"defined": short, "in several parts": long, "of another size again": short[:5]} {
		err := with(t, host, func(c *Conn) error {
			if err := c.WriteNV(index, data); err != nil {
				return err
			}
			got, err := c.ReadNV(index)
			if !bytes.Equal(got, data) {
				t.Errorf("%s: read %q", name, got)
			}
			return err
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	commands = nil
	if err := with(t, host, func(c *Conn) error { return c.WriteNV(index, short) }); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := with(t, host, func(c *Conn) error { return c.WriteNV(index, short) }); err != nil {
			t.Fatal(err)
		}
	}
	writes := 0
	for _, c := range commands {
		if c == tpm2.TPMCCNVWrite {
			writes++
		}
	}
	if writes > 1 {
		t.Errorf("the same content is written %d times", writes)
	}
	if err := with(t, host, func(c *Conn) error { return c.WriteNV(index, make([]byte, maxNV+1)) }); !errors.Is(err, podvm.ErrTooLarge) {
		t.Errorf("too much: %v", err)
	}
}

func TestReadsAnIndexLongerThanOneCommand(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789"), 260)
	host := vtpmtest.Start(t, testenv.Tool(t, "swtpm")).Machine(t, vtpmtest.ReadOnlyNV(0x01400001, len(content), func() []byte { return content }))
	err := with(t, host, func(c *Conn) error {
		got, err := c.ReadNV(0x01400001)
		if !bytes.Equal(got, content) {
			t.Errorf("%d bytes", len(got))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// checkQuote checks a quote as a verifier does, with nothing of this package.
func checkQuote(t *testing.T, q Quote, data []byte) {
	t.Helper()
	sum := sha256.Sum256(q.Message)
	if err := rsa.VerifyPKCS1v15(q.Key, crypto.SHA256, sum[:], q.Signature); err != nil {
		t.Error(err)
	}
	attest, err := tpm2.Unmarshal[tpm2.TPMSAttest](q.Message)
	if err != nil {
		t.Fatal(err)
	}
	info, err := attest.Attested.Quote()
	if err != nil {
		t.Fatal(err)
	}
	pcrs := sha256.Sum256(bytes.Join(q.PCRs[:], nil))
	if !bytes.Equal(info.PCRDigest.Buffer, pcrs[:]) || !bytes.Equal(attest.ExtraData.Buffer, data) {
		t.Errorf("%+v over %x", info, attest.ExtraData.Buffer)
	}
	sig, err := tpm2.Unmarshal[tpm2.TPMTSignature](q.FullSignature)
	if err != nil {
		t.Fatal(err)
	}
	if bare, err := sig.Signature.RSASSA(); err != nil || !bytes.Equal(bare.Sig.Buffer, q.Signature) {
		t.Errorf("two signatures: %v", err)
	}
}

func TestQuote(t *testing.T) {
	tpm := vtpmtest.Start(t, testenv.Tool(t, "swtpm"))
	tpm.Key(t, ak)
	tpm.Extend(t, 23, [32]byte{1})
	err := with(t, tpm.Machine(t), func(c *Conn) error {
		for _, n := range []int{0, 32, 48, 64} {
			data := bytes.Repeat([]byte{0xab}, n)
			q, err := c.Quote(ak, data)
			if err != nil {
				return err
			}
			checkQuote(t, q, data)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	err = with(t, tpm.Machine(t), func(c *Conn) error { _, err := c.Quote(ak, make([]byte, 100)); return err })
	if !errors.Is(err, tpm2.TPMRCSize) || !strings.Contains(podvm.Cause(err), "100 bytes") {
		t.Errorf("more than the TPM takes: %v", err)
	}
}

// quoting extends a PCR between quote and reading, times times.
func quoting(t *testing.T, tpm *vtpmtest.TPM, times *int) vtpmtest.Hook {
	return func(cmd []byte) []byte {
		if vtpmtest.Command(cmd) != tpm2.TPMCCQuote || *times == 0 {
			return nil
		}
		*times--
		out, err := tpm.Send(cmd)
		if err != nil {
			t.Error(err)
		}
		tpm.Extend(t, 16, [32]byte{byte(*times)})
		return out
	}
}

func quoteOnce(c *Conn) error {
	_, err := c.Quote(ak, nil)
	return err
}

func TestPCRExtendedBetweenQuoteAndReadIsRetried(t *testing.T) {
	tpm := vtpmtest.Start(t, testenv.Tool(t, "swtpm"))
	tpm.Key(t, ak)
	times := 2
	err := with(t, tpm.Machine(t, quoting(t, tpm, &times)), func(c *Conn) error {
		q, err := c.Quote(ak, []byte("data"))
		if err == nil {
			checkQuote(t, q, []byte("data"))
		}
		return err
	})
	if err != nil || times != 0 {
		t.Errorf("%v, %d left", err, times)
	}
}

func TestPCRsThatKeepChangingEndWithAnError(t *testing.T) {
	tpm := vtpmtest.Start(t, testenv.Tool(t, "swtpm"))
	tpm.Key(t, ak)
	times := 100
	err := with(t, tpm.Machine(t, quoting(t, tpm, &times)), quoteOnce)
	if !errors.Is(err, ErrChanging) || podvm.Cause(err) == "" || times != 100-quoteTries {
		t.Errorf("%v after %d quotes", err, 100-times)
	}
}

func TestAttestationKeyRefuses(t *testing.T) {
	tpm := vtpmtest.Start(t, testenv.Tool(t, "swtpm"))
	rsaKey := func(a tpm2.TPMAObject, scheme tpm2.TPMTRSAScheme) tpm2.TPMTPublic {
		a.FixedTPM, a.FixedParent, a.SensitiveDataOrigin, a.UserWithAuth = true, true, true, true
		return tpm2.TPMTPublic{Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: a,
			Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: 2048, Scheme: scheme})}
	}
	pss := tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgRSAPSS,
		Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSAPSS, &tpm2.TPMSSigSchemeRSAPSS{HashAlg: tpm2.TPMAlgSHA256})}
	tpm.KeyOf(t, 0x81010010, rsaKey(tpm2.TPMAObject{SignEncrypt: true}, tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgNull}))
	tpm.KeyOf(t, 0x81010011, rsaKey(tpm2.TPMAObject{SignEncrypt: true, Restricted: true}, pss))
	tpm.KeyOf(t, 0x81010012, tpm2.ECCSRKTemplate)
	host := tpm.Machine(t)
	for name, handle := range map[string]uint32{
		"no key there": ak, "unrestricted": 0x81010010, "RSAPSS": 0x81010011, "storage key": 0x81010012, "no handle of a key": 0x01400001,
	} {
		if err := with(t, host, func(c *Conn) error { _, err := c.AttestationKey(handle); return err }); !errors.Is(err, ErrKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRegisters(t *testing.T) {
	tpm := vtpmtest.Start(t, testenv.Tool(t, "swtpm"))
	r := New(tpm.Machine(t)).Registers()
	if err := r.Lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	digest := bytes.Repeat([]byte{7}, 32)
	before, err := r.Read(23)
	if err != nil || len(before) != 32 {
		t.Fatalf("%x, %v", before, err)
	}
	if err := r.Extend(23, digest); err != nil {
		t.Fatal(err)
	}
	want := sha256.Sum256(append(before, digest...))
	if after, err := r.Read(23); err != nil || !bytes.Equal(after, want[:]) {
		t.Errorf("%x, %v", after, err)
	}
	for _, i := range []uint32{24, 264, 1 << 31} {
		if _, err := r.Read(i); !errors.Is(err, eventlog.ErrRegister) {
			t.Errorf("reading %d: %v", i, err)
		}
		if err := r.Extend(i, digest); !errors.Is(err, eventlog.ErrRegister) {
			t.Errorf("extending %d: %v", i, err)
		}
	}
	if err := r.Extend(23, digest[:31]); !errors.Is(err, ErrPCR) {
		t.Errorf("a short digest: %v", err)
	}
	if err := r.Extend(17, digest); !errors.Is(err, tpm2.TPMRCLocality) || podvm.Cause(err) == "" {
		t.Errorf("a PCR of another locality: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Lock(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("locking twice: %v", err)
	}
	r.Unlock()
	if err := r.Lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.Unlock()
}

func TestFind(t *testing.T) {
	root := t.TempDir()
	env := map[string]string{}
	host := podvm.Host{Root: root, LookupEnv: func(k string) (string, bool) { v, ok := env[k]; return v, ok }}
	do := func() error { return New(host).Do(t.Context(), func(*Conn) error { return nil }) }
	if err := do(); !errors.Is(err, ErrNoTPM) {
		t.Errorf("nothing there: %v", err)
	}
	if err := os.Mkdir(filepath.Join(root, "dev"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/dev/tpm2", "/dev/tpm0", "/dev/tpmrm1", "/dev/tpmrm0"} {
		if err := os.WriteFile(filepath.Join(root, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := find(host); err != nil || got != filepath.Join(root, name) {
			t.Errorf("%s, %v, want %s", got, err, name)
		}
	}
	if err := do(); !errors.Is(err, ErrNoTPM) {
		t.Errorf("a file that is no device: %v", err)
	}
	env[deviceEnv] = "/dev/tpm2"
	if got, err := find(host); err != nil || got != filepath.Join(root, "/dev/tpm2") {
		t.Errorf("%s, %v", got, err)
	}
	env[deviceEnv] = "/dev/tpm9"
	if _, err := find(host); !errors.Is(err, ErrNoTPM) {
		t.Errorf("a device that is not there: %v", err)
	}
	// A device that answers nothing: /dev/null takes all and gives an empty answer.
	null := podvm.Host{LookupEnv: func(string) (string, bool) { return "/dev/null", true }}
	err := New(null).Do(t.Context(), func(c *Conn) error { _, err := c.ReadPCR(0); return err })
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("/dev/null: %v", err)
	}
}
