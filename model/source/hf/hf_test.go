package hf

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/internal/cloudtest"
	"github.com/sealpod/sealpod/podvm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	commit = "0123456789abcdef0123456789abcdef01234567"
	digest = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
	token  = "hf_hunter2"
)

var weights = strings.Repeat("0123456789", 1000)

// world is the hub and its content network, each under its name.
type world struct {
	t        *testing.T
	commit   atomic.Value
	tag      atomic.Value
	private  bool
	toCDN    atomic.Int32
	siblings string
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, siblings: fmt.Sprintf(`{"rfilename":"config.json","size":2,"blobId":%q},{"rfilename":"dir/a b#.safetensors","size":10000,"blobId":%q,"lfs":{"sha256":%q,"size":10000,"pointerSize":134}},{"rfilename":"empty","size":0,"blobId":%q}`, commit, commit, digest, commit)}
	w.commit.Store(commit)
	w.tag.Store(digest)
	return w
}

func (w *world) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	auth := r.Header.Get("Authorization")
	if r.Host == "cdn.example" {
		w.toCDN.Add(1)
		if auth != "" || r.URL.Query().Get("X-Amz-Signature") != "s" {
			w.t.Errorf("content network gets %q, %s", auth, r.URL)
		}
		rw.Header().Set("Etag", `"another"`)
		http.ServeContent(rw, r, "", time.Time{}, strings.NewReader(weights))
		return
	}
	if r.Host != "huggingface.co" {
		w.t.Errorf("asked for %s", r.Host)
	}
	if w.private && auth != "Bearer "+token {
		rw.Header().Set("X-Error-Code", "GatedRepo")
		rw.Header().Set("X-Error-Message", "Access to model acme/m is restricted.")
		rw.WriteHeader(http.StatusUnauthorized)
		return
	}
	rw.Header().Set("X-Repo-Commit", w.commit.Load().(string))
	switch r.URL.EscapedPath() {
	case "/api/models/acme/m/revision/main", "/api/models/acme/m/revision/v1.0":
		if r.URL.RawQuery != "blobs=true" {
			w.t.Error(r.URL)
		}
		_, _ = fmt.Fprintf(rw, `{"id":"acme/m","sha":%q,"siblings":[%s]}`, commit, w.siblings)
	case "/acme/m/resolve/" + commit + "/config.json": // as since 2025
		rw.Header().Set("Location", "/api/resolve-cache/models/acme/m/"+commit+"/config.json")
		rw.WriteHeader(http.StatusTemporaryRedirect)
	case "/api/resolve-cache/models/acme/m/" + commit + "/config.json":
		rw.Header().Set("Etag", `"`+commit+`"`)
		http.ServeContent(rw, r, "", time.Time{}, strings.NewReader("{}"))
	case "/acme/m/resolve/" + commit + "/dir/a%20b%23.safetensors":
		rw.Header().Set("X-Linked-Etag", `"`+w.tag.Load().(string)+`"`)
		rw.Header().Set("Location", "https://cdn.example/x?X-Amz-Signature=s")
		rw.WriteHeader(http.StatusFound)
	default:
		rw.Header().Set("X-Error-Code", "EntryNotFound")
		http.NotFound(rw, r)
	}
}

func start(t *testing.T, h http.HandlerFunc, address string, vars map[string]string) *Source {
	t.Helper()
	dir := cloudtest.Certificate(t, "huggingface.co", "cdn.example")
	s, err := New(address, cloudtest.Environ(t, dir, map[string]string{"": cloudtest.Serve(t, dir, h)}, vars))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func read(t *testing.T, s *Source, o source.Object, off, n int64) (string, error) {
	t.Helper()
	r, err := s.Open(t.Context(), o, off, n)
	if err != nil {
		return "", err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	return string(b), err
}

func TestModelFromTheHubAndItsContentNetwork(t *testing.T) {
	for _, address := range []string{"hf://acme/m", "hf://acme/m:", "hf://acme/m:v1.0"} {
		w := newWorld(t)
		w.private = true
		s := start(t, w.ServeHTTP, address, map[string]string{"HF_TOKEN": token})
		objects, err := s.List(t.Context())
		if err != nil || len(objects) != 3 {
			t.Fatalf("%v, %v", objects, err)
		}
		for i, want := range []source.Object{{Path: "config.json", Size: 2, Version: commit}, {Path: "dir/a b#.safetensors", Size: 10000, Version: digest}, {Path: "empty", Version: commit}} {
			if objects[i] != want {
				t.Errorf("%+v", objects[i])
			}
		}
		if got, err := read(t, s, objects[0], 0, -1); got != "{}" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		for range 3 {
			if got, err := read(t, s, objects[1], 5005, 7); got != "5678901" || err != nil {
				t.Errorf("%q, %v", got, err)
			}
		}
		if got, err := read(t, s, objects[2], 0, -1); got != "" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		if w.toCDN.Load() != 3 {
			t.Errorf("%d requests to the content network", w.toCDN.Load())
		}
	}
}

func TestFileThatIsNoLongerTheOneThatWasListed(t *testing.T) {
	for name, change := range map[string]func(*world){
		"another commit": func(w *world) { w.commit.Store(strings.Repeat("f", 40)) },
		"another digest": func(w *world) { w.tag.Store(strings.Repeat("f", 64)) },
	} {
		w := newWorld(t)
		s := start(t, w.ServeHTTP, "hf://acme/m", nil)
		objects, err := s.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		change(w)
		if _, err := read(t, s, objects[1], 0, 7); !errors.Is(err, source.ErrChanged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWhatTheHubRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		status int
		code   string
		is     error
		cause  string
	}{
		"gated":       {403, "GatedRepo", source.ErrRefused, "HF_TOKEN is not set"},
		"no model":    {401, "RepoNotFound", source.ErrNotFound, "no such model, or a private one (HF_TOKEN is not set)"},
		"no revision": {404, "RevisionNotFound", source.ErrNotFound, "said so"},
		"bad token":   {401, "", source.ErrRefused, "said so"},
		"overloaded":  {503, "", source.ErrUnreachable, "said so"},
		"too many":    {429, "", source.ErrUnreachable, "said so"},
	} {
		s := start(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Error-Code", tt.code)
			w.Header().Set("X-Error-Message", "said so")
			w.WriteHeader(tt.status)
		}, "hf://acme/m", nil)
		if _, err := s.List(t.Context()); !errors.Is(err, tt.is) || !strings.Contains(podvm.Cause(err), tt.cause) {
			t.Errorf("%s: %v, %q", name, err, podvm.Cause(err))
		}
	}
}

func TestHostileListings(t *testing.T) {
	for name, siblings := range map[string]string{
		"up":              `{"rfilename":"../x","size":1}`,
		"absolute":        `{"rfilename":"/x","size":1}`,
		"no name":         `{"size":1}`,
		"negative":        `{"rfilename":"x","size":-1}`,
		"twice":           `{"rfilename":"x","size":1},{"rfilename":"x","size":1}`,
		"file and folder": `{"rfilename":"x","size":1},{"rfilename":"x/y","size":1}`,
		"bad digest":      `{"rfilename":"x","size":1,"lfs":{"sha256":"../../x","size":1}}`,
		"huge":            `{"rfilename":"x","size":1,"lfs":{"sha256":"","size":9000000000000000000}}`,
		"not JSON":        `{`,
	} {
		w := newWorld(t)
		w.siblings = siblings
		s := start(t, w.ServeHTTP, "hf://acme/m", nil)
		if got, err := s.List(t.Context()); !errors.Is(err, source.ErrListing) || podvm.Cause(err) == "" {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		if _, err := s.Open(t.Context(), source.Object{Path: "a/../../b"}, 0, -1); !errors.Is(err, source.ErrListing) {
			t.Error(err)
		}
	}
}

func TestAddressesAndSettings(t *testing.T) {
	for _, address := range []string{"", "hf://", "hf://acme", "hf://acme/", "hf:///m", "hf://acme/m/x", "hf://acme/m:a/b", "hf://acme/..", "hf://acme/m:a b", "hf://ac?me/m", "hf://acme/:main", "hf://acme/m.."} {
		if s, err := New(address, cloudtest.Environ(t, "", nil, nil)); !errors.Is(err, source.ErrUsage) || podvm.Cause(err) == "" {
			t.Errorf("%q: %v, %v", address, s, err)
		}
	}
	for name, vars := range map[string]map[string]string{
		"token over http": {"HF_TOKEN": token, "HF_ENDPOINT": "http://mirror.example"},
		"token of lines":  {"HF_TOKEN": "hunter2\r\nX: y"},
		"endpoint":        {"HF_ENDPOINT": "mirror.example"},
		"endpoint's user": {"HF_ENDPOINT": "https://u:hunter2@mirror.example"},
	} {
		if _, err := New("hf://acme/m", cloudtest.Environ(t, "", nil, vars)); !errors.Is(err, source.ErrUsage) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", name, err)
		}
	}
	s, err := New("hf://acme/m", cloudtest.Environ(t, "", nil, map[string]string{"HF_ENDPOINT": "http://mirror.example/hub/"}))
	if err != nil || s.endpoint != "http://mirror.example/hub" || s.String() != "hf://acme/m:main" {
		t.Errorf("%v, %v", s, err)
	}
}

func FuzzModel(f *testing.F) {
	f.Add([]byte(`{"sha":"` + commit + `","siblings":[{"rfilename":"a","size":1,"blobId":"` + commit + `","lfs":{"sha256":"` + digest + `","size":2}}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, files, err := parseModel(raw)
		if err != nil {
			return
		}
		if !isCommit(c) {
			t.Error(c)
		}
		for _, x := range files {
			if o := x.object(); o.Path == "" || o.Size < 0 {
				t.Errorf("%+v", o)
			}
		}
	})
}
