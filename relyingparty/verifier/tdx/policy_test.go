package tdx

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/sealpod/sealpod/relyingparty/policy"
	"github.com/sealpod/sealpod/relyingparty/store"
	"github.com/sealpod/sealpod/relyingparty/verifier"
)

// logEvent is an event with the digest that is extended for it, which for what
// is loaded is that of the contents and not of the event.
type logEvent struct {
	register, kind uint32
	digest         [48]byte
	data           []byte
}

// eventLogOf returns the log of those events.
func eventLogOf(events ...logEvent) []byte {
	log := append(le.AppendUint32(make([]byte, 4), 3), make([]byte, 20)...)
	log = append(le.AppendUint32(log, 33), make([]byte, 24)...)
	log = append(le.AppendUint32(log, 1), 0x0C, 0, 48, 0, 0)
	for _, e := range events {
		for _, n := range []uint32{e.register, e.kind, 1} {
			log = le.AppendUint32(log, n)
		}
		log = append(append(log, 0x0C, 0), e.digest[:]...)
		log = append(le.AppendUint32(log, uint32(len(e.data))), e.data...)
	}
	return append(log, bytes.Repeat([]byte{0xFF}, 8)...)
}

func extended(digest [48]byte) []byte {
	sum := sha512.Sum384(append(make([]byte, 48), digest[:]...))
	return sum[:]
}

// kernelLoaded is the event of a kernel that the firmware got from QEMU.
func kernelLoaded(digest [48]byte) logEvent {
	var name []byte
	for _, u := range utf16.Encode([]rune("kernel\x00")) {
		name = le.AppendUint16(name, u)
	}
	path := append(le.AppendUint16([]byte{4, 4}, uint16(len(name)+4)), name...)
	path = append(path, 0x7F, 0xFF, 4, 0)
	return logEvent{2, 0x80000003, digest, append(le.AppendUint64(make([]byte, 24), uint64(len(path))), path...)}
}

// commandLine is the event of the EFI stub of Linux for its load options.
func commandLine(digest [48]byte) logEvent {
	text := "LOADED_IMAGE::LoadOptions\x00"
	return logEvent{3, 6, digest, append(le.AppendUint32(le.AppendUint32(nil, 0x8F3B22ED), uint32(len(text))), text...)}
}

// TestClaimsAreThoseTheDefaultPolicyReads goes from the quote to the appraisal:
// a claim under another name would never be affirmed.
func TestClaimsAreThoseTheDefaultPolicyReads(t *testing.T) {
	s := newSimulator(t)
	kernel, line := sha512.Sum384([]byte("kernel")), sha512.Sum384([]byte("console=hvc0"))
	good := s.model()
	good.rtmrs[1], good.rtmrs[2] = extended(kernel), extended(line)
	log := eventLogOf(kernelLoaded(kernel), commandLine(line))
	values := map[string]any{
		"mr_td": []any{strings.Repeat("00", 48)}, "xfam": []any{strings.Repeat("00", 8)},
		"rtmr_1": []any{hex.EncodeToString(good.rtmrs[1])}, "rtmr_2": []any{hex.EncodeToString(good.rtmrs[2])},
		"tdvfkernel": hex.EncodeToString(kernel[:]), "tdvfkernelparams": hex.EncodeToString(line[:]),
	}
	known := func(_ context.Context, name string) (any, error) { return values[name], nil }
	pol, err := policy.NewSet(policy.Engine{Reference: known}, store.NewMemory()).Attestation(t.Context(), "default_cpu")
	if err != nil {
		t.Fatal(err)
	}
	debug, other, outdated, stale := good, good, goodTCB(), goodTCB()
	stale.nextUpdate = simTime.AddDate(0, 0, -1)
	debug.debug = true
	other.rtmrs[2] = extended(kernel)
	outdated.platform = levels(false, 5, "OutOfDate")
	for name, c := range map[string]struct {
		m                                    model
		log                                  []byte
		tcb                                  tcbModel
		executables, hardware, configuration int
		status                               string
	}{
		"as expected":        {good, log, goodTCB(), 3, 2, 2, policy.Affirming},
		"without a log":      {good, nil, goodTCB(), 4, 2, 2, policy.Affirming},
		"debug":              {debug, log, goodTCB(), 3, 2, 36, policy.Warning},
		"other command line": {other, eventLogOf(kernelLoaded(kernel), commandLine(kernel)), goodTCB(), 33, 2, 2, policy.Warning},
		"TCB out of date":    {good, log, outdated, 3, 97, 2, policy.Contraindicated},
		"collateral too old": {good, log, stale, 3, 97, 2, policy.Contraindicated},
	} {
		got, err := s.verifier(s.collateral(c.tcb)).Verify(t.Context(), toJSON(s.quote(c.m), c.log), verifier.Expected{ReportData: digest})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		a, err := pol.Appraise(t.Context(), input(t, got[0].Values))
		if err != nil || a.Status != c.status || a.Vector["executables"] != c.executables || a.Vector["hardware"] != c.hardware ||
			a.Vector["configuration"] != c.configuration {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
}

// input is the claims as a policy gets them.
func input(t *testing.T, claims map[string]any) map[string]any {
	t.Helper()
	raw, err := json.Marshal(map[string]any{"tdx": claims})
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var out map[string]any
	if err := d.Decode(&out); err != nil {
		t.Fatal(err)
	}
	return out
}
