package model

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/model/sealed/seal"
	"github.com/sealpod/sealpod/podvm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a pod with its environment, and who it asks for keys.
type world struct {
	t    testing.TB
	env  map[string]string
	keys map[string]string // by path, REPOSITORY/TYPE/TAG
	log  bytes.Buffer
	dest string
}

// newWorld has the environment of pairs of name and value.
func newWorld(t testing.TB, pairs ...string) *world {
	t.Helper()
	w := &world{t: t, env: map[string]string{}, keys: map[string]string{}, dest: filepath.Join(t.TempDir(), "models")}
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		k, ok := w.keys[strings.TrimPrefix(r.URL.Path, "/cdh/resource/")]
		if !ok {
			rw.Header().Set("Sealpod-Reason", "not-found")
			http.Error(rw, "ttrpc request error: no such resource", http.StatusInternalServerError)
			return
		}
		fmt.Fprint(rw, k)
	}))
	t.Cleanup(s.Close)
	w.env["CDH_ADDR"] = s.URL
	for i := 0; i+1 < len(pairs); i += 2 {
		w.env[pairs[i]] = pairs[i+1]
	}
	return w
}

func (w *world) host() podvm.Host {
	return podvm.Host{LookupEnv: func(name string) (string, bool) {
		v, ok := w.env[name]
		return v, ok
	}}
}

// run runs with args, or from a source into w.dest.
func (w *world) run(args ...string) error {
	if len(args) == 1 {
		args = append(args, w.dest)
	}
	return Run(w.t.Context(), args, Config{Host: w.host(), Log: slog.New(slog.NewTextHandler(&w.log, nil))})
}

// folder is a folder with these files.
func folderOf(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// sealedOf is a sealed model of these files, with its key and its pin.
func sealedOf(t testing.TB, key podvm.Secret, files map[string]string, public ...string) (dir, pin string) {
	t.Helper()
	k, err := sealed.ParseKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(t.TempDir(), "sealed")
	_, pin, err = seal.Model(t.Context(), k, folderOf(t, files), dir, seal.Options{Name: "test", Public: Patterns(public).Match})
	if err != nil {
		t.Fatal(err)
	}
	return dir, pin
}

// pinned is the key as a relying party has it.
func pinned(t testing.TB, key podvm.Secret, pin string) string {
	t.Helper()
	k, err := sealed.ParseKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(k.JWK(pin))
}

// holds checks that dir has these files, through links, and no others.
func holds(t testing.TB, dir string, want map[string]string) {
	t.Helper()
	got := map[string]string{}
	var walk func(string)
	walk = func(rel string) {
		entries, err := os.ReadDir(filepath.Join(dir, rel))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			name := filepath.Join(rel, e.Name())
			st, err := os.Stat(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if st.IsDir() {
				walk(name)
				continue
			}
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			got[name] = string(b)
		}
	}
	walk("")
	for name, text := range want {
		if got[name] != text {
			t.Errorf("%s: %d bytes, want %d", name, len(got[name]), len(text))
		}
		delete(got, name)
	}
	for name := range got {
		t.Errorf("%s is left", name)
	}
}

// nothingNamed checks that dir has no file but those in progress.
func nothingNamed(t testing.TB, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() && !sealed.InProgress(e.Name()) {
			err = errors.New(e.Name() + " has its name")
		}
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// caikit and huggingFace are models as their servers want them.
var (
	caikit = map[string]string{
		"config.yml": "module_id: x\n", "artifacts/config.json": "{}", "artifacts/empty.txt": "",
		"artifacts/model.safetensors": strings.Repeat("weights ", 400_000),
	}
	huggingFace = map[string]string{
		"config.json": "{}", "tokenizer.json": strings.Repeat("token ", 1000), "empty": "",
		"model-00001-of-00002.safetensors": strings.Repeat("a", 1<<20), "model-00002-of-00002.safetensors": strings.Repeat("b", 9<<20+7),
	}
)

const (
	keyPath = "acme/models/m"
	keyID   = "kbs:///" + keyPath
)
