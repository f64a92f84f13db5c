package image

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/debian"
)

// root makes the root file system of unpacked packages. over are trees that go
// on top, the last winning.
func root(ctx context.Context, all debian.Tree, profile Profile, over ...debian.Tree) (debian.Tree, error) {
	t := debian.Tree{}
	for name, n := range all {
		if !drops(name) || profile == Debug && debugKeeps[name] {
			n.Mode &^= unix.S_ISUID | unix.S_ISGID // all of it runs as root, or must not become it
			t[name] = n
		}
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		t[name] = debian.Link("usr/" + name)
	}
	for _, name := range []string{
		"boot", "dev", "etc", "home", "media", "media/cidata", "mnt", "opt", "proc", "run", "srv", "sys", "usr/local/bin", "var",
	} {
		t[name] = debian.Dir(0o755)
	}
	t["root"], t["tmp"] = debian.Dir(0o700), debian.Dir(0o1777)
	maps.Copy(t, settings(profile))
	for _, o := range over {
		maps.Copy(t, o)
	}
	for _, o := range over {
		if err := enable(o, t); err != nil {
			return nil, err
		}
	}
	if err := certificates(all, t); err != nil {
		return nil, err
	}
	if err := accounts(t); err != nil {
		return nil, err
	}
	if err := moduleIndex(ctx, t); err != nil {
		return nil, err
	}
	dropOrphans(t)
	return t, nil
}

// debugKeeps are what Debug has of what is dropped.
var debugKeeps = map[string]bool{"usr/bin/bash": true}

const unitDir = "usr/lib/systemd/system/"

func drops(name string) bool {
	if dropped.MatchString(name) {
		return true
	}
	unit, ok := strings.CutPrefix(name, unitDir)
	if !ok {
		return false
	}
	return slices.ContainsFunc(strings.Split(unit, "/"), droppedUnits.MatchString)
}

// certificates makes the file that programs read certificate authorities from.
func certificates(all, t debian.Tree) error {
	var bundle bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if ok, _ := path.Match("usr/share/ca-certificates/mozilla/*.crt", name); ok {
			bundle.Write(all[name].Data)
		}
	}
	if bundle.Len() == 0 {
		return fmt.Errorf("the packages have no certificate authorities")
	}
	t["etc/ssl/certs/ca-certificates.crt"] = debian.File(0o644, bundle.Bytes())
	return nil
}

var interpreter = regexp.MustCompile(`^#!\s*/(\S+)(\s+(\S+))?`)

// dropOrphans removes scripts whose interpreter is not in the image, and links
// between units that lead nowhere.
func dropOrphans(t debian.Tree) {
	for name, n := range t {
		switch {
		case n.Kind() == unix.S_IFREG && n.Mode&0o111 != 0:
			m := interpreter.FindSubmatch(n.Data[:min(len(n.Data), 256)])
			if m == nil {
				continue
			}
			program := debian.Merged(string(m[1]))
			if path.Base(program) == "env" {
				program = "usr/bin/" + string(m[3])
			}
			if !has(t, program) {
				delete(t, name)
			}
		case n.Kind() == unix.S_IFLNK && strings.HasPrefix(name, unitDir):
			if string(n.Data) != "/dev/null" && !has(t, follow(name, string(n.Data))) {
				delete(t, name)
			}
		}
	}
}

// has follows links, though not of directories.
func has(t debian.Tree, name string) bool {
	for range 8 {
		n, ok := t[name]
		if !ok || n.Kind() != unix.S_IFLNK {
			return ok
		}
		name = follow(name, string(n.Data))
	}
	return false
}

func follow(link, target string) string {
	if !path.IsAbs(target) {
		target = path.Join(path.Dir(link), target)
	}
	return debian.Merged(target)
}
