package volume

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/sealpod/sealpod/podvm"
)

func TestLoadRules(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want *Rules
		err  error
	}{
		"no table":            {"[kbc]\nname = 'cc_kbc'\n", nil, nil},
		"empty":               {"", nil, nil},
		"nothing":             {"[cloud_volumes]\n", &Rules{}, nil},
		"no keys":             {"[cloud_volumes]\nkeys = []\n", &Rules{Keys: []string{}}, nil},
		"an unknown key":      {"[cloud_volumes]\nkey = 'kbs:///a/b/c'\n", &Rules{}, nil},
		"keys and plain ones": {"[cloud_volumes]\nplain = true\nkeys = ['kbs:///a/b/c', 'kbs:///a/b/d']\n", &Rules{true, []string{"kbs:///a/b/c", "kbs:///a/b/d"}}, nil},
		"no URI":              {"[cloud_volumes]\nkeys = ['a/b/c']\n", nil, podvm.ErrConfig},
		"half a URI":          {"[cloud_volumes]\nkeys = ['kbs:///a/b']\n", nil, podvm.ErrConfig},
		"an empty URI":        {"[cloud_volumes]\nkeys = ['kbs:///']\n", nil, podvm.ErrConfig},
		"no table of that":    {"cloud_volumes = 1\n", nil, podvm.ErrConfig},
		"a list of tables":    {"[[cloud_volumes]]\nplain = true\n", nil, podvm.ErrConfig},
		"malformed":           {"[cloud_volumes\n", nil, podvm.ErrConfig},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "cdh.toml")
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if got, err := LoadRules(path); !reflect.DeepEqual(got, c.want) || !errors.Is(err, c.err) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
	if got, err := LoadRules(filepath.Join(t.TempDir(), "cdh.toml")); got != nil || err != nil {
		t.Errorf("no file: %v, %v", got, err)
	}
	if _, err := LoadRules(t.TempDir()); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory: %v", err)
	}
}

// What the owner does not want is refused before anything is done for it: the disk
// that it names is not even looked for.
func TestRules(t *testing.T) {
	key := Rules{Keys: []string{"kbs:///default/volume/1"}}
	for name, c := range map[string]struct {
		rules            *Rules
		plain, encrypted bool
	}{
		"none":            {nil, true, true},
		"nothing":         {&Rules{}, false, false},
		"plain ones only": {&Rules{Plain: true}, true, false},
		"one key":         {&key, false, true},
		"another key":     {&Rules{Keys: []string{"kbs:///default/volume/10", "default/volume/1"}}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			mgr := New(Config{Host: m.host(), Rules: func() (*Rules, error) { return c.rules, nil }, Log: slog.New(slog.DiscardHandler)})
			for v, allowed := range map[Volume]bool{plain("a", 0): c.plain, encrypted("b", 0): c.encrypted} {
				_, err := mgr.Attach(t.Context(), v)
				if want := map[bool]error{true: ErrDevice, false: ErrRefused}[allowed]; !errors.Is(err, want) || podvm.Cause(err) == "" {
					t.Errorf("%+v: %v", v, err)
				}
			}
			if _, err := os.Stat(m.path(Base)); c.rules != nil && !c.plain && !c.encrypted && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("something was made: %v", err)
			}
		})
	}
}

// Rules that nobody can read forbid everything, and those that come late count.
func TestRulesOfNow(t *testing.T) {
	m := newMachine(t)
	path := m.path("run/cdh.toml")
	mgr := New(Config{Host: m.host(), Rules: func() (*Rules, error) { return LoadRules(path) }, Log: slog.New(slog.DiscardHandler)})
	for _, c := range []struct {
		text string
		want error
	}{
		{"", ErrDevice}, {"[cloud_volumes]\n", ErrRefused}, {"[cloud_volumes", podvm.ErrConfig},
	} {
		m.write(c.text, "run/cdh.toml")
		if _, err := mgr.Attach(t.Context(), plain("a", 0)); !errors.Is(err, c.want) || podvm.Cause(err) == "" {
			t.Errorf("%q: %v", c.text, err)
		}
	}
}
