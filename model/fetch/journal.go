package fetch

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"

	"github.com/sealpod/sealpod/model/room"
	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/podvm"
)

// journal notes which runs of a file in progress are there: what the file is,
// then a byte for each run. A nil journal notes nothing.
//
// What a killed process has written, the kernel has; what a machine has lost, no
// process can tell. So a journal counts only until the machine starts again, and
// nothing waits for a disk before it is noted.
type journal struct {
	root *os.Root
	name string
	file *os.File
	head int64  // bytes before the runs
	runs []byte // 1: there when the journal was opened
}

const journalMagic = "sealed-model journal 2\n"

// openJournal opens the journal at name, or starts it anew unless it is of this
// boot and about the same content, encrypted in the same way, cut into as many runs.
func openJournal(root *os.Root, name, boot string, id [32]byte, h sealed.Header, runs int64) (*journal, error) {
	file, err := root.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the notes of what is there: %w", room.Full(err))
	}
	head := append(append([]byte(journalMagic+boot+"\n"), id[:]...), h[:]...)
	j := &journal{root: root, name: name, file: file, head: int64(len(head)), runs: make([]byte, runs)}
	have, err := podvm.ReadMax(file, int64(len(head))+runs)
	if err == nil && len(have) == len(head)+int(runs) && bytes.Equal(have[:len(head)], head) {
		copy(j.runs, have[len(head):])
		return j, nil
	}
	err = file.Truncate(0)
	if err == nil {
		_, err = file.WriteAt(append(head, j.runs...), 0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting the notes of what is there: %w", room.Full(err)), file.Close())
	}
	return j, nil
}

// has tells whether a run is there.
func (j *journal) has(run int64) bool { return j != nil && j.runs[run] == 1 }

// mark notes that a run is there.
func (j *journal) mark(run int64) error {
	if j == nil {
		return nil
	}
	if _, err := j.file.WriteAt([]byte{1}, j.head+run); err != nil {
		return fmt.Errorf("noting what is there: %w", room.Full(err))
	}
	return nil
}

// remove deletes the journal.
func (j *journal) remove() error {
	if j == nil {
		return nil
	}
	return removed(j.root.Remove(j.name))
}

// removed is err of removing notes, which may be gone already.
func removed(err error) error {
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("removing notes: %w", err)
}

func (j *journal) close() {
	if j != nil {
		j.file.Close()
	}
}

// doneList notes which files are complete, until all are. An entry is of one file as
// it is on disk, so it ends when another run, for another model, replaces the file.
type doneList struct {
	root *os.Root
	file *os.File
	mu   sync.Mutex
	all  map[entry]bool
}

// entry is a digest of what a file is and of which one it is.
type entry [32]byte

var doneName = mapName("")

func openDone(root *os.Root) (*doneList, error) {
	file, err := root.OpenFile(doneName, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the list of finished files: %w", room.Full(err))
	}
	d := &doneList{root: root, file: file, all: map[entry]bool{}}
	for {
		var e entry
		if _, err := io.ReadFull(file, e[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return d, nil
			}
			// A piece of an entry: whoever wrote it was killed.
			if err := file.Truncate(int64(len(d.all)) * int64(len(e))); err != nil {
				return nil, errors.Join(fmt.Errorf("reading the list of finished files: %w", err), file.Close())
			}
			return d, nil
		}
		d.all[e] = true
	}
}

// entry returns the one for file, and whether there can be one.
func (d *doneList) entry(file *File) (e entry, ok bool) {
	if file.ID == [32]byte{} || file.Size < 0 {
		return e, false
	}
	fi, err := d.root.Lstat(file.Path)
	if err != nil || !fi.Mode().IsRegular() || fi.Size() != file.Size {
		return e, false
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return e, false
	}
	b := binary.BigEndian.AppendUint64(file.ID[:], st.Ino)
	return sha256.Sum256(binary.BigEndian.AppendUint64(b, uint64(fi.ModTime().UnixNano()))), true
}

// has tells whether file is complete, under its name.
func (d *doneList) has(file *File) bool {
	e, ok := d.entry(file)
	d.mu.Lock()
	defer d.mu.Unlock()
	return ok && d.all[e]
}

func (d *doneList) add(file *File) error {
	e, ok := d.entry(file)
	if !ok {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.all[e] {
		return nil
	}
	d.all[e] = true
	if _, err := d.file.Write(e[:]); err != nil {
		return fmt.Errorf("noting a finished file: %w", room.Full(err))
	}
	return nil
}

func (d *doneList) remove() error { return removed(d.root.Remove(doneName)) }

func (d *doneList) close() { d.file.Close() }
