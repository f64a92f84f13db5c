package server

import (
	"bytes"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	aa "github.com/sealpod/sealpod/api/attestationagent"
	"github.com/sealpod/sealpod/attester/eventlog"
	"github.com/sealpod/sealpod/attester/tdx"
	"github.com/sealpod/sealpod/podvm"
)

var quiet = slog.New(slog.DiscardHandler)

func withRTMR3(enable bool) Config {
	return defaults(func(c *Config) { c.InitData.RTMR3, c.EventLog.Enable = true, enable })
}

func TestBindInitDataOnTDX(t *testing.T) {
	digest := bytes.Repeat([]byte{0xAB}, 48)
	other := bytes.Repeat([]byte{1}, 48)
	for name, tt := range map[string]struct {
		launched  []byte
		off       bool // the option
		registers bool
		want      error
		says      string
		recorded  bool
	}{
		"launched with it":                 {launched: digest, registers: true},
		"launched with it, older kernel":   {launched: digest},
		"launched with other init data":    {launched: other, registers: true, want: tdx.ErrInitData, says: "not the one"},
		"launched without":                 {registers: true, recorded: true},
		"launched without, older kernel":   {want: errNoRTMR3, says: "Linux 6.16"},
		"launched without, not asked for":  {off: true, registers: true, want: tdx.ErrInitData, says: "MRCONFIGID is zero"},
		"launched with it, not asked for":  {off: true, launched: digest, registers: true},
		"launched with other, not asked":   {off: true, launched: other, registers: true, want: tdx.ErrInitData, says: "not the one"},
		"launched with a part of it only":  {launched: digest[:32], registers: true, want: tdx.ErrInitData, says: "not the one"},
		"launched without, not asked, old": {off: true, want: tdx.ErrInitData, says: "MRCONFIGID is zero"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newTDXGuest(t, tt.launched, tt.registers)
			c := withRTMR3(false)
			c.InitData.RTMR3 = !tt.off
			out, err := BindInitData(t.Context(), c, g.set(), g.host, base64.StdEncoding.EncodeToString(digest), "", quiet)
			if !errors.Is(err, tt.want) || !strings.Contains(podvm.Cause(err), tt.says) {
				t.Fatalf("got %v", err)
			}
			if tt.recorded != bytes.Equal(out.Recorded, digest) {
				t.Errorf("recorded %x", out.Recorded)
			}
			if !tt.recorded {
				if _, err := os.Stat(g.host.Path(eventlog.Path)); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("a log that is not in use: %v", err)
				}
				return
			}
			if d := logged(t, g.host); !slices.Equal(d, []string{"github.com/sealpod/sealpod BindInitData " + hex.EncodeToString(digest)}) {
				t.Errorf("events %q", d)
			}
		})
	}
}

// The whole life of a guest that is launched without MRCONFIGID: its evidence
// has the event though the log is off, restarts change nothing, and what is
// bound stays bound.
func TestInitDataInRTMR3(t *testing.T) {
	g := newTDXGuest(t, nil, true)
	text := "algorithm = \"sha384\"\nversion = \"0.1.0\"\n"
	path := filepath.Join(t.TempDir(), "initdata.toml")
	write(t, path, text)
	sum := sha512.Sum384([]byte(text))
	c := withRTMR3(false)
	var value, log []byte
	for range 3 { // starts of the agent
		tees := g.set()
		bound, err := BindInitData(t.Context(), c, tees, g.host, "", path, quiet)
		if err != nil || bound.Document.Text != text || !bytes.Equal(bound.Recorded, sum[:]) {
			t.Fatalf("%+v, %v", bound, err)
		}
		events, err := OpenEventLog(t.Context(), c, tees, g.host, quiet)
		if err != nil || events != nil {
			t.Fatalf("the log is off: %v, %v", events, err)
		}
		out, err := start(t, Deps{Config: c, TEEs: tees, EventLog: events, InitData: bound}).ExtendRuntimeMeasurement(t.Context(),
			&aa.ExtendRuntimeMeasurementRequest{Domain: "d", Operation: "o", Content: "c"})
		if err != nil || out.GetResult() != aa.RuntimeMeasurementResult_NOT_ENABLED {
			t.Errorf("%v, %v", out.GetResult(), err)
		}
		now, err := eventlog.Combined(g.host)
		if err != nil {
			t.Fatal(err)
		}
		if log != nil && (!bytes.Equal(now, log) || !bytes.Equal(g.rtmr3(t), value)) {
			t.Fatal("a restart changes the register or the log")
		}
		log, value = now, g.rtmr3(t)
	}
	// The register is what replaying the one event gives.
	digest := log[69+14:][:48]
	want := sha512.Sum384(append(make([]byte, 48), digest...))
	if !bytes.Contains(log, []byte("github.com/sealpod/sealpod BindInitData "+hex.EncodeToString(sum[:]))) || !bytes.Equal(value, want[:]) {
		t.Errorf("RTMR3 %x, log %x", value, log)
	}
	// Other init data does not get in, and does not change anything.
	other := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{1}, 32))
	if _, err := BindInitData(t.Context(), c, g.set(), g.host, other, "", quiet); !errors.Is(err, eventlog.ErrBound) ||
		!strings.Contains(podvm.Cause(err), "other init data") || !bytes.Equal(g.rtmr3(t), value) {
		t.Errorf("got %v", err)
	}
	// With the log enabled from now on, events come after it.
	c.EventLog.Enable = true
	tees := g.set()
	bound, err := BindInitData(t.Context(), c, tees, g.host, "", path, quiet)
	if err != nil {
		t.Fatal(err)
	}
	events, err := OpenEventLog(t.Context(), c, tees, g.host, quiet)
	if err != nil {
		t.Fatal(err)
	}
	client := start(t, Deps{Config: c, TEEs: tees, EventLog: events, InitData: bound})
	if out, err := client.ExtendRuntimeMeasurement(t.Context(), &aa.ExtendRuntimeMeasurementRequest{Domain: "d", Operation: "o", Content: "c"}); err != nil ||
		out.GetResult() != aa.RuntimeMeasurementResult_OK {
		t.Errorf("%v, %v", out.GetResult(), err)
	}
	if d := logged(t, g.host); len(d) != 2 || !strings.HasPrefix(d[0], eventlog.Domain) || d[1] != "d o c" {
		t.Errorf("events %q", d)
	}
}

// A caller can neither make a binding of its own nor repeat the agent's, and
// what something else did to RTMR3 before is not covered up.
func TestBindingIsTheAgentsAlone(t *testing.T) {
	g := newTDXGuest(t, nil, true)
	c := withRTMR3(true)
	events, err := OpenEventLog(t.Context(), c, g.set(), g.host, quiet)
	if err != nil {
		t.Fatal(err)
	}
	client := start(t, Deps{Config: c, TEEs: g.set(), EventLog: events})
	_, err = client.ExtendRuntimeMeasurement(t.Context(), &aa.ExtendRuntimeMeasurementRequest{
		Domain: "github.com/sealpod/sealpod", Operation: "BindInitData", Content: strings.Repeat("ab", 48)})
	if err == nil || !strings.Contains(err.Error(), ttrpcTexts.extend+": the domain github.com/sealpod/sealpod is the attestation agent's own") {
		t.Errorf("got %v", err)
	}
	if d := logged(t, g.host); len(d) != 0 || !bytes.Equal(g.rtmr3(t), make([]byte, 48)) {
		t.Errorf("events %q", d)
	}
	write(t, g.host.Path(rtmr3), strings.Repeat("x", 48)) // extended behind the agent's back
	digest := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{1}, 32))
	_, err = BindInitData(t.Context(), c, g.set(), g.host, digest, "", quiet)
	if !errors.Is(err, eventlog.ErrBound) || !strings.Contains(podvm.Cause(err), "not in the event log") {
		t.Errorf("got %v", err)
	}
}
