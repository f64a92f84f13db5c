package ccel

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

var le = binary.LittleEndian

// header is that of logs of guests whose firmware has no table: SHA-384, SM3.
func header(algs ...Algorithm) []byte {
	spec := le.AppendUint32(make([]byte, 24), uint32(len(algs)))
	for _, a := range algs {
		spec = le.AppendUint16(le.AppendUint16(spec, uint16(a)), uint16(algorithms[a].size))
	}
	spec = append(spec, 0)
	out := append(le.AppendUint32(make([]byte, 4), evNoAction), make([]byte, 20)...)
	return append(le.AppendUint32(out, uint32(len(spec))), spec...)
}

func entry(register, kind uint32, data []byte, digests ...Digest) []byte {
	out := le.AppendUint32(le.AppendUint32(le.AppendUint32(nil, register), kind), uint32(len(digests)))
	for _, d := range digests {
		out = append(le.AppendUint16(out, uint16(d.Algorithm)), d.Value...)
	}
	return append(le.AppendUint32(out, uint32(len(data))), data...)
}

func sum384(data []byte) Digest {
	h := sha512.Sum384(data)
	return Digest{SHA384, h[:]}
}

func agent(text string) []byte {
	return append(le.AppendUint32(le.AppendUint32(nil, agentTag), uint32(len(text))), text...)
}

// logOf joins a header, events and a filler.
func logOf(events ...[]byte) []byte {
	return append(append(header(SHA384, SM3), bytes.Join(events, nil)...), bytes.Repeat([]byte{0xFF}, 8)...)
}

func parse(t testing.TB, raw []byte) *Log {
	t.Helper()
	l, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// moduleFile reads a file of the tests of a module.
func moduleFile(t testing.TB, module, path string) []byte {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		t.Fatalf("finding %s: %v", module, err)
	}
	content, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), path))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// realLog returns the log of a TD at Google and the RTMRs of its quote, which are
// at offset 376 of a quote of version 4.
func realLog(t testing.TB) ([]byte, Registers) {
	t.Helper()
	const module, dir = "github.com/google/go-tdx-guest", "testing/testdata/ccel/"
	quote, registers := moduleFile(t, module, dir+"cos-113-tdx-quote.dat"), Registers{}
	for i := range 4 {
		registers[uint32(i+1)] = quote[376+48*i:][:48]
	}
	return moduleFile(t, module, dir+"ccel_data.dat"), registers
}

func TestRealLogReplaysToItsQuote(t *testing.T) {
	raw, registers := realLog(t)
	l := parse(t, raw)
	if err := l.Match(SHA384, registers); err != nil {
		t.Fatal(err)
	}
	types := map[string]int{}
	for _, c := range l.Claims(SHA384, registers) {
		m := c.(map[string]any)
		types[m["type_name"].(string)]++
		if m["type_name"] == "EV_EFI_ACTION" && (m["digest_matches_event"] != true || m["details"].(map[string]any)["string"] == nil) {
			t.Errorf("%v", m)
		}
	}
	if types["EV_IPL"] == 0 || types["EV_SEPARATOR"] == 0 || types["EV_EFI_VARIABLE_DRIVER_CONFIG"] == 0 || types["EV_NO_ACTION"] != 0 {
		t.Errorf("events %v", types)
	}
	text, err := json.Marshal(l.Claims(SHA384, registers))
	if err != nil || !json.Valid(text) {
		t.Error(err)
	}
}

func TestRealLogDoesNotReplayAfterAChangeOfAnyDigest(t *testing.T) {
	raw, registers := realLog(t)
	base := parse(t, raw)
	for i, e := range base.Events {
		if !e.bound(SHA384, registers) {
			continue
		}
		for at := 0; at < 48; at += 13 {
			l := parse(t, raw)
			l.Events[i].digest(SHA384)[at] ^= 1
			if err := l.Match(SHA384, registers); !errors.Is(err, ErrLog) {
				t.Errorf("event %d, byte %d: %v", i, at, err)
			}
		}
		l := parse(t, raw)
		l.Events = slices.Delete(l.Events, i, i+1)
		if err := l.Match(SHA384, registers); !errors.Is(err, ErrLog) {
			t.Errorf("without event %d: %v", i, err)
		}
	}
}

func TestReplay(t *testing.T) {
	a, b := agent("d o a"), agent("d o b")
	l := parse(t, logOf(entry(4, evEventTag, a, sum384(a)), entry(3, evIPL, []byte("x"), sum384(b)), entry(4, evEventTag, b, sum384(b))))
	one := sum384(append(make([]byte, 48), sum384(a).Value...)).Value
	two := sum384(append(one, sum384(b).Value...)).Value
	registers := Registers{1: make([]byte, 48), 2: make([]byte, 48), 3: sum384(append(make([]byte, 48), sum384(b).Value...)).Value, 4: two}
	if err := l.Match(SHA384, registers); err != nil {
		t.Error(err)
	}
	registers[1] = append(make([]byte, 47), 1)
	if err := l.Match(SHA384, registers); !errors.Is(err, ErrLog) || !strings.Contains(err.Error(), "register 1") {
		t.Errorf("register that was never extended: %v", err)
	}
	if err := l.Match(SM3, registers); !errors.Is(err, ErrLog) {
		t.Errorf("SM3: %v", err)
	}
}

func TestForgedEventOfTheAgentIsRefused(t *testing.T) {
	honest, forged := agent("d PullImage good"), agent("d PullImage evil")
	l := parse(t, logOf(entry(4, evEventTag, forged, sum384(honest))))
	registers := Registers{4: l.Replay(SHA384, 4)}
	if err := l.Match(SHA384, registers); !errors.Is(err, ErrLog) || !strings.Contains(err.Error(), "attestation agent") {
		t.Error(err)
	}
}

func TestEventsThatNothingVouchesForAreNoClaims(t *testing.T) {
	a := agent("d o c")
	registers := Registers{1: make([]byte, 48), 2: make([]byte, 48), 3: make([]byte, 48), 4: make([]byte, 48)}
	for name, e := range map[string][]byte{
		"register of MRTD":    entry(0, evEventTag, a, sum384(a)),
		"register beyond":     entry(5, evEventTag, a, sum384(a)),
		"EV_NO_ACTION":        entry(4, evNoAction, a, sum384(a)),
		"another algorithm":   entry(4, evEventTag, a, Digest{SM3, make([]byte, 32)}),
		"no digest":           entry(4, evEventTag, a),
		"behind the filler":   append(make([]byte, 8), entry(4, evEventTag, a, sum384(a))...),
		"behind other filler": append(bytes.Repeat([]byte{255}, 8), entry(4, evEventTag, a, sum384(a))...),
	} {
		l := parse(t, logOf(e))
		if err := l.Match(SHA384, registers); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if c := l.Claims(SHA384, registers); len(c) != 0 {
			t.Errorf("%s: %v", name, c)
		}
	}
}

// TestDigestsThatNothingVouchesForAreNoClaims: a policy that looks for a digest
// among those of an event must not find one that the guest made up.
func TestDigestsThatNothingVouchesForAreNoClaims(t *testing.T) {
	kernel := Digest{SM3, bytes.Repeat([]byte{0xAB}, 32)}
	for _, digests := range [][]Digest{{sum384([]byte("path")), kernel}, {kernel, sum384([]byte("path"))}} {
		l := parse(t, logOf(entry(2, evApplication, []byte("path"), digests...)))
		registers := Registers{2: l.Replay(SHA384, 2)}
		if err := l.Match(SHA384, registers); err != nil {
			t.Fatal(err)
		}
		got := l.Claims(SHA384, registers)[0].(map[string]any)
		want := []any{map[string]any{"alg": "SHA-384", "digest": hex.EncodeToString(sum384([]byte("path")).Value)}}
		if !reflect.DeepEqual(got["digests"], want) || got["digest_matches_event"] != true {
			t.Errorf("%v", got)
		}
	}
}

func TestAgentClaims(t *testing.T) {
	for content, want := range map[string]any{
		`{"image": "r/i:t", "n": 12}`: map[string]any{"image": "r/i:t", "n": json.Number("12")},
		`plain text with spaces`:      "plain text with spaces",
		``:                            "",
		`{} {}`:                       "{} {}",
		`[1e400]`:                     "[1e400]",
	} {
		data := agent("github.com/confidential-containers PullImage " + content)
		l := parse(t, logOf(entry(4, evEventTag, data, sum384(data))))
		registers := Registers{4: l.Replay(SHA384, 4)}
		c := l.Claims(SHA384, registers)[0].(map[string]any)
		d := c["details"].(map[string]any)
		got := map[string]any{"domain": "github.com/confidential-containers", "operation": "PullImage", "content": want}
		if !reflect.DeepEqual(d["data"], got) || d["unicode_name"] != "AAEL" || c["digest_matches_event"] != true || c["type_name"] != "EV_EVENT_TAG" || c["index"] != 4 {
			t.Errorf("%q: %v", content, c)
		}
	}
	for _, bad := range []string{"", "one", "one two"} {
		if d := tagged(agent(bad)); d["data"] != nil {
			t.Errorf("%q: %v", bad, d)
		}
	}
}

func TestFirstEventOfARegister(t *testing.T) {
	a, b := agent("d o a"), agent("d o b")
	l := parse(t, logOf(
		entry(4, evNoAction, b, sum384(b)), entry(4, evEventTag, b, Digest{SM3, make([]byte, 32)}), // extend nothing
		entry(3, evIPL, b, sum384(b)), entry(4, evEventTag, a, sum384(a)), entry(4, evEventTag, b, sum384(b))))
	if e, ok := l.First(SHA384, 4); !ok || !e.IsAgent("d", "o", "a") || e.IsAgent("d", "o", "b") || e.IsAgent("d o", "a", "") {
		t.Errorf("%v, %v", e, ok)
	}
	if e, ok := l.First(SHA384, 3); !ok || e.IsAgent("d", "o", "b") {
		t.Errorf("an event of another type: %v, %v", e, ok)
	}
	for _, register := range []uint32{0, 1, 5} {
		if e, ok := l.First(SHA384, register); ok {
			t.Errorf("register %d: %v", register, e)
		}
	}
}

// TestAgentDigest has the digest that the attestation agent of
// guest-components at 8246e5e0 gives to one text.
func TestAgentDigest(t *testing.T) {
	if got := sum384(agent("domain operation content")).Value; !bytes.HasPrefix(got, []byte{0xda, 0xd5, 0xf0, 0xe2}) {
		t.Errorf("%x", got)
	}
}

func TestMalformedLogs(t *testing.T) {
	a := agent("d o c")
	good := logOf(entry(4, evEventTag, a, sum384(a)))
	patched := func(at int, v byte) []byte {
		out := slices.Clone(good)
		out[at] = v
		return out
	}
	many := bytes.Repeat(entry(1, evIPL, nil), maxEvents+1)
	for name, raw := range map[string][]byte{
		"empty": nil, "too large": make([]byte, MaxSize+1), "too many events": logOf(many),
		"no header": good[69:], "header of another type": patched(4, 1), "header too long": patched(28, 38),
		"header too short": patched(28, 36), "unknown algorithm": patched(60, 0x27), "size of another algorithm": patched(62, 32),
		"too many algorithms": patched(56, 200), "vendor data that is not there": patched(68, 1),
		"two digests of one kind":       logOf(entry(4, evIPL, a, sum384(a), sum384(a))),
		"algorithm not announced":       logOf(entry(4, evIPL, a, Digest{SHA256, make([]byte, 32)})),
		"too many digests":              logOf(append(le.AppendUint32(le.AppendUint32(nil, 1), 1), 255, 255, 255, 255)),
		"event longer than the log":     logOf(le.AppendUint32(entry(4, evIPL, nil)[:12], 1<<31)),
		"leftover that is no filler":    append(slices.Clone(good[:len(good)-8]), 1, 2, 3),
		"truncated in the middle":       good[:len(good)-9],
		"truncated in the first digest": good[:100],
	} {
		if l, err := Parse(raw); !errors.Is(err, ErrLog) {
			t.Errorf("%s: %v, %v", name, l, err)
		}
	}
	for name, raw := range map[string][]byte{"header only": good[:69], "no filler": good[:len(good)-8], "short filler": good[:len(good)-3]} {
		if _, err := Parse(raw); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzLog(f *testing.F) {
	a := agent(`d o {"a":[1]}`)
	f.Add(logOf(entry(4, evEventTag, a, sum384(a)), entry(1, evVariableBoot, make([]byte, 40), sum384(a))))
	f.Add(logOf(entry(2, evApplication, append(make([]byte, 24), 8, 0, 0, 0, 0, 0, 0, 0, 1, 1, 6, 0, 0, 1, 0, 0), sum384(a))))
	f.Add(logOf(entry(3, evIPL, []byte(".\x00a\x00\x00\x00"), sum384(a)), entry(1, evFirmwareBlob2, []byte{3, 'a', 'b', 0}, sum384(a))))
	f.Fuzz(func(t *testing.T, raw []byte) {
		l, err := Parse(raw)
		if err != nil {
			if !errors.Is(err, ErrLog) {
				t.Error(err)
			}
			return
		}
		registers := Registers{}
		for i := uint32(1); i <= 4; i++ {
			registers[i] = l.Replay(SHA384, i)
		}
		if _, err := json.Marshal(l.Claims(SHA384, registers)); err != nil {
			t.Error(err)
		}
	})
}

func BenchmarkParseMatchClaims(b *testing.B) {
	raw, registers := realLog(b)
	b.ReportAllocs()
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		l, err := Parse(raw)
		if err == nil {
			err = l.Match(SHA384, registers)
		}
		if err != nil || len(l.Claims(SHA384, registers)) == 0 {
			b.Fatal(err)
		}
	}
}
