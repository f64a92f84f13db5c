package volume

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/sealpod/sealpod/api/datahub"
	"github.com/sealpod/sealpod/podvm"
)

const good = `{"volume_type":"block-device","options":{"devicePath":"/dev/vdb","key":"kbs:///a/b/c"},"flags":["ro","x=y"],"mount_point":"/mnt","more":null}`

func TestParse(t *testing.T) {
	want := &datahub.SecureMountRequest{VolumeType: "block-device", MountPoint: "/mnt", Flags: []string{"ro", "x=y"},
		Options: map[string]string{"devicePath": "/dev/vdb", "key": "kbs:///a/b/c"}}
	got, err := Parse([]byte(good))
	if d := cmp.Diff(want, got, protocmp.Transform()); err != nil || d != "" {
		t.Fatalf("%v %s", err, d)
	}
	for in, says := range map[string]string{
		"":                  "not a JSON object",
		"[]":                "not a JSON object",
		good + " {}":        "data after",
		good[:len(good)-1]:  "cut short",
		`{"volume_type":1}`: "not a string",
		strings.Replace(good, `"volume_type"`, `"Volume_type"`, 1):                         `"volume_type" is missing`,
		strings.Replace(good, `"mount_point"`, `"mountPoint"`, 1):                          `"mount_point" is missing`,
		strings.Replace(good, `"flags":["ro","x=y"],`, "", 1):                              `"flags" is missing`,
		strings.Replace(good, `["ro","x=y"]`, "null", 1):                                   "not an array",
		strings.Replace(good, `["ro","x=y"]`, `"ro"`, 1):                                   "not an array",
		strings.Replace(good, `"ro"`, "1", 1):                                              "not a string",
		strings.Replace(good, `"/dev/vdb"`, "true", 1):                                     `"devicePath": not a string`,
		strings.Replace(good, `"key"`, `"devicePath"`, 1):                                  "appears twice",
		strings.Replace(good, `"more":null`, `"flags":[]`, 1):                              "appears twice",
		strings.Replace(good, `{"devicePath":"/dev/vdb","key":"kbs:///a/b/c"}`, "null", 1): "not a JSON object",
	} {
		if _, err := Parse([]byte(in)); !errors.Is(err, ErrFile) || !strings.Contains(err.Error(), says) {
			t.Errorf("%.80s: %v, want %q", in, err, says)
		}
	}
}

func TestReadFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "v.json")
	if _, err := ReadFile(path); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	for text, want := range map[string]error{good: nil, "x": ErrFile, strings.Repeat(" ", MaxFile+1): podvm.ErrTooLarge} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadFile(path); !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(`{"volume_type":"","options":{},"flags":[],"mount_point":""}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := Parse(raw)
		if err != nil {
			return
		}
		var std map[string]any // not a struct: names match exactly here
		if err := json.Unmarshal(raw, &std); err != nil {
			t.Fatalf("took %q: %v", raw, err)
		}
		options, ok := std["options"].(map[string]any)
		flags, ok2 := std["flags"].([]any)
		if !ok || !ok2 || len(options) != len(got.Options) || len(flags) != len(got.Flags) || std["mount_point"] != got.MountPoint {
			t.Fatalf("took %q as %v", raw, got)
		}
	})
}
