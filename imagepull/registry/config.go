package registry

import (
	"encoding/json"
	"fmt"

	"github.com/sealpod/sealpod/podvm"
)

// Config is the part of an image configuration that a pull needs.
// Source: OCI image-spec v1.1 config.md.
type Config struct {
	Architecture string  `json:"architecture"`
	OS           string  `json:"os"`
	Created      string  `json:"created"`
	Author       string  `json:"author"`
	Process      Process `json:"config"`
	RootFS       RootFS  `json:"rootfs"`
}

// Process says how a container of the image starts.
type Process struct {
	Env          []string            `json:"Env"`
	Entrypoint   []string            `json:"Entrypoint"`
	Cmd          []string            `json:"Cmd"`
	WorkingDir   string              `json:"WorkingDir"`
	User         string              `json:"User"`
	Labels       map[string]string   `json:"Labels"`
	Volumes      map[string]struct{} `json:"Volumes"`
	ExposedPorts map[string]struct{} `json:"ExposedPorts"`
	StopSignal   string              `json:"StopSignal"`
}

// RootFS lists the digests of the uncompressed layers, base first.
type RootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

// parseConfig reads the configuration of an image with that many layers.
func parseConfig(raw []byte, layers int) (*Config, error) {
	var c Config
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, fmt.Errorf("%w: config: not valid JSON", ErrManifest)
	}
	if c.OS != "linux" {
		text := fmt.Sprintf("the image is for operating system %q, not linux", podvm.Printable(c.OS, 32))
		return nil, podvm.Explain(fmt.Errorf("%w: config: os %q", ErrPlatform, podvm.Printable(c.OS, 32)), text)
	}
	if c.RootFS.Type != "layers" {
		return nil, fmt.Errorf("%w: config: rootfs type %q", ErrManifest, podvm.Printable(c.RootFS.Type, 32))
	}
	if len(c.RootFS.DiffIDs) != layers {
		return nil, fmt.Errorf("%w: config: %d diff_ids for %d layers", ErrManifest, len(c.RootFS.DiffIDs), layers)
	}
	for i, id := range c.RootFS.DiffIDs {
		if err := checkDigest(id); err != nil {
			return nil, fmt.Errorf("%w: config: diff_ids[%d]: %w", ErrManifest, i, err)
		}
	}
	return &c, nil
}
