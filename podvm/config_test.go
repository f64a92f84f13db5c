package podvm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type sample struct {
	Socket string `config:"socket"`
	Log    struct {
		Level string `config:"level"`
	} `config:"log"`
	Event struct {
		On  bool `config:"on"`
		PCR int  `config:"pcr"`
	} `config:"event"`
	Items []struct {
		Path string `config:"path"`
	} `config:"items"`
}

func TestLoadConfig(t *testing.T) {
	tests := map[string]struct {
		file, text string
		want       sample
		unknown    []UnknownKey
		err        error
	}{
		"toml with defaults kept": {
			file: "a.toml", text: "[log]\nlevel='debug'\n",
			want: func() (s sample) { s.Socket = "default"; s.Log.Level = "debug"; return }(),
		},
		"toml coercion": {
			file: "a.toml", text: "socket=7\n[event]\non='yes'\npcr='23'\n",
			want: func() (s sample) { s.Socket = "7"; s.Event.On = true; s.Event.PCR = 23; return }(),
		},
		"toml unknown keys carry their line": {
			file: "a.toml", text: "socket='x'\n\nextra=1\n[log]\nlevle='info'\n[[items]]\npath='p'\nmode=3\n",
			want: func() (s sample) {
				s.Socket = "x"
				s.Items = append(s.Items, struct {
					Path string `config:"path"`
				}{"p"})
				return
			}(),
			unknown: []UnknownKey{{"extra", 3}, {"log.levle", 5}, {"items[0].mode", 8}},
		},
		"json": {
			file: "a.json", text: "{\n \"event\": {\"on\": true, \"pcr\": 5},\n \"log\": {\n  \"levle\": 1}}",
			want:    func() (s sample) { s.Socket = "default"; s.Event.On = true; s.Event.PCR = 5; return }(),
			unknown: []UnknownKey{{"log.levle", 4}},
		},
		"empty file is a valid config": {file: "a.toml", want: sample{Socket: "default"}},
		"names are case sensitive": {
			file: "a.toml", text: "Socket='x'", want: sample{Socket: "default"},
			unknown: []UnknownKey{{"Socket", 1}},
		},
		"bad toml":         {file: "a.toml", text: "socket=", err: ErrConfig},
		"bad json":         {file: "a.json", text: "{", err: ErrConfig},
		"trailing json":    {file: "a.json", text: "{} {}", err: ErrConfig},
		"wrong type":       {file: "a.toml", text: "log=3", err: ErrConfig},
		"not a number":     {file: "a.toml", text: "[event]\npcr='x'", err: ErrConfig},
		"other extension":  {file: "a.conf", text: "socket='x'", err: ErrConfig},
		"oversized":        {file: "a.toml", text: "#" + strings.Repeat("x", maxConfig), err: ErrTooLarge},
		"not utf-8 at all": {file: "a.toml", text: "socket='\xff'", err: ErrConfig},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), tt.file)
			if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			got := sample{Socket: "default"}
			unknown, err := LoadConfig(path, &got)
			if !errors.Is(err, tt.err) {
				t.Fatalf("error = %v, want %v", err, tt.err)
			}
			if tt.err != nil {
				return
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff(tt.unknown, unknown); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestLoadConfigTriesExtensions(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "aa.toml"), []byte("socket='x'"), 0o600); err != nil {
		t.Fatal(err)
	}
	var got sample
	if _, err := LoadConfig(filepath.Join(dir, "aa"), &got); err != nil || got.Socket != "x" {
		t.Fatalf("got %q, %v", got.Socket, err)
	}
	if _, err := LoadConfig(filepath.Join(dir, "bb"), &got); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("missing file: %v", err)
	}
}

func FuzzDecodeConfig(f *testing.F) {
	f.Add([]byte("socket='x'\n[log]\nlevel=1"), true)
	f.Add([]byte(`{"log":{"level":"x"},"items":[{"path":"p","z":[1,{"q":2}]}]}`), false)
	f.Fuzz(func(t *testing.T, raw []byte, asTOML bool) {
		format := "json"
		if asTOML {
			format = "toml"
		}
		var got sample
		unknown, err := DecodeConfig(raw, format, &got)
		if err != nil && unknown != nil {
			t.Fatal("warnings beside an error")
		}
	})
}

// Lines are counted on from key to key.
func TestLinesOfManyUnknownKeys(t *testing.T) {
	const n = 2_000
	var inTOML, inJSON strings.Builder
	inJSON.WriteString("{")
	for i := range n {
		fmt.Fprintf(&inTOML, "key_%d = 1\n", i)
		fmt.Fprintf(&inJSON, "\n\"key_%d\": 1,", i)
	}
	inJSON.WriteString("\n\"last\": 1}")
	for format, text := range map[string]string{"toml": inTOML.String(), "json": inJSON.String()} {
		got, err := DecodeConfig([]byte(text), format, &struct{}{})
		if err != nil || len(got) < n {
			t.Fatalf("%s: %d keys, %v", format, len(got), err)
		}
		first := 1
		if format == "json" {
			first = 2
		}
		for i := range n {
			if want := fmt.Sprintf("key_%d", i); got[i].Line != first+i || got[i].Key != want {
				t.Fatalf("%s: %v, want %s in line %d", format, got[i], want, first+i)
			}
		}
	}
}
