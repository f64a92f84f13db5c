// Package sealpod_test holds the house rules that no compiler checks: which
// way imports go, what may be linked into the guest binary, and that every
// package and dependency says what it is for.
package sealpod_test

import (
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/sealpod/sealpod/"

type pkg struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string
	Standard   bool
	Module     *struct{ Path string }
}

func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-json=ImportPath,Dir,GoFiles,Imports,Standard,Module"}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var pkgs []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// rank orders the house from the ground up; a package may import its own folder
// and any of a lower rank. podvm is the leaf, but for what runs the machine.
var rank = map[string]int{
	"api": 0, "podvm": 0,
	"kbs":      1,
	"attester": 2, "imagepull": 2,
	"cdh": 3, "forwarder": 3, "model": 3, "podvm/userdata": 3,
	"podvm/doctor": 4, "relyingparty": 4, "teesim": 4, "imageseal": 4,
	"podvm/image": 5, "cmd": 5,
}

// folder returns the key of rank a package of this module belongs to.
func folder(path string) string {
	top, rest, _ := strings.Cut(path, "/")
	second, _, _ := strings.Cut(rest, "/")
	if _, ok := rank[top+"/"+second]; ok {
		return top + "/" + second
	}
	return top
}

func TestImportsGoOneWay(t *testing.T) {
	for _, p := range list(t, "./...") {
		from := folder(strings.TrimPrefix(p.ImportPath, module))
		if len(p.GoFiles) == 0 {
			continue // a folder of tests
		}
		if _, ok := rank[from]; !ok {
			t.Errorf("%s: top-level folder %q has no place in the house", p.ImportPath, from)
		}
		for _, imp := range p.Imports {
			rel, ours := strings.CutPrefix(imp, module)
			to := folder(rel)
			if !ours || to == from {
				continue
			}
			if rank[to] >= rank[from] {
				t.Errorf("%s imports %s: imports go from cmd down to api and podvm", p.ImportPath, imp)
			}
			if forTests(rel) && !forTests(p.ImportPath) {
				t.Errorf("%s imports %s, which is for tests", p.ImportPath, imp)
			}
		}
	}
}

// forTests reports whether a package is support for tests, which only tests and
// its like may import.
func forTests(path string) bool {
	return strings.HasSuffix(path, "podvm/testenv") || strings.HasSuffix(path, "test")
}

// ownerSide may never be part of the guest's trusted computing base.
var ownerSide = []string{
	module + "relyingparty", module + "teesim", module + "imageseal", module + "kbs/admin", module + "cdh/secret/seal", module + "model/sealed/seal",
	module + "podvm/image",
	"github.com/open-policy-agent/opa",
	"github.com/google/go-containerregistry/pkg/registry",
	"github.com/hanwen/go-fuse/v2",
}

func TestNothingOwnerSideIsLinkedIntoTheGuestBinary(t *testing.T) {
	for _, p := range list(t, "-deps", "./cmd/sealpod") {
		for _, banned := range ownerSide {
			if p.ImportPath == banned || strings.HasPrefix(p.ImportPath, banned+"/") {
				t.Errorf("cmd/sealpod links %s", p.ImportPath)
			}
		}
		// The root package reads an environment variable that can name
		// programs to run, before main starts.
		if p.ImportPath == "github.com/containers/ocicrypt" {
			t.Errorf("cmd/sealpod links %s", p.ImportPath)
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range list(t, "./...") {
		if strings.HasPrefix(p.ImportPath, module+"api/") || len(p.GoFiles) == 0 {
			continue // generated; the .proto file is the documentation
		}
		documented := slices.ContainsFunc(p.GoFiles, func(f string) bool {
			a, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.PackageClauseOnly|parser.ParseComments)
			return err == nil && a.Doc != nil && len(a.Doc.Text()) > 60
		})
		if !documented {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

func TestEveryModuleInTheGuestBinaryIsAccountedFor(t *testing.T) {
	doc, err := os.ReadFile("docs/DEPENDENCIES.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, p := range list(t, "-deps", "./cmd/sealpod") {
		if p.Standard || p.Module == nil || seen[p.Module.Path] || strings.HasPrefix(p.ImportPath, module) {
			continue
		}
		seen[p.Module.Path] = true
		if !strings.Contains(string(doc), "`"+p.Module.Path+"`") {
			t.Errorf("docs/DEPENDENCIES.md does not say why %s is linked into sealpod", p.Module.Path)
		}
	}
}
