package lookaside

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"strings"
	"time"

	"github.com/sealpod/sealpod/imagepull/policy"
	"github.com/sealpod/sealpod/imagepull/registry"
	"github.com/sealpod/sealpod/podvm"
)

// maxTime bounds reading all signatures of one image.
const maxTime = 2 * time.Minute

// ErrNoStore says that the configuration names no store for an image.
var ErrNoStore = errors.New("no lookaside store")

// Getter fetches a document over http or https; *registry.Client does. A
// document that is not there is registry.ErrNotFound.
type Getter interface {
	Fetch(ctx context.Context, at *url.URL, limit int64) ([]byte, error)
}

// Signatures reads what is stored for the platform's manifest of img and for
// the index above it, if there is one: at most policy.MaxLookaside documents of
// policy.MaxPayload bytes for each.
//
// Errors: ErrNoStore, podvm.ErrTooLarge, those of get; all carry a podvm.Cause.
func (c *Config) Signatures(ctx context.Context, img policy.Image, get Getter) ([]policy.Document, error) {
	store := c.find(img)
	if store == nil {
		return nil, podvm.Explain(fmt.Errorf("%w for %s", ErrNoStore, img),
			"sigstore_config names no lookaside for "+podvm.Printable(img.Registry+"/"+img.Repository, 300))
	}
	ctx, cancel := context.WithTimeout(ctx, maxTime)
	defer cancel()
	docs, err := signatures(ctx, store, img.Repository, img.PlatformDigest, get)
	if err != nil || img.TopDigest == img.PlatformDigest {
		return docs, err
	}
	more, err := signatures(ctx, store, img.Repository, img.TopDigest, get)
	return append(docs, more...), err
}

// signatures reads <store>/<repository>@<algo>=<hex>/signature-<n> for n from
// 1 until there is none.
// Source: containers/image docs/signature-protocols.md, "Direct GPG key
// signatures", and docker/lookaside.go.
func signatures(ctx context.Context, store *url.URL, repository, digest string, get Getter) ([]policy.Document, error) {
	for _, dir := range strings.Split(repository, "/") {
		if dir == "" || dir == "." || dir == ".." {
			return nil, fmt.Errorf("repository %q is malformed", podvm.Printable(repository, 300))
		}
	}
	base := fmt.Sprintf("%s/%s@%s", store.Path, repository, strings.Replace(digest, ":", "=", 1))
	var docs []policy.Document
	for n := 1; ; n++ {
		at := *store
		at.Path = fmt.Sprintf("%s/signature-%d", base, n)
		raw, err := read(ctx, &at, get)
		switch {
		case errors.Is(err, registry.ErrNotFound), errors.Is(err, fs.ErrNotExist):
			return docs, nil
		case errors.Is(err, podvm.ErrTooLarge):
			raw = nil // one that is no signature; there may be others
		case err != nil:
			return nil, err
		}
		if n > policy.MaxLookaside {
			err := fmt.Errorf("%w: more than %d signatures below %s", podvm.ErrTooLarge, policy.MaxLookaside, &at)
			return nil, podvm.Explain(err, fmt.Sprintf("more than %d signatures are stored for %s", policy.MaxLookaside, digest))
		}
		docs = append(docs, policy.Document{Raw: raw, Origin: at.String()})
	}
}

func read(ctx context.Context, at *url.URL, get Getter) ([]byte, error) {
	if at.Scheme != "file" {
		return get.Fetch(ctx, at, policy.MaxPayload)
	}
	raw, err := podvm.ReadFileMax(at.Path, policy.MaxPayload)
	if err != nil {
		return nil, podvm.Explain(err, podvm.Printable(at.Path, 300)+" cannot be read")
	}
	return raw, nil
}
