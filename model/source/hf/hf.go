// Package hf reads models from the Hugging Face Hub, and from mirrors that speak
// its protocol.
//
// Data path: the storage initializer asks it for the files of one commit and hands
// it to package fetch, whose workers read ranges of them. Requests go through
// package httpsrc; large files come from wherever the hub leads.
//
// Trust: the hub, its content network and what is between are hostile: listings are
// capped and names must be clean paths. The token goes to the hub alone. A branch
// or tag is resolved to a commit once, and the hub is held to that and to the
// digests it gave for large files; content is not authenticated by that.
//
// Two requests, one for a list and one for content, need no client library: the hub
// publishes one for Python, of which KServe's initializer uses the same two. Package
// gcs has what that costs.
package hf

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/internal/bearer"
	"github.com/sealpod/sealpod/model/source/internal/httpsrc"
	"github.com/sealpod/sealpod/model/source/internal/listing"
	"github.com/sealpod/sealpod/model/source/settings"
	"github.com/sealpod/sealpod/podvm"
)

// Prefix is how addresses of this kind begin: hf://OWNER/NAME[:REVISION].
const Prefix = "hf://"

const (
	hub      = "https://huggingface.co"
	maxList  = 64 << 20 // bytes: MaxObjects, each with its digest
	maxToken = 1024     // bytes
)

// Source is a model at a commit. It implements source.Source; its user closes it.
type Source struct {
	repo, revision string
	endpoint       string
	http           *httpsrc.Client
	header         http.Header

	mu     sync.Mutex
	commit string          // "" until List
	large  map[string]bool // files that the hub keeps by digest
}

// New returns the source at address. It touches no network. Errors:
// source.ErrUsage.
func New(address string, env *settings.Env) (*Source, error) {
	rest, ok := strings.CutPrefix(address, Prefix)
	owner, model, two := strings.Cut(rest, "/")
	name, revision, _ := strings.Cut(model, ":")
	if !ok || !two || !isName(owner) || !isName(name) {
		return nil, settings.Usage("%s: not hf://OWNER/NAME[:REVISION]", podvm.Printable(address, 200))
	}
	if revision == "" {
		revision = "main"
	}
	if !isRevision(revision) {
		return nil, settings.Usage("%s: not a branch, tag or commit after the colon", podvm.Printable(address, 200))
	}
	s := &Source{repo: owner + "/" + name, revision: revision, endpoint: hub, header: http.Header{}}
	if text := env.Host.Getenv("HF_ENDPOINT"); text != "" {
		s.endpoint = strings.TrimRight(text, "/")
	}
	u, err := url.Parse(s.endpoint)
	if err != nil || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, settings.Usage("environment variable HF_ENDPOINT: want http[s]://HOST[:PORT]")
	}
	if token := strings.TrimSpace(env.Host.Getenv("HF_TOKEN")); token != "" {
		if len(token) > maxToken || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return nil, settings.Usage("environment variable HF_TOKEN: other than visible ASCII in it")
		}
		if !bearer.Safe(u) {
			return nil, settings.Usage("HF_TOKEN is set, and HF_ENDPOINT is not https: anybody on the way could read the token")
		}
		s.header.Set("Authorization", "Bearer "+token)
	}
	s.http, err = httpsrc.New(httpsrc.Config{Env: env, Name: "the Hugging Face hub"})
	return s, err
}

// isName tells whether s is what an owner or a model may be called.
// Source: huggingface_hub src/huggingface_hub/utils/_validators.py,
// validate_repo_id.
func isName(s string) bool {
	return len(s) >= 1 && len(s) <= 96 && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-_.", r)
	}) && !strings.ContainsAny(s[:1]+s[len(s)-1:], "-.") && !strings.Contains(s, "--") && !strings.Contains(s, "..")
}

func isRevision(s string) bool {
	return len(s) <= 255 && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '/' })
}

// Close closes idle connections.
func (s *Source) Close() { s.http.Close() }

// String implements source.Source.
func (s *Source) String() string { return podvm.Printable(Prefix+s.repo+":"+s.revision, 400) }

// List implements source.Source: all files of the model.
func (s *Source) List(ctx context.Context) ([]source.Object, error) {
	_, raw, err := s.http.Document(ctx, httpsrc.Request{
		URL:    s.endpoint + "/api/models/" + s.repo + "/revision/" + url.PathEscape(s.revision) + "?blobs=true",
		Header: s.header, Redirects: true, Explain: s.explain,
	}, maxList)
	if err != nil {
		return nil, err
	}
	commit, files, err := parseModel(raw)
	if err != nil {
		return nil, listing.Unacceptable("not one of the Hugging Face hub: %s", err)
	}
	var l listing.Listing
	large := map[string]bool{}
	for _, f := range files {
		if err := l.Add(f.object()); err != nil {
			return nil, err
		}
		large[f.Name] = f.LFS != nil
	}
	s.mu.Lock()
	s.commit, s.large = commit, large
	s.mu.Unlock()
	return l.Done()
}

// Open implements source.Source.
func (s *Source) Open(ctx context.Context, o source.Object, off, n int64) (io.ReadCloser, error) {
	s.mu.Lock()
	commit, large := s.commit, s.large[o.Path]
	s.mu.Unlock()
	if commit == "" {
		commit = url.PathEscape(s.revision)
	}
	parts := strings.Split(o.Path, "/")
	for i, p := range parts {
		if p == "" || p == "." || p == ".." {
			return nil, listing.Unacceptable("file %q", podvm.Printable(o.Path, 200))
		}
		parts[i] = url.PathEscape(p)
	}
	return s.http.Open(ctx, httpsrc.Request{
		URL:    s.endpoint + "/" + s.repo + "/resolve/" + commit + "/" + strings.Join(parts, "/"),
		Header: s.header, Redirects: true, Explain: s.explain,
		Check: func(resp *http.Response) error { return check(resp, commit, o.Version, large) },
	}, off, n, o.Size)
}

// check holds the hub to what it said before. Where it leads to says nothing of
// that.
// Source: huggingface_hub src/huggingface_hub/constants.py.
func check(resp *http.Response, commit, version string, large bool) error {
	have := resp.Header.Get("X-Repo-Commit")
	tag := strings.Trim(strings.TrimPrefix(resp.Header.Get("X-Linked-Etag"), "W/"), `"`)
	if have != "" && isCommit(commit) && have != commit || large && tag != "" && version != "" && tag != version {
		return podvm.Explain(source.ErrChanged, "the Hugging Face hub has another file there by now: start again")
	}
	return nil
}

// file is one of a model.
type file struct {
	Name string `json:"rfilename"`
	Size int64
	Blob string `json:"blobId"`
	LFS  *struct {
		SHA256 string
		Size   int64
	}
}

// object has as its version the digest of the content: SHA-256 of large files,
// git's of others.
func (f *file) object() source.Object {
	if f.LFS != nil {
		return source.Object{Path: f.Name, Size: f.LFS.Size, Version: f.LFS.SHA256}
	}
	return source.Object{Path: f.Name, Size: f.Size, Version: f.Blob}
}

// isCommit tells whether s is a digest of git's or SHA-256, in hex.
func isCommit(s string) bool {
	return len(s) >= 40 && len(s) <= 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// parseModel reads what the hub says about a revision.
// Source: huggingface_hub src/huggingface_hub/hf_api.py, ModelInfo and
// RepoSibling.
func parseModel(raw []byte) (commit string, files []file, err error) {
	var in struct {
		SHA   string
		Files []file `json:"siblings"`
	}
	if json.Unmarshal(raw, &in) != nil {
		return "", nil, errors.New("not the JSON of a model")
	}
	if !isCommit(in.SHA) {
		return "", nil, errors.New("no commit")
	}
	for _, f := range in.Files {
		o := f.object()
		if o.Path == "" || o.Size < 0 || o.Version != "" && !isCommit(o.Version) {
			return "", nil, errors.New("a file without name, size or digest")
		}
	}
	return in.SHA, in.Files, nil
}

// explain implements httpsrc.Request.Explain.
// Source: huggingface_hub src/huggingface_hub/utils/_http.py,
// hf_raise_for_status.
func (s *Source) explain(f *httpsrc.Fault) (string, error) {
	text := f.Header.Get("X-Error-Message")
	hint := ""
	if s.header.Get("Authorization") == "" {
		hint = " (HF_TOKEN is not set)"
	}
	switch f.Header.Get("X-Error-Code") {
	case "GatedRepo":
		return text + hint, source.ErrRefused
	case "RevisionNotFound", "EntryNotFound":
		return text, source.ErrNotFound
	case "RepoNotFound": // with 401 to those who are nobody
		return "no such model, or a private one" + hint, source.ErrNotFound
	}
	if f.Status == http.StatusUnauthorized || f.Status == http.StatusForbidden {
		text += hint
	}
	return text, nil
}
