package model

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/go-jose/go-jose/v4"

	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/model/sealed/seal"
	"github.com/sealpod/sealpod/model/source/s3/s3test"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// TestSealedModelsFromS3: with a pin, from a real S3 server whose address and
// credentials are in the storage secret, in the layouts of two model servers.
func TestSealedModelsFromS3(t *testing.T) {
	gw := s3test.Start(t)
	gw.Bucket(t, "models")
	secret := `{"type":"s3","endpoint_url":"` + gw.URL + `","access_key_id":"` + s3test.AccessKey + `","secret_access_key":"` + s3test.SecretKey + `","region":"wrong"}`
	for name, files := range map[string]map[string]string{"caikit": caikit, "hf": huggingFace} {
		key := seal.NewKey()
		dir, pin := sealedOf(t, key, files, "tokenizer*", "empty")
		gw.PutFolder(t, "models", name+"/", dir)
		gw.Put(t, "models", name+"/pickle.bin", []byte("code of the bucket's owner"))
		w := newWorld(t, "STORAGE_CONFIG", secret, "STORAGE_OVERRIDE_CONFIG", `{"region":"`+s3test.Region+`"}`,
			"CONFIDENTIAL_ENABLED", "true", "CONFIDENTIAL_RESOURCE_ID", keyID, "MODEL_STRICT", "true")
		w.keys[keyPath] = pinned(t, key, pin)
		if err := w.run("s3://models/" + name); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		holds(t, w.dest, files)
		if !strings.Contains(w.log.String(), "unlisted=1") {
			t.Errorf("the extra object is not counted: %s", w.log.String())
		}
		// Once more, as after a restart of the pod's sandbox.
		if err := w.run("s3://models/" + name); err != nil {
			t.Fatal(err)
		}
		holds(t, w.dest, files)
	}
}

// jweOf encrypts as KServe's users do.
func jweOf(t testing.TB, key []byte, text string) string {
	t.Helper()
	e, err := jose.NewEncrypter(jose.A256GCM, jose.Recipient{Algorithm: jose.A256KW, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	o, err := e.Encrypt([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	out, err := o.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestJWE(t *testing.T) {
	key := seal.NewKey()
	w := newWorld(t, "CONFIDENTIAL_ENABLED", "true", "CONFIDENTIAL_RESOURCE_ID", keyID)
	w.keys[keyPath] = pinned(t, key, "")
	src := folderOf(t, map[string]string{
		"1/model.onnx.JWE": jweOf(t, key, "weights"), "config.json": jweOf(t, key, "{}"), "readme": "plain", "short": "e",
	})
	if err := w.run(src); err != nil {
		t.Fatal(err)
	}
	holds(t, w.dest, map[string]string{"1/model.onnx": "weights", "config.json": "{}", "readme": "plain", "short": "e"})
	if log := w.log.String(); !strings.Contains(log, `files=2 some="readme, short"`) {
		t.Errorf("the log does not name what is not authenticated: %s", log)
	}
	w.env["MODEL_STRICT"] = "true"
	if err := w.run(src); !errors.Is(err, ErrUnauthenticated) {
		t.Error(err)
	}
	w.env["CONFIDENTIAL_ENABLED"] = "false"
	w.env["MODEL_STRICT"] = ""
	plain := filepath.Join(t.TempDir(), "m")
	if err := w.run(src, plain); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(plain, "config.json")); err != nil || !strings.HasPrefix(string(b), "eyJ") {
		t.Errorf("decrypted where it was switched off: %v", err)
	}
}

// TestDemo is the demo of Red Hat, with files that openssl wrote.
func TestDemo(t *testing.T) {
	openssl := testenv.Tool(t, "openssl")
	dir := t.TempDir()
	encrypt := func(text []byte) string {
		t.Helper()
		pass := filepath.Join(dir, "pass")
		if err := os.WriteFile(pass, []byte("correct horse\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), openssl, "enc", "-aes-256-cbc", "-pbkdf2", "-kfile", pass)
		cmd.Stdin = bytes.NewReader(text)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	env := []string{"MODEL_ENCRYPTED", "true", "MODEL_DECRYPTION_KEY", "fraud-detection/key.bin"}
	tgz := encrypt(tarOf(t, map[string]string{"model-v1/config.yml": "x", "model-v1/artifacts/w": "weights"}))
	for name, tt := range map[string]struct {
		env, src, want map[string]string
	}{
		"defaults":  {nil, map[string]string{"model.onnx.enc": encrypt([]byte("onnx")), "1/model.onnx.enc": "other", "a": "b"}, map[string]string{"model.onnx": "onnx", "1/model.onnx.enc": "other", "a": "b"}},
		"below 1":   {map[string]string{"MODEL_NAME": "fraud"}, map[string]string{"1/fraud.onnx.enc": encrypt([]byte("onnx"))}, map[string]string{"1/fraud.onnx": "onnx"}},
		"a tarball": {map[string]string{"MODEL_FORMAT": "tar.gz"}, map[string]string{"model.tar.gz.enc": tgz}, map[string]string{"config.yml": "x", "artifacts/w": "weights"}},
	} {
		w := newWorld(t, env...)
		maps.Copy(w.env, tt.env)
		w.keys["default/fraud-detection/key.bin"] = "correct horse\n"
		if err := w.run(folderOf(t, tt.src)); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		holds(t, w.dest, tt.want)
		if !strings.Contains(w.log.String(), "authenticates nothing") {
			t.Errorf("%s: no warning", name)
		}
	}
}

func TestAge(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	e, err := age.Encrypt(&out, id.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("weights ", 100_000)
	if _, err := e.Write([]byte(text)); err != nil || e.Close() != nil {
		t.Fatal(err)
	}
	w := newWorld(t, "CONFIDENTIAL_RESOURCE_ID", keyID)
	w.keys[keyPath] = "# created: today\n" + id.String() + "\n"
	src := folderOf(t, map[string]string{"model.bin.age": out.String(), "other": out.String(), "plain": "x"})
	if err := w.run(src); err != nil {
		t.Fatal(err)
	}
	holds(t, w.dest, map[string]string{"model.bin": text, "other": text, "plain": "x"})
	w.env["MODEL_STRICT"] = "true" // anybody can encrypt to a recipient
	if err := w.run(src); !errors.Is(err, ErrUnauthenticated) {
		t.Error(err)
	}
}

func tarOf(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	w := tar.NewWriter(z)
	for name, text := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestPlainModels: whatever is not encrypted is fetched, linked or unpacked as by
// KServe's initializer.
func TestPlainModels(t *testing.T) {
	tgz := tarOf(t, map[string]string{"./1/model.onnx": "onnx"})
	files := map[string]string{"a.safetensors": "a", "sub/b.safetensors": "b", "c.bin": "c", ".hidden": "h"}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Token") != "t" {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		w.Header().Set("ETag", `"1"`)
		http.ServeContent(w, r, "", podTime, bytes.NewReader(tgz))
	}))
	defer server.Close()
	host := strings.Split(strings.TrimPrefix(server.URL, "http://"), ":")[0]
	for name, tt := range map[string]struct {
		env  []string
		src  func() []string
		want map[string]string
	}{
		"a folder":          {nil, func() []string { return []string{folderOf(t, files)} }, map[string]string{"a.safetensors": "a", "sub/b.safetensors": "b", "c.bin": "c"}},
		"a file URL":        {nil, func() []string { return []string{"file://" + folderOf(t, files) + "/c.bin"} }, map[string]string{"c.bin": "c"}},
		"an archive":        {nil, func() []string { return []string{folderOf(t, map[string]string{"m.tgz": string(tgz)})} }, map[string]string{"1/model.onnx": "onnx"}},
		"an archive by web": {[]string{host + "-headers", `{"X-Token":"t"}`}, func() []string { return []string{server.URL + "/m.tar.gz?a=b"} }, map[string]string{"1/model.onnx": "onnx"}},
		"allowed":           {[]string{"STORAGE_ALLOW_PATTERNS", `["*.safetensors"]`}, func() []string { return []string{folderOf(t, files)} }, map[string]string{"a.safetensors": "a", "sub/b.safetensors": "b"}},
		"allowed, ignored":  {[]string{"STORAGE_ALLOW_PATTERNS", "*.safetensors,*.bin", "STORAGE_IGNORE_PATTERNS", "sub/*"}, func() []string { return []string{folderOf(t, files)} }, map[string]string{"a.safetensors": "a", "c.bin": "c"}},
		"there already":     {nil, func() []string { return []string{"/mnt/models/x"} }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, tt.env...)
			if err := w.run(tt.src()...); err != nil {
				t.Fatal(err)
			}
			if tt.want != nil {
				holds(t, w.dest, tt.want)
			}
		})
	}
}

// TestSeveralSources: a folder each, or one together.
func TestSeveralSources(t *testing.T) {
	w := newWorld(t)
	key := seal.NewKey()
	w.env["CONFIDENTIAL_RESOURCE_ID"], w.keys[keyPath] = keyID, string(key)
	base, _ := sealedOf(t, key, caikit)
	adapter := folderOf(t, map[string]string{"adapter/w": "lora"})
	one, two := filepath.Join(w.dest, "one"), filepath.Join(w.dest, "two")
	if err := w.run(base, one, adapter, two, base, two); err != nil {
		t.Fatal(err)
	}
	holds(t, one, caikit)
	both := maps.Clone(caikit)
	both["adapter/w"] = "lora"
	holds(t, two, both)
}

// TestFolderThatWasFinished is not fetched again when a later one fails.
func TestFolderThatWasFinished(t *testing.T) {
	w := newWorld(t)
	key := seal.NewKey()
	w.env["CONFIDENTIAL_RESOURCE_ID"], w.keys[keyPath] = keyID, string(key)
	base, _ := sealedOf(t, key, caikit)
	small := map[string]string{"w": "weights"}
	last, _ := sealedOf(t, key, small)
	object := filepath.Join(last, "w")
	good, err := os.ReadFile(object)
	if err == nil {
		err = os.WriteFile(object, bytes.Repeat([]byte("x"), len(good)), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	one, two := filepath.Join(w.dest, "one"), filepath.Join(w.dest, "two")
	if err := w.run(base, one, last, two); !errors.Is(err, sealed.ErrIntegrity) {
		t.Fatal(err)
	}
	if err := os.WriteFile(object, good, 0o600); err != nil {
		t.Fatal(err)
	}
	p := NewProgress()
	if err := Run(t.Context(), []string{base, one, last, two}, Config{Host: w.host(), Log: slog.New(slog.DiscardHandler), Progress: p}); err != nil {
		t.Fatal(err)
	}
	holds(t, one, caikit) // and no notes
	holds(t, two, small)
	var size int64
	for _, text := range caikit {
		size += int64(len(text))
	}
	if got := p.Status().Resumed; got != size {
		t.Errorf("%d bytes are from before, want the %d of the first folder", got, size)
	}
}
