package resource

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"

	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
)

// maxOfflineFile caps one offline file: it holds keys and certificates, and
// all of it is read for every call.
const maxOfflineFile = 16 << 20

// offline serves resources from JSON files, each one object: the path of a
// resource without a leading slash, "default/key/1", and its content in
// standard padded base64. Plugin, host and query of a URI do not count. A later
// entry replaces an earlier one of the same path, also across files.
//
// The files are read for every call: they are small, and a call always answers
// from what is there now.
// Source: guest-components confidential-data-hub/kms/src/plugins/kbs/offline_fs.rs
// at 8246e5e.
type offline struct {
	host  podvm.Host
	files []string
	log   *slog.Logger
}

// newOffline reads the files once, so that what cannot be parsed stops a
// daemon's start.
func newOffline(cfg Config) (*offline, error) {
	o := &offline{host: cfg.Host, log: cfg.Log}
	o.files = append(o.files, podvm.OfflineKeysFile, podvm.OfflineResourcesFile)
	o.files = append(o.files, cfg.ExtraFiles...)
	for _, path := range o.files {
		content, err := o.lookup(path, "", slog.LevelWarn)
		content.Wipe()
		if err != nil {
			return nil, err
		}
	}
	return o, nil
}

// Resource implements Provider. Errors: kbs.ErrURI, ErrNotFound, ErrInit.
func (o *offline) Resource(ctx context.Context, uri string) (podvm.Secret, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("reading resource: %w", err)
	}
	u, err := kbs.ParseURI(uri)
	if err != nil {
		return nil, err
	}
	var found podvm.Secret
	for _, path := range o.files {
		content, err := o.lookup(path, u.Path(), slog.LevelDebug)
		if err != nil {
			found.Wipe()
			return nil, err
		}
		if content != nil {
			found.Wipe()
			found = content
		}
	}
	if found == nil {
		return nil, notFound(u, errors.New("in no offline file"))
	}
	return found, nil
}

// Close implements io.Closer.
func (o *offline) Close() error { return nil }

// lookup returns the entry of that name in the file at path, nil if there is
// none. A file that cannot be opened is logged at level and counts as empty.
func (o *offline) lookup(path, name string, level slog.Level) (podvm.Secret, error) {
	raw, err := podvm.ReadFileMax(o.host.Path(path), maxOfflineFile)
	if err != nil && !errors.Is(err, podvm.ErrTooLarge) {
		o.log.Log(context.Background(), level, "Offline resource file left out", "path", path, "err", err)
		return nil, nil
	}
	defer clear(raw)
	var content podvm.Secret
	if err == nil {
		content, err = entry(raw, name)
	}
	if err != nil {
		return nil, podvm.Explain(fmt.Errorf("%w: parsing offline file %s: %w", ErrInit, path, err),
			fmt.Sprintf("the offline resource file %s is not usable", podvm.Printable(path, 200)))
	}
	return content, nil
}

// entry parses a whole offline file and returns the last entry of that name, or
// nil. Every entry has to be well formed, whichever is wanted.
func entry(raw []byte, name string) (found podvm.Secret, err error) {
	err = strict.Members(raw, func(key string, value json.RawMessage) error {
		defer clear(value)
		content, err := strict.Secret(value)
		if err != nil {
			return fmt.Errorf("entry %q: %w", podvm.Printable(key, 128), err)
		}
		if key != name {
			content.Wipe()
			return nil
		}
		found.Wipe()
		found = content
		return nil
	})
	if err != nil {
		found.Wipe()
		return nil, err
	}
	return found, nil
}

// notFound is the error for a resource that is not there.
func notFound(u kbs.URI, err error) error {
	return podvm.Explain(fmt.Errorf("%w: %s: %w", ErrNotFound, u, err),
		"no such resource: "+podvm.Printable(u.Path(), 200))
}
