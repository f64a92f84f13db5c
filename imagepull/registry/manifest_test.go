package registry

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
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
	arch := runtime.GOARCH
	base := baseVariant(arch)
	tests := map[string]struct {
		platforms []string
		want      int // index of the entry, -1 for none
	}{
		"first of several":            {[]string{"linux/" + arch, "linux/" + arch}, 0},
		"not the first entry":         {[]string{"linux/other", "windows/" + arch, "linux/" + arch}, 2},
		"base variant over a newer":   {[]string{"linux/" + arch + "/newer", "linux/" + arch + "/" + base}, 1},
		"newer variant if none else":  {[]string{"linux/other", "linux/" + arch + "/newer"}, 1},
		"attestations are not images": {[]string{"unknown/unknown"}, -1},
		"entries without a platform":  {[]string{""}, -1},
		"nothing":                     {nil, -1},
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
			got, err := (&document{Manifests: &list}).instance()
			if tt.want < 0 {
				if !errors.Is(err, ErrPlatform) {
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
			if got, err := d.instance(); err == nil && (checkDigest(got.Digest) != nil || got.Size < 0) {
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
