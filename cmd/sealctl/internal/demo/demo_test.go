package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/sealpod/sealpod/imageseal"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
	"github.com/sealpod/sealpod/podvm/testenv"
	"github.com/sealpod/sealpod/teesim"
)

// tempFiles lists what demos would leave in the temporary directory.
func tempFiles(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(os.TempDir(), "sealpod-demo-*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// mounts lists what is mounted below the temporary directory: elsewhere others
// may mount meanwhile.
func mounts(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	var ours []string
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, " "+os.TempDir()+"/") {
			ours = append(ours, line)
		}
	}
	return strings.Join(ours, "")
}

// canRun ends the test where machines of that kind cannot be simulated.
func canRun(t *testing.T, kind string) {
	t.Helper()
	switch {
	case strings.HasPrefix(kind, "az-"):
		testenv.Tool(t, "swtpm")
	case kind != Sample:
		testenv.FUSE(t)
	}
}

func TestDemoDoesWhatItTellsAndLeavesNothing(t *testing.T) {
	binary := sealpod(t)
	for _, kind := range Kinds() {
		t.Run(kind, func(t *testing.T) {
			canRun(t, kind)
			t.Setenv("TMPDIR", shortTemp(t))
			mountsBefore := mounts(t)
			var text bytes.Buffer
			report, err := Run(t.Context(), Options{Sealpod: binary, TEE: kind, Text: &text})
			if err != nil {
				t.Fatalf("%v\n%s", err, text.String())
			}
			if !report.OK || report.Attestations != 1 {
				t.Errorf("ok %v, %d attestations\n%s", report.OK, report.Attestations, text.String())
			}
			steps := []string{"relying-party", "registry", "build", "encrypt", "sign", "daemons", "pull", "secret"}
			refusals := []string{"unsigned", "tampered", "denied-key"}
			if kind != Sample {
				steps = slices.Insert(steps, 5, "machine")
				refusals = append(refusals, "measurement", "init-data", "debug", "stale-tcb", "simulator")
			}
			var did, refused []string
			for _, s := range report.Steps {
				did = append(did, s.ID)
			}
			for _, r := range report.Refusals {
				refused = append(refused, r.ID)
				if !r.OK {
					t.Errorf("%s was refused for another reason: %s", r.ID, r.Reason)
				}
			}
			if d := cmp.Diff([][]string{steps, refusals}, [][]string{did, refused}); d != "" {
				t.Error(d)
			}
			if left := tempFiles(t); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			if d := cmp.Diff(mountsBefore, mounts(t)); d != "" {
				t.Errorf("mounts changed: %s", d)
			}
			if strings.Contains(text.String(), "\x1b[") {
				t.Error("colour without a terminal")
			}
		})
	}
}

// shortTemp is a directory for temporary files with a name short enough for
// sockets below it.
func shortTemp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "d-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// cancelAt is a writer that ends a context when the story reaches a word.
type cancelAt struct {
	word   string
	cancel context.CancelFunc
}

func (c cancelAt) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(c.word)) {
		c.cancel()
	}
	return len(p), nil
}

func TestInterruptedDemoLeavesNothing(t *testing.T) {
	binary := sealpod(t)
	for _, at := range []struct{ kind, word string }{
		{Sample, "Registry started"},
		{Sample, "Three daemons"},
		{Sample, "Attested"},
		{Sample, "What is refused"},
		{"tdx-sim", "A machine booted"},
		{"tdx-sim", "booted another kernel"},
		{"az-snp-sim", "A machine booted"},
		{"az-snp-sim", "booted another kernel"},
	} {
		t.Run(at.kind+" "+at.word, func(t *testing.T) {
			canRun(t, at.kind)
			t.Setenv("TMPDIR", shortTemp(t))
			before := mounts(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			report, err := Run(ctx, Options{Sealpod: binary, TEE: at.kind, Text: cancelAt{at.word, cancel}})
			if err == nil || report.OK {
				t.Error("an interrupted demo reports success")
			}
			if left := tempFiles(t); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			if d := cmp.Diff(before, mounts(t)); d != "" {
				t.Errorf("mounts changed: %s", d)
			}
		})
	}
}

// TestDemoHasAnEnvironmentOfItsOwn holds when the shell is set up for a machine
// of tee-sim, or for pods of another kind.
func TestDemoHasAnEnvironmentOfItsOwn(t *testing.T) {
	binary := sealpod(t)
	for _, kind := range []string{Sample, teesim.AzSNP} {
		t.Run(kind, func(t *testing.T) {
			canRun(t, kind)
			t.Setenv("TMPDIR", shortTemp(t))
			for _, name := range []string{podvm.HostRootEnv, podvm.IMDSEnv, "SEALPOD_ATTESTERS", "SEALPOD_INITDATA_RTMR3", "AA_TPM_DEVICE", "AA_KBC_PARAMS"} {
				t.Setenv(name, "/of/another/machine")
			}
			if report, err := Run(t.Context(), Options{Sealpod: binary, TEE: kind}); err != nil || !report.OK {
				t.Errorf("ok %v, %v", report.OK, err)
			}
		})
	}
}

// Paths that are too long are refused at once, not with the fourth machine.
func TestTemporaryFilesTooDeepForSockets(t *testing.T) {
	canRun(t, teesim.AzSNP)
	base := shortTemp(t)
	for _, n := range []int{44, 45} {
		dir := filepath.Join(base, strings.Repeat("x", n-len(base)-1))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		// MkdirTemp makes names of up to 10 digits; the longest is what counts.
		_, err := openSite(teesim.AzSNP, filepath.Join(dir, "sealpod-demo-4294967295"))
		if bad := err != nil && strings.Contains(err.Error(), "TMPDIR"); bad != (n > 44) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func TestUnknownKindOfMachine(t *testing.T) {
	_, err := Run(t.Context(), Options{Sealpod: sealpod(t), TEE: "sgx"})
	if !errors.Is(err, teesim.ErrKind) || !strings.Contains(err.Error(), "tdx-sim") || !strings.Contains(err.Error(), Sample) {
		t.Errorf("got %v", err)
	}
}

// leavingReader is a writer whose reader leaves at a word.
type leavingReader struct{ word string }

func (l leavingReader) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(l.word)) {
		return 0, syscall.EPIPE
	}
	return len(p), nil
}

func TestDemoWithoutAnAudience(t *testing.T) {
	binary := sealpod(t)
	hangUp := func() {
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Error(err)
		}
	}
	for name, test := range map[string]struct {
		text io.Writer
		want string
	}{
		"reader left":     {leavingReader{"Three daemons"}, "broken pipe"},
		"left at the end": {leavingReader{"Done in"}, "broken pipe"},
		"hang-up":         {cancelAt{"Registry started", hangUp}, "hung up"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("TMPDIR", t.TempDir())
			before := mounts(t)
			report, err := Run(t.Context(), Options{Sealpod: binary, Text: test.text})
			if err == nil || !strings.Contains(err.Error(), test.want) || report.OK {
				t.Errorf("ok %v, error %v", report.OK, err)
			}
			if left := tempFiles(t); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			if d := cmp.Diff(before, mounts(t)); d != "" {
				t.Errorf("mounts changed: %s", d)
			}
		})
	}
}

// TestStoppedPodHasNothingMounted holds for a pull whose caller went away when
// the rootfs was mounted already.
func TestStoppedPodHasNothingMounted(t *testing.T) {
	testenv.Root(t)
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	before := mounts(t)
	g, err := newGuest(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	rootfs := filepath.Join(g.bundles, "app", "rootfs")
	if err := os.MkdirAll(rootfs, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", rootfs, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	p := &pod{guest: g, hub: rpc.NewClient(g.cdhSock, time.Second)}
	if err := p.stop(); err != nil {
		t.Error(err)
	}
	if d := cmp.Diff(before, mounts(t)); d != "" {
		t.Errorf("mounts changed: %s", d)
	}
}

func TestDemoWithoutTheGuestBinarySaysSo(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := Run(t.Context(), Options{}); err == nil || !strings.Contains(err.Error(), "sealpod") {
		t.Errorf("error %v", err)
	}
	if _, err := Run(t.Context(), Options{Sealpod: "/nonexistent/sealpod"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

func TestReportIsWhatMachinesRead(t *testing.T) {
	tell := &teller{report: &Report{Steps: []Step{}, Refusals: []Refusal{}}}
	_ = tell.step("a", "A", func() (note, error) { return note{text: "x", facts: map[string]string{"k": "v"}}, nil })
	_ = tell.refusal("b", "B", "because", func() error { return errors.New("no, because <&>") })
	_ = tell.refusal("c", "C", "because", func() error { return errors.New("for another reason") })
	_ = tell.refusal("d", "D", "because", func() error { return nil })
	if tell.good {
		t.Error("good in spite of a wrong reason")
	}
	var b bytes.Buffer
	if err := tell.report.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	var oks []any
	for _, r := range got["refusals"].([]any) {
		oks = append(oks, r.(map[string]any)["ok"])
	}
	if d := cmp.Diff([]any{true, false, false}, oks); d != "" {
		t.Error(d)
	}
	if !strings.Contains(b.String(), "<&>") {
		t.Error("reasons are escaped for HTML")
	}
}

func TestStoryLayout(t *testing.T) {
	var b bytes.Buffer
	p := &printer{w: &b}
	p.row(p.ok(), "Title", "short\n"+strings.Repeat("word ", 30), 1500*time.Millisecond)
	for i, line := range strings.Split(strings.TrimRight(b.String(), "\n"), "\n") {
		if n := len([]rune(line)); n > textWidth {
			t.Errorf("line %d has %d columns: %q", i, n, line)
		}
	}
	if !strings.Contains(b.String(), "Title") || !strings.Contains(b.String(), "1500 ms") {
		t.Error(b.String())
	}
	var none *printer
	none.chapter("x")
	none.line("x")
	none.row("", "", "", 0)
}

func TestFlipperChangesOneBit(t *testing.T) {
	rec := httptest.NewRecorder()
	f := &flipper{ResponseWriter: rec}
	in := bytes.Repeat([]byte{7}, 64)
	for range 2 {
		if _, err := f.Write(in); err != nil {
			t.Fatal(err)
		}
	}
	different := 0
	for _, b := range rec.Body.Bytes() {
		if b != 7 {
			different++
		}
	}
	if different != 1 || rec.Body.Len() != 128 || in[32] != 7 {
		t.Errorf("%d bytes differ of %d", different, rec.Body.Len())
	}
}

func TestDemoTakesAnImageOfTheUsersOwn(t *testing.T) {
	binary := sealpod(t)
	img, _, err := newImage()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	name := layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "mine"})
	if err := p.AppendImage(img, name); err != nil {
		t.Fatal(err)
	}
	report, err := Run(t.Context(), Options{Sealpod: binary, Image: "oci:" + dir + ":mine"})
	if err != nil || !report.OK {
		t.Errorf("ok %v, %v", report.OK, err)
	}
	if _, err := Run(t.Context(), Options{Sealpod: binary, Image: "oci:" + dir + ":other"}); !errors.Is(err, imageseal.ErrNotFound) {
		t.Errorf("an image that is not there: %v", err)
	}
}
