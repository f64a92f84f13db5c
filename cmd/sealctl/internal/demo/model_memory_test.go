package demo

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/model/sealed/seal"
	"github.com/sealpod/sealpod/model/source/s3/s3test"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// memoryGroup makes a control group, of version 1 or 2, that may use limit bytes,
// page cache included, and returns its folder.
func memoryGroup(t *testing.T, limit int) string {
	t.Helper()
	testenv.Root(t)
	const v2 = "/sys/fs/cgroup"
	_ = os.WriteFile(v2+"/cgroup.subtree_control", []byte("+memory"), 0o600) // where there is no version 1
	var failed []error
	for top, file := range map[string]string{v2 + "/memory": "memory.limit_in_bytes", v2: "memory.max"} {
		dir, err := os.MkdirTemp(top, "sealpod-test-")
		if err != nil {
			failed = append(failed, err)
			continue
		}
		t.Cleanup(func() {
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		})
		f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString(strconv.Itoa(limit))
			err = errors.Join(err, f.Close())
		}
		if err == nil {
			return dir
		}
		failed = append(failed, err)
	}
	testenv.Missing(t, "no control group for memory can be made: "+errors.Join(failed...).Error())
	return ""
}

// TestModelLargerThanMemory fetches a sealed model in a control group that has less
// memory than the model has bytes, whose page cache counts as well.
func TestModelLargerThanMemory(t *testing.T) {
	const limit = 256 << 20
	gw := s3test.Start(t)
	gw.Bucket(t, "models")
	group := memoryGroup(t, limit)
	// Never with the race detector, which needs memory of its own.
	bin := filepath.Join(t.TempDir(), "sealpod")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, "github.com/sealpod/sealpod/cmd/sealpod")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	original := modelOf(t, map[string]int{"config.json": 900, "model-1.safetensors": limit / 2, "model-2.safetensors": limit / 2, "model-3.safetensors": limit / 2})
	raw := seal.NewKey()
	key, err := sealed.ParseKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "sealed")
	_, pin, err := seal.Model(t.Context(), key, original, out, seal.Options{Name: "large"})
	if err != nil {
		t.Fatal(err)
	}
	gw.PutFolder(t, "models", "large/", out)
	hub := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(key.JWK(pin)) }))
	defer hub.Close()

	dest := filepath.Join(t.TempDir(), "models")
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `echo $$ >"$0/cgroup.procs" && exec "$@"`, group, bin, "storage-initializer", "s3://models/large", dest)
	cmd.Env = []string{
		"AWS_ENDPOINT_URL=" + gw.URL, "AWS_DEFAULT_REGION=" + s3test.Region, "AWS_ACCESS_KEY_ID=" + s3test.AccessKey, "AWS_SECRET_ACCESS_KEY=" + s3test.SecretKey,
		"CDH_ADDR=" + hub.URL, "CONFIDENTIAL_RESOURCE_ID=kbs:///a/b/c", "MODEL_STRICT=true",
	}
	text, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if !strings.Contains(string(text), "memory="+strconv.Itoa(limit)) {
		t.Errorf("it does not know its limit:\n%s", text)
	}
	sameFiles(t, dest, original, true)
	var peak int
	for _, file := range []string{"memory.max_usage_in_bytes", "memory.peak"} { // the latter since Linux 5.19
		if raw, err := os.ReadFile(filepath.Join(group, file)); err == nil {
			peak, _ = strconv.Atoi(strings.TrimSpace(string(raw)))
		}
	}
	if peak > limit {
		t.Errorf("%d bytes used", peak)
	}
	t.Logf("at most %d MiB in the group, %s", peak>>20, lastLine(text))
}
