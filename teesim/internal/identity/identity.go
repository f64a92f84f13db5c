// Package identity keeps the files of a simulated maker of hardware, so that it
// is the same one after a restart:
//
//	DIR/keys/NAME    what the maker keeps to itself; the directory has mode 0700
//	DIR/trust/NAME   what a relying party needs to trust the maker
//
// Place: the simulators of TEEs call it when they are opened.
//
// Trust: DIR belongs to whoever runs the simulator. What is read from it is the
// simulator's own, yet bounded; what it means is for the simulator to check.
//
// Any number of processes may use one DIR: the first identity stays, and a
// published file is always whole. An empty DIR keeps everything in memory.
package identity

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/sealpod/sealpod/podvm"
)

// maxFile bounds an identity in bytes.
const maxFile = 1 << 20

// Load returns the content of dir/keys/name. If there is none it is what
// generate returns, unless another process was faster; it is kept with mode
// 0600. For an empty dir it is generate's.
func Load(dir, name string, generate func() ([]byte, error)) ([]byte, error) {
	if dir == "" {
		return generate()
	}
	content, err := load(dir, name, generate)
	if err != nil {
		return nil, fmt.Errorf("loading the identity %s: %w", name, err)
	}
	return content, nil
}

func load(dir, name string, generate func() ([]byte, error)) ([]byte, error) {
	keys := filepath.Join(dir, "keys")
	if err := makeDirs(keys, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(keys, name)
	content, err := podvm.ReadFileMax(path, maxFile)
	if !errors.Is(err, fs.ErrNotExist) {
		return content, err
	}
	if content, err = generate(); err != nil {
		return nil, err
	}
	temp, err := write(keys, content, 0o600)
	if err != nil {
		return nil, err
	}
	// A link is made only if nobody else made one.
	if err := errors.Join(os.Link(temp, path), os.Remove(temp)); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return podvm.ReadFileMax(path, maxFile)
}

// Publish replaces the content of dir/trust/name, which everybody may read. For
// an empty dir it does nothing.
func Publish(dir, name string, content []byte) error {
	if dir == "" {
		return nil
	}
	trust := filepath.Join(dir, "trust")
	err := makeDirs(trust, 0o755)
	var temp string
	if err == nil {
		temp, err = write(trust, content, 0o644)
	}
	if err == nil {
		err = os.Rename(temp, filepath.Join(trust, name))
	}
	if err != nil {
		return fmt.Errorf("publishing %s: %w", name, err)
	}
	return nil
}

// makeDirs makes dir, whose parents everybody may enter, and gives it that mode. A
// symbolic link in its place is refused: the mode of what it leads to is not ours
// to change.
func makeDirs(dir string, mode os.FileMode) (err error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	d, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	return d.Chmod(mode)
}

// write writes a new file in dir and returns its path.
func write(dir string, content []byte, mode os.FileMode) (path string, err error) {
	f, err := os.CreateTemp(dir, ".new-") // with mode 0600
	if err != nil {
		return "", err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if _, err = f.Write(content); err == nil {
		err = errors.Join(f.Chmod(mode), f.Sync())
	}
	return f.Name(), err
}
