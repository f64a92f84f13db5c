package relyingparty

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-sev-guest/abi"
	sevtest "github.com/google/go-sev-guest/testing"

	attester "github.com/sealpod/sealpod/attester/snp"
	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/kbs/admin"
	"github.com/sealpod/sealpod/relyingparty/verifier"
	"github.com/sealpod/sealpod/relyingparty/verifier/snp"
)

// snpGuest is a guest on a simulated Milan. It implements kbs.Evidencer with
// the wire types of the attester.
type snpGuest struct {
	chip        *sevtest.AmdSigner
	policy      uint64
	measurement []byte
	hostData    []byte
	// digest and report change what is signed and what was; nil leaves it.
	digest, report func([]byte) []byte
}

const (
	// closed is a guest policy without debugging and migration, and bit 17,
	// which must be set. Source: AMD 56860 §4.3.
	closed = 1<<17 | 1<<16
	debug  = 1 << 19
)

func (snpGuest) TEE() string { return "snp" }

func (snpGuest) AdditionalEvidence(context.Context, []byte) (string, error) { return "", nil }

func (g snpGuest) Evidence(_ context.Context, digest []byte) (json.RawMessage, error) {
	if g.digest != nil {
		digest = g.digest(digest)
	}
	raw := make([]byte, snp.ReportSize)
	binary.LittleEndian.PutUint32(raw, 3)
	binary.LittleEndian.PutUint64(raw[0x08:], g.policy)
	binary.LittleEndian.PutUint32(raw[0x34:], abi.SignEcdsaP384Sha384)
	copy(raw[0x50:0x90], digest)
	copy(raw[0x90:0xC0], g.measurement)
	copy(raw[0xC0:0xE0], g.hostData)
	raw[0x188], raw[0x189] = 0x19, 1 // family and model of a Milan
	r, s, err := g.chip.Sign(abi.SignedComponent(raw))
	if err != nil {
		return nil, err
	}
	if err := abi.SetSignature(r, s, raw); err != nil {
		return nil, err
	}
	if g.report != nil {
		raw = g.report(raw)
	}
	report, err := attester.ParseReport(raw)
	if err != nil {
		return nil, err
	}
	return json.Marshal(attester.Evidence{Report: report, CertChain: []attester.Certificate{{Type: "VCEK", Data: g.chip.Vcek.Raw}}})
}

// launched is the HOST_DATA of a guest launched with that init data.
func launched(initData string) []byte { sum := sha256.Sum256([]byte(initData)); return sum[:] }

// newChip is a chip with a root of its own.
func newChip(t *testing.T) *sevtest.AmdSigner {
	t.Helper()
	chip, err := sevtest.DefaultTestOnlyCertChain("Milan-B1", time.Now())
	must(t, err)
	return chip
}

// verifying is a relying party that accepts SNP evidence only, and opens its
// resources to what is affirmed.
func verifying(t *testing.T, c snp.Config) *party {
	t.Helper()
	v, err := snp.New(c)
	must(t, err)
	p := newParty(t, func(cfg *Config) { cfg.Verifiers = []verifier.Verifier{v} })
	p.put("default/key/1", "the secret")
	a := p.do("POST", "/kbs/v0/resource-policy", policyBody(`package policy
allow if { count(input.submods) > 0; every s in input.submods { s["ear.status"] == "affirming" } }`), p.asAdmin())
	if a.status != 200 {
		t.Fatal(a)
	}
	return p
}

// fetch is the way of a guest to the resource, with the client that guests use.
func (p *party) fetch(ev kbs.Evidencer, init *kbs.InitData) (string, error) {
	p.t.Helper()
	c, err := kbs.NewClient(kbs.ClientConfig{URL: p.url})
	must(p.t, err)
	defer c.Close()
	tok, err := c.Attest(p.t.Context(), ev, init, "")
	if err != nil {
		return "", err
	}
	uri, err := kbs.ParseURI("kbs:///default/key/1")
	must(p.t, err)
	secret, err := c.Resource(p.t.Context(), tok, uri)
	return string(secret), err
}

func TestSNPGuestGetsTheResourceOnlyAsExpected(t *testing.T) {
	chip := newChip(t)
	p := verifying(t, snp.Config{Roots: map[string]snp.Root{snp.Milan: {ARK: chip.Ark, ASK: chip.Ask}}})
	const text = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"policy.rego\" = \"package agent_policy\"\n"
	init := kbs.InitData{Format: "toml", Body: text}
	good := snpGuest{chip: chip, policy: closed, measurement: bytes.Repeat([]byte{7}, 48), hostData: launched(text)}
	if _, err := p.fetch(good, &init); !errors.Is(err, kbs.ErrDenied) {
		t.Errorf("before there are reference values: %v", err)
	}
	client, err := admin.New(p.url, nil, p.s.AdminToken())
	must(t, err)
	defer client.Close()
	must(t, client.SetReferenceValues(t.Context(), map[string]any{
		"snp_launch_measurement": []string{hex.EncodeToString(good.measurement)},
		"snp_bootloader":         []int{0}, "snp_microcode": []int{0}, "snp_snp_svn": []int{0}, "snp_tee_svn": []int{0},
	}))
	if got, err := p.fetch(good, &init); err != nil || got != "the secret" {
		t.Fatalf("the expected guest: %q, %v\n%s", got, err, p.log)
	}
	with := func(change func(*snpGuest)) snpGuest { g := good; change(&g); return g }
	first := make(chan []byte, 1)
	earlier := with(func(g *snpGuest) {
		g.digest = func(d []byte) []byte { first <- slices.Clone(d); return d }
	})
	if _, err := p.fetch(earlier, &init); err != nil {
		t.Fatal(err)
	}
	old := <-first
	for name, c := range map[string]struct {
		guest snpGuest
		err   error
		log   string
	}{
		"changed measurement": {with(func(g *snpGuest) { g.measurement = bytes.Repeat([]byte{8}, 48) }), kbs.ErrDenied, "cpu0 warning"},
		"debugging allowed":   {with(func(g *snpGuest) { g.policy |= debug }), kbs.ErrDenied, "cpu0 warning"},
		"wrong report data":   {with(func(g *snpGuest) { g.digest = func(d []byte) []byte { d = slices.Clone(d); d[0] ^= 1; return d } }), kbs.ErrUnauthorized, "another nonce"},
		"report data and more behind": {with(func(g *snpGuest) { g.digest = func(d []byte) []byte { return append(slices.Clone(d), 1) } }),
			kbs.ErrUnauthorized, "another nonce"},
		"evidence of an earlier handshake": {with(func(g *snpGuest) { g.digest = func([]byte) []byte { return old } }), kbs.ErrUnauthorized, "another nonce"},
		"measurement changed after signing": {with(func(g *snpGuest) {
			g.measurement = bytes.Repeat([]byte{8}, 48)
			g.report = func(raw []byte) []byte { copy(raw[0x90:], good.measurement); return raw }
		}), kbs.ErrUnauthorized, "not signed by its endorsement key"},
		"launched with other init data": {with(func(g *snpGuest) { g.hostData = launched(text + "#") }), kbs.ErrUnauthorized, "other init data"},
	} {
		p.log.Reset()
		got, err := p.fetch(c.guest, &init)
		if !errors.Is(err, c.err) || got != "" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if !strings.Contains(p.log.String(), c.log) {
			t.Errorf("%s: the log does not say %q:\n%s", name, c.log, p.log)
		}
	}
}

func TestSimulatedSNPGuestIsRefusedUnderTheRootsOfAMD(t *testing.T) {
	p := verifying(t, snp.Config{})
	p.allowAll() // not even a careless policy helps
	guest := snpGuest{chip: newChip(t), policy: closed}
	if got, err := p.fetch(guest, nil); !errors.Is(err, kbs.ErrUnauthorized) || got != "" {
		t.Errorf("%q, %v", got, err)
	}
	if log := p.log.String(); !strings.Contains(log, "the endorsement key is not signed by the ASK") {
		t.Errorf("the log does not say why:\n%s", log)
	}
	if n := p.s.Attestations(); n != 0 {
		t.Errorf("%d tokens", n)
	}
}

func TestRelyingPartyForHardwareRefusesSample(t *testing.T) {
	p := verifying(t, snp.Config{})
	if _, err := p.fetch(clientEvidence{}, nil); !errors.Is(err, kbs.ErrUnauthorized) {
		t.Error(err)
	}
}
