// Package azblob reads models from Azure Blob Storage.
//
// Data path: the storage initializer lists a container with it and hands it to
// package fetch, whose workers read ranges of blobs, each held to the entity tag
// that was listed. Requests go through package httpsrc.
//
// Trust: the store and the network are hostile: listings are capped and names must
// be clean paths; XML knows no entities, and every page is bounded. An account's
// key signs and is never sent; a client secret goes to Microsoft's token service
// alone, and tokens and shared access signatures to the account's host alone. The
// metadata service, which is the host's, is not asked.
//
// It speaks the protocol itself: two operations, List Blobs and Get Blob, do not
// need gocloud.dev, which with its three clouds adds 41 MB and 5.4 ms of
// initialization to a program with net/http. Measured in the guest binary, this
// package, gcs and hf together cost 94,208 bytes and no module.
package azblob

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/internal/bearer"
	"github.com/sealpod/sealpod/model/source/internal/bucket"
	"github.com/sealpod/sealpod/model/source/internal/httpsrc"
	"github.com/sealpod/sealpod/model/source/settings"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/sigv4"
)

// Form is the regular expression of how addresses of this kind begin.
// Source: kserve python/storage/kserve_storage/kserve_storage.py at aaac4e2.
const Form = `https://[^/]+\.blob\.core\.windows\.net/|https://[^/]+\.z[0-9]{1,2}\.blob\.storage\.azure\.net/`

const maxQuery = 4096 // bytes of a shared access signature

// Source is a container, or a blob or a folder in one. It implements
// source.Source; its user closes it.
type Source struct {
	account, container string
	host               string
	access             url.Values // a shared access signature
	place              bucket.Place
	http               *httpsrc.Client
	key                podvm.Secret   // of the account, nil without one
	tokens             *bearer.Tokens // nil without a client
}

// New returns the source at address, https://ACCOUNT.HOST/CONTAINER/PREFIX, which
// may have a shared access signature as its query. It touches no network. Errors:
// source.ErrUsage.
func New(address string, env *settings.Env) (*Source, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.User != nil || u.Port() != "" || u.Fragment != "" || len(u.RawQuery) > maxQuery {
		return nil, settings.Usage("not the address of a blob, https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX")
	}
	s := &Source{host: strings.ToLower(u.Host)}
	s.account, _, _ = strings.Cut(s.host, ".")
	container, key, _ := strings.Cut(strings.TrimLeft(u.Path, "/"), "/")
	key = strings.Trim(key, "/")
	switch {
	case !isHost(s.host) || !isAccount(s.account):
		return nil, settings.Usage("%s: not the host of an Azure storage account", podvm.Printable(s.host, 200))
	case !isContainer(container):
		return nil, settings.Usage("https://%s: no container after the host", s.host)
	case len(key) > source.MaxName:
		return nil, settings.Usage("https://%s/%s: a prefix of %d bytes: at most %d", s.host, container, len(key), source.MaxName)
	}
	s.container, s.place.Key = container, key
	if s.access, err = url.ParseQuery(u.RawQuery); err != nil {
		return nil, settings.Usage("https://%s/%s: a query that is no shared access signature", s.host, container)
	}
	if len(s.access) == 0 {
		if err := s.credentials(env); err != nil {
			return nil, err
		}
	}
	s.http, err = httpsrc.New(httpsrc.Config{Env: env, Name: "Azure Blob Storage"})
	return s, err
}

// isHost tells whether a host is of Azure's storage: ACCOUNT.blob.core.windows.net
// or ACCOUNT.zNN.blob.storage.azure.net.
func isHost(host string) bool {
	_, rest, _ := strings.Cut(host, ".")
	if rest == "blob.core.windows.net" {
		return true
	}
	zone, rest, _ := strings.Cut(rest, ".")
	return rest == "blob.storage.azure.net" && (len(zone) == 2 || len(zone) == 3) && zone[0] == 'z' && strings.Trim(zone[1:], "0123456789") == ""
}

// isAccount tells whether s is the name of a storage account, or with a suffix such
// as -secondary its other endpoint.
func isAccount(s string) bool {
	s = strings.TrimSuffix(s, "-secondary")
	return len(s) >= 3 && len(s) <= 24 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789") == ""
}

func isContainer(s string) bool {
	return len(s) >= 3 && len(s) <= 63 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-$") == ""
}

// Close closes idle connections and forgets the key.
func (s *Source) Close() {
	s.http.Close()
	s.tokens.Close()
	s.key.Wipe()
}

// String implements source.Source.
func (s *Source) String() string {
	return podvm.Printable("https://"+s.host+"/"+s.container+"/"+s.place.Key, 400)
}

// List implements source.Source: the blob of the address, or else all that are in
// the folder of that name. Blobs of no bytes, which stand for folders in some tools,
// are left out. Unlike upstream, siblings whose names merely begin alike are not
// listed.
func (s *Source) List(ctx context.Context) ([]source.Object, error) { return s.place.List(ctx, s.page) }

// Open implements source.Source.
func (s *Source) Open(ctx context.Context, o source.Object, off, n int64) (io.ReadCloser, error) {
	key, err := s.place.KeyOf(o.Path)
	if err != nil {
		return nil, err
	}
	r := s.request("/"+s.container+"/"+sigv4.EscapePath(key), nil)
	r.Version = o.Version
	return s.http.Open(ctx, r, off, n, o.Size)
}

// request is a request for a path of the account with a query.
func (s *Source) request(path string, q url.Values) httpsrc.Request {
	if q == nil {
		q = url.Values{}
	}
	for k, v := range s.access {
		if !q.Has(k) {
			q[k] = v
		}
	}
	at := "https://" + s.host + path
	if len(q) > 0 {
		at += "?" + sigv4.Query(q)
	}
	return httpsrc.Request{URL: at, Header: http.Header{"X-Ms-Version": {version}}, Sign: s.sign, Explain: s.explain}
}
