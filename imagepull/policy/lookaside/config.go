// Package lookaside finds and fetches the signatures of GPG simple signing,
// which are kept outside of the registry. It reads the sigstore configuration
// (the YAML of containers-registries.d(5)), picks the store for an image and
// reads signature-1, signature-2 and so on from it until there is no more.
//
// Data path: imagepull loads the configuration beside the policy and offers
// Signatures to package policy above, which asks only when a signedBy
// requirement applies.
//
// Trust: the configuration is the owner's and parsed strictly; stores are
// hostile, whatever the scheme. Count, size and time are capped, nothing is
// verified here.
package lookaside

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/sealpod/sealpod/imagepull/policy"
	"github.com/sealpod/sealpod/podvm"
)

// MaxConfig caps a configuration document, in bytes.
const MaxConfig = 1 << 20

// ErrInvalid says that a sigstore configuration cannot be used.
var ErrInvalid = errors.New("invalid sigstore configuration")

// Config says where the signatures of which image are. The zero value knows of
// no store. It is immutable and safe for concurrent use.
type Config struct {
	fallback *url.URL            // default-docker
	stores   map[string]*url.URL // docker, by scope
	warnings []string
}

// Parse reads a document like
//
//	default-docker:
//	  lookaside: https://sigs.example.com
//	docker:
//	  registry.example.com/team:
//	    lookaside: file:///var/lib/sigs
//
// where sigstore is another word for lookaside, as upstream has it, and the
// value an http, https or file URL. Unknown keys are ignored with a warning;
// repeated keys, YAML aliases and other schemes are not.
//
// Errors: ErrInvalid, with a podvm.Cause.
// Source: containers/image docs/containers-registries.d.5.md; guest-components
// image-rs src/signature/policy/simple/sigstore.rs at 8246e5e.
func Parse(raw []byte) (*Config, error) {
	c := &Config{stores: map[string]*url.URL{}}
	if err := c.parse(raw); err != nil {
		return nil, podvm.Explain(fmt.Errorf("%w: %w", ErrInvalid, err),
			"the sigstore configuration is not usable: "+podvm.Printable(err.Error(), 300))
	}
	return c, nil
}

// Warnings lists what Parse ignored, one sentence each.
func (c *Config) Warnings() []string { return slices.Clone(c.warnings) }

func (c *Config) parse(raw []byte) error {
	if len(raw) > MaxConfig {
		return fmt.Errorf("%w: %d bytes", podvm.ErrTooLarge, len(raw))
	}
	var doc yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(raw))
	if err := d.Decode(&doc); errors.Is(err, io.EOF) {
		return nil // empty
	} else if err != nil {
		return errors.New("not YAML")
	}
	if err := d.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return errors.New("more than one document")
	}
	return members(doc.Content[0], func(key string, value *yaml.Node) error {
		switch key {
		case "default-docker":
			u, err := c.store(value)
			c.fallback = u
			return err
		case "docker":
			return members(value, func(scope string, value *yaml.Node) error {
				u, err := c.store(value)
				scope = policy.FoldHost(scope)
				if u != nil && c.stores[scope] != nil {
					return fmt.Errorf("line %d: the same name in another case appears before", value.Line)
				}
				if u != nil {
					c.stores[scope] = u
				}
				return err
			})
		}
		c.warn(key, value)
		return nil
	})
}

// store reads the one place of a scope, nil when none is given.
func (c *Config) store(n *yaml.Node) (*url.URL, error) {
	var found *url.URL
	err := members(n, func(key string, value *yaml.Node) error {
		switch key {
		case "lookaside", "sigstore":
			u, err := parseURL(value)
			if err == nil && found != nil && *found != *u {
				err = errors.New("lookaside and sigstore differ")
			}
			found = u
			return err
		case "lookaside-staging", "sigstore-staging", "use-sigstore-attachments":
			return nil // for those who write signatures; attachments are always looked at
		}
		c.warn(key, value)
		return nil
	})
	return found, err
}

func (c *Config) warn(key string, at *yaml.Node) {
	if len(c.warnings) < 32 {
		c.warnings = append(c.warnings, fmt.Sprintf("line %d: unknown key %q ignored", at.Line, podvm.Printable(key, 64)))
	}
}

// members calls f for each member of a mapping; null has none.
func members(n *yaml.Node, f func(key string, value *yaml.Node) error) error {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: not a mapping", n.Line)
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode || key.Value == "<<" {
			return fmt.Errorf("line %d: not a plain key", key.Line)
		}
		if seen[key.Value] {
			return fmt.Errorf("line %d: %q appears twice", key.Line, podvm.Printable(key.Value, 64))
		}
		seen[key.Value] = true
		if err := f(key.Value, value); err != nil {
			return fmt.Errorf("%s: %w", podvm.Printable(key.Value, 128), err)
		}
	}
	return nil
}

func parseURL(n *yaml.Node) (*url.URL, error) {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" || len(n.Value) > 4096 {
		return nil, fmt.Errorf("line %d: not a URL", n.Line)
	}
	u, err := url.Parse(n.Value)
	switch {
	case err != nil:
		return nil, fmt.Errorf("line %d: not a URL", n.Line) // it may hold a password
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "":
		return nil, fmt.Errorf("line %d: a URL with credentials, query or fragment", n.Line)
	case (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != "":
	case u.Scheme == "file" && u.Host == "" && path.IsAbs(u.Path):
	default:
		return nil, fmt.Errorf("line %d: want an http:// or https:// URL or file:///PATH", n.Line)
	}
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), ""
	return u, nil
}

// find returns where the signatures of img are: the most specific scope that
// names a place, else the default, else nil.
func (c *Config) find(img policy.Image) *url.URL {
	for _, scope := range img.Scopes() {
		if u := c.stores[scope]; u != nil && scope != "" {
			return u
		}
	}
	return c.fallback
}
