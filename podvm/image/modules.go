package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/sealpod/sealpod/podvm/debian"
)

const modulesDir = "usr/lib/modules/"

// kernelVersion is that of the one kernel whose modules are in t.
func kernelVersion(t debian.Tree) (string, error) {
	version := ""
	for name := range t {
		if rest, ok := strings.CutPrefix(name, modulesDir); ok {
			v, _, _ := strings.Cut(rest, "/")
			if version != "" && v != version {
				return "", fmt.Errorf("two kernels, %s and %s", version, v)
			}
			version = v
		}
	}
	if version == "" {
		return "", fmt.Errorf("the packages have no kernel")
	}
	return version, nil
}

// moduleIndex adds the files by which modprobe finds modules.
func moduleIndex(ctx context.Context, t debian.Tree) (err error) {
	version, err := kernelVersion(t)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "modules-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for name, n := range t {
		rest, ok := strings.CutPrefix(name, modulesDir)
		if !ok || len(n.Data) == 0 {
			continue
		}
		at := filepath.Join(dir, "lib/modules", rest)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(at, n.Data, 0o644); err != nil {
			return err
		}
	}
	if _, err := run(ctx, nil, "depmod", "-b", dir, version); err != nil {
		return err
	}
	found, err := filepath.Glob(filepath.Join(dir, "lib/modules", version, "modules.*"))
	if err != nil {
		return err
	}
	for _, file := range found {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		t[modulesDir+path.Join(version, filepath.Base(file))] = debian.File(0o644, data)
	}
	return nil
}
