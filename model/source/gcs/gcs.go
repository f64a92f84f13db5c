// Package gcs reads models from Google Cloud Storage.
//
// Data path: the storage initializer lists a bucket with it and hands it to
// package fetch, whose workers read ranges of objects, each held to the generation
// that was listed. Requests go through package httpsrc.
//
// Trust: the store and the network are hostile: listings are capped and names must
// be clean paths. The private key of a service account signs and is never sent;
// what it signs goes to the token service that its file names, over TLS. The
// metadata service, which is the host's, is not asked.
//
// It speaks the JSON API itself: two operations, objects.list and objects.get, do
// not need gocloud.dev, which with its three clouds adds 41 MB and 5.4 ms of
// initialization to a program with net/http. Measured in the guest binary, this
// package, azblob and hf together cost 94,208 bytes and no module.
package gcs

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/internal/bearer"
	"github.com/sealpod/sealpod/model/source/internal/bucket"
	"github.com/sealpod/sealpod/model/source/internal/httpsrc"
	"github.com/sealpod/sealpod/model/source/internal/listing"
	"github.com/sealpod/sealpod/model/source/settings"
	"github.com/sealpod/sealpod/podvm"
)

// Prefix is how addresses of this kind begin: gs://BUCKET[/OBJECT or /PREFIX].
const Prefix = "gs://"

// api is where all buckets are.
// Source: Google Cloud Storage JSON API v1, "Request endpoints".
const api = "https://storage.googleapis.com/storage/v1/b/"

// Source is a bucket, or an object or a folder in one. It implements
// source.Source; its user closes it.
type Source struct {
	bucket string
	place  bucket.Place
	http   *httpsrc.Client
	tokens *bearer.Tokens // nil: anonymous
}

// New returns the source at address. It touches no network. Errors:
// source.ErrUsage, source.ErrUnsupported.
func New(address string, env *settings.Env) (*Source, error) {
	rest, ok := strings.CutPrefix(address, Prefix)
	name, key, _ := strings.Cut(rest, "/")
	if !ok || !isBucket(name) {
		return nil, settings.Usage("%s: not gs://BUCKET/PREFIX", podvm.Printable(address, 200))
	}
	key = strings.TrimLeft(key, "/")
	if len(key) > source.MaxName {
		return nil, settings.Usage("gs://%s: a prefix of %d bytes: at most %d", name, len(key), source.MaxName)
	}
	// Upstream takes objects of no bytes along, and a folder before an object.
	s := &Source{bucket: name, place: bucket.Place{Key: key, Empty: true, FolderFirst: true}}
	var err error
	if s.tokens, err = newTokens(env); err != nil {
		return nil, err
	}
	s.http, err = httpsrc.New(httpsrc.Config{Env: env, Name: "Google Cloud Storage"})
	return s, err
}

// isBucket tells whether s is what a bucket may be called.
// Source: Google Cloud Storage, "Bucket names".
func isBucket(s string) bool {
	return len(s) >= 3 && len(s) <= 222 && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && !strings.ContainsRune("-_.", r)
	}) && !strings.ContainsRune("-_.", rune(s[0]))
}

// Close closes idle connections.
func (s *Source) Close() {
	s.http.Close()
	s.tokens.Close()
}

// String implements source.Source.
func (s *Source) String() string { return podvm.Printable(Prefix+s.bucket+"/"+s.place.Key, 400) }

// List implements source.Source: all objects in the folder of the address, or else
// the one of that name.
func (s *Source) List(ctx context.Context) ([]source.Object, error) { return s.place.List(ctx, s.page) }

// Open implements source.Source.
func (s *Source) Open(ctx context.Context, o source.Object, off, n int64) (io.ReadCloser, error) {
	key, err := s.place.KeyOf(o.Path)
	if err != nil {
		return nil, err
	}
	q := url.Values{"alt": {"media"}}
	if o.Version != "" {
		// The object of that generation or none, also when the bucket keeps others.
		q.Set("ifGenerationMatch", o.Version)
	}
	r := s.request("/o/"+url.PathEscape(key), q)
	r.Check = func(resp *http.Response) error {
		if g := resp.Header.Get("X-Goog-Generation"); resp.StatusCode/100 == 2 && o.Version != "" && g != "" && g != o.Version {
			return podvm.Explain(source.ErrChanged, "an object changed after it was listed: start again")
		}
		if resp.StatusCode/100 == 2 && resp.Header.Get("Content-Encoding") == "gzip" {
			return podvm.Explain(source.ErrUnsupported, "an object is stored with Content-Encoding gzip: upload it without")
		}
		return nil
	}
	return s.http.Open(ctx, r, off, n, o.Size)
}

func (s *Source) request(path string, q url.Values) httpsrc.Request {
	return httpsrc.Request{
		URL: api + url.PathEscape(s.bucket) + path + "?" + q.Encode(), Sign: s.tokens.Sign, Explain: s.explain,
		// Without it the store would decompress some objects, whose sizes and ranges
		// are then others than those listed.
		Header: http.Header{"Accept-Encoding": {"gzip"}},
	}
}

// page fetches one page of a listing.
func (s *Source) page(ctx context.Context, prefix string, most int, next string) (bucket.Page, error) {
	q := url.Values{
		"prefix": {prefix}, "maxResults": {strconv.Itoa(most)}, "fields": {"nextPageToken,items(name,size,generation)"},
	}
	if next != "" {
		q.Set("pageToken", next)
	}
	_, raw, err := s.http.Document(ctx, s.request("/o", q), bucket.MaxPage)
	if err != nil {
		return bucket.Page{}, err
	}
	p, err := parsePage(raw)
	if err != nil {
		return p, listing.Unacceptable("not one of Google Cloud Storage: %s", err)
	}
	return p, nil
}

// parsePage reads an answer to objects.list.
// Source: Google Cloud Storage JSON API v1, "Objects: list".
func parsePage(raw []byte) (bucket.Page, error) {
	var in struct {
		Next  string `json:"nextPageToken"`
		Items []struct {
			Name       string
			Size       json.Number // quoted
			Generation json.Number
		}
	}
	if json.Unmarshal(raw, &in) != nil {
		return bucket.Page{}, errors.New("not the JSON of a listing")
	}
	p := bucket.Page{Next: in.Next}
	for _, o := range in.Items {
		size, err := strconv.ParseUint(o.Size.String(), 10, 63)
		if err != nil || o.Name == "" {
			return bucket.Page{}, errors.New("an object without name or size")
		}
		if _, err := strconv.ParseUint(o.Generation.String(), 10, 63); err != nil {
			return bucket.Page{}, errors.New("an object without a generation")
		}
		p.Objects = append(p.Objects, source.Object{Path: o.Name, Size: int64(size), Version: o.Generation.String()})
	}
	return p, nil
}

// explain implements httpsrc.Request.Explain.
func (s *Source) explain(f *httpsrc.Fault) (string, error) {
	var a struct{ Error struct{ Message string } }
	_ = json.Unmarshal(f.Body, &a) // downloads have plain text
	text := a.Error.Message
	if (f.Status == http.StatusUnauthorized || f.Status == http.StatusForbidden) && s.tokens == nil {
		text += " (GOOGLE_APPLICATION_CREDENTIALS is not set)"
	}
	return text, nil
}
