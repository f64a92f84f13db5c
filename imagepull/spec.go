package imagepull

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sealpod/sealpod/imagepull/registry"
)

// The part of the OCI runtime configuration that an image determines.
// Source: opencontainers/runtime-spec v1.0.2 config.md, image-spec v1.1
// conversion.md.
type (
	runtimeSpec struct {
		Version     string            `json:"ociVersion"`
		Root        specRoot          `json:"root"`
		Process     specProcess       `json:"process"`
		Hostname    string            `json:"hostname"`
		Mounts      []specMount       `json:"mounts"`
		Annotations map[string]string `json:"annotations,omitempty"`
		Linux       specLinux         `json:"linux"`
	}
	specRoot struct {
		Path     string `json:"path"`
		Readonly bool   `json:"readonly"`
	}
	specProcess struct {
		Terminal bool     `json:"terminal"`
		User     specUser `json:"user"`
		Args     []string `json:"args"`
		Env      []string `json:"env"`
		Cwd      string   `json:"cwd"`
	}
	specUser struct {
		UID uint32 `json:"uid"`
		GID uint32 `json:"gid"`
	}
	specMount struct {
		Destination string   `json:"destination"`
		Type        string   `json:"type"`
		Source      string   `json:"source"`
		Options     []string `json:"options,omitempty"`
	}
	specLinux struct {
		Namespaces []specNamespace `json:"namespaces"`
	}
	specNamespace struct {
		Type string `json:"type"`
	}
)

// newSpec describes a container of the image. kata-agent replaces the file, so
// it holds what the image says and a usable minimum beside it. The user name of
// the image is not resolved. Source: guest-components image-rs bundle.rs at
// 8246e5e, from which the host name is.
func newSpec(c *registry.Config) *runtimeSpec {
	s := &runtimeSpec{
		Version:  "1.0.2",
		Root:     specRoot{Path: "rootfs"},
		Hostname: "image-rs",
		Process: specProcess{
			Args: slices.Concat([]string{}, c.Process.Entrypoint, c.Process.Cmd),
			Env:  slices.Concat([]string{}, c.Process.Env),
			Cwd:  "/",
		},
		Mounts: []specMount{
			{"/proc", "proc", "proc", nil},
			{"/dev", "tmpfs", "tmpfs", []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{"/dev/pts", "devpts", "devpts", []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{"/dev/shm", "tmpfs", "shm", []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{"/dev/mqueue", "mqueue", "mqueue", []string{"nosuid", "noexec", "nodev"}},
			{"/sys", "sysfs", "sysfs", []string{"nosuid", "noexec", "nodev", "ro"}},
		},
		Annotations: annotations(c),
	}
	for _, ns := range []string{"pid", "network", "ipc", "uts", "mount"} {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specNamespace{ns})
	}
	if wd := c.Process.WorkingDir; wd != "" {
		s.Process.Cwd = path.Join("/", wd)
	}
	for _, v := range slices.Sorted(maps.Keys(c.Process.Volumes)) {
		if dst := path.Join("/", v); dst != "/" {
			s.Mounts = append(s.Mounts, specMount{dst, "tmpfs", "tmpfs", []string{"nosuid", "noexec", "nodev"}})
		}
	}
	return s
}

// annotations are the image's labels on top of what its other fields say.
func annotations(c *registry.Config) map[string]string {
	const prefix = "org.opencontainers.image."
	a := map[string]string{
		prefix + "os":           c.OS,
		prefix + "architecture": c.Architecture,
		prefix + "author":       c.Author,
		prefix + "created":      c.Created,
		prefix + "stopSignal":   c.Process.StopSignal,
		prefix + "exposedPorts": strings.Join(slices.Sorted(maps.Keys(c.Process.ExposedPorts)), ","),
	}
	maps.DeleteFunc(a, func(_, v string) bool { return v == "" })
	maps.Copy(a, c.Process.Labels)
	return a
}

// specFile is the runtime specification in a bundle.
const specFile = "config.json"

// writeSpec puts config.json into the bundle, whole or not at all.
func writeSpec(bundle string, c *registry.Config) (err error) {
	raw, err := json.MarshalIndent(newSpec(c), "", "  ")
	if err != nil {
		return err
	}
	// It may be there from a pull that was killed.
	f, err := os.OpenFile(filepath.Join(bundle, ".config.json.new"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(append(raw, '\n'))
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(bundle, specFile))
}
