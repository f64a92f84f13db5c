package imageseal

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
)

// skopeo, which knows nothing of us, reads what we write in a registry and in
// a layout, and carries it between them without a change.
func TestSkopeoReadsWhatWeWrite(t *testing.T) {
	reg := registrytest.Debian(t)
	dir := t.TempDir()
	layout := "oci:" + filepath.Join(dir, "layout") + ":1"
	push(t, reg+"/acme/app:plain", newImage(t, types.DockerManifestSchema2, "amd64", dockerGzip, dockerGzip))
	res, err := Encrypt(t.Context(), EncryptOptions{Source: reg + "/acme/app:plain", Destination: reg + "/acme/app:sealed", KeyID: testKID, Layers: []int{-1}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Encrypt(t.Context(), EncryptOptions{Source: reg + "/acme/app:plain", Destination: layout, KeyID: testKID}); err != nil {
		t.Fatal(err)
	}
	inspect := func(args ...string) (m struct {
		Digest     string
		MediaType  string `json:"mediaType"`
		Layers     []any
		LayersData []struct {
			MIMEType    string
			Annotations map[string]string
		}
	}) {
		out := run(t, "skopeo", append([]string{"inspect", "--tls-verify=false"}, args...)...)
		if err := json.Unmarshal([]byte(out), &m); err != nil {
			t.Fatalf("%v in %s", err, out)
		}
		return m
	}
	in := inspect("docker://" + reg + "/acme/app:sealed")
	if in.Digest != res.Digest || len(in.Layers) != 2 {
		t.Errorf("%+v", in)
	}
	if n := len(inspect(layout).Layers); n != 2 {
		t.Errorf("%d layers in the layout", n)
	}
	run(t, "skopeo", "copy", "--src-tls-verify=false", "docker://"+reg+"/acme/app:sealed", "oci:"+filepath.Join(dir, "copy")+":1")
	run(t, "skopeo", "copy", "--dest-tls-verify=false", layout, "docker://"+reg+"/acme/app:from-layout")
	from, err := Inspect(t.Context(), InspectOptions{Image: "oci:" + filepath.Join(dir, "copy") + ":1"})
	if err != nil || from.Digest != res.Digest || !from.Images[0].Layers[1].Encrypted || from.Images[0].Layers[0].Encrypted {
		t.Errorf("%+v, %v", from, err)
	}
	checkSealed(t, opened(t, reg+"/acme/app:plain").image, opened(t, "oci:"+filepath.Join(dir, "copy")+":1").image, res.Keys, func(i int) bool { return i == 1 })
	want, err := Inspect(t.Context(), InspectOptions{Image: layout})
	if err != nil {
		t.Fatal(err)
	}
	got, err := Inspect(t.Context(), InspectOptions{Image: reg + "/acme/app:from-layout"})
	if err != nil {
		t.Fatal(err)
	}
	want.Image = got.Image
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	// Our signature travels like any other tag.
	s, _ := newSigner(t, "P-256")
	sig, err := Sign(t.Context(), SignOptions{Image: reg + "/acme/app:sealed", Signer: s})
	if err != nil {
		t.Fatal(err)
	}
	run(t, "skopeo", "copy", "--src-tls-verify=false", "docker://"+reg+"/acme/app:"+sig.Tag, "oci:"+filepath.Join(dir, "copy")+":"+sig.Tag)
	r, err := Inspect(t.Context(), InspectOptions{Image: "oci:" + filepath.Join(dir, "copy") + ":1", Keys: map[string][]byte{"k": s.PublicKey()}})
	if err != nil || len(r.Signatures) != 1 || len(r.Signatures[0].VerifiedBy) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}

// skopeo copies a whole index of ours.
func TestSkopeoCopiesOurIndex(t *testing.T) {
	dir := t.TempDir()
	if err := (layoutPlace{dir: filepath.Join(dir, "in"), tag: "1"}).write(t.Context(), entity{index: newIndex(t, "amd64", "arm64")}); err != nil {
		t.Fatal(err)
	}
	res, err := Encrypt(t.Context(), EncryptOptions{Source: "oci:" + filepath.Join(dir, "in") + ":1", Destination: "oci:" + filepath.Join(dir, "out") + ":1", KeyID: testKID})
	if err != nil {
		t.Fatal(err)
	}
	reg := registrytest.Debian(t)
	run(t, "skopeo", "copy", "--all", "--dest-tls-verify=false", "oci:"+filepath.Join(dir, "out")+":1", "docker://"+reg+"/acme/multi:1")
	// This release of skopeo writes the index anew; the images stay as they are.
	want, err := Inspect(t.Context(), InspectOptions{Image: "oci:" + filepath.Join(dir, "out") + ":1"})
	if err != nil || want.Digest != res.Digest {
		t.Fatalf("%+v, %v", want, err)
	}
	got, err := Inspect(t.Context(), InspectOptions{Image: reg + "/acme/multi:1"})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want.Images, got.Images); d != "" || len(got.Images) != 2 {
		t.Error(d)
	}
}

func TestInspectReport(t *testing.T) {
	dir := t.TempDir()
	if err := (layoutPlace{dir: dir, tag: "plain"}).write(t.Context(), entity{image: newImage(t, types.OCIManifestSchema1, "arm64", ociTar, ociTar+"+gzip")}); err != nil {
		t.Fatal(err)
	}
	if _, err := Encrypt(t.Context(), EncryptOptions{Source: "oci:" + dir + ":plain", Destination: "oci:" + dir + ":sealed", KeyID: testKID, Layers: []int{1}, Packets: PacketsBoth}); err != nil {
		t.Fatal(err)
	}
	r, err := Inspect(t.Context(), InspectOptions{Image: "oci:" + dir + ":sealed"})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Images) != 1 || r.Images[0].Platform != "linux/arm64" || len(r.Signatures) != 0 || r.Bundle {
		t.Fatalf("%+v", r)
	}
	packet := PacketInfo{Scheme: "provider.attestation-agent", Provider: "kbs", KeyID: testKID, WrapType: "A256GCM"}
	layers := r.Images[0].Layers
	if layers[0].Encrypted || layers[0].Packets != nil || !layers[1].Encrypted || layers[1].MediaType != ociTar+"+gzip+encrypted" {
		t.Errorf("%+v", layers)
	}
	if d := cmp.Diff([]PacketInfo{packet, packet}, layers[1].Packets); d != "" {
		t.Error(d)
	}
	if _, err := Inspect(t.Context(), InspectOptions{Image: "oci:" + dir + ":sealed", Keys: map[string][]byte{"bad.pub": []byte("x")}}); err == nil || !strings.Contains(err.Error(), "bad.pub") {
		t.Errorf("a bad key: %v", err)
	}
	// What cosign 3 leaves by default is pointed out.
	p := layoutPlace{dir: dir, tag: "sealed"}
	if err := p.writeTag(t.Context(), strings.Replace(r.Digest, ":", "-", 1), newImage(t, types.OCIManifestSchema1, "arm64")); err != nil {
		t.Fatal(err)
	}
	if r, err := Inspect(t.Context(), InspectOptions{Image: "oci:" + dir + ":sealed"}); err != nil || !r.Bundle {
		t.Errorf("bundle: %+v, %v", r, err)
	}
}

func TestParsePlace(t *testing.T) {
	for text, want := range map[string]place{
		"oci:/a/b":     layoutPlace{dir: "/a/b"},
		"oci:/a/b:1.0": layoutPlace{dir: "/a/b", tag: "1.0"},
		"oci:a":        layoutPlace{dir: "a"},
		"oci:":         nil,
		"oci::tag":     nil,
		"oci:/a:b/c":   nil,
		"oci:/a:":      nil,
		"":             nil,
		"A B":          nil,
		"a@sha256:00":  nil,
	} {
		got, err := parsePlace(text, Access{})
		if (err != nil) != (want == nil) || want != nil && got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{"nginx": "index.docker.io/library/nginx", "docker://quay.io/a/b:1": "quay.io/a/b", "localhost:5000/a": "localhost:5000/a"} {
		if got, err := parsePlace(text, Access{Insecure: true}); err != nil || got.repository() != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}
