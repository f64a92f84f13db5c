package mount

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/tool"
)

// Caps of a request.
const (
	maxOptions = 64
	maxValue   = 64 << 10 // a sealed secret is an option, too
	maxPath    = 4095
)

// options are those of one request. Each is read once, by name.
type options struct {
	values map[string]string
	read   map[string]bool
}

func newOptions(values map[string]string) (*options, error) {
	if len(values) > maxOptions {
		return nil, tool.Option("%d options, at most %d are read", len(values), maxOptions)
	}
	for name, v := range values {
		if len(v) > maxValue || !utf8.ValidString(v) || strings.ContainsRune(v, 0) {
			return nil, tool.Option("option %q is too long or not text", podvm.Printable(name, 64))
		}
	}
	return &options{values, map[string]bool{}}, nil
}

// get returns an option and whether it is there.
func (o *options) get(name string) (string, bool) {
	o.read[name] = true
	v, ok := o.values[name]
	return v, ok
}

// or returns an option, or byDefault when it is absent.
func (o *options) or(name, byDefault string) string {
	if v, ok := o.get(name); ok {
		return v
	}
	return byDefault
}

// need returns an option that must be there.
func (o *options) need(name string) (string, error) {
	v, ok := o.get(name)
	if !ok {
		return "", tool.Option("option %q is missing", name)
	}
	return v, nil
}

// choice returns an option that must be one of the values in allowed.
func (o *options) choice(name string, allowed ...string) (string, error) {
	v, err := o.need(name)
	if err != nil {
		return "", err
	}
	if !slices.Contains(allowed, v) {
		return "", tool.Option("%s %q is not supported, want %s", name, podvm.Printable(v, 64), strings.Join(allowed, " or "))
	}
	return v, nil
}

// unread lists the names of options that were not asked for, printable.
func (o *options) unread() []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(o.values)) {
		if !o.read[name] {
			names = append(names, podvm.Printable(name, 64))
		}
	}
	return names
}

// runDir is where Sealpod's daemons keep what they read.
var runDir = path.Dir(podvm.CDHRunDir)

// mountPoint checks and cleans the path to mount on.
func mountPoint(p string) (string, error) {
	if err := absolute(p); err != nil {
		return "", tool.Option("mount_point: %v", err)
	}
	if p = path.Clean(p); p == "/" {
		return "", tool.Option("mount_point: nothing may be mounted on the root directory")
	}
	// Keys that others trust are there: for signatures, for services.
	if p == runDir || strings.HasPrefix(p, runDir+"/") {
		return "", tool.Option("mount_point: nothing may be mounted in %s", runDir)
	}
	return p, nil
}

type pathError string

func (e pathError) Error() string { return string(e) }

// absolute refuses a path that is relative, too long, or would read as
// something else in the line of a log or a mount table.
func absolute(p string) error {
	switch {
	case p == "":
		return pathError("it is missing")
	case !strings.HasPrefix(p, "/"):
		return pathError("the path must be absolute")
	case len(p) > maxPath:
		return pathError("the path is too long")
	case !utf8.ValidString(p) || strings.ContainsFunc(p, unicode.IsControl):
		return pathError("the path has characters that are not text")
	}
	return nil
}

// digest tells requests apart. Flags do not count, nobody reads them, nor does
// sourceType where there is a key: a caller that said empty says encrypted of the
// same volume later, because it looks at the device.
func digest(req Request) string {
	o := maps.Clone(req.Options)
	if o["key"] != "" {
		delete(o, "sourceType")
	}
	raw, err := json.Marshal([]any{req.VolumeType, o, path.Clean(req.MountPoint)}) // maps are sorted
	if err != nil {
		return "" // strings always marshal
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}
