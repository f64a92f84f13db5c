package registry

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/podvm"
)

func TestDocumentKind(t *testing.T) {
	conf := fmt.Sprintf(`"config":{"digest":%q,"size":1},"layers":[]`, digest1)
	tests := map[string]struct {
		text    string
		isIndex bool
		err     error
	}{
		"manifest":                     {`{"schemaVersion":2,"mediaType":"` + typeOCIManifest + `",` + conf + `}`, false, nil},
		"docker manifest":              {`{"schemaVersion":2,"mediaType":"` + typeDockerManifest + `",` + conf + `}`, false, nil},
		"manifest without a type":      {`{"schemaVersion":2,` + conf + `}`, false, nil},
		"index":                        {`{"schemaVersion":2,"mediaType":"` + typeOCIIndex + `","manifests":[]}`, true, nil},
		"docker list":                  {`{"schemaVersion":2,"mediaType":"` + typeDockerList + `","manifests":[]}`, true, nil},
		"index without a type":         {`{"schemaVersion":2,"manifests":[]}`, true, nil},
		"both":                         {`{"schemaVersion":2,"manifests":[],` + conf + `}`, false, ErrManifest},
		"typed index with layers":      {`{"schemaVersion":2,"mediaType":"` + typeOCIIndex + `","layers":[]}`, false, ErrManifest},
		"typed manifest and manifests": {`{"schemaVersion":2,"mediaType":"` + typeOCIManifest + `","manifests":[]}`, false, ErrManifest},
		"neither":                      {`{"schemaVersion":2}`, false, ErrManifest},
		"schema 1":                     {`{"schemaVersion":1,` + conf + `}`, false, ErrManifest},
		"foreign type":                 {`{"schemaVersion":2,"mediaType":"text/html",` + conf + `}`, false, ErrManifest},
		"not JSON":                     {`<html>`, false, ErrManifest},
		"trailing data":                {`{"schemaVersion":2,"manifests":[]}{}`, false, ErrManifest},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, isIndex, err := parseDocument([]byte(tt.text))
			if !errors.Is(err, tt.err) || isIndex != tt.isIndex && err == nil {
				t.Errorf("%v, %v", isIndex, err)
			}
		})
	}
}

func TestManifestRefuses(t *testing.T) {
	good := fmt.Sprintf(`{"digest":%q,"size":1}`, digest1)
	for name, text := range map[string]string{
		"no config":       `{"schemaVersion":2,"layers":[]}`,
		"no layers":       `{"schemaVersion":2,"config":` + good + `}`,
		"bad digest":      `{"schemaVersion":2,"config":` + good + `,"layers":[{"digest":"sha256:../../x","size":1}]}`,
		"no digest":       `{"schemaVersion":2,"config":{"size":1},"layers":[]}`,
		"negative size":   `{"schemaVersion":2,"config":` + good + `,"layers":[{"digest":"` + digest1 + `","size":-1}]}`,
		"too many layers": `{"schemaVersion":2,"config":` + good + `,"layers":[` + strings.Repeat(good+",", maxLayers) + good + `]}`,
	} {
		t.Run(name, func(t *testing.T) {
			d, _, err := parseDocument([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := d.manifest(); !errors.Is(err, ErrManifest) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestPlatformSelection(t *testing.T) {
	tests := map[string]struct {
		arch      string
		platforms []string
		want      int // index of the entry, -1 for none
	}{
		"first of several":              {"amd64", []string{"linux/amd64", "linux/amd64"}, 0},
		"not the first entry":           {"amd64", []string{"linux/arm64", "windows/amd64", "linux/amd64"}, 2},
		"v1 is no variant":              {"amd64", []string{"linux/amd64/v3", "linux/amd64/v1"}, 1},
		"newer variant if none else":    {"amd64", []string{"linux/386", "linux/amd64/v4", "linux/amd64/v3"}, 2},
		"32 bits are another machine":   {"amd64", []string{"linux/386"}, -1},
		"arm64 is v8":                   {"arm64", []string{"linux/arm/v7", "linux/arm64/v9", "linux/arm64/v8"}, 2},
		"arm64 without a variant":       {"arm64", []string{"linux/arm64/v9", "linux/arm64"}, 1},
		"newer arm64 if none else":      {"arm64", []string{"linux/arm64/v9"}, 0},
		"arm v7 before v6":              {"arm", []string{"linux/arm/v5", "linux/arm/v6", "linux/arm/v7"}, 2},
		"arm v6 before v5 and v8":       {"arm", []string{"linux/arm/v8", "linux/arm/v5", "linux/arm/v6"}, 2},
		"architecture without variants": {"s390x", []string{"linux/amd64", "linux/s390x"}, 1},
		"attestations are not images":   {"amd64", []string{"unknown/unknown"}, -1},
		"entries without a platform":    {"amd64", []string{""}, -1},
		"nothing":                       {"amd64", nil, -1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			list := descriptors{}
			for i, p := range tt.platforms {
				d := Descriptor{Digest: digest1, Size: int64(i)}
				if parts := append(strings.Split(p, "/"), "", ""); p != "" {
					d.Platform = &Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}
				}
				list = append(list, d)
			}
			got, err := (&document{Manifests: &list}).instance(tt.arch)
			if tt.want < 0 {
				if !errors.Is(err, ErrPlatform) || !strings.Contains(podvm.Cause(err), "no manifest for linux/"+tt.arch) {
					t.Errorf("%v, %v", got, err)
				}
				return
			}
			if err != nil || got.Size != int64(tt.want) {
				t.Errorf("entry %d, %v; want %d", got.Size, err, tt.want)
			}
		})
	}
}

func TestParseConfigRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		text string
		err  error
	}{
		"not JSON":      {`no`, ErrManifest},
		"no os":         {`{"rootfs":{"type":"layers"}}`, ErrPlatform},
		"windows":       {`{"os":"windows","rootfs":{"type":"layers"}}`, ErrPlatform},
		"rootfs type":   {`{"os":"linux","rootfs":{"type":"magic"}}`, ErrManifest},
		"too few":       {`{"os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`, ErrManifest},
		"bad diffID":    {`{"os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:x"]}}`, ErrManifest},
		"artifact JSON": {`{}`, ErrPlatform},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := parseConfig([]byte(tt.text), 1); !errors.Is(err, tt.err) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(fmt.Sprintf(`{"schemaVersion":2,"config":{"digest":%q,"size":1},"layers":[{"digest":%q,"size":2,"annotations":{"a":"b"}}]}`, digest1, digest1)))
	f.Add([]byte(fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"digest":%q,"size":1,"platform":{"os":"linux","architecture":"amd64"}}]}`, digest1)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		d, isIndex, err := parseDocument(raw)
		if err != nil {
			return
		}
		if isIndex {
			if got, err := d.instance(runtime.GOARCH); err == nil && (checkDigest(got.Digest) != nil || got.Size < 0) {
				t.Errorf("%+v", got)
			}
			return
		}
		m, err := d.manifest()
		if err != nil {
			return
		}
		for _, l := range append(m.Layers, m.Config) {
			if checkDigest(l.Digest) != nil || l.Size < 0 {
				t.Errorf("%+v", l)
			}
		}
	})
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(fmt.Sprintf(`{"os":"linux","config":{"Env":["A=b"],"Volumes":{"/x":{}}},"rootfs":{"type":"layers","diff_ids":[%q]}}`, digest1)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if c, err := parseConfig(raw, 1); err == nil && checkDigest(c.RootFS.DiffIDs[0]) != nil {
			t.Errorf("%+v", c)
		}
	})
}

// TestManyEmptyEntriesTakeLittleMemory: three bytes of a document must not cost
// a descriptor each before anyone counts them.
func TestManyEmptyEntriesTakeLittleMemory(t *testing.T) {
	for _, list := range []string{"layers", "manifests"} {
		raw := []byte(`{"schemaVersion":2,"` + list + `":[` + strings.Repeat("{},", maxManifest/3-20) + `{}]}`)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _, err := parseDocument(raw)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20 || !errors.Is(err, ErrManifest) {
			t.Errorf("%s: %d MiB, %v", list, n>>20, err)
		}
	}
}
