package azblob

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/internal/cloudtest"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/sigv4"
	"github.com/sealpod/sealpod/podvm/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// What Azurite, Microsoft's emulator, has built in.
// Source: Azurite README, "Default Storage Account".
const (
	account    = "devstoreaccount1"
	accountKey = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
	host       = account + ".blob.core.windows.net"
)

// azurite is a server that runs, reached under the real name of its account. It is
// installed by npm install --prefix bin/tools/npm azurite, with a link to
// node_modules/.bin/azurite-blob in bin/tools.
type azurite struct {
	dir  string // of its certificate
	addr string
}

func startAzurite(t *testing.T) *azurite {
	t.Helper()
	bin := testenv.Tool(t, "azurite-blob")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &azurite{dir: cloudtest.Certificate(t, host, "login.microsoftonline.com"), addr: l.Addr().String()}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(a.addr)
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), bin, "--silent", "--disableTelemetry", "--blobPort", port, "--location", t.TempDir(), // ended below, and waited for
		"--cert", filepath.Join(a.dir, "cabundle.crt"), "--key", filepath.Join(a.dir, "key.pem"), "--oauth", "basic")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // says that it was killed
		if t.Failed() {
			t.Logf("azurite: %s", out.Bytes())
		}
	})
	for end := time.Now().Add(60 * time.Second); ; {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", a.addr)
		if err == nil {
			conn.Close()
			return a
		}
		if time.Now().After(end) {
			t.Fatalf("azurite does not listen: %v\n%s", err, out.Bytes())
		}
		<-time.After(50 * time.Millisecond)
	}
}

// open returns the source at a path of the account. Microsoft's token service is
// led to idp, if that is not "".
func (a *azurite) open(t *testing.T, path, idp string, vars map[string]string) *Source {
	t.Helper()
	env := cloudtest.Environ(t, a.dir, map[string]string{host + ":443": a.addr, "login.microsoftonline.com:443": idp}, vars)
	s, err := New("https://"+host+path, env)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// put makes a container or a blob, with the account's key.
func (a *azurite) put(t *testing.T, path string, body []byte, headers ...string) {
	t.Helper()
	s := a.open(t, "/setup/x", "", map[string]string{"AZURE_STORAGE_ACCESS_KEY": accountKey})
	at, container := strings.CutSuffix(path, "?restype=container")
	u := "https://" + host + sigv4.EscapePath(at)
	if container {
		u += "?restype=container"
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, u, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Ms-Version", version)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	if len(body) > 0 {
		req.Header.Set("Content-Length", strconv.Itoa(len(body)))
	}
	if err := s.sign(req); err != nil {
		t.Fatal(err)
	}
	// As the source reaches it, but for the method.
	tr := &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, a.addr)
	}, TLSClientConfig: cloudtest.Trust(t, a.dir), DisableKeepAlives: true}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		b, _ := podvm.ReadMax(resp.Body, 1<<20)
		t.Fatalf("PUT %s: %s\n%s", path, resp.Status, b)
	}
}

func (a *azurite) upload(t *testing.T, container string, blobs map[string]string) {
	t.Helper()
	for name, body := range blobs {
		a.put(t, "/"+container+"/"+name, []byte(body), "X-Ms-Blob-Type", "BlockBlob", "Content-Type", "application/octet-stream")
	}
}

// token is one that Azurite takes: it looks at the claims and at no signature.
func token(t *testing.T, audience string) string {
	t.Helper()
	now := time.Now().Unix()
	claims, err := json.Marshal(map[string]any{
		"aud": audience, "iss": "https://sts.windows.net/ab1f708d-50f6-404c-a006-d71b2ac7a606/", "iat": now - 10, "nbf": now - 10, "exp": now + 3600,
	})
	if err != nil {
		t.Fatal(err)
	}
	enc := base64.RawURLEncoding
	return enc.EncodeToString([]byte(`{"alg":"RS256","typ":"JWT"}`)) + "." + enc.EncodeToString(claims) + "." + enc.EncodeToString([]byte("signature"))
}

func readAll(t *testing.T, s *Source) map[string]string {
	t.Helper()
	objects, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, o := range objects {
		r, err := s.Open(t.Context(), o, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err = errors.Join(err, r.Close()); err != nil || int64(len(b)) != o.Size {
			t.Fatalf("%s: %d bytes of %d: %v", o.Path, len(b), o.Size, err)
		}
		out[o.Path] = string(b)
	}
	return out
}

func TestModelsFromARealServer(t *testing.T) {
	a := startAzurite(t)
	a.put(t, "/models?restype=container", nil)
	a.put(t, "/public?restype=container", nil, "X-Ms-Blob-Public-Access", "container")
	blobs := map[string]string{"m/config.json": "{}", "m/a b+%2F?#&.bin": "0123456789", "m/dir/ü": "u", "m/empty": "", "m2/x": "x", "file.tgz": "tgz"}
	a.upload(t, "models", blobs)
	a.upload(t, "public", map[string]string{"m/x": "x"})

	idp := cloudtest.Serve(t, a.dir, func(w http.ResponseWriter, r *http.Request) {
		form := func(name string) string { return r.PostFormValue(name) }
		if r.Host != "login.microsoftonline.com" || r.URL.Path != "/tenant-1/oauth2/v2.0/token" || form("client_id") != "client-1" || form("scope") != scope || form("grant_type") != "client_credentials" {
			t.Errorf("%s%s: %v", r.Host, r.URL, r.PostForm)
		}
		if form("client_secret") != "right" && form("client_assertion") != "federated" {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"error":"invalid_client","error_description":"AADSTS7000215: Invalid client secret provided."}`)
			return
		}
		_, _ = io.WriteString(w, `{"token_type":"Bearer","expires_in":3599,"access_token":"`+token(t, "https://storage.azure.com")+`"}`)
	})
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("federated\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	client := map[string]string{"AZURE_TENANT_ID": "tenant-1", "AZURE_CLIENT_ID": "client-1", "AZURE_CLIENT_SECRET": "right"}
	key := map[string]string{"AZURE_STORAGE_ACCESS_KEY": accountKey}
	model := map[string]string{"config.json": "{}", "a b+%2F?#&.bin": "0123456789", "dir/ü": "u"}
	for name, tt := range map[string]struct {
		path string
		vars map[string]string
		want map[string]string
	}{
		"shared key":      {"/models/m", key, model},
		"whole container": {"/models/", key, map[string]string{"m/config.json": "{}", "m/a b+%2F?#&.bin": "0123456789", "m/dir/ü": "u", "m2/x": "x", "file.tgz": "tgz"}},
		"one blob":        {"/models/file.tgz", key, map[string]string{"file.tgz": "tgz"}},
		"client secret":   {"/models/m/", client, model},
		"old names":       {"/models/m", map[string]string{"AZ_TENANT_ID": "tenant-1", "AZ_CLIENT_ID": "client-1", "AZ_CLIENT_SECRET": "right", "AZURE_CLIENT_SECRET": "wrong"}, model},
		"federated token": {"/models/m", map[string]string{"AZURE_TENANT_ID": "tenant-1", "AZURE_CLIENT_ID": "client-1", "AZURE_FEDERATED_TOKEN_FILE": file}, model},
		"anonymous":       {"/public/m", nil, map[string]string{"x": "x"}},
		"name to escape":  {"/models/m/a%20b+%252F%3F%23&.bin", key, map[string]string{"a b+%2F?#&.bin": "0123456789"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := readAll(t, a.open(t, tt.path, idp, tt.vars))
			for path, text := range tt.want {
				if b, ok := got[path]; b != text || !ok {
					t.Errorf("%s: %q", path, b)
				}
			}
			if len(got) != len(tt.want) {
				t.Errorf("%v", got)
			}
		})
	}
	wrong := base64.StdEncoding.EncodeToString([]byte("another key"))
	for name, tt := range map[string]struct {
		path string
		vars map[string]string
		is   error
	}{
		"wrong key":     {"/models/m", map[string]string{"AZURE_STORAGE_ACCESS_KEY": wrong}, source.ErrRefused},
		"wrong secret":  {"/models/m", map[string]string{"AZURE_TENANT_ID": "tenant-1", "AZURE_CLIENT_ID": "client-1", "AZURE_CLIENT_SECRET": "hunter2"}, source.ErrRefused},
		"no container":  {"/nothing/m", key, source.ErrNotFound},
		"no blob":       {"/models/none", key, source.ErrNotFound},
		"only an empty": {"/models/m/empty", key, source.ErrNotFound},
	} {
		if _, err := a.open(t, tt.path, idp, tt.vars).List(t.Context()); !errors.Is(err, tt.is) || podvm.Cause(err) == "" || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Those who are nobody may not learn whether the container exists.
	if _, err := a.open(t, "/models/m", "", nil).List(t.Context()); !errors.Is(err, source.ErrRefused) && !errors.Is(err, source.ErrNotFound) || !strings.Contains(podvm.Cause(err), "no credentials of Azure") {
		t.Errorf("anonymous: %v", err)
	}

	t.Run("ranges of what was listed", func(t *testing.T) {
		s := a.open(t, "/models/m/config.json", "", key)
		a.upload(t, "models", map[string]string{"m/config.json": "0123456789"})
		objects, err := s.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r, err := s.Open(t.Context(), objects[0], 3, 4)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(r); string(b) != "3456" || errors.Join(err, r.Close()) != nil {
			t.Errorf("%q, %v", b, err)
		}
		a.upload(t, "models", map[string]string{"m/config.json": "9876543210"})
		if _, err := s.Open(t.Context(), objects[0], 3, 4); !errors.Is(err, source.ErrChanged) {
			t.Error(err)
		}
	})
}

func TestListingOfSeveralPages(t *testing.T) {
	a := startAzurite(t)
	a.put(t, "/models?restype=container", nil)
	for i := range 7 {
		a.upload(t, "models", map[string]string{"m/" + strconv.Itoa(i): strconv.Itoa(i)})
	}
	s := a.open(t, "/models/m/", "", map[string]string{"AZURE_STORAGE_ACCESS_KEY": accountKey})
	var names []string
	next := ""
	for range 10 {
		p, err := s.page(t.Context(), "m/", 3, next)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range p.Objects {
			names = append(names, o.Path)
		}
		if next = p.Next; next == "" {
			break
		}
	}
	if got := strings.Join(names, " "); got != "m/0 m/1 m/2 m/3 m/4 m/5 m/6" {
		t.Error(got)
	}
}
