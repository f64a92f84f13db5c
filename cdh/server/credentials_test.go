package server

import (
	"context"
	"io/fs"
	"os"
	"testing"

	"github.com/sealpod/sealpod/podvm"
)

// echo is a provider whose resources are their own URIs.
type echo struct{}

func (echo) Resource(_ context.Context, uri string) (podvm.Secret, error) {
	return podvm.Secret(uri), nil
}

func TestOnlyTheCredentialsAreClosedToOthers(t *testing.T) {
	host := podvm.Host{Root: t.TempDir()}
	creds := []Credential{{Path: podvm.CDHResourceDir + "/sub/a", URI: "kbs:///a"}}
	if err := placeCredentials(t.Context(), host, echo{}, creds); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]fs.FileMode{
		"/run/confidential-containers":  0o755,
		podvm.CDHRunDir:                 0o755,
		podvm.CDHResourceDir:            0o700,
		podvm.CDHResourceDir + "/sub":   0o700,
		podvm.CDHResourceDir + "/sub/a": 0o600,
	} {
		st, err := os.Stat(host.Path(path))
		if err != nil {
			t.Fatal(err)
		}
		if got := st.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", path, got, want)
		}
	}
}

func TestCredentialsOfAnyNamesLeaveEachOtherAlone(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	names := []string{"a.new.new", "a.new", "a", "a.tmp", "a~"}
	for range 2 { // the second time over what is there
		for _, name := range names {
			if err := writeFile(root, name, []byte(name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, name := range names {
		if got, err := root.ReadFile(name); err != nil || string(got) != name {
			t.Errorf("%s holds %q, %v", name, got, err)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != len(names) {
		t.Errorf("%d files, %v, want %d", len(left), err, len(names))
	}
}
