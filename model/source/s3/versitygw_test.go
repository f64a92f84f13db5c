package s3

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/s3/s3test"
	"github.com/sealpod/sealpod/model/source/settings"
	"github.com/sealpod/sealpod/podvm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// environ is a machine with only these variables.
func environ(t testing.TB, vars map[string]string) *settings.Env {
	t.Helper()
	env, err := settings.Load(podvm.Host{LookupEnv: func(name string) (string, bool) {
		v, ok := vars[name]
		return v, ok
	}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	env.Backoff = time.Millisecond
	return env
}

// at are the variables that lead to a server, and others.
func at(url string, more ...string) map[string]string {
	vars := map[string]string{
		"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": s3test.Region,
		"AWS_ACCESS_KEY_ID": s3test.AccessKey, "AWS_SECRET_ACCESS_KEY": s3test.SecretKey,
	}
	for i := 0; i < len(more); i += 2 {
		vars[more[i]] = more[i+1]
	}
	return vars
}

func open(t testing.TB, address string, vars map[string]string) *Source {
	t.Helper()
	s, err := New(address, environ(t, vars))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func names(objects []source.Object) (out []string) {
	for _, o := range objects {
		out = append(out, o.Path)
	}
	return out
}

func read(s source.Source, t testing.TB, o source.Object, off, n int64) ([]byte, error) {
	r, err := s.Open(t.Context(), o, off, n)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func TestBucketOfARealServer(t *testing.T) {
	gw := s3test.Start(t)
	gw.Bucket(t, "models")
	for key, body := range map[string]string{
		"llm/config.yml": "c", "llm/artifacts/a.safetensors": strings.Repeat("weights ", 1000), "llm/empty": "", "llm/sub/": "",
		"llm-other/x": "sibling", "llmx": "sibling", "other/y": "elsewhere", "dir/model.onnx": "onnx",
		"odd/sp ace+plus%25&=ü~*'()!$@:,;?#.bin": "odd",
	} {
		gw.Put(t, "models", key, []byte(body))
	}
	for address, want := range map[string][]string{
		"s3://models/llm":            {"artifacts/a.safetensors", "config.yml"},
		"s3://models/llm/":           {"artifacts/a.safetensors", "config.yml"},
		"s3://models//llm":           {"artifacts/a.safetensors", "config.yml"},
		"s3://models/dir/model.onnx": {"model.onnx"},
		"s3://models/llmx":           {"llmx"},
		"s3://models/odd":            {"sp ace+plus%25&=ü~*'()!$@:,;?#.bin"},
		"s3://models": {
			"dir/model.onnx", "llm-other/x", "llm/artifacts/a.safetensors", "llm/config.yml", "llmx", "odd/sp ace+plus%25&=ü~*'()!$@:,;?#.bin", "other/y",
		},
	} {
		s := open(t, address, at(gw.URL))
		got, err := s.List(t.Context())
		if err != nil || !slices.Equal(names(got), want) {
			t.Errorf("%s: %q, %v", address, names(got), err)
			continue
		}
		for _, o := range got {
			b, err := read(s, t, o, 0, -1)
			if err != nil || int64(len(b)) != o.Size || o.Version == "" {
				t.Errorf("%s %s: %d of %d bytes of version %s, %v", address, o.Path, len(b), o.Size, o.Version, err)
			}
		}
	}

	s := open(t, "s3://models/llm", at(gw.URL))
	weights := source.Object{Path: "artifacts/a.safetensors", Size: 8000}
	for _, r := range [][2]int64{{0, 1}, {7999, 1}, {3, 4000}, {5000, -1}, {0, 8000}, {0, 9000}, {7990, 100}, {10, 0}} {
		end := int64(8000)
		if r[1] >= 0 {
			end = min(end, r[0]+r[1])
		}
		if b, err := read(s, t, weights, r[0], r[1]); err != nil || string(b) != strings.Repeat("weights ", 1000)[r[0]:end] {
			t.Errorf("%v: %d bytes, %v", r, len(b), err)
		}
	}

	list, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	gw.Put(t, "models", "llm/config.yml", []byte("C"))
	if _, err := read(s, t, list[1], 0, -1); !errors.Is(err, source.ErrChanged) || podvm.Cause(err) == "" {
		t.Errorf("changed: %v", err)
	}
	if _, err := read(s, t, source.Object{Path: "none", Size: 5}, 0, -1); !errors.Is(err, source.ErrNotFound) {
		t.Errorf("absent: %v", err)
	}
	for name, tt := range map[string]struct {
		address string
		vars    map[string]string
		is      error
		cause   string
	}{
		"nothing there": {"s3://models/nope", at(gw.URL), source.ErrNotFound, "no objects"},
		"empty object":  {"s3://models/llm/empty", at(gw.URL), source.ErrNotFound, "no objects"},
		"no bucket":     {"s3://nope/x", at(gw.URL), source.ErrNotFound, "NoSuchBucket"},
		"wrong key":     {"s3://models/llm", at(gw.URL, "AWS_SECRET_ACCESS_KEY", "wrong"), source.ErrRefused, "SignatureDoesNotMatch"},
		"unknown key":   {"s3://models/llm", at(gw.URL, "AWS_ACCESS_KEY_ID", "nobody"), source.ErrRefused, "access key"},
		"anonymous":     {"s3://models/llm", at(gw.URL, "awsAnonymousCredential", "True"), source.ErrRefused, "AccessDenied"},
	} {
		_, err := open(t, tt.address, tt.vars).List(t.Context())
		if !errors.Is(err, tt.is) || !strings.Contains(podvm.Cause(err), tt.cause) {
			t.Errorf("%s: %v (%s)", name, err, podvm.Cause(err))
		}
		for _, secret := range []string{s3test.SecretKey, "wrong"} {
			if err != nil && strings.Contains(err.Error(), secret) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	// The region is learned from the refusal.
	if _, err := open(t, "s3://models/llm", at(gw.URL, "AWS_DEFAULT_REGION", "us-east-1")).List(t.Context()); err != nil {
		t.Errorf("another region: %v", err)
	}
}

func TestListingOfSeveralPages(t *testing.T) {
	gw := s3test.Start(t)
	gw.Bucket(t, "many")
	var want []string
	for i := range 2100 {
		name := fmt.Sprintf("%04d.bin", i)
		want = append(want, name)
		gw.Put(t, "many", "m/"+name, []byte{1})
	}
	got, err := open(t, "s3://many/m", at(gw.URL)).List(t.Context())
	if err != nil || !slices.Equal(names(got), want) {
		t.Errorf("%d objects, %v", len(got), err)
	}
}

func TestVirtualHostsOfARealServer(t *testing.T) {
	gw := s3test.Start(t, "--virtual-domain", "s3.test")
	gw.Bucket(t, "models")
	gw.Put(t, "models", "a/b", []byte("x"))
	env := environ(t, at("http://s3.test", "S3_USER_VIRTUAL_BUCKET", "true"))
	env.Dial = (&lead{to: gw.Addr}).dial
	s, err := New("s3://models/a", env)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got, err := s.List(t.Context())
	if err != nil || !slices.Equal(names(got), []string{"b"}) {
		t.Fatalf("%v, %v", got, err)
	}
	if b, err := read(s, t, got[0], 0, -1); err != nil || string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestStorageSecretLeadsToTheServer(t *testing.T) {
	gw := s3test.Start(t)
	gw.Bucket(t, "models")
	gw.Put(t, "models", "m/f", []byte("x"))
	vars := map[string]string{
		"AWS_ENDPOINT_URL": "http://127.0.0.1:1",
		"STORAGE_CONFIG":   fmt.Sprintf(`{"type":"s3","endpoint_url":%q,"access_key_id":%q,"secret_access_key":"old","region":%q,"other":[1]}`, gw.URL, s3test.AccessKey, s3test.Region),
	}
	if _, err := open(t, "s3://models/m", vars).List(t.Context()); !errors.Is(err, source.ErrRefused) {
		t.Errorf("old secret: %v", err)
	}
	vars["STORAGE_OVERRIDE_CONFIG"] = fmt.Sprintf(`{"secret_access_key":%q}`, s3test.SecretKey)
	if got, err := open(t, "s3://models/m", maps.Clone(vars)).List(t.Context()); err != nil || len(got) != 1 {
		t.Errorf("%v, %v", got, err)
	}
}

func TestConnectionsAreUsedAgain(t *testing.T) {
	gw := s3test.Start(t)
	gw.Bucket(t, "models")
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	gw.Put(t, "models", "m/f", body)
	env := environ(t, at(gw.URL))
	way := &lead{to: gw.Addr}
	env.Dial = way.dial
	s, err := New("s3://models/m", env)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	objects, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for off := int64(0); off < int64(len(body)); off += 100_000 {
		b, err := read(s, t, objects[0], off, 100_000)
		if err != nil || !bytes.Equal(b, body[off:min(off+100_000, int64(len(body)))]) {
			t.Fatalf("at %d: %d bytes, %v", off, len(b), err)
		}
	}
	if n := way.dialled.Load(); n != 1 {
		t.Errorf("%d connections for requests one after the other", n)
	}
}
