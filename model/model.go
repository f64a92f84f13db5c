package model

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/sealpod/sealpod/model/fetch"
	"github.com/sealpod/sealpod/model/key"
	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/unpack"
	"github.com/sealpod/sealpod/podvm"
)

// Config is the world of a run.
type Config struct {
	// Host has the environment and the file system.
	Host podvm.Host
	// Log takes a line for each step. Nil means slog.Default.
	Log *slog.Logger
	// Progress can be watched meanwhile. Nil is allowed.
	Progress *Progress
	// Keys opens the keys of encrypted layers of images. Nil means that nobody can
	// be asked for them.
	Keys source.Keys
}

// Run fetches the models that args name, pairs of a source and a folder, as the
// environment says. When it fails, no file has its name that is not complete and
// checked, and a later run continues. Outcome explains its errors.
func Run(ctx context.Context, args []string, cfg Config) error {
	start := time.Now()
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Progress == nil {
		cfg.Progress = NewProgress()
	}
	r, err := readRequest(args, cfg)
	if err != nil {
		return err
	}
	defer r.close()

	r.Progress.enter("listing")
	if err := r.list(ctx); err != nil {
		return err
	}
	if r.wantsKey() {
		r.Progress.enter("key")
		if r.key, err = key.Fetch(ctx, key.Config{Addr: r.env.Host.Getenv("CDH_ADDR"), Log: r.Log}, r.keyID); err != nil {
			return err
		}
		r.Log.Info("Got the key", "key", r.keyID)
	}
	r.Progress.enter("planning")
	folders, err := r.plan(ctx)
	if err != nil {
		return err
	}
	if err := r.begin(folders); err != nil {
		return err
	}
	for i := range folders {
		if err := r.fill(ctx, &folders[i]); err != nil {
			return err
		}
	}
	for _, f := range folders {
		if err := sweep(f.dir); err != nil {
			return err
		}
	}
	r.Progress.enter("done")
	st := r.Progress.Status()
	r.Log.Info("The model is there", "files", st.Files, "bytes", st.Done, "resumed", st.Resumed, "dur", time.Since(start))
	return nil
}

// list opens and lists all sources.
func (r *request) list(ctx context.Context) error {
	for i := range r.sources {
		in := &r.sources[i]
		if in.nothing {
			r.Log.Info("Nothing to do", "source", in.address)
			continue
		}
		src, err := open(in.address, r.env)
		if err != nil {
			return err
		}
		in.Source = src
		if in.objects, err = src.List(ctx); err != nil {
			return about(src.String(), fmt.Errorf("listing: %w", err))
		}
		if _, image := src.(source.Unpacker); !image {
			in.findManifest()
		}
		r.Log.Info("Listed", "source", src.String(), "objects", len(in.objects), "sealed", in.manifest != nil)
	}
	return nil
}

// begin makes the folders and asks for room before anything is fetched.
func (r *request) begin(folders []folder) error {
	var total int64
	files := 0
	for i := range folders {
		f := &folders[i]
		if err := os.MkdirAll(f.dir, 0o755); err != nil {
			return destination(err)
		}
		var err error
		if f.out, err = fetch.OpenFolder(f.dir); err != nil {
			return destination(err)
		}
		f.out.Keep = true // until all folders are swept
		r.opened = append(r.opened, f.out)
		for _, file := range f.files {
			total += expected(file)
		}
		files += len(f.files)
	}
	if err := preflight(folders); err != nil {
		return err
	}
	r.Progress.fetching(r.opened, total, files)
	return nil
}

// fill fetches everything that goes into a folder.
func (r *request) fill(ctx context.Context, f *folder) error {
	for _, l := range f.links {
		n, err := l.Link(f.dir)
		if err != nil {
			return err
		}
		r.Log.Info("Linked", "source", l.String(), "entries", n, "dest", f.dir)
	}
	for _, image := range f.images {
		r.Progress.enter("unpacking")
		if err := image.Unpack(ctx, f.dir, r.Keys); err != nil {
			return about(image.String(), err)
		}
		r.Log.Info("Unpacked", "source", image.String(), "dest", f.dir)
	}
	if len(f.files) == 0 {
		return nil
	}
	if err := f.out.Fetch(ctx, f.files, r.workers); err != nil {
		for _, file := range f.files {
			if podvm.Cause(err) != "" && strings.HasPrefix(err.Error(), file.Path+": ") {
				return about(podvm.Printable(file.Path, 200), err)
			}
		}
		return err
	}
	root, err := os.OpenRoot(f.dir)
	if err != nil {
		return destination(err)
	}
	defer root.Close() //nolint:errcheck // nothing is written through it
	for _, a := range f.archives {
		r.Progress.enter("unpacking")
		if err := unpack.InPlace(ctx, root, a.path, unpack.Options{StripFirst: a.stripFirst}); err != nil {
			return err
		}
		r.Log.Info("Unpacked", "archive", a.path, "dest", f.dir)
	}
	return nil
}

// about adds what err is about to its cause, if it has one, and to its text.
func about(what string, err error) error {
	cause := podvm.Cause(err)
	if cause == "" {
		return fmt.Errorf("%s: %w", what, err)
	}
	return podvm.Explain(err, what+": "+cause)
}

// close ends what was opened and forgets the key.
func (r *request) close() {
	r.key.Wipe()
	for _, wipe := range r.wipe {
		wipe()
	}
	for _, f := range r.opened {
		_ = f.Close() // nothing is written through it
	}
	for _, in := range r.sources {
		if c, ok := in.Source.(interface{ Close() }); ok {
			c.Close()
		}
	}
}

// input is one pair of arguments.
type input struct {
	source.Source
	address, dest string
	nothing       bool // the model is there already
	objects       []source.Object
	manifest      *source.Object // of a sealed model, among objects
}
