package policy

import (
	"errors"
	"testing"
)

// TestIdentity lists what each type lets pass; the documentation of
// containers-policy.json(5) has the same cases in prose.
func TestIdentity(t *testing.T) {
	tagged := Image{Registry: "quay.io", Repository: "acme/app", Tag: "1"}
	byDigest := Image{Registry: "quay.io", Repository: "acme/app", Digest: digestA}
	both := Image{Registry: "quay.io", Repository: "acme/app", Tag: "1", Digest: digestA}
	hub := Image{Registry: "docker.io", Repository: "library/nginx", Tag: "1"}
	port := Image{Registry: "quay.io:443", Repository: "acme/app", Tag: "1"}
	remap := `{"type":"remapIdentity","prefix":"quay.io/acme","signedPrefix":"build.internal:5000/out"}`
	tests := []struct {
		name, identity string
		img            Image
		signed         string
		ok             bool
	}{
		{"exact", `{"type":"matchExact"}`, tagged, "quay.io/acme/app:1", true},
		{"exact, another tag", `{"type":"matchExact"}`, tagged, "quay.io/acme/app:2", false},
		{"exact, no tag signed", `{"type":"matchExact"}`, tagged, "quay.io/acme/app", false},
		{"exact, signed with a digest", `{"type":"matchExact"}`, tagged, "quay.io/acme/app:1@" + digestA, false},
		{"exact, by digest", `{"type":"matchExact"}`, byDigest, "quay.io/acme/app@" + digestA, true},
		{"exact, by digest, a tag signed", `{"type":"matchExact"}`, byDigest, "quay.io/acme/app:1", false},
		{"exact, tag and digest", `{"type":"matchExact"}`, both, "quay.io/acme/app:1@" + digestA, true},
		{"exact, tag and digest, the tag signed", `{"type":"matchExact"}`, both, "quay.io/acme/app:1", false},
		{"exact, names of Docker Hub", `{"type":"matchExact"}`, hub, "nginx:1", true},
		{"exact, long name of Docker Hub", `{"type":"matchExact"}`, hub, "index.docker.io/library/nginx:1", true},

		{"repo or digest, tag", `{"type":"matchRepoDigestOrExact"}`, tagged, "quay.io/acme/app:1", true},
		{"repo or digest, another tag", `{"type":"matchRepoDigestOrExact"}`, tagged, "quay.io/acme/app:2", false},
		{"repo or digest, no tag signed", `{"type":"matchRepoDigestOrExact"}`, tagged, "quay.io/acme/app", false},
		{"repo or digest, by digest", `{"type":"matchRepoDigestOrExact"}`, byDigest, "quay.io/acme/app:7", true},
		{"repo or digest, by digest, neither signed", `{"type":"matchRepoDigestOrExact"}`, byDigest, "quay.io/acme/app", false},
		{"repo or digest, by digest, another repository", `{"type":"matchRepoDigestOrExact"}`, byDigest, "quay.io/acme/other:1", false},
		{"repo or digest, both", `{"type":"matchRepoDigestOrExact"}`, both, "quay.io/acme/app:1", true},
		{"repo or digest, both signed", `{"type":"matchRepoDigestOrExact"}`, both, "quay.io/acme/app:1@" + digestA, true},
		{"repo or digest, both, another tag", `{"type":"matchRepoDigestOrExact"}`, both, "quay.io/acme/app:2", false},
		{"repo or digest, both, another digest signed", `{"type":"matchRepoDigestOrExact"}`, both, "quay.io/acme/app:1@" + digestB, false},

		{"repository", `{"type":"matchRepository"}`, tagged, "quay.io/acme/app:7", true},
		{"repository, another one", `{"type":"matchRepository"}`, tagged, "quay.io/acme/ap:1", false},
		{"repository, another port", `{"type":"matchRepository"}`, port, "quay.io/acme/app:1", false},

		{"exact reference", `{"type":"exactReference","dockerReference":"other.io/x:3"}`, tagged, "other.io/x:3", true},
		{"exact reference, another tag", `{"type":"exactReference","dockerReference":"other.io/x:3"}`, tagged, "other.io/x:4", false},
		{"exact reference, the image's own", `{"type":"exactReference","dockerReference":"other.io/x:3"}`, tagged, "quay.io/acme/app:1", false},
		{"exact repository", `{"type":"exactRepository","dockerRepository":"other.io/x"}`, tagged, "other.io/x:9", true},
		{"exact repository, another one", `{"type":"exactRepository","dockerRepository":"other.io/x"}`, tagged, "other.io/x/y:9", false},

		{"remap", remap, tagged, "build.internal:5000/out/app:1", true},
		{"remap, another tag", remap, tagged, "build.internal:5000/out/app:2", false},
		{"remap, by digest", remap, byDigest, "build.internal:5000/out/app:2", true},
		{"remap, the old name", remap, tagged, "quay.io/acme/app:1", false},
		{"remap, not at a boundary", remap, Image{Registry: "quay.io", Repository: "acme-evil/app", Tag: "1"}, "build.internal:5000/out-evil/app:1", false},
		{"remap, elsewhere stays", remap, hub, "docker.io/library/nginx:1", true},
		{"remap, a host is no host with a port", `{"type":"remapIdentity","prefix":"quay.io","signedPrefix":"evil.io"}`, port, "evil.io:443/acme/app:1", false},
		{"remap, one repository", `{"type":"remapIdentity","prefix":"quay.io/acme/app","signedPrefix":"a.io/b"}`, tagged, "a.io/b:1", true},

		{"case of the host, signed", `{"type":"matchExact"}`, tagged, "Quay.IO/acme/app:1", true},
		{"case of the host, remapped", `{"type":"remapIdentity","prefix":"QUAY.io/acme","signedPrefix":"Build.internal:5000/out"}`, Image{Registry: "Quay.IO", Repository: "acme/app", Tag: "1"}, "build.internal:5000/out/app:1", true},
		{"case of the tag", `{"type":"matchExact"}`, tagged, "quay.io/acme/app:A", false},

		{"nothing signed", `{"type":"matchRepository"}`, tagged, "", false},
		{"nonsense signed", `{"type":"matchRepository"}`, tagged, "quay.io/ACME/app", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			id, err := (&Policy{}).parseIdentity("here", []byte(tt.identity))
			if err != nil {
				t.Fatal(err)
			}
			if err := id.check(tt.img, tt.signed); (err == nil) != tt.ok || err != nil && !errors.Is(err, errIdentity) {
				t.Errorf("check = %v", err)
			}
		})
	}
}

// FuzzIdentity: whatever was signed, only a name that says the same repository
// passes, and a name survives being taken apart and put together.
func FuzzIdentity(f *testing.F) {
	for _, s := range []string{"quay.io/acme/app:1", "quay.io/acme/app@" + digestA, "nginx", "docker.io/nginx:1@" + digestB, "[::1]:5000/a", "a:b:c@d@e", "quay.io/acme/app:"} {
		f.Add(s)
	}
	img := Image{Registry: "quay.io", Repository: "acme/app", Tag: "1"}
	f.Fuzz(func(t *testing.T, signed string) {
		r, err := parseReference(signed)
		for _, kind := range []string{idMatchExact, idMatchRepoDigestOrExact, idMatchRepository} {
			passed := (identity{kind: kind}).check(img, signed) == nil
			if passed && (err != nil || r.repo != "quay.io/acme/app" || kind != idMatchRepository && r.tag != "1") {
				t.Fatalf("%s accepts %q", kind, signed)
			}
		}
		if err != nil {
			return
		}
		if again, err := parseReference(r.String()); err != nil || again != r {
			t.Fatalf("%q is %+v, then %+v, %v", signed, r, again, err)
		}
	})
}
