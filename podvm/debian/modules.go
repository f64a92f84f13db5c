package debian

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"os/exec"
	"path"
	"strings"
)

// Module is a kernel module, uncompressed.
type Module struct {
	Name string
	Data []byte
}

// Modules returns the kernel modules named and all they need, each after what it
// needs. What is built into the kernel is left out.
func (t Tree) Modules(ctx context.Context, names []string) ([]Module, error) {
	paths, builtin := map[string]string{}, map[string]bool{}
	for name, n := range t {
		if !strings.HasPrefix(name, "usr/lib/modules/") {
			continue
		}
		if path.Base(name) == "modules.builtin" {
			for line := range strings.Lines(string(n.Data)) {
				builtin[moduleName(strings.TrimSpace(line))] = true
			}
		} else if strings.HasSuffix(name, ".ko") || strings.HasSuffix(name, ".ko.xz") {
			paths[moduleName(name)] = name
		}
	}
	var out []Module
	seen := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		if seen[name] || builtin[name] {
			return nil
		}
		seen[name] = true
		file, ok := paths[name]
		if !ok {
			return fmt.Errorf("the kernel has no module %s", name)
		}
		data, err := inflate(ctx, file, t[file].Data)
		if err != nil {
			return err
		}
		needs, err := moduleNeeds(data)
		if err != nil {
			return fmt.Errorf("looking for what %s needs: %w", file, err)
		}
		for _, need := range needs {
			if err := add(need); err != nil {
				return err
			}
		}
		out = append(out, Module{name, data})
		return nil
	}
	for _, name := range names {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// moduleName is the name of the module in a file.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".")
	return strings.ReplaceAll(name, "-", "_")
}

// moduleNeeds reads what a module says of itself: NAME=value entries that end in
// a zero byte.
func moduleNeeds(data []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("not a kernel module")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	var out []string
	for entry := range strings.SplitSeq(string(info), "\x00") {
		if list, ok := strings.CutPrefix(entry, "depends="); ok && list != "" {
			for need := range strings.SplitSeq(list, ",") {
				out = append(out, moduleName(need))
			}
		}
	}
	return out, nil
}

// inflate returns the content of a module's file. The kernel could inflate it
// too, at every boot.
func inflate(ctx context.Context, file string, data []byte) ([]byte, error) {
	if !strings.HasSuffix(file, ".xz") {
		return data, nil
	}
	cmd := exec.CommandContext(ctx, "xz", "-dc")
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("inflating %s: %w", file, err)
	}
	return out, nil
}
