package userdata

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"go.yaml.in/yaml/v3"

	"github.com/sealpod/sealpod/podvm"
)

// ErrCloudConfig says that user data is not the cloud-config that
// cloud-api-adaptor writes.
var ErrCloudConfig = errors.New("invalid cloud-config")

// writeFile is an entry of write_files.
type writeFile struct {
	path, content string
	line          int // 1-based
}

// parseCloudConfig returns the files that user data asks for, in order. It has
// the key write_files and no other, whose entries have the keys path and, maybe,
// content and no other: what else there is would not be done. Nothing in it may
// refer to something else, so a document cannot grow.
//
// Errors: ErrCloudConfig, with the line.
// Source: cloud-api-adaptor src/cloud-api-adaptor/pkg/userdata and
// src/cloud-providers/util/cloudinit at fbdde756.
func parseCloudConfig(raw []byte) ([]writeFile, error) {
	d := yaml.NewDecoder(bytes.NewReader(raw))
	var doc, more yaml.Node
	switch err := d.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("%w: it is empty", ErrCloudConfig)
	case err != nil:
		return nil, fmt.Errorf("%w: not YAML: %s", ErrCloudConfig, podvm.Printable(err.Error(), 200))
	}
	if err := d.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: more than one YAML document", ErrCloudConfig)
	}
	top, err := mapping(doc.Content[0], "write_files")
	if err != nil {
		return nil, err
	}
	list, ok := top["write_files"]
	if !ok {
		return nil, fmt.Errorf("%w: no write_files", ErrCloudConfig)
	}
	if list.Kind != yaml.SequenceNode {
		return nil, fmt.Errorf("%w: line %d: write_files is not a list", ErrCloudConfig, list.Line)
	}
	files := make([]writeFile, 0, len(list.Content))
	for _, entry := range list.Content {
		keys, err := mapping(entry, "path", "content")
		if err != nil {
			return nil, err
		}
		f := writeFile{line: entry.Line}
		if f.path, err = text(keys["path"]); err != nil {
			return nil, err
		}
		if f.content, err = text(keys["content"]); err != nil {
			return nil, err
		}
		if f.path == "" {
			return nil, fmt.Errorf("%w: line %d: an entry without a path", ErrCloudConfig, entry.Line)
		}
		files = append(files, f)
	}
	return files, nil
}

// mapping returns the values of n by key. Keys that are not allowed, and those
// that come twice, are ErrCloudConfig.
func mapping(n *yaml.Node, allowed ...string) (map[string]*yaml.Node, error) {
	if n.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%w: line %d: not a mapping with the keys %q", ErrCloudConfig, n.Line, allowed)
	}
	out := make(map[string]*yaml.Node, len(allowed))
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, known := n.Content[i], ""
		for _, a := range allowed {
			if key.Kind == yaml.ScalarNode && key.Value == a {
				known = a
			}
		}
		if known == "" {
			return nil, fmt.Errorf("%w: line %d: the key %q is not one of %q", ErrCloudConfig, key.Line, podvm.Printable(key.Value, 64), allowed)
		}
		if out[known] != nil {
			return nil, fmt.Errorf("%w: line %d: the key %q comes twice", ErrCloudConfig, key.Line, known)
		}
		out[known] = n.Content[i+1]
	}
	return out, nil
}

// text returns the text of a scalar as it stands, "" for nil and null.
func text(n *yaml.Node) (string, error) {
	switch {
	case n == nil:
		return "", nil
	case n.Kind != yaml.ScalarNode:
		return "", fmt.Errorf("%w: line %d: neither text nor a number", ErrCloudConfig, n.Line)
	}
	switch n.ShortTag() {
	case "!!null":
		return "", nil
	case "!!str", "!!int", "!!float", "!!bool", "!!timestamp":
		return n.Value, nil
	}
	return "", fmt.Errorf("%w: line %d: a value of type %q", ErrCloudConfig, n.Line, podvm.Printable(n.Tag, 64))
}
