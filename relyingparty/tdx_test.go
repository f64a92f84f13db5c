package relyingparty

import (
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/attester"
	guestside "github.com/sealpod/sealpod/attester/tdx"
	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/relyingparty/verifier/tdx"
	sim "github.com/sealpod/sealpod/teesim/tdx"
)

const tdxInitData = "version = \"0.1.0\"\nalgorithm = \"sha384\"\n[data]\n\"policy.rego\" = \"package agent_policy\"\n"

// launchedTD is the digest of init data, for MRCONFIGID.
func launchedTD(initData string) []byte { sum := sha512.Sum384([]byte(initData)); return sum[:] }

func TestTDXGuestGetsTheResourceOnlyAsExpected(t *testing.T) {
	t.Run("in memory", func(t *testing.T) { testTDXGuests(t, newTDInMemory(t)) })
	t.Run("booted", func(t *testing.T) { testTDXGuests(t, tdBooted(t)) })
}

// testTDXGuests has one row for each thing that keeps a guest from the resource.
func testTDXGuests(t *testing.T, on func(tdxHost) kbs.Evidencer) {
	platform, trust := newIntel(t, sim.Options{})
	stranger, _ := newIntel(t, sim.Options{})
	p := verifyingTDX(t, trust)
	launch := sim.Launch{Kernel: []byte("vmlinuz"), Initrd: []byte("initrd"), CommandLine: "root=/dev/vda", InitData: launchedTD(tdxInitData)}
	init := kbs.InitData{Format: "toml", Body: tdxInitData}
	good := func() tdxHost { return tdxHost{platform: platform, td: platform.NewTD(launch)} }
	if _, _, err := p.fetch(on(good()), &init); !errors.Is(err, kbs.ErrDenied) {
		t.Errorf("before there are reference values: %v", err)
	}
	p.setReferenceValues(platform.NewTD(launch).ReferenceValues())

	var old json.RawMessage
	keep := dishonest{Evidencer: on(good()), send: func(e json.RawMessage) json.RawMessage { old = e; return e }}
	got, claims, err := p.fetch(keep, &init)
	if err != nil || got != "the secret" {
		t.Fatalf("the expected guest: %q, %v\n%s", got, err, p.log)
	}
	if claims["executables"] != 3 || claims["hardware"] != 2 || claims["configuration"] != 2 {
		t.Errorf("the expected guest: %v", claims)
	}
	busy := good()
	busy.pulled = []string{`{"image":"i", "digest":"d"}`, `{"image":"j"}`}
	unset := launch
	unset.InitData = nil
	bound := busy
	bound.td, bound.bind = platform.NewTD(unset), launch.InitData
	if got, _, err := p.fetch(on(bound), &init); err != nil || got != "the secret" {
		t.Errorf("a guest whose agent bound the init data: %q, %v\n%s", got, err, p.log)
	}
	if got, _, err := p.fetch(on(busy), &init); err != nil || got != "the secret" {
		t.Errorf("a guest that pulled images: %q, %v\n%s", got, err, p.log)
	}

	with := func(change func(*tdxHost)) func() kbs.Evidencer {
		return func() kbs.Evidencer { h := good(); change(&h); return on(h) }
	}
	relaunched := func(change func(*sim.Launch)) func() kbs.Evidencer {
		l := launch
		change(&l)
		return with(func(h *tdxHost) { h.td = platform.NewTD(l) })
	}
	asking := func(ask func([]byte) []byte) func() kbs.Evidencer {
		return func() kbs.Evidencer { return dishonest{Evidencer: on(good()), ask: ask} }
	}
	sending := func(send func(json.RawMessage) json.RawMessage) func() kbs.Evidencer {
		return func() kbs.Evidencer { return dishonest{Evidencer: on(good()), send: send} }
	}
	flipped := func(at int) func([]byte) []byte { return func(b []byte) []byte { b[at] ^= 1; return b } }
	const firstDigest, rtmr1, reportData = 80, 48 + 376, 48 + 520 // in a log, and in a quote of version 4
	other, mistyped := init, init
	other.Body += "# of the attacker\n"
	mistyped.Body = strings.Replace(init.Body, "agent_policy", "agent_polisy", 1)

	for name, c := range map[string]struct {
		guest func() kbs.Evidencer
		init  *kbs.InitData // nil means the expected one
		err   error
		text  string // that the guest is told, and that is logged
	}{
		"changed kernel measurement": {relaunched(func(l *sim.Launch) { l.Kernel = []byte("evil") }), nil, kbs.ErrDenied, "tdx.quote.body.rtmr_1 is not"},
		"changed command line":       {relaunched(func(l *sim.Launch) { l.CommandLine += " init=/bin/sh" }), nil, kbs.ErrDenied, "tdx.quote.body.rtmr_2 is not"},
		"changed initrd":             {relaunched(func(l *sim.Launch) { l.Initrd = []byte("evil") }), nil, kbs.ErrDenied, "tdx.quote.body.rtmr_2 is not"},
		"changed firmware":           {relaunched(func(l *sim.Launch) { l.Firmware = []byte("evil") }), nil, kbs.ErrDenied, "tdx.quote.body.mr_td is not"},
		"debug bit":                  {relaunched(func(l *sim.Launch) { l.Debug = true }), nil, kbs.ErrDenied, "tdx.td_attributes.debug is true"},
		"stale TCB":                  {relaunched(func(l *sim.Launch) { l.StaleTCB = true }), nil, kbs.ErrDenied, `tdx.tcb_status is "OutOfDate"`},

		"changed init data, at launch": {relaunched(func(l *sim.Launch) { l.InitData = launchedTD(other.Body) }), nil, kbs.ErrUnauthorized, "other init data"},
		"changed init data, as sent":   {with(func(*tdxHost) {}), &other, kbs.ErrUnauthorized, "other init data"},
		"one byte of init data":        {with(func(*tdxHost) {}), &mistyped, kbs.ErrUnauthorized, "other init data"},
		"init data that nothing binds": {relaunched(func(l *sim.Launch) { l.InitData = nil }), nil, kbs.ErrUnauthorized, "MRCONFIGID is zero"},
		"init data that a container binds": {with(func(h *tdxHost) {
			h.td = platform.NewTD(unset)
			h.other = []sim.Event{sim.AgentEvent(4, "d PullImage {}"), sim.AgentEvent(4, "github.com/sealpod/sealpod BindInitData "+hex.EncodeToString(launch.InitData))}
		}), nil, kbs.ErrUnauthorized, "first event of RTMR3"},
		"other init data that the agent bound": {with(func(h *tdxHost) {
			h.td, h.bind = platform.NewTD(unset), launchedTD(other.Body)
		}), nil, kbs.ErrUnauthorized, "first event of RTMR3"},

		"wrong nonce":                 {asking(func(d []byte) []byte { d[0] ^= 1; return d }), nil, kbs.ErrUnauthorized, "another nonce"},
		"report data and more behind": {asking(func(d []byte) []byte { return append(d, 1) }), nil, kbs.ErrUnauthorized, "another nonce"},
		"report data that is cut":     {asking(func(d []byte) []byte { return d[:47] }), nil, kbs.ErrUnauthorized, "another nonce"},
		"replayed evidence":           {sending(func(json.RawMessage) json.RawMessage { return old }), nil, kbs.ErrUnauthorized, "another nonce"},

		"evidence of another TEE type": {sending(func(json.RawMessage) json.RawMessage {
			return json.RawMessage(`{"attestation_report":{"version":3},"cert_chain":null}`)
		}), nil, kbs.ErrUnauthorized, "not the evidence of a TDX guest"},
		"evidence of no TEE": {sending(func(json.RawMessage) json.RawMessage { return json.RawMessage(`{"svn":"1","report_data":"AA=="}`) }),
			nil, kbs.ErrUnauthorized, "not the evidence of a TDX guest"},
		"TDX evidence called SNP": {func() kbs.Evidencer { return dishonest{Evidencer: on(good()), tee: "snp"} }, nil, kbs.ErrUnauthorized, "no verifier"},

		"truncated quote":                {with(func(h *tdxHost) { h.quote = func(q []byte) []byte { return q[:len(q)-1] } }), nil, kbs.ErrUnauthorized, "truncated"},
		"quote truncated on its way":     {sending(quoteIn(func(q []byte) []byte { return q[:700] })), nil, kbs.ErrUnauthorized, "truncated"},
		"register changed in a quote":    {with(func(h *tdxHost) { h.quote = flipped(rtmr1) }), nil, kbs.ErrUnauthorized, "not signed by its attestation key"},
		"nonce changed in a quote":       {sending(quoteIn(flipped(reportData))), nil, kbs.ErrUnauthorized, "not signed by its attestation key"},
		"event log that does not replay": {with(func(h *tdxHost) { h.log = flipped(firstDigest) }), nil, kbs.ErrUnauthorized, "replaying register 1"},
		"event log of another TD": {with(func(h *tdxHost) {
			h.log = func([]byte) []byte { return platform.NewTD(sim.Launch{CommandLine: "x"}).CCEL() }
		}), nil, kbs.ErrUnauthorized, "replaying register"},

		"swapped certificate chain": {with(func(h *tdxHost) {
			h.parts = func(q *sim.Parts) { q.Chain = stranger.Certificates().Chain() }
		}), nil, kbs.ErrUnauthorized, "is not trusted"},
		"swapped PCK certificate": {with(func(h *tdxHost) {
			c := platform.Certificates()
			h.parts = func(q *sim.Parts) { q.Chain = sim.PEM(stranger.Certificates().PCK, c.CA, c.Root) }
		}), nil, kbs.ErrUnauthorized, "PCK certificate"},
		"another platform": {with(func(h *tdxHost) { h.platform, h.td = stranger, stranger.NewTD(launch) }), nil, kbs.ErrUnauthorized, "is not trusted"},
		"another platform with our chain": {with(func(h *tdxHost) {
			h.platform, h.td = stranger, stranger.NewTD(launch)
			h.parts = func(q *sim.Parts) { q.Chain = platform.Certificates().Chain() }
		}), nil, kbs.ErrUnauthorized, "not signed by the PCK key"},
	} {
		t.Run(name, func(t *testing.T) {
			p.log.Reset()
			sent := &init
			if c.init != nil {
				sent = c.init
			}
			got, _, err := p.fetch(c.guest(), sent)
			if !errors.Is(err, c.err) || got != "" {
				t.Errorf("%q, %v", got, err)
			}
			if !strings.Contains(podvm.Cause(err), c.text) || !strings.Contains(strings.ReplaceAll(p.log.String(), `\"`, `"`), strings.ReplaceAll(c.text, `\"`, `"`)) {
				t.Errorf("the guest or the log is not told %q: %v\n%s", c.text, podvm.Cause(err), p.log)
			}
		})
	}
	if got, _, err := p.fetch(on(good()), &init); err != nil || got != "the secret" {
		t.Errorf("the expected guest afterwards: %q, %v", got, err)
	}
}

// TestTDXOwnerPinsTheInitData is about a host that chooses init data of its own
// and gives the guest the same, in either place: only the owner can tell.
func TestTDXOwnerPinsTheInitData(t *testing.T) {
	platform, trust := newIntel(t, sim.Options{})
	p, on := verifyingTDX(t, trust), newTDInMemory(t)
	values := platform.NewTD(sim.Launch{}).ReferenceValues()
	values["init_data"] = []string{hex.EncodeToString(launchedTD(tdxInitData))}
	p.setReferenceValues(values)
	evil := strings.Replace(tdxInitData, "agent_policy", "evil_policy", 1)
	for name, launch := range map[string]func(text string) tdxHost{
		"MRCONFIGID": func(text string) tdxHost {
			return tdxHost{platform: platform, td: platform.NewTD(sim.Launch{InitData: launchedTD(text)})}
		},
		"RTMR3": func(text string) tdxHost {
			return tdxHost{platform: platform, td: platform.NewTD(sim.Launch{}), bind: launchedTD(text)}
		},
	} {
		p.log.Reset()
		if got, _, err := p.fetch(on(launch(tdxInitData)), &kbs.InitData{Format: "toml", Body: tdxInitData}); err != nil || got != "the secret" {
			t.Errorf("%s, the owner's: %q, %v\n%s", name, got, err, p.log)
		}
		_, _, err := p.fetch(on(launch(evil)), &kbs.InitData{Format: "toml", Body: evil})
		if reasons := kbs.Reasons(err); !errors.Is(err, kbs.ErrDenied) || !strings.Contains(reasons, "init_data is not among") {
			t.Errorf("%s, the host's: %q, %v", name, reasons, err)
		}
	}
}

func TestTDXGuestsOfAllPlatforms(t *testing.T) {
	for _, o := range []sim.Options{{}, {QuoteVersion: 5}, {Processor: true}, {QuoteVersion: 5, Processor: true}} {
		platform, trust := newIntel(t, o)
		p, on := verifyingTDX(t, trust), newTDInMemory(t)
		host := tdxHost{platform: platform, td: platform.NewTD(sim.Launch{})}
		p.setReferenceValues(host.td.ReferenceValues())
		if got, _, err := p.fetch(on(host), nil); err != nil || got != "the secret" {
			t.Errorf("%+v: %q, %v\n%s", o, got, err, p.log)
		}
		host.td = platform.NewTD(sim.Launch{StaleTCB: true})
		if _, _, err := p.fetch(on(host), nil); !errors.Is(err, kbs.ErrDenied) || !strings.Contains(kbs.Reasons(err), "tdx.tcb_status") {
			t.Errorf("%+v, stale: %v", o, err)
		}
	}
}

func TestTDXAttesterRefusesLongReportData(t *testing.T) {
	_, trust := newIntel(t, sim.Options{})
	guest := &attester.Set{Primary: guestside.New(podvm.Host{Root: t.TempDir()})}
	long := dishonest{Evidencer: guest, ask: func(d []byte) []byte { return append(d, make([]byte, 65-len(d))...) }}
	if _, _, err := verifyingTDX(t, trust).fetch(long, nil); podvm.Cause(err) != "TDX report data must not be longer than 64 bytes" {
		t.Errorf("%q: %v", podvm.Cause(err), err)
	}
}

func TestSimulatedTDXGuestIsRefusedUnderTheRootOfIntel(t *testing.T) {
	for _, o := range []sim.Options{{}, {QuoteVersion: 5}} {
		platform, _ := newIntel(t, o)
		pcs, err := tdx.NewPCS("https://127.0.0.1:1", "", nil) // is not asked
		must(t, err)
		p := verifyingTDXUnder(t, tdx.Config{Source: pcs})
		p.allowAll() // not even a careless policy helps
		got, _, err := p.fetch(newTDInMemory(t)(tdxHost{platform: platform, td: platform.NewTD(sim.Launch{})}), nil)
		if text := fmt.Sprint(podvm.Cause(err)); !errors.Is(err, kbs.ErrUnauthorized) || got != "" || !strings.Contains(text, `the root "Simulated SGX Root CA" is not trusted`) {
			t.Errorf("%q, %q, %v\n%s", got, text, err, p.log)
		}
		if n := p.s.Attestations(); n != 0 {
			t.Errorf("%d tokens", n)
		}
	}
}

// BenchmarkTDXHandshake is BenchmarkHandshake with a quote and an event log for
// each handshake, collateral cached and policies compiled. The guest's part, one
// signature and reading its log, is in it.
func BenchmarkTDXHandshake(b *testing.B) {
	platform, trust := newIntel(b, sim.Options{})
	p := verifyingTDX(b, trust)
	host := tdxHost{platform: platform, td: platform.NewTD(sim.Launch{Kernel: []byte("vmlinuz"), CommandLine: "root=/dev/vda"})}
	p.setReferenceValues(host.td.ReferenceValues())
	ev, g := newTDInMemory(b)(host), newGuest(p)
	if got, _, err := p.fetch(ev, nil); err != nil || got != "the secret" {
		b.Fatal(got, err)
	}
	handshakes(b, p, strings.Replace(authBody, "sample", "tdx", 1), func(nonce string) string {
		return g.attestationWith(nonce, func(digest []byte) string {
			raw, err := ev.Evidence(b.Context(), digest)
			if err != nil {
				b.Error(err)
			}
			return string(raw)
		})
	})
}
