package image

import (
	"bytes"
	"crypto"
	"encoding/base64"
	"encoding/json"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/debian"
	"github.com/sealpod/sealpod/relyingparty/refvalue"
	"github.com/sealpod/sealpod/relyingparty/store"
)

func testUKI(t *testing.T, sections map[string]string) []byte {
	t.Helper()
	var parts []section
	for _, name := range []string{".osrel", ".cmdline", ".uname", ".initrd", ".linux", ".other"} {
		if data, ok := sections[name]; ok {
			parts = append(parts, section{name, []byte(data)})
		}
	}
	uki, err := unify(stub(), parts)
	if err != nil {
		t.Fatal(err)
	}
	return uki
}

// That the values are those of a machine is shown where one boots, in
// podvm/vmtest: here, what they depend on.
func TestMeasurementsDependOn(t *testing.T) {
	base := map[string]string{".osrel": "ID=x", ".cmdline": "quiet", ".uname": "6.12", ".initrd": "archive", ".linux": string(stub()), ".other": "x"}
	measure := func(change map[string]string) *Measurements {
		t.Helper()
		all := map[string]string{}
		for name, data := range base {
			all[name] = data
		}
		for name, data := range change {
			all[name] = data
		}
		m, err := Measure(testUKI(t, all))
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	first := measure(nil)
	if *first != *measure(nil) {
		t.Error("they are not the same twice")
	}
	kernel := stub()
	kernel[0x400] ^= 1
	for name, c := range map[string]struct {
		change             map[string]string
		pcr9, pcr11, rtmr2 bool
	}{
		"the kernel":       {map[string]string{".linux": string(kernel)}, false, true, true},
		"the initrd":       {map[string]string{".initrd": "Archive"}, true, true, true},
		"the command line": {map[string]string{".cmdline": "loud"}, true, true, true},
		"the version":      {map[string]string{".uname": "6.13"}, false, true, true},
		"the distribution": {map[string]string{".osrel": "ID=y"}, true, true, true},
		"anything else":    {map[string]string{".other": "y"}, false, false, false},
	} {
		got := measure(c.change)
		for _, value := range got.PCR4 {
			if slices.Contains(first.PCR4[:], value) {
				t.Errorf("%s: PCR 4 may be the same", name)
			}
		}
		if (got.PCR9 != first.PCR9) != c.pcr9 || (got.PCR11 != first.PCR11) != c.pcr11 || (got.RTMR2 != first.RTMR2) != c.rtmr2 {
			t.Errorf("%s: %+v, before %+v", name, got, first)
		}
	}
	if len(first.PCR11) != 64 || len(first.RTMR2) != 96 {
		t.Errorf("%+v", first)
	}
}

func TestMeasureNeedsItsSections(t *testing.T) {
	for _, missing := range []string{".osrel", ".cmdline", ".initrd", ".linux"} {
		parts := map[string]string{".osrel": "ID=x", ".cmdline": "quiet", ".initrd": "archive", ".linux": string(stub())}
		delete(parts, missing)
		if _, err := Measure(testUKI(t, parts)); err == nil || !strings.Contains(err.Error(), missing) {
			t.Errorf("without %s: %v", missing, err)
		}
	}
}

func TestRegisterIsExtended(t *testing.T) {
	r := newRegister(crypto.SHA256)
	r.extend([]byte("abc"))
	// SHA-256 of 32 zeros and the digest of "abc", by Python's hashlib.
	if got, want := r.String(), "589f9ffed4c477966bfb8d41f37895b08c69047df8f911d6f3b57fbe08faee8d"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// The archive is one that the kernel takes.
func TestExtraInitrdIsAnArchive(t *testing.T) {
	got := extraInitrd([]byte("ID=x\n"))
	want := debian.Tree{".extra": {Mode: unix.S_IFDIR | 0o555}, ".extra/os-release": debian.File(0o444, []byte("ID=x\n"))}.CPIO()
	want = bytes.Replace(want[:len(got)], []byte("0000000b00000000TRAILER"), []byte("0000000B00000000TRAILER"), 1)
	if !bytes.Equal(got, want) {
		t.Errorf("%q\n%q", got, want)
	}
}

func TestReferenceValuesAreOfTheDefaultPolicy(t *testing.T) {
	values := (&Measurements{PCR4: [bootAttempts]string{"4", "4b", "4c", "4d"}, PCR9: "9", PCR11: "11", RTMR2: "r"}).ReferenceValues()
	for name, want := range map[string]string{"snp_pcr11": "11", "tdx_pcr11": "11", "tpm_pcr11": "11", "tpm_pcr04": "4", "rtmr_2": "r"} {
		if v := values[name]; len(v) == 0 || v[0] != want {
			t.Errorf("%s is %q", name, v)
		}
	}
	policy, err := os.ReadFile("../../relyingparty/policy/default_cpu.rego")
	if err != nil {
		t.Fatal(err)
	}
	for name := range values {
		if !bytes.Contains(policy, []byte(`"`+name+`"]`)) {
			t.Errorf("the policy does not compare anything with %s", name)
		}
	}
	payload, err := json.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	message, err := json.Marshal(map[string]string{"version": "0.1.0", "type": "sample", "payload": base64.StdEncoding.EncodeToString(payload)})
	if err != nil {
		t.Fatal(err)
	}
	p := refvalue.New(store.NewMemory(), nil)
	if err := p.Register(t.Context(), message); err != nil {
		t.Fatal(err)
	}
	if got, err := p.Query(t.Context(), "tpm_pcr11"); err != nil || !reflect.DeepEqual(got, []any{"11"}) {
		t.Errorf("%v, %v", got, err)
	}
}
