package relyingparty

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/sealpod/sealpod/attester"
	"github.com/sealpod/sealpod/attester/eventlog"
	guestside "github.com/sealpod/sealpod/attester/tdx"
	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/relyingparty/verifier"
	"github.com/sealpod/sealpod/relyingparty/verifier/tdx"
	"github.com/sealpod/sealpod/teesim/sysfs"
	sim "github.com/sealpod/sealpod/teesim/tdx"
)

// tdxHost is the host of a simulated TD, which may change what passes through
// it. It implements sysfs.Provider.
type tdxHost struct {
	platform *sim.Platform
	td       *sim.TD
	// parts changes what a quote is made of, quote the quote, and log the
	// firmware's event log; nil leaves it.
	parts func(*sim.Parts)
	quote func([]byte) []byte
	log   func([]byte) []byte
	// bind is a digest of init data that the attestation agent binds, pulled are
	// images whose pull it records then.
	bind   []byte
	pulled []string
	// other are the events of an agent that records whatever it is asked to.
	other []sim.Event
}

func (tdxHost) Name() string { return "tdx_guest" }

func (h tdxHost) Report(ctx context.Context, data []byte, level uint) (quote, aux []byte, err error) {
	quote, aux, err = h.td.Reports().Report(ctx, data, level)
	if err == nil && h.parts != nil {
		parts := h.platform.Parts(h.td.Body([64]byte(data)))
		h.parts(&parts)
		quote, err = h.platform.Sign(parts)
	}
	if err == nil && h.quote != nil {
		quote = h.quote(quote)
	}
	return quote, aux, err
}

func (h tdxHost) ccel() []byte {
	if h.log != nil {
		return h.log(h.td.CCEL())
	}
	return h.td.CCEL()
}

// record has an agent record its events in the log of the machine, through
// registers.
func (h tdxHost) record(t testing.TB, machine podvm.Host, registers eventlog.Registers) {
	t.Helper()
	platform, _ := eventlog.PlatformOf("tdx")
	log, err := eventlog.Open(t.Context(), eventlog.Options{
		Host: machine, Platform: platform, Registers: registers, DefaultPCR: 17, Log: slog.New(slog.DiscardHandler),
	})
	must(t, err)
	if h.bind != nil {
		must(t, log.BindInitData(t.Context(), h.bind))
	}
	for _, image := range h.pulled {
		must(t, log.Extend(t.Context(), "github.com/confidential-containers", "PullImage", image, nil))
	}
	if h.other != nil {
		for _, e := range h.other {
			must(t, registers.Extend(e.Register, e.Digest[:]))
		}
		header := len(sim.EventLog())
		must(t, os.WriteFile(machine.Path(eventlog.Path), sim.EventLog(h.other...)[header:], 0o600))
	}
}

// tdInMemory is a TD on a machine without FUSE: what its kernel would do is
// done here, event log and evidence are the attester's.
type tdInMemory struct {
	tdxHost
	machine podvm.Host
}

func newTDInMemory(t testing.TB) func(tdxHost) kbs.Evidencer {
	return func(h tdxHost) kbs.Evidencer {
		g := tdInMemory{h, podvm.Host{Root: t.TempDir()}}
		path := g.machine.Path(eventlog.CCELPath)
		must(t, os.MkdirAll(filepath.Dir(path), 0o700))
		must(t, os.WriteFile(path, h.ccel(), 0o600))
		h.record(t, g.machine, g)
		return g
	}
}

func (tdInMemory) TEE() string { return "tdx" }

func (tdInMemory) AdditionalEvidence(context.Context, []byte) (string, error) { return "", nil }

func (g tdInMemory) Evidence(ctx context.Context, digest []byte) (json.RawMessage, error) {
	quote, _, err := g.Report(ctx, append(digest, make([]byte, 64-len(digest))...), 0)
	if err != nil {
		return nil, err
	}
	log, err := eventlog.Combined(g.machine)
	if err != nil {
		return nil, err
	}
	return json.Marshal(guestside.Evidence{Quote: quote, CCEventLog: log})
}

// Lock, Unlock, Read and Extend are eventlog.Registers.
func (tdInMemory) Lock(context.Context) error { return nil }
func (tdInMemory) Unlock()                    {}

func (g tdInMemory) Read(index uint32) ([]byte, error) {
	value := g.td.RTMR(int(index) - 1)
	return value[:], nil
}

func (g tdInMemory) Extend(index uint32, digest []byte) error {
	return g.td.Extend(int(index)-1, [48]byte(digest))
}

// tdBooted returns guests that detect their TEE, record events and attest
// through a mounted sysfs, as in a pod VM.
func tdBooted(t *testing.T) func(tdxHost) kbs.Evidencer {
	return func(h tdxHost) kbs.Evidencer {
		machine, quiet := podvm.Host{Root: t.TempDir()}, slog.New(slog.DiscardHandler)
		mount(t, machine.Path("/sys"), sysfs.Tree{
			Reports: h, Measurements: h.td.Registers(), Files: map[string][]byte{"firmware/acpi/tables/data/CCEL": h.ccel()}, Log: quiet,
		})
		set, err := attester.Detect(t.Context(), attester.Options{Host: machine, Allow: []string{"tdx"}, Log: quiet})
		must(t, err)
		measurer, ok := set.Primary.(attester.Measurer)
		if !ok {
			t.Fatal("no registers")
		}
		h.record(t, machine, measurer.Registers())
		return set
	}
}

// newIntel is a simulated platform and where relying parties find what they
// need to trust it.
func newIntel(t testing.TB, o sim.Options) (p *sim.Platform, trust string) {
	t.Helper()
	dir := t.TempDir()
	p, err := sim.Open(dir, o)
	must(t, err)
	return p, filepath.Join(dir, "trust")
}

// verifyingTDX is a relying party that accepts the TDX evidence of one
// platform, whose policies are the built-in ones.
func verifyingTDX(t testing.TB, trust string) *party {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(trust, "tdx-root.pem"))
	must(t, err)
	roots, err := tdx.ParseRoots(text)
	must(t, err)
	return verifyingTDXUnder(t, tdx.Config{Roots: roots, Source: tdx.File{Path: filepath.Join(trust, "tdx-collateral.json")}})
}

func verifyingTDXUnder(t testing.TB, c tdx.Config) *party {
	t.Helper()
	v, err := tdx.New(c)
	must(t, err)
	p := newParty(t, func(cfg *Config) { cfg.Verifiers = []verifier.Verifier{v} })
	p.put("default/key/1", "the secret")
	return p
}

// quoteIn changes the quote in evidence.
func quoteIn(change func([]byte) []byte) func(json.RawMessage) json.RawMessage {
	return func(raw json.RawMessage) json.RawMessage {
		var e map[string]any
		text, ok := "", false
		err := json.Unmarshal(raw, &e)
		if err == nil {
			text, ok = e["quote"].(string)
		}
		quote, err2 := base64.StdEncoding.DecodeString(text)
		if err = errors.Join(err, err2); err != nil || !ok {
			panic("not the evidence of a TD")
		}
		e["quote"] = base64.StdEncoding.EncodeToString(change(quote))
		out, err := json.Marshal(e)
		if err != nil {
			panic(err)
		}
		return out
	}
}
