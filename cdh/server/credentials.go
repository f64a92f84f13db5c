package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/sealpod/sealpod/cdh/resource"
	"github.com/sealpod/sealpod/podvm"
)

// parallelCredentials is how many credentials are fetched at once.
const parallelCredentials = 8

// credentialName returns the part of p below podvm.CDHResourceDir. Upstream
// compares the bare prefix; the slash after it is required here, so that a
// sibling such as "…/kbs-other" is not reached.
func credentialName(p string) (string, error) {
	name, ok := strings.CutPrefix(p, podvm.CDHResourceDir+"/")
	name = strings.TrimLeft(name, "/")
	parts := strings.Split(name, "/")
	if !ok || slices.Contains(parts, "..") || slices.Contains(parts, ".") || strings.HasSuffix(name, "/") || path.Clean(name) == "." {
		return "", fmt.Errorf("%w: credential path %q: want a file below %s/ with no dot segments in its path",
			ErrConfig, podvm.Printable(p, 200), podvm.CDHResourceDir)
	}
	return path.Clean(name), nil
}

// placeCredentials fetches every credential and writes it to its file, mode
// 0600. Of two for one path the later wins. The first failure ends it; files
// written by then stay.
func placeCredentials(ctx context.Context, host podvm.Host, resources resource.Provider, creds []Credential) error {
	if len(creds) == 0 {
		return nil
	}
	uris := map[string]string{}
	for _, c := range creds {
		name, err := credentialName(c.Path)
		if err != nil {
			return err
		}
		uris[name] = c.URI
	}
	// Above the credentials are sockets and files for programs of other users.
	if err := os.MkdirAll(host.Path(podvm.CDHRunDir), 0o755); err != nil {
		return fmt.Errorf("creating the data hub's directory: %w", err)
	}
	dir := host.Path(podvm.CDHResourceDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("creating the credential directory: %w", err)
	}
	// A root confines writes even where a symbolic link was planted.
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("opening the credential directory: %w", err)
	}
	defer root.Close() //nolint:errcheck // a directory, nothing to flush
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelCredentials)
	for name, uri := range uris {
		g.Go(func() error {
			content, err := resources.Resource(ctx, uri)
			if err != nil {
				return fmt.Errorf("fetching credential %s: %w", name, err)
			}
			defer content.Wipe()
			if err := writeFile(root, name, content); err != nil {
				return fmt.Errorf("writing credential %s: %w", name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// writeFile puts content under name in one step, so that no reader sees half.
func writeFile(root *os.Root, name string, content []byte) error {
	if err := root.MkdirAll(path.Dir(name), 0o700); err != nil {
		return err
	}
	tmp := name + "." + rand.Text() // which no other credential is called
	f, err := root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Close()); err == nil {
		err = root.Rename(tmp, name)
	}
	if err != nil {
		return errors.Join(err, root.Remove(tmp))
	}
	return nil
}
