package settings

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/podvm"
)

func host(vars map[string]string) podvm.Host {
	return podvm.Host{LookupEnv: func(name string) (string, bool) {
		v, ok := vars[name]
		return v, ok
	}}
}

func load(t *testing.T, vars map[string]string) *Env {
	t.Helper()
	e, err := Load(host(vars), nil)
	if err != nil {
		t.Fatal(err)
	}
	if e.Log != slog.Default() {
		t.Error("no log")
	}
	return e
}

func TestStorageSecretIsLaidOverTheEnvironment(t *testing.T) {
	for name, tt := range map[string]struct{ vars, want map[string]string }{
		"none": {map[string]string{"AWS_ENDPOINT_URL": "e"}, map[string]string{"AWS_ENDPOINT_URL": "e"}},
		"all": {
			map[string]string{
				"AWS_ENDPOINT_URL": "old", "HF_TOKEN": "kept",
				"STORAGE_CONFIG": `{"type":"s3","endpoint_url":"e","access_key_id":"a","secret_access_key":"s","region":"r","ca_bundle":"c","verify_ssl":"0","anonymous":"True","bucket":"ignored"}`,
			},
			map[string]string{
				"AWS_ENDPOINT_URL": "e", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "r",
				"AWS_CA_BUNDLE": "c", "S3_VERIFY_SSL": "0", "awsAnonymousCredential": "True", "HF_TOKEN": "kept",
			},
		},
		"overridden": {
			map[string]string{"STORAGE_CONFIG": `{"type":"s3","endpoint_url":"e","region":"r"}`, "STORAGE_OVERRIDE_CONFIG": `{"region":"","verify_ssl":false}`},
			map[string]string{"AWS_ENDPOINT_URL": "e", "AWS_DEFAULT_REGION": "", "S3_VERIFY_SSL": "false"},
		},
		"type by the override": {
			map[string]string{"STORAGE_CONFIG": `{"region":"r"}`, "STORAGE_OVERRIDE_CONFIG": `{"type":"s3"}`, "AWS_DEFAULT_REGION": "old"},
			map[string]string{"AWS_DEFAULT_REGION": "r"},
		},
		"another type": {
			map[string]string{"STORAGE_CONFIG": `{"type":"hdfs","region":"r"}`, "AWS_DEFAULT_REGION": "old"},
			map[string]string{"AWS_DEFAULT_REGION": "old"},
		},
	} {
		e := load(t, tt.vars)
		for k, want := range tt.want {
			if got := e.Host.Getenv(k); got != want {
				t.Errorf("%s: %s is %q, want %q", name, k, got, want)
			}
		}
	}
	for _, bad := range []string{`[]`, `{`, `{} x`, `"x"`, `{"type":"s3","secret_access_key":{"hunter2":1}}`, `{"type":"s3","region":1}`, strings.Repeat(" ", maxConfig) + `{}`} {
		if _, err := Load(host(map[string]string{"STORAGE_CONFIG": bad}), nil); !errors.Is(err, source.ErrUsage) || podvm.Cause(err) == "" || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%.50s: %v", bad, err)
		}
	}
}

func TestValues(t *testing.T) {
	e := load(t, map[string]string{"yes": "True", "one": "1", "n": "7", "big": "101", "low": "-1", "text": "hunter2", "s": "2.5", "zero": "0", "nan": "NaN", "inf": "Inf"})
	if !e.True("yes") || e.True("one") || e.True("none") {
		t.Error("what is true")
	}
	for name, want := range map[string]int{"n": 7, "one": 1, "none": 4, "big": 0, "low": 0, "text": 0, "s": 0} {
		got, err := e.Number(name, 4, 1, 100)
		if got != want || (err != nil) != (want == 0) || err != nil && (!errors.Is(err, source.ErrUsage) || strings.Contains(err.Error(), "hunter2")) {
			t.Errorf("%s: %d, %v", name, got, err)
		}
	}
	for name, want := range map[string]time.Duration{"s": 2500 * time.Millisecond, "n": 7 * time.Second, "none": time.Minute, "zero": 0, "nan": 0, "inf": 0, "text": 0, "low": 0} {
		got, err := e.Seconds(name, time.Minute)
		if got != want || (err != nil) != (want == 0) {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
}

func TestCABundles(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"cabundle.crt": "cluster", "own.crt": "own"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	own := filepath.Join(dir, "own.crt")
	for name, tt := range map[string]struct {
		vars  map[string]string
		extra string
		want  string
	}{
		"none":          {map[string]string{"CA_BUNDLE_VOLUME_MOUNT_POINT": dir}, "", ""},
		"cluster":       {map[string]string{"CA_BUNDLE_CONFIGMAP_NAME": "c", "CA_BUNDLE_VOLUME_MOUNT_POINT": dir}, "AWS_CA_BUNDLE", "cluster\n"},
		"own":           {map[string]string{"AWS_CA_BUNDLE": own}, "AWS_CA_BUNDLE", "own\n"},
		"both":          {map[string]string{"CA_BUNDLE_CONFIGMAP_NAME": "c", "CA_BUNDLE_VOLUME_MOUNT_POINT": dir, "AWS_CA_BUNDLE": own}, "AWS_CA_BUNDLE", "cluster\nown\n"},
		"another's own": {map[string]string{"AWS_CA_BUNDLE": own}, "", ""},
	} {
		if got, err := load(t, tt.vars).CABundle(tt.extra); err != nil || string(got) != tt.want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	h := host(map[string]string{"CA_BUNDLE_CONFIGMAP_NAME": "c"})
	h.Root = t.TempDir()
	e := &Env{Host: h}
	if _, err := e.CABundle(""); !errors.Is(err, source.ErrUsage) || podvm.Cause(err) != "CA bundle /etc/ssl/custom-certs/cabundle.crt cannot be read" {
		t.Error(err)
	}
}

func FuzzStorageConfig(f *testing.F) {
	f.Add(`{"type":"s3","region":"r","verify_ssl":false}`, `{"region":null}`)
	f.Add(`[]`, ``)
	f.Fuzz(func(t *testing.T, a, b string) {
		e, err := Load(host(map[string]string{"STORAGE_CONFIG": a, "STORAGE_OVERRIDE_CONFIG": b}), slog.New(slog.DiscardHandler))
		if (e == nil) == (err == nil) || err != nil && !errors.Is(err, source.ErrUsage) {
			t.Errorf("%v, %v", e, err)
		}
	})
}
