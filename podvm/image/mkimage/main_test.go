package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/sealpod/sealpod/podvm/debian"
	"github.com/sealpod/sealpod/podvm/image"
	"github.com/sealpod/sealpod/podvm/testenv"
)

func TestWrongArguments(t *testing.T) {
	list := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(list, []byte("no list\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		says string
	}{
		"a word":              {[]string{"podvm"}, `unexpected argument "podvm"`},
		"an unknown flag":     {[]string{"--nothing"}, "unknown flag"},
		"no such profile":     {[]string{"--profile", "developer", "--init", "x"}, `no profile "developer"`},
		"no such list":        {[]string{"--packages", "/nothing"}, "no such file"},
		"a list that is none": {[]string{"--packages", list}, "not a list of packages: line 1"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			err := run(t.Context(), c.args, &out)
			if errors.Is(err, image.ErrTools) {
				testenv.Missing(t, err.Error())
			}
			if err == nil || !strings.Contains(err.Error(), c.says) || out.Len() > 0 {
				t.Errorf("%v\n%s", err, &out)
			}
		})
	}
	if err := run(t.Context(), []string{"--help"}, &bytes.Buffer{}); !errors.Is(err, pflag.ErrHelp) {
		t.Errorf("--help: %v", err)
	}
}

func TestReport(t *testing.T) {
	o := image.Options{Out: filepath.Join(t.TempDir(), "podvm")}
	r := &image.Result{
		Raw: o.Out + ".raw", UKI: o.Out + ".efi", SHA256: "abc", RootHash: "def",
		Packages: []debian.Package{{File: "a_1_all.deb", SHA256: strings.Repeat("0a", 32)}}, Measurements: &image.Measurements{PCR11: "11"},
	}
	var out bytes.Buffer
	if err := report(&out, o, r, time.Second); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"sha256            abc", "root hash         def", `"pcr11": "11"`, "sealctl kbs set-reference-values " + o.Out} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("without %q:\n%s", want, &out)
		}
	}
	raw, err := os.ReadFile(o.Out + ".reference-values.json")
	if err != nil {
		t.Fatal(err)
	}
	var values map[string][]string
	if err := json.Unmarshal(raw, &values); err != nil || len(values["tpm_pcr11"]) != 1 || values["tpm_pcr11"][0] != "11" {
		t.Errorf("%s, %v", raw, err)
	}
	packages, err := os.ReadFile(o.Out + ".packages")
	if err != nil {
		t.Fatal(err)
	}
	if list, err := debian.ParsePackages(packages); err != nil || len(list) != 1 || list[0] != r.Packages[0] {
		t.Errorf("%v, %v", list, err)
	}
}
