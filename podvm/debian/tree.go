package debian

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Tree is a file system in memory: paths without a leading slash. Directories
// above a path need no entry.
type Tree map[string]Node

// Node is a regular file, a directory, a symbolic link or a device. Root owns
// it.
type Node struct {
	Mode         uint32 // type and permission bits, as stat(2)
	Data         []byte // of a file, or a link's target
	Major, Minor uint32 // of a device
}

// File is a regular file with these permission bits.
func File(mode uint32, data []byte) Node { return Node{Mode: unix.S_IFREG | mode, Data: data} }

// Link is a symbolic link.
func Link(target string) Node { return Node{Mode: unix.S_IFLNK | 0o777, Data: []byte(target)} }

// Dir is a directory with these permission bits.
func Dir(mode uint32) Node { return Node{Mode: unix.S_IFDIR | mode} }

// Kind is the type of the node, such as unix.S_IFREG.
func (n Node) Kind() uint32 { return n.Mode & unix.S_IFMT }

// treeSize bounds what a tree takes; that of a pod VM takes 250 MB.
const treeSize = 1 << 30

// Read reads an archive of files, directories and links. Owners, times and device
// nodes are left out.
func Read(r io.Reader) (Tree, error) {
	t := Tree{}
	archive := tar.NewReader(io.LimitReader(r, treeSize))
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading the packages' files: %w", err)
		}
		name := Rel(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			data, err := io.ReadAll(archive)
			if err != nil {
				return nil, fmt.Errorf("reading %s: %w", name, err)
			}
			t[name] = File(uint32(h.Mode&0o7777), data)
		case tar.TypeDir:
			if name != "" {
				t[name] = Dir(uint32(h.Mode & 0o7777))
			}
		case tar.TypeSymlink:
			t[name] = Link(h.Linkname)
		case tar.TypeLink:
			t[name] = t[Rel(h.Linkname)]
		}
	}
}

// withDirs is the tree with all directories above its paths.
func (t Tree) withDirs() Tree {
	all := Tree{}
	maps.Copy(all, t)
	for name := range t {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, ok := all[dir]; !ok {
				all[dir] = Dir(0o755)
			}
		}
	}
	return all
}

// ReadDir reads a directory, with what is in it below the path at of the tree.
// Permissions are 0755 for directories and what can be executed, 0644 for all
// else: what a user's umask has left must not decide.
func ReadDir(dir, at string) (Tree, error) {
	t := Tree{}
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		inside, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		name := Rel(path.Join(at, filepath.ToSlash(inside)))
		switch {
		case name == "":
			return nil
		case d.IsDir():
			t[name] = Dir(0o755)
			return nil
		case d.Type() == fs.ModeSymlink:
			target, err := os.Readlink(file)
			t[name] = Link(target)
			return err
		case !d.Type().IsRegular():
			return fmt.Errorf("%s is neither file nor directory nor link", file)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(file)
		mode := uint32(0o644)
		if info.Mode()&0o111 != 0 {
			mode = 0o755
		}
		t[name] = File(mode, data)
		return err
	})
	return t, err
}

// Rel makes a path one of a tree.
func Rel(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// Glob returns the one file that pattern matches.
func (t Tree) Glob(pattern string) (Node, error) {
	var found []string
	for name := range t {
		if ok, err := path.Match(pattern, name); err != nil {
			return Node{}, err
		} else if ok {
			found = append(found, name)
		}
	}
	if len(found) != 1 {
		return Node{}, fmt.Errorf("looking for one %s: found %d", pattern, len(found))
	}
	return t[found[0]], nil
}

// libraryDirs are where the dynamic linker looks.
var libraryDirs = []string{"usr/lib/x86_64-linux-gnu", "usr/lib"}

// Closure returns the files named, what they link to, and every library that
// these need.
func (t Tree) Closure(names []string) (Tree, error) {
	out := Tree{}
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
		if n.Kind() == unix.S_IFLNK {
			target := string(n.Data)
			if !path.IsAbs(target) {
				target = path.Join(path.Dir(name), target)
			}
			todo = append(todo, Merged(target))
			continue
		}
		needs, err := t.needs(n.Data)
		if err != nil {
			return nil, fmt.Errorf("looking for what %s needs: %w", name, err)
		}
		todo = append(todo, needs...)
	}
	return out, nil
}

// Merged is where a path is since Debian has /bin and the like below /usr.
func Merged(name string) string {
	name = Rel(name)
	switch top, _, _ := strings.Cut(name, "/"); top {
	case "bin", "sbin", "lib", "lib64":
		return "usr/" + name
	default:
		return name
	}
}

// needs returns the dynamic linker and libraries an ELF file names; other files
// need nothing.
func (t Tree) needs(file []byte) ([]string, error) {
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
			out = append(out, Merged(strings.TrimRight(string(linker), "\x00")))
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
