package model

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/model/sealed/seal"
	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// TestSweepOfAFileSystem: the volume is one with its own folder lost+found.
func TestSweepOfAFileSystem(t *testing.T) {
	testenv.Root(t)
	dir := testenv.SharedDir(t)
	if err := errors.Join(os.Chown(dir, 65534, 65534), os.Mkdir(filepath.Join(dir, "lost+found"), 0o700), os.WriteFile(filepath.Join(dir, ".old.part"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its user
		if _, err := unix.SetfsuidRetUid(65534); err != nil {
			done <- err
			return
		}
		done <- sweep(dir)
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, ".old.part")); !errors.Is(err, os.ErrNotExist) {
		t.Error("a file in progress is left:", err)
	}
}

// TestKeyThatNamesNoVersion: its owner meant to name one, so a store without a
// manifest is not to be believed.
func TestKeyThatNamesNoVersion(t *testing.T) {
	for _, key := range []string{
		`{"kty":"oct","k":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","manifest":"sha256:0123"}`,
		`{"kty":"oct","k":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","manifest":7}`,
		`{"kty":"oct","k":"AAAAAAAAAAAAAAAAAAAAAA","manifest":"sha256:0123"}`,
	} {
		w := newWorld(t, "CONFIDENTIAL_RESOURCE_ID", keyID)
		w.keys[keyPath] = key
		err := w.run(folderOf(t, map[string]string{"m.bin": "somebody's"}))
		if err == nil {
			t.Errorf("%s: no error", key)
			continue
		}
		if code, line := Outcome(err); code != ExitRefused {
			t.Errorf("%d %s", code, line)
		}
		nothingNamed(t, w.dest)
	}
}

// TestStrictIsNotMissed: who writes 1 or yes means it.
func TestStrictIsNotMissed(t *testing.T) {
	for value, want := range map[string]int{"1": ExitUsage, "yes": ExitUsage, "TRUE": ExitIntegrity, "False": 0, "": 0} {
		code := 0
		if err := newWorld(t, "MODEL_STRICT", value).run(folderOf(t, map[string]string{"m.bin": "x"})); err != nil {
			code, _ = Outcome(err)
		}
		if code != want {
			t.Errorf("%q: exit code %d", value, code)
		}
	}
}

// TestLargestModelCanBeListed, with its manifest.
func TestLargestModelCanBeListed(t *testing.T) {
	if source.MaxObjects <= sealed.MaxFiles {
		t.Errorf("a listing of %d objects for a model of %d files", source.MaxObjects, sealed.MaxFiles)
	}
}

// TestAnotherModelInTheWay: the volume has files where this model has folders.
func TestAnotherModelInTheWay(t *testing.T) {
	key := seal.NewKey()
	for had, files := range map[string]map[string]string{"a": {"a/b": "x"}, "a/b": {"a": "x"}} {
		w := newWorld(t, "CONFIDENTIAL_RESOURCE_ID", keyID)
		w.keys[keyPath] = string(key)
		p := filepath.Join(w.dest, had)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		dir, _ := sealedOf(t, key, files)
		err := w.run(dir)
		if err == nil {
			t.Fatal("no error")
		}
		if code, line := Outcome(err); code != ExitUsage || !strings.Contains(line, "; hint: ") {
			t.Errorf("%s: %d %s", had, code, line)
		}
	}
}
