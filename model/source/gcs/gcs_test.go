package gcs

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/internal/cloudtest"
	"github.com/sealpod/sealpod/podvm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cloud answers as Google Cloud Storage and its token service do.
type cloud struct {
	t       *testing.T
	objects map[string]string
	key     *rsa.PublicKey // nil: the bucket is public
	gen     int
}

func (c *cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Host {
	case "oauth2.googleapis.com":
		c.token(w, r)
		return
	case "storage.googleapis.com":
	default:
		c.t.Errorf("asked for %s", r.Host)
	}
	if c.key != nil && r.Header.Get("Authorization") != "Bearer good" {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, `{"error":{"code":401,"message":"Anonymous caller does not have storage.objects.list access"}}`)
		return
	}
	rest, ok := strings.CutPrefix(r.URL.EscapedPath(), "/storage/v1/b/models/o")
	q := r.URL.Query()
	if !ok {
		http.NotFound(w, r)
		return
	}
	if rest == "" {
		c.list(w, q.Get("prefix"), q.Get("maxResults"), q.Get("pageToken"))
		return
	}
	name, ok := strings.CutPrefix(r.URL.Path, "/storage/v1/b/models/o/")
	body, found := c.objects[name]
	switch {
	case !ok || strings.Contains(rest[1:], "/") || q.Get("alt") != "media":
		c.t.Errorf("asked for %s", r.URL)
	case !found:
		http.NotFound(w, r)
	case q.Get("ifGenerationMatch") != strconv.Itoa(c.gen):
		w.WriteHeader(http.StatusPreconditionFailed)
	default:
		w.Header().Set("X-Goog-Generation", strconv.Itoa(c.gen))
		if packed.Load() {
			w.Header().Set("Content-Encoding", "gzip")
		}
		w.Header().Set("Etag", `"e`+strconv.Itoa(c.gen)+`"`)
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(body))
	}
}

// packed has objects be stored compressed.
var packed atomic.Bool

// list has at most two objects on a page.
func (c *cloud) list(w http.ResponseWriter, prefix, most, token string) {
	n, err := strconv.Atoi(most)
	if err != nil {
		c.t.Error(err)
	}
	n = min(n, 2)
	var names []string
	for _, name := range slices.Sorted(maps.Keys(c.objects)) {
		if strings.HasPrefix(name, prefix) && name > token {
			names = append(names, name)
		}
	}
	out := map[string]any{"kind": "storage#objects"}
	if len(names) > n {
		names = names[:n]
		out["nextPageToken"] = names[n-1]
	}
	items := []map[string]string{}
	for _, name := range names {
		items = append(items, map[string]string{"name": name, "size": strconv.Itoa(len(c.objects[name])), "generation": strconv.Itoa(c.gen)})
	}
	out["items"] = items
	if err := json.NewEncoder(w).Encode(out); err != nil {
		c.t.Error(err)
	}
}

// token checks the claim with another implementation.
func (c *cloud) token(w http.ResponseWriter, r *http.Request) {
	sig, err := jose.ParseSignedCompact(r.PostFormValue("assertion"), []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		c.t.Fatal(err)
	}
	raw, err := sig.Verify(c.key)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"error":"invalid_grant","error_description":"Invalid JWT Signature."}`)
		return
	}
	var claims struct {
		Iss, Scope, Aud string
		Iat, Exp        int64
	}
	if err := json.Unmarshal(raw, &claims); err != nil {
		c.t.Error(err)
	}
	now := time.Now().Unix()
	if claims.Iss != "reader@p.iam.gserviceaccount.com" || claims.Scope != scope || claims.Aud != tokenService || claims.Iat > now || claims.Exp-claims.Iat != 3600 ||
		sig.Signatures[0].Header.KeyID != "k1" || r.PostFormValue("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer" {
		c.t.Errorf("%s %v", raw, r.PostForm)
	}
	_, _ = io.WriteString(w, `{"access_token":"good","expires_in":3599,"token_type":"Bearer"}`)
}

func start(t *testing.T, c *cloud, address string, vars map[string]string) *Source {
	t.Helper()
	dir := cloudtest.Certificate(t, "storage.googleapis.com", "oauth2.googleapis.com")
	env := cloudtest.Environ(t, dir, map[string]string{"": cloudtest.Serve(t, dir, c.ServeHTTP)}, vars)
	s, err := New(address, env)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// credentials writes a service account's file with changes, and returns its path
// and the public key.
func credentials(t *testing.T, changes map[string]any) (string, *rsa.PublicKey) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	f := map[string]any{
		"type": "service_account", "client_email": "reader@p.iam.gserviceaccount.com", "private_key_id": "k1", "token_uri": tokenService,
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	}
	maps.Copy(f, changes)
	raw, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "gcloud.json")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, &key.PublicKey
}

var model = map[string]string{
	"m/config.json": "{}", "m/a b+%2F?#.bin": "0123456789", "m/empty": "", "m/dir/": "", "m/dir/ü": "u", "m2/x": "x", "file.tgz": "tgz",
}

func TestModelsWithAndWithoutAServiceAccount(t *testing.T) {
	file, public := credentials(t, nil)
	for name, vars := range map[string]map[string]string{"anonymous": nil, "service account": {credentialsEnv: file}} {
		t.Run(name, func(t *testing.T) {
			c := &cloud{t: t, objects: model, gen: 7}
			if vars != nil {
				c.key = public
			}
			for address, want := range map[string]map[string]string{
				"gs://models/m":        {"config.json": "{}", "a b+%2F?#.bin": "0123456789", "empty": "", "dir/ü": "u"},
				"gs://models/m/dir/":   {"ü": "u"},
				"gs://models/file.tgz": {"file.tgz": "tgz"},
			} {
				s := start(t, c, address, vars)
				objects, err := s.List(t.Context())
				if err != nil || len(objects) != len(want) {
					t.Fatalf("%s: %v, %v", address, objects, err)
				}
				for _, o := range objects {
					r, err := s.Open(t.Context(), o, 0, -1)
					if err != nil {
						t.Fatal(err)
					}
					b, err := io.ReadAll(r)
					r.Close()
					if text, ok := want[o.Path]; err != nil || !ok || string(b) != text || o.Size != int64(len(b)) {
						t.Errorf("%+v: %q, %v", o, b, err)
					}
				}
			}
		})
	}
}

func TestRangesOfTheGenerationThatWasListed(t *testing.T) {
	c := &cloud{t: t, objects: model, gen: 7}
	s := start(t, c, "gs://models/m/a b+%2F?#.bin", nil)
	objects, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Open(t.Context(), objects[0], 3, 4)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	r.Close()
	if string(b) != "3456" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	packed.Store(true)
	if _, err := s.Open(t.Context(), objects[0], 3, 4); !errors.Is(err, source.ErrUnsupported) {
		t.Error(err)
	}
	packed.Store(false)
	c.gen = 8
	if _, err := s.Open(t.Context(), objects[0], 3, 4); !errors.Is(err, source.ErrChanged) {
		t.Error(err)
	}
	if _, err := s.Open(t.Context(), source.Object{Path: "other"}, 0, -1); !errors.Is(err, source.ErrNotFound) {
		t.Error(err)
	}
}

func TestAccessRefused(t *testing.T) {
	file, _ := credentials(t, nil)
	_, public := credentials(t, nil)
	for name, tt := range map[string]struct {
		vars  map[string]string
		cause string
	}{
		"anonymous":   {nil, "GOOGLE_APPLICATION_CREDENTIALS is not set"},
		"another key": {map[string]string{credentialsEnv: file}, "Invalid JWT Signature"},
	} {
		s := start(t, &cloud{t: t, key: public}, "gs://models/m", tt.vars)
		if _, err := s.List(t.Context()); !errors.Is(err, source.ErrRefused) || !strings.Contains(podvm.Cause(err), tt.cause) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCredentialsThatMakeNoSense(t *testing.T) {
	for name, tt := range map[string]struct {
		changes map[string]any
		is      error
	}{
		"another type":  {map[string]any{"type": "external_account"}, source.ErrUnsupported},
		"no key":        {map[string]any{"private_key": "hunter2"}, source.ErrUsage},
		"no name":       {map[string]any{"client_email": ""}, source.ErrUsage},
		"plain HTTP":    {map[string]any{"token_uri": "http://tokens.example/"}, source.ErrUsage},
		"not of a kind": {map[string]any{"type": 1}, source.ErrUsage},
		"not a key":     {map[string]any{"private_key": "-----BEGIN PRIVATE KEY-----\naHVudGVyMg==\n-----END PRIVATE KEY-----\n"}, source.ErrUsage},
	} {
		file, _ := credentials(t, tt.changes)
		_, err := New("gs://models/m", cloudtest.Environ(t, "", nil, map[string]string{credentialsEnv: file}))
		if !errors.Is(err, tt.is) || podvm.Cause(err) == "" || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := New("gs://models/m", cloudtest.Environ(t, "", nil, map[string]string{credentialsEnv: "/none"})); !errors.Is(err, source.ErrUsage) {
		t.Error(err)
	}
}

func TestAddresses(t *testing.T) {
	for _, address := range []string{"", "gs://", "gs:///x", "gs://A/x", "gs://a b/x", "gs://ab/", "gs://.ab/x", "s3://models/x", "gs://models/" + strings.Repeat("x", 1025)} {
		if _, err := New(address, cloudtest.Environ(t, "", nil, nil)); !errors.Is(err, source.ErrUsage) || podvm.Cause(err) == "" {
			t.Errorf("%.40q: %v", address, err)
		}
	}
}

func TestHostileListings(t *testing.T) {
	item := func(name, size string) string {
		return fmt.Sprintf(`{"items":[{"name":%q,"size":%q,"generation":"1"}]}`, name, size)
	}
	for name, body := range map[string]string{
		"not JSON": "<html>", "up": item("m/../x", "1"), "elsewhere": item("n/x", "1"), "no size": item("m/x", ""), "negative": item("m/x", "-1"),
		"huge": item("m/x", "99999999999999999999"), "no name": item("", "1"), "huge but counted": item("m/x", "9000000000000000000"),
		"no generation": `{"items":[{"name":"m/x","size":"1"}]}`, "same page": `{"nextPageToken":"t"}`,
	} {
		dir := cloudtest.Certificate(t, "storage.googleapis.com")
		addr := cloudtest.Serve(t, dir, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) })
		s, err := New("gs://models/m/", cloudtest.Environ(t, dir, map[string]string{"": addr}, nil))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.List(t.Context()); !errors.Is(err, source.ErrListing) || podvm.Cause(err) == "" {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		s.Close()
	}
}

func FuzzPage(f *testing.F) {
	f.Add([]byte(`{"nextPageToken":"t","items":[{"name":"a","size":"1","generation":"2"}]}`))
	f.Add([]byte(`{"items":[{}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := parsePage(raw)
		for _, o := range p.Objects {
			if err != nil || o.Path == "" || o.Size < 0 || o.Version == "" {
				t.Errorf("%+v, %v", o, err)
			}
		}
	})
}

func FuzzAccount(f *testing.F) {
	f.Add([]byte(`{"type":"service_account","client_email":"a","private_key":"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if a, err := parseAccount(raw); (a == nil) == (err == nil) {
			t.Errorf("%v, %v", a, err)
		}
	})
}
