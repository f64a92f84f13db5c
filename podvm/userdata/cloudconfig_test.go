package userdata

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// hostsForm is a document in the form the host's template gives it.
const hostsForm = `#cloud-config

write_files:
  - path: /run/peerpod/apf.json
    content: |
      {
        "pod-name": "app"
      }
  - path: /run/peerpod/scratch-space.marker
  - path: /run/peerpod/auth.json
    content: |
      {}

`

func TestParseCloudConfig(t *testing.T) {
	for name, tt := range map[string]struct {
		in   string
		want []writeFile
	}{
		"as the host writes it": {hostsForm, []writeFile{
			{"/run/peerpod/apf.json", "{\n  \"pod-name\": \"app\"\n}\n", 4},
			{"/run/peerpod/scratch-space.marker", "", 9},
			{"/run/peerpod/auth.json", "{}\n", 10},
		}},
		"no files":             {"write_files: []", []writeFile{}},
		"JSON is YAML":         {`{"write_files":[{"path":"/a","content":"b\nc"}]}`, []writeFile{{"/a", "b\nc", 1}}},
		"numbers are text":     {"write_files: [{path: 7, content: 1.50}]", []writeFile{{"7", "1.50", 1}}},
		"truth and time, text": {"write_files: [{path: true, content: 2026-01-02}]", []writeFile{{"true", "2026-01-02", 1}}},
		"null is empty":        {"write_files: [{path: /a, content: null}]", []writeFile{{"/a", "", 1}}},
		"windows line ends":    {"write_files:\r\n  - path: /a\r\n    content: b\r\n", []writeFile{{"/a", "b", 2}}},
	} {
		if got, err := parseCloudConfig([]byte(tt.in)); err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestParseCloudConfigRefuses(t *testing.T) {
	for name, tt := range map[string]struct{ in, says string }{
		"nothing":                  {"", "it is empty"},
		"white space":              {" \n\n", "it is empty"},
		"only the comment":         {"#cloud-config\n", "it is empty"},
		"not YAML":                 {"write_files: [", "not YAML"},
		"HTML of a portal":         {"<html><body>sign in</body></html>", "not a mapping"},
		"a shell script":           {"#!/bin/sh\necho hunter2\n", "not a mapping"},
		"binary":                   {"\x00\x01\xff", "not YAML"},
		"null":                     {"null", "not a mapping"},
		"other key":                {"write_files: []\nruncmd: [id]\n", `line 2: the key "runcmd" is not one of ["write_files"]`},
		"no write_files":           {"{}", "no write_files"},
		"write_files is null":      {"write_files:\n", "line 1: write_files is not a list"},
		"entry is text":            {"write_files:\n- /a\n", "line 2: not a mapping"},
		"extra key of an entry":    {"write_files:\n- path: /a\n  permissions: '0644'\n", `line 3: the key "permissions" is not one of ["path" "content"]`},
		"encoding":                 {"write_files:\n- path: /a\n  encoding: b64\n  content: eA==\n", `line 3: the key "encoding"`},
		"key twice":                {"write_files: []\nwrite_files: []\n", `line 2: the key "write_files" comes twice`},
		"path twice":               {"write_files:\n- path: /a\n  path: /b\n", `line 3: the key "path" comes twice`},
		"no path":                  {"write_files:\n- content: a\n", "line 2: an entry without a path"},
		"path is a list":           {"write_files:\n- path: [/a]\n", "line 2: neither text"},
		"content is a mapping":     {"write_files:\n- path: /a\n  content: {a: b}\n", "line 3: neither text"},
		"content is binary":        {"write_files:\n- path: /a\n  content: !!binary eA==\n", "line 3: a value of type"},
		"own tag":                  {"write_files:\n- path: /a\n  content: !exec id\n", "line 3: a value of type"},
		"alias":                    {"write_files:\n- path: &p /a\n  content: *p\n", "line 3: neither text"},
		"merged mapping":           {"write_files:\n- &e {path: /a}\n- <<: *e\n", `line 3: the key "<<"`},
		"key that is a list":       {"? [write_files]\n: []\n", "line 1: the key"},
		"two documents":            {"write_files: []\n---\nwrite_files: []\n", "more than one"},
		"a broken second document": {"write_files: []\n---\n[", "more than one"},
	} {
		got, err := parseCloudConfig([]byte(tt.in))
		if !errors.Is(err, ErrCloudConfig) || got != nil || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// A document whose aliases stand for 10^9 words, and one that is nested as deep
// as its size allows, cost no more than any other.
func TestParseCloudConfigStopsYAMLBombs(t *testing.T) {
	var bomb strings.Builder
	bomb.WriteString("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n")
	for i := 1; i < 9; i++ {
		fmt.Fprintf(&bomb, "a%d: &a%d [%s*a%d]\n", i, i, strings.Repeat(fmt.Sprintf("*a%d,", i-1), 9), i-1)
	}
	bomb.WriteString("write_files: *a8\n")
	for name, in := range map[string]string{
		"aliases": bomb.String(),
		"lists":   "write_files: " + strings.Repeat("[", maxUserData-20),
		"indents": "write_files:\n" + strings.Repeat("- ", maxUserData/2-10),
	} {
		if got, err := parseCloudConfig([]byte(in)); !errors.Is(err, ErrCloudConfig) || got != nil {
			t.Errorf("%s: %d files, %v", name, len(got), err)
		}
	}
}

func FuzzParseCloudConfig(f *testing.F) {
	f.Add([]byte(hostsForm))
	f.Add([]byte(`{"write_files":[{"path":"/a","content":"b\nc"}]}`))
	f.Add([]byte("write_files:\n- &e {path: /a}\n- <<: *e\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		files, err := parseCloudConfig(raw)
		if err != nil {
			if !errors.Is(err, ErrCloudConfig) {
				t.Fatal(err)
			}
			return
		}
		size := 0
		for _, w := range files {
			size += len(w.path) + len(w.content)
			if w.path == "" || w.line < 1 {
				t.Fatalf("%q gave %+v", raw, w)
			}
		}
		// An escape such as \L makes one character of 3 bytes out of 2.
		if size > 2*len(raw) {
			t.Fatalf("%d bytes grew to %d", len(raw), size)
		}
	})
}
