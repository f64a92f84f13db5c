package registry

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// passwords of alice ("correct horse"), as htpasswd -B makes it.
const passwords = "alice:$2a$04$PwUPkXuE0e1GCznCK8mgv.1r3yLBh.OYtRk6iRUQ3uno2lDaO1Wia\n"

// protected is Debian's registry, which lets nobody in but alice.
func protected(t testing.TB) string {
	file := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(file, []byte(passwords), 0o600); err != nil {
		t.Fatal(err)
	}
	return registrytest.Debian(t, "auth:\n  htpasswd:\n    realm: test\n    path: "+file)
}

func skopeo(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), testenv.Tool(t, "skopeo"), append([]string{"--insecure-policy"}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("skopeo %q: %v\n%s", args, err, errs.String())
	}
	return strings.TrimSpace(out.String())
}

// TestDebianRegistryAndSkopeo: what skopeo pushes to Debian's registry, in both
// formats, alone and in an index, with a password, is what we resolve.
func TestDebianRegistryAndSkopeo(t *testing.T) {
	testenv.Tool(t, "skopeo")
	host := protected(t)
	from := registrytest.New(t)
	images := []*registrytest.Image{
		registrytest.NewImage(registrytest.Files(t, map[string]string{"a": "1"}), registrytest.Files(t, map[string]string{"b": "2"})),
		registrytest.NewImage(registrytest.Files(t, map[string]string{"c": "3"})),
	}
	images[1].Config["architecture"] = "mips"
	_, entries := from.PushIndex(t, "app", "1", []string{"linux/" + runtime.GOARCH, "linux/mips"}, images)

	creds := user + ":" + password
	copyTo := func(to string, args ...string) string {
		args = append([]string{"copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false", "--dest-creds", creds}, args...)
		skopeo(t, append(args, "docker://"+from.Host+"/app:1", "docker://"+host+"/"+to)...)
		return skopeo(t, "inspect", "--tls-verify=false", "--creds", creds, "--format", "{{.Digest}}", "docker://"+host+"/"+to)
	}
	c := client(t, nil)
	for to, args := range map[string][]string{"team/oci:1": nil, "team/docker:1": {"--format", "v2s2"}, "team/index:1": {"--all"}} {
		top := copyTo(to, args...)
		repo, err := open(t, c, host+"/"+to+"@"+top, alice)
		if err != nil {
			t.Fatal(err)
		}
		img, err := repo.Resolve(t.Context())
		if err != nil || img.TopDigest != top || len(img.Layers) != 2 || strings.Contains(to, "index") != (img.Digest != top) {
			t.Fatalf("%s: %+v, %v", to, img, err)
		}
		if strings.Contains(to, "index") && img.Digest != entries[0] {
			t.Errorf("%s: instance %s, want %s", to, img.Digest, entries[0])
		}
		for _, l := range img.Layers {
			body, err := repo.Blob(t.Context(), l.Descriptor)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := io.ReadAll(body)
			if err != nil || registrytest.Digest(raw) != l.Digest {
				t.Errorf("%s: layer of %d bytes, %v", to, len(raw), err)
			}
			body.Close()
		}
	}
	for name, cred := range map[string]Credentials{"nobody": {}, "wrong password": {user, []byte("x")}} {
		repo, err := open(t, c, host+"/team/oci:1", cred)
		if err == nil {
			_, err = repo.Resolve(t.Context())
		}
		if !errors.Is(err, ErrUnauthorized) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDebianRegistryKeepsOurLargeBlobs: parts of a blob of Debian's registry
// make the blob.
func TestDebianRegistryKeepsOurLargeBlobs(t *testing.T) {
	host := registrytest.Debian(t)
	blob := randomBytes(100<<10 + 17)
	d := upload(t, host, blob)
	c := largeClient(t)
	repo, err := open(t, c, host+"/big:1", Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	body, err := repo.Blob(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	got, err := io.ReadAll(body)
	if err != nil || !bytes.Equal(got, blob) {
		t.Errorf("%d of %d bytes, %v", len(got), len(blob), err)
	}
	if r, isRanged := body.(*explained).ReadCloser.(*stallBody).body.(*ranged); !isRanged || r.src.rangesRefused() {
		t.Error("the blob did not come in parts")
	}
}

// upload stores a blob in repository big of a registry.
func upload(t testing.TB, host string, blob []byte) Descriptor {
	t.Helper()
	d := Descriptor{Digest: registrytest.Digest(blob), Size: int64(len(blob))}
	do := func(method, url string, body io.Reader, want int) *http.Response {
		req, err := http.NewRequestWithContext(t.Context(), method, url, body)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil || resp.StatusCode != want {
			t.Fatalf("%s %s: %v, %v", method, url, resp, err)
		}
		resp.Body.Close()
		return resp
	}
	defer http.DefaultClient.CloseIdleConnections()
	at, err := do(http.MethodPost, "http://"+host+"/v2/big/blobs/uploads/", nil, http.StatusAccepted).Location()
	if err != nil {
		t.Fatal(err)
	}
	q := at.Query()
	q.Set("digest", d.Digest)
	at.RawQuery = q.Encode()
	do(http.MethodPut, at.String(), bytes.NewReader(blob), http.StatusCreated)
	return d
}
