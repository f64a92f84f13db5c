package vmtest

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// tree is a file system in memory: paths without a leading slash. Directories
// above a path need no entry.
type tree map[string]node

// node is a regular file, a symbolic link or a device.
type node struct {
	mode         uint32 // type and permission bits, as stat(2)
	data         []byte // or a link's target
	major, minor uint32
}

func (n node) kind() uint32 { return n.mode & unix.S_IFMT }

// treeSize bounds what a tree takes; the standard one takes 130 MB.
const treeSize = 1 << 30

// readTree reads an archive of files and links; directories come from the paths.
func readTree(r io.Reader) (tree, error) {
	t := tree{}
	archive := tar.NewReader(io.LimitReader(r, treeSize))
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading the packages' files: %w", err)
		}
		name := rel(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			data, err := io.ReadAll(archive)
			if err != nil {
				return nil, fmt.Errorf("reading %s: %w", name, err)
			}
			t[name] = node{mode: unix.S_IFREG | uint32(h.Mode&0o7777), data: data}
		case tar.TypeSymlink:
			t[name] = node{mode: unix.S_IFLNK | 0o777, data: []byte(h.Linkname)}
		case tar.TypeLink:
			t[name] = t[rel(h.Linkname)]
		}
	}
}

// rel makes a path one of a tree.
func rel(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// glob returns the one file that pattern matches.
func (t tree) glob(pattern string) (node, error) {
	var found []string
	for name := range t {
		if ok, err := path.Match(pattern, name); err != nil {
			return node{}, err
		} else if ok {
			found = append(found, name)
		}
	}
	if len(found) != 1 {
		return node{}, fmt.Errorf("looking for one %s: found %d", pattern, len(found))
	}
	return t[found[0]], nil
}

// libraryDirs are where the dynamic linker looks.
var libraryDirs = []string{"usr/lib/x86_64-linux-gnu", "usr/lib"}

// closure returns the files named, what they link to, and every library that
// these need.
func (t tree) closure(names []string) (tree, error) {
	out := tree{}
	for todo := slices.Clone(names); len(todo) > 0; {
		name := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if _, seen := out[name]; seen {
			continue
		}
		n, ok := t[name]
		if !ok {
			return nil, fmt.Errorf("no package has the file %s", name)
		}
		out[name] = n
		if n.kind() == unix.S_IFLNK {
			target := string(n.data)
			if !path.IsAbs(target) {
				target = path.Join(path.Dir(name), target)
			}
			todo = append(todo, merged(target))
			continue
		}
		needs, err := t.needs(n.data)
		if err != nil {
			return nil, fmt.Errorf("looking for what %s needs: %w", name, err)
		}
		todo = append(todo, needs...)
	}
	return out, nil
}

// merged is where a path is since Debian has /bin and the like below /usr.
func merged(name string) string {
	name = rel(name)
	switch top, _, _ := strings.Cut(name, "/"); top {
	case "bin", "sbin", "lib", "lib64":
		return "usr/" + name
	default:
		return name
	}
}

// needs returns the dynamic linker and libraries an ELF file names; other files
// need nothing.
func (t tree) needs(file []byte) ([]string, error) {
	if !bytes.HasPrefix(file, []byte(elf.ELFMAG)) {
		return nil, nil
	}
	f, err := elf.NewFile(bytes.NewReader(file))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			linker, err := io.ReadAll(p.Open())
			if err != nil {
				return nil, err
			}
			out = append(out, merged(strings.TrimRight(string(linker), "\x00")))
		}
	}
	libraries, err := f.ImportedLibraries()
	if err != nil {
		return nil, err
	}
	for _, lib := range libraries {
		i := slices.IndexFunc(libraryDirs, func(dir string) bool { _, ok := t[path.Join(dir, lib)]; return ok })
		if i < 0 {
			return nil, fmt.Errorf("no package has the library %s", lib)
		}
		out = append(out, path.Join(libraryDirs[i], lib))
	}
	return out, nil
}
