package demo

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/model/sealed/seal"
	"github.com/sealpod/sealpod/model/source/s3/s3test"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
	"github.com/sealpod/sealpod/teesim"
)

// newMachineWorld is newWorld with the pod on a simulated machine of that kind,
// whose measurements the relying party expects.
func newMachineWorld(t testing.TB, kind string) *world {
	t.Helper()
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "world-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s, err := openSite(kind, dir)
	if err != nil {
		t.Fatal(err)
	}
	verifiers, err := s.verifiers()
	if err != nil {
		t.Fatal(err)
	}
	own, err := startOwner(ctx, dir, verifiers)
	if own != nil {
		t.Cleanup(func() {
			if err := own.stop(); err != nil {
				t.Error(err)
			}
		})
	}
	if err == nil {
		err = errors.Join(own.setPolicies(ctx), own.startRegistry(ctx, filepath.Join(dir, "registry")))
	}
	if err != nil {
		t.Fatal(err)
	}
	g, err := own.guestConfig(ctx, filepath.Join(dir, "pod"), own.url())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.boot(ctx, g, teesim.Launch{}); err != nil {
		t.Fatal(err)
	}
	values, err := expected(g)
	if err == nil {
		err = own.admin.SetReferenceValues(ctx, values)
	}
	if err != nil {
		t.Fatal(errors.Join(err, g.close()))
	}
	p, err := startPod(ctx, sealpod(t), g)
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return &world{owner: own, pod: p, dir: dir, kbsURL: own.url()}
}

// modelOf writes files of these sizes into a folder.
func modelOf(t testing.TB, files map[string]int) string {
	t.Helper()
	dir := t.TempDir()
	random := rand.NewChaCha8([32]byte{})
	for name, size := range files {
		b := make([]byte, size)
		_, _ = random.Read(b)
		p := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// publish seals a model, uploads it and places its key, which names it.
func (w *world) publish(t testing.TB, gw *s3test.Server, name, dir string) {
	t.Helper()
	raw := seal.NewKey()
	key, err := sealed.ParseKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "sealed")
	_, pin, err := seal.Model(t.Context(), key, dir, out, seal.Options{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	gw.PutFolder(t, "models", name+"/", out)
	if err := w.admin.SetResource(t.Context(), resourceOwner+"/models/"+name, key.JWK(pin)); err != nil {
		t.Fatal(err)
	}
}

// initContainer is the storage initializer as the kubelet starts it: the user of
// the volume dest, a root that is read-only, and dest to write to.
func (w *world) initContainer(t testing.TB, gw *s3test.Server, source, dest, key string) *exec.Cmd {
	t.Helper()
	script := `mount --make-rprivate / && mount --bind "$0" "$0" && mount -o remount,bind,ro / && exec setpriv --reuid=$(stat -c %u "$0") --regid=0 --clear-groups "$@"`
	cmd := exec.Command(testenv.Tool(t, "unshare"), "--mount", "sh", "-c", script, dest, //nolint:noctx // killed below
		sealpod(t), "storage-initializer", source, dest)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "AWS_ENDPOINT_URL=" + gw.URL, "AWS_DEFAULT_REGION=" + s3test.Region,
		"AWS_ACCESS_KEY_ID=" + s3test.AccessKey, "AWS_SECRET_ACCESS_KEY=" + s3test.SecretKey,
		"CDH_ADDR=http://" + w.rest, "CONFIDENTIAL_ENABLED=true", "CONFIDENTIAL_RESOURCE_ID=kbs:///" + key, "MODEL_STRICT=true",
	}
	return cmd
}

// volume is an empty volume of a user nobody knows.
func volume(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(testenv.SharedDir(t), "models")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, 100_000+rand.IntN(1_000_000_000), 0)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// sameFiles checks that each file below dest that has its name is the original, and
// with all that none is missing.
func sameFiles(t testing.TB, dest, original string, all bool) {
	t.Helper()
	found := 0
	err := filepath.WalkDir(dest, func(p string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || sealed.InProgress(e.Name()) && !all {
			return err
		}
		rel, err := filepath.Rel(dest, p)
		if err != nil {
			return err
		}
		got, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		want, err := os.ReadFile(filepath.Join(original, rel))
		if found++; err != nil || !bytes.Equal(got, want) {
			return fmt.Errorf("%s is not the original: %w", rel, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	entries := 0
	if err := filepath.WalkDir(original, func(_ string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			entries++
		}
		return err
	}); err != nil || all && found != entries {
		t.Fatalf("%d files of %d: %v", found, entries, err)
	}
}

// TestModelsForKServe: two layouts of models, sealed in a real S3 store; the key is
// released after attestation; then 20 kills at random, and what a pod may not have.
func TestModelsForKServe(t *testing.T) {
	testenv.Root(t)
	testenv.FUSE(t)
	testenv.Tool(t, "setpriv")
	gw := s3test.Start(t)
	gw.Bucket(t, "models")
	w := newMachineWorld(t, "tdx-sim")
	if err := os.Chmod(filepath.Dir(sealpod(t)), 0o755); err != nil {
		t.Fatal(err)
	}
	caikit := modelOf(t, map[string]int{"config.yml": 80, "artifacts/config.json": 900, "artifacts/model.safetensors": 96 << 20, "artifacts/none": 0})
	hf := modelOf(t, map[string]int{"config.json": 900, "tokenizer.json": 1 << 20, "model-1.safetensors": 20 << 20, "model-2.safetensors": 20<<20 + 13})
	for name, dir := range map[string]string{"caikit": caikit, "hf": hf} {
		w.publish(t, gw, name, dir)
		dest := volume(t)
		cmd := w.initContainer(t, gw, "s3://models/"+name, dest, resourceOwner+"/models/"+name)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		sameFiles(t, dest, dir, true)
		t.Logf("%s: %s", name, lastLine(out))
	}
	t.Run("JWE", func(t *testing.T) { w.jwe(t, gw) })
	t.Run("killed 20 times", func(t *testing.T) { w.killed(t, gw, caikit) })
	t.Run("refused", func(t *testing.T) { w.refused(t, gw) })
}

// jwe is a confidential model as KServe has them.
func (w *world) jwe(t *testing.T, gw *s3test.Server) {
	key := seal.NewKey()
	e, err := jose.NewEncrypter(jose.A256GCM, jose.Recipient{Algorithm: jose.A256KW, Key: []byte(key)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	plain := bytes.Repeat([]byte("weights "), 1<<18)
	o, err := e.Encrypt(plain)
	if err != nil {
		t.Fatal(err)
	}
	text, err := o.CompactSerialize()
	if err == nil {
		err = w.admin.SetResource(t.Context(), resourceOwner+"/models/jwe", podvm.Secret(base64.RawURLEncoding.EncodeToString(key)))
	}
	if err != nil {
		t.Fatal(err)
	}
	gw.Put(t, "models", "jwe/1/model.onnx.jwe", []byte(text))
	dest := volume(t)
	if out, err := w.initContainer(t, gw, "s3://models/jwe", dest, resourceOwner+"/models/jwe").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	got, err := os.ReadFile(filepath.Join(dest, "1", "model.onnx"))
	if left, lerr := os.ReadDir(filepath.Join(dest, "1")); err != nil || !bytes.Equal(got, plain) || lerr != nil || len(left) != 1 {
		t.Errorf("%d bytes, %v, %v, %v", len(got), left, err, lerr)
	}
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}

// killed kills the initializer at random until it was hit 20 times, and lets it end.
func (w *world) killed(t *testing.T, gw *s3test.Server, original string) {
	dest := volume(t)
	key := resourceOwner + "/models/caikit"
	hits, whole := 0, 0
	for hits < 20 {
		cmd := w.initContainer(t, gw, "s3://models/caikit", dest, key)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		var out bytes.Buffer
		cmd.Stderr = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(time.Duration(rand.IntN(150))*time.Millisecond, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
		err := cmd.Wait()
		timer.Stop()
		status, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
		switch {
		case err == nil:
			whole++
			sameFiles(t, dest, original, true)
		case status.Signaled() && status.Signal() == syscall.SIGKILL:
			hits++
			sameFiles(t, dest, original, false)
		default:
			t.Fatalf("%v\n%s", err, out.Bytes())
		}
	}
	if out, err := w.initContainer(t, gw, "s3://models/caikit", dest, key).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	sameFiles(t, dest, original, true)
	t.Logf("killed %d times, ended %d times in between", hits, whole)
}

// refused is what the relying party says no to, or nothing.
func (w *world) refused(t *testing.T, gw *s3test.Server) {
	if err := w.admin.SetResource(t.Context(), "other-tenant/models/caikit", podvm.Secret("x")); err != nil {
		t.Fatal(err)
	}
	for key, says := range map[string]string{"other-tenant/models/caikit": "policy", resourceOwner + "/models/none": "no such resource"} {
		dest := volume(t)
		began := time.Now()
		out, err := w.initContainer(t, gw, "s3://models/caikit", dest, key).CombinedOutput()
		var exit *exec.ExitError
		line := lastLine(out)
		if !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.Contains(line, "the key is refused: kbs:///"+key) || !strings.Contains(strings.ToLower(line), says) || !strings.Contains(line, "; hint: ") {
			t.Errorf("%s: %v\n%s", key, err, out)
		}
		if took := time.Since(began); took > time.Minute {
			t.Errorf("%s: refused after %v: it was waited for", key, took)
		}
		if left, err := os.ReadDir(dest); err != nil || len(left) > 0 {
			t.Errorf("%s: %v, %v", key, left, err)
		}
	}
	err := w.rpHTTP.stop()
	w.rpHTTP = nil // which would be stopped again
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" + w.rest + "/cdh/resource/" + resourceOwner + "/models/caikit")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if why := resp.Header.Get("Sealpod-Reason"); resp.StatusCode != 500 || why != "unreachable" {
		t.Errorf("without a relying party: %s, %q", resp.Status, why)
	}
}
