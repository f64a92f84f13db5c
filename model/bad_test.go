package model

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sealpod/sealpod/model/sealed/seal"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
)

var podTime = time.Unix(1_700_000_000, 0)

// TestEveryFaultHasItsCodeAndOneLine: what is wrong, how the program ends, and
// that no file has its name by then.
func TestEveryFaultHasItsCodeAndOneLine(t *testing.T) {
	key, other := seal.NewKey(), seal.NewKey()
	dir, pin := sealedOf(t, key, huggingFace, "tokenizer*")
	_, older := sealedOf(t, key, huggingFace)
	// changed is a copy of the sealed model with something done to it.
	changed := func(t *testing.T, do func(dir string) error) string {
		t.Helper()
		to := filepath.Join(t.TempDir(), "m")
		if err := errors.Join(os.CopyFS(to, os.DirFS(dir)), do(to)); err != nil {
			t.Fatal(err)
		}
		return to
	}
	edit := func(name string, do func([]byte) []byte) func(string) error {
		return func(dir string) error {
			b, err := os.ReadFile(filepath.Join(dir, name))
			return errors.Join(err, os.WriteFile(filepath.Join(dir, name), do(b), 0o600))
		}
	}
	const big, tokenizer = "model-00002-of-00002.safetensors", "tokenizer.json"
	same := func(string) error { return nil }
	keyed := []string{"CONFIDENTIAL_ENABLED", "true", "CONFIDENTIAL_RESOURCE_ID", keyID}
	for name, tt := range map[string]struct {
		env  []string
		key  string // of the model; "" for none there
		do   func(dir string) error
		args []string // in place of the model
		code int
		says string
	}{
		"wrong key":           {keyed, string(other), same, nil, ExitIntegrity, "does not match its key"},
		"no model key":        {keyed, "a password", same, nil, ExitRefused, "not a model key"},
		"another version":     {keyed, pinned(t, key, older), same, nil, ExitIntegrity, "another version"},
		"manifest taken away": {keyed, pinned(t, key, pin), func(d string) error { return os.Remove(d + "/sealed-model") }, nil, ExitIntegrity, "no source has a manifest"},
		"truncated":           {keyed, string(key), func(d string) error { return os.Truncate(d+"/"+big, 3<<20) }, nil, ExitIntegrity, big},
		"a bit":               {keyed, string(key), edit(big, func(b []byte) []byte { b[2<<20] ^= 1; return b }), nil, ExitIntegrity, big},
		"segments exchanged": {keyed, string(key), edit(big, func(b []byte) []byte {
			c := append([]byte(nil), b[1<<20:2<<20]...)
			copy(b[1<<20:], b[2<<20:3<<20])
			copy(b[2<<20:], c)
			return b
		}), nil, ExitIntegrity, big},
		"readable file changed": {keyed, string(key), edit(tokenizer, func(b []byte) []byte { b[0] = 'T'; return b }), nil, ExitIntegrity, "wrong digest"},
		"object missing":        {keyed, string(key), func(d string) error { return os.Remove(d + "/" + big) }, nil, ExitIntegrity, "missing: " + big},
		"manifest cut":          {keyed, string(key), func(d string) error { return os.Truncate(d+"/sealed-model", 60) }, nil, ExitIntegrity, "does not match its key"},
		"no key named":          {nil, string(key), same, nil, ExitUsage, "CONFIDENTIAL_RESOURCE_ID is not set"},
		"key not there":         {keyed, "", same, nil, ExitRefused, "no such resource"},
		"key is no URI":         {[]string{"CONFIDENTIAL_RESOURCE_ID", "acme/models/m"}, "x", same, nil, ExitUsage, "kbs:///"},
		"keys from elsewhere":   {append([]string{"CDH_ADDR", "http://192.0.2.1:8006"}, keyed...), "x", same, nil, ExitUsage, "loopback"},
		"enabled without a key": {[]string{"CONFIDENTIAL_ENABLED", "TRUE"}, "", same, nil, ExitUsage, "CONFIDENTIAL_RESOURCE_ID is not set"},
		"two ways at once":      {append([]string{"MODEL_ENCRYPTED", "true"}, keyed...), "", same, nil, ExitUsage, "set one"},
		"demo without a key":    {[]string{"MODEL_ENCRYPTED", "true"}, "", same, nil, ExitUsage, "MODEL_DECRYPTION_KEY"},
		"demo without a model":  {[]string{"MODEL_ENCRYPTED", "true", "MODEL_DECRYPTION_KEY", "models/m"}, "", same, []string{folderOf(t, map[string]string{"x": "y"})}, ExitRefused, "no such resource"},
		"strict, not sealed":    {[]string{"MODEL_STRICT", "true"}, "", same, []string{folderOf(t, map[string]string{"x": "y"})}, ExitIntegrity, "not authenticated"},
		"no arguments":          {nil, "", same, []string{}, ExitUsage, "0 arguments"},
		"odd arguments":         {nil, "", same, []string{"s3://a", "/b", "s3://c"}, ExitUsage, "3 arguments"},
		"hdfs":                  {nil, "", same, []string{"webhdfs://x/y"}, ExitUsage, "Hadoop"},
		"git":                   {nil, "", same, []string{"https://github.com/a/b.git"}, ExitUsage, "git"},
		"Azure Files":           {nil, "", same, []string{"https://a.file.core.windows.net/s/p"}, ExitUsage, "Azure Files"},
		"modelscope":            {nil, "", same, []string{"modelscope://a/b"}, ExitUsage, "ModelScope"},
		"no scheme":             {nil, "", same, []string{"models/x"}, ExitUsage, "no kind of source"},
		"nothing there":         {nil, "", same, []string{"/nonexistent/model"}, ExitSource, "nothing at"},
		"nothing listens":       {nil, "", same, []string{"http://127.0.0.1:1/m.bin"}, ExitSource, "127.0.0.1:1"},
		"nothing left":          {[]string{"STORAGE_IGNORE_PATTERNS", "*"}, "", same, []string{folderOf(t, map[string]string{"x": "y"})}, ExitSource, "leave no file"},
		"bad setting":           {[]string{"STORAGE_CONFIG", "{"}, "", same, []string{"s3://a/b"}, ExitUsage, "STORAGE_CONFIG"},
		"evil archive":          {nil, "", same, []string{folderOf(t, map[string]string{"m.tgz": string(tarOf(t, map[string]string{"../../x": "y"}))})}, ExitIntegrity, "archive"},
		"no archive":            {nil, "", same, []string{folderOf(t, map[string]string{"m.tar": strings.Repeat("x", 2048)})}, ExitIntegrity, "archive"},
		"damaged JWE":           {keyed, pinned(t, key, ""), same, []string{folderOf(t, map[string]string{"m.jwe": jweOf(t, key, "x")[:90], "n": "o"})}, ExitIntegrity, "JWE"},
		"JWE of another":        {keyed, pinned(t, key, ""), same, []string{folderOf(t, map[string]string{"m.jwe": jweOf(t, other, "x")})}, ExitIntegrity, "does not unwrap"},
		"JWE beside its file":   {keyed, pinned(t, key, ""), same, []string{folderOf(t, map[string]string{"m.jwe": jweOf(t, key, "x"), "m": "y"})}, ExitUsage, "bring"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, tt.env...)
			if tt.key != "" {
				w.keys[keyPath] = tt.key
			}
			args := tt.args
			if args == nil {
				args = []string{changed(t, tt.do)}
			}
			err := w.run(args...)
			if err == nil {
				t.Fatal("no error")
			}
			code, line := Outcome(err)
			if code != tt.code || !strings.Contains(line, tt.says) || !strings.Contains(line, "; hint: ") || strings.ContainsAny(line, "\n\r") || len(line) > 1200 {
				t.Errorf("%d %s\n%v", code, line, err)
			}
			if tt.args == nil {
				named(t, w.dest, big)
			}
		})
	}
}

// named checks that what was to be refused is not there.
func named(t *testing.T, dest, name string) {
	t.Helper()
	if b, err := os.ReadFile(filepath.Join(dest, name)); err == nil && string(b) != huggingFace[name] {
		t.Errorf("%s has its name and is not whole", name)
	}
}

// TestCollisions: nobody decides which of two files it is.
func TestCollisions(t *testing.T) {
	a, b := folderOf(t, map[string]string{"x/y": "1"}), folderOf(t, map[string]string{"x/z": "2"})
	w := newWorld(t)
	if err := w.run(a, w.dest, b, w.dest); !errors.Is(err, ErrCollision) { // both would be the link x
		t.Error(err)
	}
	if err := w.run(a, w.dest, folderOf(t, map[string]string{"y": "2"}), filepath.Join(w.dest, "x")); !errors.Is(err, ErrCollision) {
		t.Error(err)
	}
	nothingNamed(t, w.dest)
}

// TestNoRoom: the full file system is a real one.
func TestNoRoom(t *testing.T) {
	testenv.Root(t)
	w := newWorld(t, "CONFIDENTIAL_RESOURCE_ID", keyID)
	key := seal.NewKey()
	dir, _ := sealedOf(t, key, huggingFace)
	w.keys[keyPath] = string(key)
	if err := os.MkdirAll(w.dest, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("none", w.dest, "tmpfs", 0, "size=8m"); err != nil {
		testenv.Missing(t, "needs to mount a tmpfs: "+err.Error())
	}
	defer syscall.Unmount(w.dest, 0)
	err := w.run(dir)
	code, line := Outcome(err)
	if code != ExitSpace || !strings.Contains(line, "MB needed, 8 MB free") {
		t.Errorf("%d %s", code, line)
	}
	nothingNamed(t, w.dest)
}

// TestDestinationNotWritable: the volume belongs to somebody else.
func TestDestinationNotWritable(t *testing.T) {
	w := newWorld(t)
	file := folderOf(t, map[string]string{"x": "y"}) + "/x"
	err := w.run(file, filepath.Join(file, "below"))
	if code, line := Outcome(err); code != ExitUsage || !strings.Contains(line, "cannot be written by user") {
		t.Errorf("%d %s", code, line)
	}
}

// TestTerminationLog: it is written where there is one, and replaces what was
// there.
func TestTerminationLog(t *testing.T) {
	host := podvm.Host{Root: t.TempDir()}
	if err := Terminate(host, "x"); err != nil {
		t.Error("where there is none:", err)
	}
	if err := errors.Join(os.MkdirAll(host.Path("/dev"), 0o755), os.WriteFile(host.Path(terminationLog), []byte("an older, longer line"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := Terminate(host, "key refused"); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(host.Path(terminationLog)); err != nil || string(b) != "key refused\n" {
		t.Errorf("%q %v", b, err)
	}
}

// TestChangingObject: the store replaces an archive between listing and fetching.
func TestChangingObject(t *testing.T) {
	n := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n++
		w.Header().Set("ETag", `"`+strings.Repeat("x", n)+`"`)
		http.ServeContent(w, r, "", podTime, strings.NewReader("weights"))
	}))
	defer server.Close()
	w := newWorld(t)
	if code, line := Outcome(w.run(server.URL + "/m.bin")); code != ExitSource || !strings.Contains(line, "changed") {
		t.Errorf("%d %s", code, line)
	}
	nothingNamed(t, w.dest)
}
