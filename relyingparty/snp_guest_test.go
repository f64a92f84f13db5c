package relyingparty

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-sev-guest/abi"

	"github.com/sealpod/sealpod/attester"
	guestside "github.com/sealpod/sealpod/attester/snp"
	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/kbs/admin"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
	"github.com/sealpod/sealpod/relyingparty/verifier"
	"github.com/sealpod/sealpod/relyingparty/verifier/snp"
	sim "github.com/sealpod/sealpod/teesim/snp"
	"github.com/sealpod/sealpod/teesim/sysfs"
)

// snpHost is the host of a simulated SNP guest, which may change what passes
// through it. It implements sysfs.Provider.
type snpHost struct {
	chip  *sim.Chip
	guest *sim.Guest
	// vmpl is the level at which the guest asks, report changes the report, and
	// table, unless nil, is what the guest gets for a certificate table.
	vmpl   uint
	report func([]byte) []byte
	table  []byte
}

func (snpHost) Name() string { return "sev_guest" }

func (h snpHost) Report(ctx context.Context, data []byte, level uint) (report, table []byte, err error) {
	if report, table, err = h.chip.Device(h.guest).Report(ctx, data, level+h.vmpl); err != nil {
		return nil, nil, err
	}
	if h.report != nil {
		report = h.report(report)
	}
	if h.table != nil {
		table = h.table
	}
	return report, table, nil
}

// inMemory is a guest on a machine without FUSE: what its kernel would do is
// done here, the evidence is made by the attester's types.
type inMemory struct{ snpHost }

func (inMemory) TEE() string { return "snp" }

func (inMemory) AdditionalEvidence(context.Context, []byte) (string, error) { return "", nil }

func (g inMemory) Evidence(ctx context.Context, digest []byte) (json.RawMessage, error) {
	raw, aux, err := g.Report(ctx, append(slices.Clone(digest), make([]byte, 64-len(digest))...), 0)
	if err != nil {
		return nil, err
	}
	report, err := guestside.ParseReport(raw)
	if err != nil {
		return nil, err
	}
	var table abi.CertTable
	if err := table.Unmarshal(aux); err != nil {
		return nil, err
	}
	types := map[string]guestside.CertType{abi.VcekGUID: "VCEK", abi.AskGUID: "ASK", abi.ArkGUID: "ARK"}
	var chain []guestside.Certificate
	for _, e := range table.Entries {
		chain = append(chain, guestside.Certificate{Type: types[e.GUID.String()], Data: e.RawCert})
	}
	return json.Marshal(guestside.Evidence{Report: report, CertChain: chain})
}

// switchable is the provider of a mounted machine whose host changes.
type switchable struct {
	mu sync.Mutex
	snpHost
}

// Name copies no host that changes.
func (*switchable) Name() string { return "sev_guest" }

func (s *switchable) set(h snpHost) { s.mu.Lock(); defer s.mu.Unlock(); s.snpHost = h }

func (s *switchable) Report(ctx context.Context, data []byte, level uint) (report, table []byte, err error) {
	s.mu.Lock()
	h := s.snpHost
	s.mu.Unlock()
	return h.Report(ctx, data, level)
}

// mount shows a tree in dir until the test ends.
func mount(t *testing.T, dir string, tree sysfs.Tree) {
	t.Helper()
	testenv.FUSE(t)
	mounted, err := sysfs.Mount(t.Context(), dir, tree)
	must(t, err)
	t.Cleanup(func() { must(t, mounted.Close()) })
}

// booted returns guests that detect their TEE and attest through a mounted
// sysfs, as in a pod VM. The result of an earlier call must not be used again.
func booted(t *testing.T) func(snpHost) kbs.Evidencer {
	t.Helper()
	root, provider, quiet := t.TempDir(), &switchable{}, slog.New(slog.DiscardHandler)
	mount(t, filepath.Join(root, "sys"), sysfs.Tree{Reports: provider, Dirs: []string{"devices/platform/sev-guest"}, Log: quiet})
	set, err := attester.Detect(t.Context(), attester.Options{Host: podvm.Host{Root: root}, Allow: []string{"snp"}, Log: quiet})
	must(t, err)
	return func(h snpHost) kbs.Evidencer { provider.set(h); return set }
}

// dishonest is a guest that asks for other report data, sends other evidence, or
// calls itself another TEE.
type dishonest struct {
	kbs.Evidencer
	ask  func([]byte) []byte
	send func(json.RawMessage) json.RawMessage
	tee  string
}

func (d dishonest) TEE() string {
	if d.tee != "" {
		return d.tee
	}
	return d.Evidencer.TEE()
}

func (d dishonest) Evidence(ctx context.Context, digest []byte) (json.RawMessage, error) {
	if d.ask != nil {
		digest = d.ask(slices.Clone(digest))
	}
	out, err := d.Evidencer.Evidence(ctx, digest)
	if err == nil && d.send != nil {
		out = d.send(out)
	}
	return out, err
}

// launched is the HOST_DATA of a guest launched with that init data.
func launched(initData string) []byte { sum := sha256.Sum256([]byte(initData)); return sum[:] }

func newChip(t *testing.T, dir string, o sim.Options) *sim.Chip {
	t.Helper()
	chip, err := sim.Open(dir, o)
	must(t, err)
	return chip
}

// rootsOf trusts simulated chips and nobody else.
func rootsOf(chips ...*sim.Chip) map[string]snp.Root {
	roots := map[string]snp.Root{}
	for _, c := range chips {
		ark, ask, asvk := c.Roots()
		roots[c.Product()] = snp.Root{ARK: ark, ASK: ask, ASVK: asvk}
	}
	return roots
}

// verifying is a relying party that accepts SNP evidence only. Its policies are
// the built-in ones.
func verifying(t *testing.T, c snp.Config) *party {
	t.Helper()
	v, err := snp.New(c)
	must(t, err)
	p := newParty(t, func(cfg *Config) { cfg.Verifiers = []verifier.Verifier{v} })
	p.put("default/key/1", "the secret")
	return p
}

func (p *party) setReferenceValues(values map[string]any) {
	p.t.Helper()
	client, err := admin.New(p.url, nil, p.s.AdminToken())
	must(p.t, err)
	defer client.Close()
	must(p.t, client.SetReferenceValues(p.t.Context(), values))
}

// fetch is the way of a guest to the resource, with the client that guests use.
// claims are the trust claims of the token it got.
func (p *party) fetch(ev kbs.Evidencer, init *kbs.InitData) (secret string, claims map[string]int, err error) {
	p.t.Helper()
	c, err := kbs.NewClient(kbs.ClientConfig{URL: p.url})
	must(p.t, err)
	defer c.Close()
	tok, err := c.Attest(p.t.Context(), ev, init, "")
	if err != nil {
		return "", nil, err
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(tok.JWT, ".")[1])
	must(p.t, err)
	var body struct {
		Submods map[string]struct {
			Vector map[string]int `json:"ear.trustworthiness-vector"`
		} `json:"submods"`
	}
	must(p.t, json.Unmarshal(payload, &body))
	uri, err := kbs.ParseURI("kbs:///default/key/1")
	must(p.t, err)
	value, err := c.Resource(p.t.Context(), tok, uri)
	return string(value), body.Submods["cpu0"].Vector, err
}
