// Package web reads a model that is one file, perhaps an archive, from any web
// server.
//
// Data path: the storage initializer makes a source of an http or https address
// that no other kind of source claims. Requests go through package httpsrc, in
// ranges where the server has them.
//
// Trust: the server may lead elsewhere, but without the headers that the
// environment has for it, never from https to http, and never to addresses of
// the machine itself. A page for people in place of the file, as logins send it,
// is refused.
package web

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/internal/httpsrc"
	"github.com/sealpod/sealpod/model/source/internal/listing"
	"github.com/sealpod/sealpod/model/source/settings"
	"github.com/sealpod/sealpod/podvm"
)

// Limits.
const (
	maxAddress = 8 << 10  // bytes; signed addresses are long
	maxHeaders = 64 << 10 // bytes of the variable with headers
)

// Source is one file on a web server. It implements source.Source; its user
// closes it.
type Source struct {
	http    *httpsrc.Client
	request httpsrc.Request
	name    string
	text    string
}

// New returns the source at address. It touches no network. Errors:
// source.ErrUsage.
func New(address string, env *settings.Env) (*Source, error) {
	u, err := url.Parse(address)
	if err != nil || len(address) > maxAddress || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, settings.Usage("not the address of a file, http[s]://HOST/PATH")
	}
	s := &Source{text: podvm.Printable(u.Scheme+"://"+u.Host+u.EscapedPath(), 400)}
	if s.name = path.Base(u.Path); strings.HasSuffix(u.Path, "/") || u.Path == "" {
		return nil, settings.Usage("%s: it names no file", s.text)
	}
	header, err := headers(env, u.Hostname())
	if err != nil {
		return nil, err
	}
	if u.User != nil && header.Get("Authorization") == "" {
		password, _ := u.User.Password()
		header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password)))
	}
	u.User, u.Fragment, u.RawFragment = nil, "", ""
	s.request = httpsrc.Request{URL: u.String(), Header: header, Redirects: true, Check: s.check}
	s.http, err = httpsrc.New(httpsrc.Config{Env: env, Name: "the web server"})
	return s, err
}

// headers are those of the variable HOST-headers, a JSON object of text.
// Source: kserve python/storage/kserve_storage/kserve_storage.py,
// _download_from_uri, and pkg/credentials/https at aaac4e2.
func headers(env *settings.Env, host string) (http.Header, error) {
	out := http.Header{}
	name := host + "-headers"
	text := env.Host.Getenv(name)
	if text == "" {
		return out, nil
	}
	var members map[string]string
	if len(text) > maxHeaders || json.Unmarshal([]byte(text), &members) != nil {
		return nil, settings.Usage("environment variable %s: not a JSON object of text", podvm.Printable(name, 200))
	}
	for k, v := range members {
		switch canonical := http.CanonicalHeaderKey(k); {
		case !httpguts.ValidHeaderFieldName(k) || !httpguts.ValidHeaderFieldValue(v):
			return nil, settings.Usage("environment variable %s: a header that HTTP does not allow", podvm.Printable(name, 200))
		case own[canonical]:
			return nil, settings.Usage("environment variable %s: %s is not for it to set", podvm.Printable(name, 200), canonical)
		default:
			out.Set(canonical, v)
		}
	}
	return out, nil
}

// own are the headers that the program itself needs.
var own = map[string]bool{
	"Host": true, "Range": true, "If-Range": true, "If-Match": true, "If-Unmodified-Since": true, "Accept-Encoding": true,
	"Content-Length": true, "Transfer-Encoding": true, "Connection": true, "Te": true, "Trailer": true, "Upgrade": true,
}

// check refuses pages for people.
func (s *Source) check(resp *http.Response) error {
	kind, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	ext := strings.ToLower(path.Ext(s.name))
	if resp.StatusCode/100 == 2 && strings.EqualFold(strings.TrimSpace(kind), "text/html") && ext != ".html" && ext != ".htm" {
		return podvm.Explain(fmt.Errorf("%w: a web page", source.ErrRefused), "the web server sends a page for people, perhaps a login, in place of the file")
	}
	return nil
}

// Close closes idle connections.
func (s *Source) Close() { s.http.Close() }

// String implements source.Source.
func (s *Source) String() string { return s.text }

// List implements source.Source: the one file.
func (s *Source) List(ctx context.Context) ([]source.Object, error) {
	info, err := s.http.Stat(ctx, s.request)
	if err != nil {
		return nil, err
	}
	var l listing.Listing
	if err := l.Add(source.Object{Path: s.name, Size: info.Size, Version: info.Version}); err != nil {
		return nil, err
	}
	return l.Done()
}

// Open implements source.Source.
func (s *Source) Open(ctx context.Context, o source.Object, off, n int64) (io.ReadCloser, error) {
	if o.Path != s.name {
		return nil, podvm.Explain(source.ErrNotFound, "the address is that of one file, and the model names another")
	}
	req := s.request
	req.Version = o.Version
	return s.http.Open(ctx, req, off, n, o.Size)
}
