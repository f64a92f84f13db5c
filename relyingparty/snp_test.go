package relyingparty

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-sev-guest/abi"

	"github.com/sealpod/sealpod/attester"
	guestside "github.com/sealpod/sealpod/attester/snp"
	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/relyingparty/verifier/snp"
	sim "github.com/sealpod/sealpod/teesim/snp"
)

const snpInitData = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"policy.rego\" = \"package agent_policy\"\n"

func TestSNPGuestGetsTheResourceOnlyAsExpected(t *testing.T) {
	t.Run("in memory", func(t *testing.T) {
		testSNPGuests(t, func(h snpHost) kbs.Evidencer { return inMemory{h} })
	})
	t.Run("booted", func(t *testing.T) { testSNPGuests(t, booted(t)) })
}

// testSNPGuests has one row for each thing that keeps a guest from the resource.
func testSNPGuests(t *testing.T, on func(snpHost) kbs.Evidencer) {
	chip, stranger := newChip(t, "", sim.Options{}), newChip(t, "", sim.Options{})
	p := verifying(t, snp.Config{Roots: rootsOf(chip)})
	launch := sim.Launch{Kernel: []byte("vmlinuz"), Initrd: []byte("initrd"), CommandLine: "root=/dev/vda", InitData: launched(snpInitData)}
	good := snpHost{chip: chip, guest: sim.NewGuest(launch)}
	init := kbs.InitData{Format: "toml", Body: snpInitData}
	if _, _, err := p.fetch(on(good), &init); !errors.Is(err, kbs.ErrDenied) {
		t.Errorf("before there are reference values: %v", err)
	}
	p.setReferenceValues(good.guest.ReferenceValues())
	var old json.RawMessage
	keep := dishonest{Evidencer: on(good), send: func(e json.RawMessage) json.RawMessage { old = e; return e }}
	got, claims, err := p.fetch(keep, &init)
	if err != nil || got != "the secret" {
		t.Fatalf("the expected guest: %q, %v\n%s", got, err, p.log)
	}
	if claims["executables"] != 3 || claims["hardware"] != 2 || claims["configuration"] != 2 {
		t.Errorf("the expected guest: %v", claims)
	}

	with := func(change func(*snpHost)) kbs.Evidencer { h := good; change(&h); return on(h) }
	relaunched := func(change func(*sim.Launch)) func() kbs.Evidencer {
		return func() kbs.Evidencer {
			l := launch
			change(&l)
			return with(func(h *snpHost) { h.guest = sim.NewGuest(l) })
		}
	}
	asking := func(ask func([]byte) []byte) func() kbs.Evidencer {
		return func() kbs.Evidencer { return dishonest{Evidencer: on(good), ask: ask} }
	}
	sending := func(send func(json.RawMessage) json.RawMessage) func() kbs.Evidencer {
		return func() kbs.Evidencer { return dishonest{Evidencer: on(good), send: send} }
	}
	tableOf := func(c *sim.Chip) []byte { table, err := c.CertTable(good.guest); must(t, err); return table }
	sibling, err := chip.Endorse(bytes.Repeat([]byte{9}, 64), chip.TCB(good.guest))
	must(t, err)
	siblings := &abi.CertTable{Entries: []abi.CertTableEntry{{RawCert: sibling.Certificate.Raw}}}
	must(t, siblings.Entries[0].GUID.UnmarshalText([]byte(abi.VcekGUID)))
	other, mistyped := init, init
	other.Body += "# of the attacker\n"
	mistyped.Body = strings.Replace(init.Body, "agent_policy", "agent_polisy", 1)

	for name, c := range map[string]struct {
		guest func() kbs.Evidencer
		init  *kbs.InitData // nil means the expected one
		err   error
		text  string // in the error or the log
	}{
		"changed kernel": {guest: relaunched(func(l *sim.Launch) { l.Kernel = []byte("evil") }), err: kbs.ErrDenied, text: "snp.measurement is not"},
		"changed command line": {guest: relaunched(func(l *sim.Launch) { l.CommandLine += " init=/bin/sh" }),
			err: kbs.ErrDenied, text: "snp.measurement is not"},
		"changed firmware": {guest: relaunched(func(l *sim.Launch) { l.Firmware = []byte("evil") }), err: kbs.ErrDenied, text: "snp.measurement is not"},
		"debugging allowed": {guest: relaunched(func(l *sim.Launch) { l.Debug = true }),
			err: kbs.ErrDenied, text: "snp.policy_debug_allowed is true"},
		"migration allowed": {guest: relaunched(func(l *sim.Launch) { l.Migrate = true }),
			err: kbs.ErrDenied, text: "snp.policy_migrate_ma is true"},
		"stale firmware of the machine": {guest: relaunched(func(l *sim.Launch) { l.StaleTCB = true }),
			err: kbs.ErrDenied, text: "snp.reported_tcb_snp is not"},

		"launched with other init data": {guest: relaunched(func(l *sim.Launch) { l.InitData = launched(other.Body) }),
			err: kbs.ErrUnauthorized, text: "other init data"},
		"launched without init data": {guest: relaunched(func(l *sim.Launch) { l.InitData = nil }),
			err: kbs.ErrUnauthorized, text: "other init data"},
		"sends other init data":         {guest: func() kbs.Evidencer { return on(good) }, init: &other, err: kbs.ErrUnauthorized, text: "other init data"},
		"one byte of init data differs": {guest: func() kbs.Evidencer { return on(good) }, init: &mistyped, err: kbs.ErrUnauthorized, text: "other init data"},

		"wrong nonce": {guest: asking(func(d []byte) []byte { d[0] ^= 1; return d }), err: kbs.ErrUnauthorized, text: "another nonce"},
		"report data and more behind": {guest: asking(func(d []byte) []byte { return append(d, 1) }),
			err: kbs.ErrUnauthorized, text: "another nonce"},
		"report data that is cut": {guest: asking(func(d []byte) []byte { return d[:47] }), err: kbs.ErrUnauthorized, text: "another nonce"},
		"replayed evidence": {guest: sending(func(json.RawMessage) json.RawMessage { return old }),
			err: kbs.ErrUnauthorized, text: "another nonce"},
		"VMPL 1": {guest: func() kbs.Evidencer { return with(func(h *snpHost) { h.vmpl = 1 }) },
			err: kbs.ErrUnauthorized, text: "asked for at VMPL 1"},
		"VMPL 3": {guest: func() kbs.Evidencer { return with(func(h *snpHost) { h.vmpl = 3 }) },
			err: kbs.ErrUnauthorized, text: "asked for at VMPL 3"},

		"evidence of TDX": {guest: sending(func(json.RawMessage) json.RawMessage { return json.RawMessage(`{"quote":"BAAC","cc_eventlog":null}`) }),
			err: kbs.ErrUnauthorized, text: "not the evidence of an SNP guest"},
		"evidence of no TEE": {guest: sending(func(json.RawMessage) json.RawMessage { return json.RawMessage(`{"svn":"1","report_data":"AA=="}`) }),
			err: kbs.ErrUnauthorized, text: "not the evidence of an SNP guest"},
		"SNP evidence called TDX": {guest: func() kbs.Evidencer { return dishonest{Evidencer: on(good), tee: "tdx"} },
			err: kbs.ErrUnauthorized, text: "no verifier"},

		"report truncated on the way to the attester": {
			guest: func() kbs.Evidencer {
				return with(func(h *snpHost) { h.report = func(r []byte) []byte { return r[:sim.ReportSize-1] } })
			}, err: guestside.ErrReport, text: "1183 bytes"},
		"report truncated on the way to the relying party": {guest: sending(func(e json.RawMessage) json.RawMessage {
			return bytes.Replace(e, []byte(`"host_data":[`), []byte(`"host_data":[],"rest":[`), 1)
		}), err: kbs.ErrUnauthorized, text: "host_data has 0 bytes"},
		"measurement changed after signing": {
			guest: func() kbs.Evidencer {
				return with(func(h *snpHost) { h.report = func(r []byte) []byte { r[0x90] ^= 1; return r } })
			}, err: kbs.ErrUnauthorized, text: "not signed by its endorsement key"},
		"signature removed": {
			guest: func() kbs.Evidencer {
				return with(func(h *snpHost) { h.report = func(r []byte) []byte { clear(r[0x2A0:]); return r } })
			}, err: kbs.ErrUnauthorized, text: "not signed by its endorsement key"},

		"certificate of another chip": {guest: func() kbs.Evidencer { return with(func(h *snpHost) { h.table = siblings.Marshal() }) },
			err: kbs.ErrUnauthorized, text: "not signed by its endorsement key"},
		"certificate chain of another maker": {guest: func() kbs.Evidencer { return with(func(h *snpHost) { h.table = tableOf(stranger) }) },
			err: kbs.ErrUnauthorized, text: "not of a trusted root"},
		"chip of another maker": {guest: func() kbs.Evidencer { return with(func(h *snpHost) { h.chip = stranger }) },
			err: kbs.ErrUnauthorized, text: "not of a trusted root"},
		"chip of another maker with our chain": {
			guest: func() kbs.Evidencer {
				return with(func(h *snpHost) { h.chip, h.table = stranger, tableOf(chip) })
			}, err: kbs.ErrUnauthorized, text: "not signed by its endorsement key"},
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
			if !strings.Contains(fmt.Sprint(err, p.log), c.text) {
				t.Errorf("neither error nor log says %q: %v\n%s", c.text, err, p.log)
			}
		})
	}
	if got, _, err := p.fetch(on(good), &init); err != nil || got != "the secret" {
		t.Errorf("the expected guest afterwards: %q, %v", got, err)
	}
}

// TestSNPOwnerPinsTheInitData is about a host that chooses init data of its own
// and gives the guest the same: only the owner can tell.
func TestSNPOwnerPinsTheInitData(t *testing.T) {
	chip := newChip(t, "", sim.Options{})
	p := verifying(t, snp.Config{Roots: rootsOf(chip)})
	guest := sim.NewGuest(sim.Launch{InitData: launched(snpInitData)})
	values := guest.ReferenceValues()
	values["init_data"] = []string{hex.EncodeToString(launched(snpInitData))}
	p.setReferenceValues(values)
	if got, _, err := p.fetch(inMemory{snpHost{chip: chip, guest: guest}}, &kbs.InitData{Format: "toml", Body: snpInitData}); err != nil || got != "the secret" {
		t.Errorf("the owner's: %q, %v\n%s", got, err, p.log)
	}
	text := strings.Replace(snpInitData, "agent_policy", "evil_policy", 1)
	guest = sim.NewGuest(sim.Launch{InitData: launched(text)})
	_, _, err := p.fetch(inMemory{snpHost{chip: chip, guest: guest}}, &kbs.InitData{Format: "toml", Body: text})
	if log := p.log.String(); !errors.Is(err, kbs.ErrDenied) || !strings.Contains(log, "init_data is not") {
		t.Errorf("the host's: %v\n%s", err, log)
	}
}

func TestSNPAttesterRefusesLongReportData(t *testing.T) {
	p := verifying(t, snp.Config{Roots: rootsOf(newChip(t, "", sim.Options{}))})
	guest := &attester.Set{Primary: guestside.New(podvm.Host{Root: t.TempDir()})}
	long := dishonest{Evidencer: guest, ask: func(d []byte) []byte { return append(d, make([]byte, 65-len(d))...) }}
	if _, _, err := p.fetch(long, nil); podvm.Cause(err) != "SNP report data must not be longer than 64 bytes" {
		t.Errorf("%q: %v", podvm.Cause(err), err)
	}
}

func TestSNPGuestsOfAllProducts(t *testing.T) {
	var chips []*sim.Chip
	for _, product := range []string{sim.Milan, sim.Genoa, sim.Turin} {
		for _, version := range []uint32{2, 3, 5} {
			chips = append(chips, newChip(t, "", sim.Options{Product: product, ReportVersion: version}))
		}
	}
	for _, chip := range chips {
		guest := sim.NewGuest(sim.Launch{})
		p := verifying(t, snp.Config{Roots: rootsOf(chip)})
		p.setReferenceValues(guest.ReferenceValues())
		if got, _, err := p.fetch(inMemory{snpHost{chip: chip, guest: guest}}, nil); err != nil || got != "the secret" {
			t.Errorf("%s: %q, %v\n%s", chip.Product(), got, err, p.log)
		}
	}
}

// TestSNPRelyingPartyTrustsADirectory has all that a relying party knows of a
// chip from the files of its maker: roots, keys and what is revoked.
func TestSNPRelyingPartyTrustsADirectory(t *testing.T) {
	dir := t.TempDir()
	chip, guest := newChip(t, dir, sim.Options{Product: sim.Turin}), sim.NewGuest(sim.Launch{})
	trust := filepath.Join(dir, "trust")
	pem, err := os.ReadFile(filepath.Join(trust, "snp-Turin.pem"))
	must(t, err)
	root, err := snp.ParseRoot(pem)
	must(t, err)
	p := verifying(t, snp.Config{Roots: map[string]snp.Root{snp.Turin: root}, Sources: []snp.Source{snp.OfflineStore(trust)}})
	p.setReferenceValues(guest.ReferenceValues())
	silent := snpHost{chip: newChip(t, dir, sim.Options{Product: sim.Turin}), guest: guest, table: make([]byte, 24)} // no certificates
	if got, _, err := p.fetch(inMemory{silent}, nil); err != nil || got != "the secret" {
		t.Errorf("a guest without certificates: %q, %v\n%s", got, err, p.log)
	}
	stale := silent
	stale.guest = sim.NewGuest(sim.Launch{StaleTCB: true})
	if _, _, err := p.fetch(inMemory{stale}, nil); !errors.Is(err, kbs.ErrDenied) || !strings.Contains(p.log.String(), "snp.reported_tcb_microcode is not") {
		t.Errorf("stale firmware: %v\n%s", err, p.log)
	}
	ark, ask := chip.Makers().ARK, chip.Makers().ASK
	list, err := ark.CRL(time.Now().AddDate(0, 1, 0), ask.Certificate)
	must(t, err)
	must(t, os.Mkdir(filepath.Join(trust, "crl"), 0o755))
	must(t, os.WriteFile(filepath.Join(trust, "crl", "Turin.der"), list, 0o600))
	if _, _, err := p.fetch(inMemory{silent}, nil); !errors.Is(err, kbs.ErrUnauthorized) || !strings.Contains(p.log.String(), "is revoked since") {
		t.Errorf("revoked: %v\n%s", err, p.log)
	}
}

func TestSimulatedSNPGuestIsRefusedUnderTheRootsOfAMD(t *testing.T) {
	p := verifying(t, snp.Config{})
	p.allowAll() // not even a careless policy helps
	for _, product := range []string{sim.Milan, sim.Genoa, sim.Turin} {
		p.log.Reset()
		guest := inMemory{snpHost{chip: newChip(t, "", sim.Options{Product: product}), guest: sim.NewGuest(sim.Launch{})}}
		for name, c := range map[string]struct {
			ev   kbs.Evidencer
			text string
		}{
			"with its chain": {guest, "not of a trusted root"},
			"with its key only": {dishonest{Evidencer: guest, send: func(e json.RawMessage) json.RawMessage {
				return bytes.ReplaceAll(bytes.ReplaceAll(e, []byte(`"ARK"`), []byte(`"x"`)), []byte(`"ASK"`), []byte(`"x"`))
			}}, "the endorsement key is not signed by the ASK"},
		} {
			if got, _, err := p.fetch(c.ev, nil); !errors.Is(err, kbs.ErrUnauthorized) || got != "" {
				t.Errorf("%s %s: %q, %v", product, name, got, err)
			}
			if log := p.log.String(); !strings.Contains(log, c.text) {
				t.Errorf("%s %s: the log does not say why:\n%s", product, name, log)
			}
		}
	}
	if n := p.s.Attestations(); n != 0 {
		t.Errorf("%d tokens", n)
	}
}

func TestRelyingPartyForHardwareRefusesSample(t *testing.T) {
	p := verifying(t, snp.Config{})
	if _, _, err := p.fetch(clientEvidence{}, nil); !errors.Is(err, kbs.ErrUnauthorized) {
		t.Error(err)
	}
}
