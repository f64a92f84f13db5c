package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/sealpod/sealpod/podvm"
)

var (
	// ErrManifest says that a manifest, index or config is malformed or
	// describes something else than a Linux container image.
	ErrManifest = errors.New("invalid image manifest")
	// ErrPlatform says that an image does not exist for this machine.
	ErrPlatform = errors.New("no image for this platform")
)

// Caps on documents, in bytes, and on their lists.
const (
	maxManifest  = 4 << 20
	maxConfig    = 8 << 20
	maxLayers    = 500  // as many as overlayfs stacks (OVL_MAX_STACK)
	maxInstances = 1000 // entries of an index, and of any list read
)

// Media types that tell an index from a manifest.
const (
	typeOCIManifest    = "application/vnd.oci.image.manifest.v1+json"
	typeOCIIndex       = "application/vnd.oci.image.index.v1+json"
	typeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// Descriptor points to a blob or manifest. After parsing, Digest is well
// formed and Size is not negative; nothing else is checked.
type Descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	URLs        []string          `json:"urls"`
	Annotations map[string]string `json:"annotations"`
	Platform    *Platform         `json:"platform"`
}

// Platform is what an index says about one of its entries.
type Platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant"`
}

// Manifest is the manifest of one platform.
type Manifest struct {
	Config Descriptor
	Layers []Descriptor // base first, at most 500
}

// document is a manifest or an index before it is known which.
type document struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        *Descriptor  `json:"config"`
	Layers        *descriptors `json:"layers"`
	Manifests     *descriptors `json:"manifests"`
}

// descriptors is a list that is given up when it gets too long for either use:
// in memory an entry takes many times the three bytes it can have in a document.
type descriptors []Descriptor

// UnmarshalJSON implements json.Unmarshaler.
func (l *descriptors) UnmarshalJSON(raw []byte) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return fmt.Errorf("%w: not a list", ErrManifest)
	}
	for *l = (descriptors{}); d.More(); {
		if len(*l) == maxInstances {
			return fmt.Errorf("%w: a list of more than %d entries", ErrManifest, maxInstances)
		}
		var one Descriptor
		if err := d.Decode(&one); err != nil {
			return fmt.Errorf("%w: entry %d is malformed", ErrManifest, len(*l))
		}
		*l = append(*l, one)
	}
	return nil
}

// isIndex decides by the bytes the digest covers, never by an HTTP header, and
// refuses documents that could be read both ways (CVE-2021-41190).
func (d *document) isIndex() (bool, error) {
	if d.SchemaVersion != 2 {
		return false, fmt.Errorf("%w: schemaVersion %d: want 2", ErrManifest, d.SchemaVersion)
	}
	isManifest := d.Config != nil || d.Layers != nil
	isIndex := d.Manifests != nil
	switch d.MediaType {
	case typeOCIManifest, typeDockerManifest:
		isManifest = true
	case typeOCIIndex, typeDockerList:
		isIndex = true
	case "":
	default:
		return false, fmt.Errorf("%w: media type %q", ErrManifest, podvm.Printable(d.MediaType, 128))
	}
	if isManifest == isIndex {
		return false, fmt.Errorf("%w: neither plainly a manifest nor plainly an index", ErrManifest)
	}
	return isIndex, nil
}

func parseDocument(raw []byte) (*document, bool, error) {
	var d document
	if err := json.Unmarshal(raw, &d); errors.Is(err, ErrManifest) {
		return nil, false, err
	} else if err != nil {
		return nil, false, fmt.Errorf("%w: not valid JSON", ErrManifest)
	}
	isIndex, err := d.isIndex()
	return &d, isIndex, err
}

// manifest returns the checked manifest in d.
func (d *document) manifest() (*Manifest, error) {
	if d.Config == nil || d.Layers == nil {
		return nil, fmt.Errorf("%w: config or layers missing", ErrManifest)
	}
	m := &Manifest{Config: *d.Config, Layers: *d.Layers}
	if len(m.Layers) > maxLayers {
		return nil, fmt.Errorf("%w: %d layers: at most %d can be stacked", ErrManifest, len(m.Layers), maxLayers)
	}
	if err := m.Config.check(); err != nil {
		return nil, fmt.Errorf("%w: config: %w", ErrManifest, err)
	}
	for i, l := range m.Layers {
		if err := l.check(); err != nil {
			return nil, fmt.Errorf("%w: layer %d: %w", ErrManifest, i, err)
		}
	}
	return m, nil
}

func (d Descriptor) check() error {
	if err := checkDigest(d.Digest); err != nil {
		return err
	}
	if d.Size < 0 {
		return fmt.Errorf("size %d is negative", d.Size)
	}
	return nil
}

// variants lists for an architecture the CPU variants that every machine with
// it runs, best first. "" stands for none given.
// Source: containerd/platforms compare.go and database.go at 122d4d0.
var variants = map[string][]string{
	"amd64": {"", "v1"},
	"arm64": {"", "v8"},
	"arm":   {"v7", "", "v6", "v5"},
}

// rank orders the variants of an architecture; less is better. One that this
// machine may or may not run comes after all it does, the oldest first.
func rank(architecture, variant string) (int, string) {
	if i := slices.Index(variants[architecture], variant); i >= 0 {
		return i, ""
	}
	return len(variants[architecture]), variant
}

// instance picks the entry of an index for Linux on this architecture: of those
// with the best variant the first one. No other architecture is tried, though
// the CPU may have a 32-bit mode.
func (d *document) instance(architecture string) (Descriptor, error) {
	var found *Descriptor
	for i := range *d.Manifests {
		m := &(*d.Manifests)[i]
		if m.Platform == nil || m.Platform.OS != "linux" || m.Platform.Architecture != architecture {
			continue
		}
		if found == nil || better(architecture, m.Platform.Variant, found.Platform.Variant) {
			found = m
		}
	}
	if found == nil {
		err := fmt.Errorf("%w: linux/%s", ErrPlatform, architecture)
		return Descriptor{}, podvm.Explain(err, "the image has no manifest for linux/"+architecture)
	}
	if err := found.check(); err != nil {
		return Descriptor{}, fmt.Errorf("%w: index entry for linux/%s: %w", ErrManifest, architecture, err)
	}
	return *found, nil
}

func better(architecture, a, b string) bool {
	i, x := rank(architecture, a)
	j, y := rank(architecture, b)
	return i < j || i == j && x < y
}
