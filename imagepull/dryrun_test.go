package imagepull

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sealpod/sealpod/imagepull/policy"
	"github.com/sealpod/sealpod/imagepull/registry"
	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
)

// dryRun also checks that nothing was written and no layer fetched.
func (m *machine) dryRun(t *testing.T, image string, img *registrytest.Image) Report {
	t.Helper()
	r, err := m.puller(t).DryRun(deadline(t), image)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(m.work); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the work directory: %v", err)
	}
	for _, l := range img.Layers {
		if m.Seen(registrytest.Digest(l.Blob)) > 0 {
			t.Error("a layer was fetched")
		}
	}
	if text, err := json.Marshal(r); err != nil || !json.Valid(text) {
		t.Errorf("as JSON: %v", err)
	}
	return r
}

func TestDryRunTellsWhatAPullWouldMeet(t *testing.T) {
	m := newMachine(t)
	img, broker := encryptedImage(t)
	index, digests := m.PushIndex(t, "acme/app", "1", []string{"linux/" + runtime.GOARCH}, []*registrytest.Image{img})
	m.deps.KeyUnwrapper = broker
	key := newSigner(t)
	key.sign(t, m, "acme/app", index)
	newSigner(t).sign(t, m, "acme/app", digests[0])
	m.deps.Config.Policy = fmt.Sprintf(`{"default":[{"type":"reject"}],"transports":{"docker":{%q:[{"type":"sigstoreSigned","keyPath":"kbs:///k/k/k"},{"type":"sealpodEncrypted"},{"type":"sealpodEncrypted","minimum":1}]}}}`, m.Host)
	m.deps.Resources = resources{"kbs:///k/k/k": key.public(t)}
	r := m.dryRun(t, m.ref("acme/app:1"), img)
	if r.Pullable() || len(r.Places) != 1 {
		t.Fatalf("%+v", r)
	}
	p := r.Places[0]
	if p.Digest != digests[0] || p.TopDigest != index || p.Reference != m.ref("acme/app:1") || !strings.Contains(p.Problem, "layer "+registrytest.Digest(img.Layers[0].Blob)+" is not encrypted") {
		t.Errorf("%+v", p)
	}
	want := []LayerReport{}
	for i, l := range img.Layers {
		want = append(want, LayerReport{Digest: registrytest.Digest(l.Blob), DiffID: l.DiffID, MediaType: l.MediaType, Size: int64(len(l.Blob)), Encrypted: i == 1})
	}
	if d := cmp.Diff(want, p.Layers); d != "" || p.Size != want[0].Size+want[1].Size {
		t.Error(d)
	}
	var steps []string
	for _, s := range p.Policy.Steps {
		steps = append(steps, fmt.Sprintf("%s %t %d", s.Requirement, s.Allowed, len(s.Signatures)))
	}
	if d := cmp.Diff([]string{"sigstoreSigned true 1", "sealpodEncrypted false 0", "sealpodEncrypted true 0"}, steps); d != "" {
		t.Error(d)
	}
	if broker.asked.Load() != 0 {
		t.Error("a key was asked for")
	}
	text := r.String()
	for _, part := range []string{"image " + m.ref("acme/app:1"), "digest " + digests[0], "index  " + index, "encrypted, ", "bytes in 2 layers", `denied by rule transports.docker["` + m.Host + `"]`, "signature 1 of the .sig tag, kbs:///k/k/k: accepted", "problem: Image policy rejected: Denied by policy"} {
		if !strings.Contains(text, part) {
			t.Errorf("the report lacks %q:\n%s", part, text)
		}
	}
}

func TestDryRunOfAnImageThatWillDo(t *testing.T) {
	m := newMachine(t)
	img := twoLayers(t)
	m.Push(t, "mirror/a", "1", registrytest.NewImage()) // no config that fits is there
	want := m.Push(t, "origin/a", "1", img)
	m.deps.Config.Registries = &registry.Rules{Registry: []registry.Rule{{
		Prefix: "example.test", Location: m.Host + "/origin", Insecure: true,
		Mirror: []registry.Mirror{{Location: m.Host + "/nothing", Insecure: true}},
	}}}
	r := m.dryRun(t, "example.test/a:1", img)
	if !r.Pullable() || len(r.Places) != 2 || r.Places[1].Digest != want || r.Places[1].Policy != nil || !strings.Contains(r.Places[0].Problem, "not found") {
		t.Errorf("%+v", r)
	}
	if text := r.String(); !strings.Contains(text, "no policy is configured") || !strings.Contains(text, "from "+m.Host+"/nothing/a:1\nproblem: ") {
		t.Error(text)
	}
	got, err := m.puller(t).Pull(deadline(t), "example.test/a:1", m.bundle("c"))
	if err != nil || got != want {
		t.Errorf("Pull = %s, %v", got, err)
	}
}

func TestDryRunProblems(t *testing.T) {
	m := newMachine(t)
	odd := twoLayers(t)
	odd.Layers[1].MediaType = "application/x-nydus"
	m.Push(t, "odd", "1", odd)
	r := m.dryRun(t, m.ref("odd:1"), odd)
	if r.Pullable() || !strings.Contains(r.Places[0].Problem, "application/x-nydus") || r.Places[0].Layers[1].Problem == "" || r.Places[0].Layers[0].Problem != "" {
		t.Errorf("an odd layer: %+v", r)
	}
	if r := m.dryRun(t, m.ref("none:1"), odd); r.Pullable() || !strings.Contains(r.Places[0].Problem, "not found") {
		t.Errorf("no image: %+v", r)
	}
	p := m.puller(t)
	if _, err := p.DryRun(deadline(t), "A B"); !errors.Is(err, registry.ErrReference) {
		t.Errorf("no reference: %v", err)
	}
	m.deps.Config.Policy = `{"default":[]}`
	if _, err := m.puller(t).DryRun(deadline(t), m.ref("odd:1")); !errors.Is(err, policy.ErrInvalid) {
		t.Errorf("no policy: %v", err)
	}
}
