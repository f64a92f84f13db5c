package model

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/sealpod/sealpod/model/fetch"
	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/local"
	"github.com/sealpod/sealpod/model/source/settings"
	"github.com/sealpod/sealpod/model/unpack"
	"github.com/sealpod/sealpod/podvm"
)

var (
	// ErrUnauthenticated says that MODEL_STRICT is set and nobody vouches for a
	// file.
	ErrUnauthenticated = errors.New("not authenticated")
	// ErrCollision says that two sources bring files of one name.
	ErrCollision = errors.New("two sources bring the same file")
)

// folder is what goes into one folder.
type folder struct {
	dir      string
	out      *fetch.Folder
	files    []fetch.File
	links    []*local.Source
	images   []source.Unpacker
	archives []archive
	need     int64 // bytes of plaintext, as far as sources say
}

// archive is a file to unpack once it is there.
type archive struct {
	path       string
	stripFirst bool
}

// plan decides what becomes of every object. Errors: source.ErrUsage for what the
// environment should have said, sealed.ErrKey, sealed.ErrIntegrity and its like,
// ErrUnauthenticated, ErrCollision, source.ErrNotFound, those of reading manifests
// and the first bytes of objects.
func (r *request) plan(ctx context.Context) ([]folder, error) {
	if err := r.checkPinned(); err != nil {
		return nil, err
	}
	var folders []folder
	at := map[string]int{}
	taken := claims{}
	var bare []string // files nobody vouches for
	found := r.demo == ""
	for i := range r.sources {
		in := &r.sources[i]
		if in.nothing {
			continue
		}
		if _, ok := at[in.dest]; !ok {
			at[in.dest] = len(folders)
			folders = append(folders, folder{dir: in.dest})
		}
		f := &folders[at[in.dest]]
		p, err := r.planInput(ctx, in)
		if err != nil {
			return nil, about(in.String(), err)
		}
		if err := taken.add(in.dest, p); err != nil {
			return nil, err
		}
		f.files, f.archives, f.need = append(f.files, p.files...), append(f.archives, p.archives...), f.need+p.need
		if p.link != nil {
			f.links = append(f.links, p.link)
		}
		if p.image != nil {
			f.images = append(f.images, p.image)
		}
		if len(f.images) > 0 && len(f.images)+len(f.files)+len(f.links) > 1 {
			return nil, collision(f.dir) // what is in an image shows at the end
		}
		bare, found = append(bare, p.bare...), found || p.demo
	}
	if !found {
		return nil, podvm.Explain(source.ErrNotFound, fmt.Sprintf("MODEL_ENCRYPTED is true and neither %s.enc nor 1/%s.enc is there", r.demo, r.demo))
	}
	return folders, r.judge(bare)
}

// planned is what becomes of one source.
type planned struct {
	files    []fetch.File
	link     *local.Source
	image    source.Unpacker
	names    []string // of what link makes
	archives []archive
	need     int64
	bare     []string
	demo     bool
}

// planInput decides what one source is. See the package's ways to encrypt.
func (r *request) planInput(ctx context.Context, in *input) (*planned, error) {
	if image, ok := in.Source.(source.Unpacker); ok {
		p := &planned{image: image}
		if !image.Pinned() {
			p.bare = []string{in.String()}
		}
		for _, o := range in.objects {
			p.need += max(o.Size, 0)
		}
		return p, nil
	}
	var p *planned
	var err error
	if in.manifest != nil {
		p, err = r.planSealed(ctx, in)
	} else {
		p, err = r.planOpen(ctx, in)
	}
	if err != nil {
		return nil, err
	}
	if len(p.files) == 0 && p.link == nil {
		return nil, podvm.Explain(source.ErrNotFound, "STORAGE_ALLOW_PATTERNS and STORAGE_IGNORE_PATTERNS leave no file")
	}
	if len(p.files) == 1 && len(p.archives) == 0 && unpack.Is(p.files[0].Path) {
		p.archives = []archive{{path: p.files[0].Path}}
	}
	return p, nil
}

// checkPinned makes sure that a model which the key names is there: whoever
// stores it could take its manifest away and leave files of their own.
func (r *request) checkPinned() error {
	for _, in := range r.sources {
		if in.manifest != nil {
			return nil
		}
	}
	k, err := sealed.ParseKey(r.key)
	if err != nil && sealed.MeansPin(r.key) {
		return err
	}
	if err != nil {
		return nil // it is for something else
	}
	defer k.Wipe()
	if k.Pinned() {
		return podvm.Explain(sealed.ErrPin, "the key is for one sealed model, and no source has a manifest")
	}
	return nil
}

// planSealed opens the manifest and plans the files in it, and no others.
func (r *request) planSealed(ctx context.Context, in *input) (*planned, error) {
	if r.keyID == "" || r.demo != "" {
		return nil, settings.Usage("the model is sealed, and CONFIDENTIAL_RESOURCE_ID is not set")
	}
	k, err := sealed.ParseKey(r.key)
	if err != nil {
		return nil, err
	}
	r.wipe = append(r.wipe, k.Wipe)
	stored, err := readManifest(ctx, in.Source, *in.manifest)
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(stored)
	m, err := sealed.OpenManifest(k, stored)
	if err != nil {
		return nil, err
	}
	r.Log.Info("Opened the manifest", "source", in.String(), "model", podvm.Printable(m.Name, 256), "created", m.Created, "files", len(m.Files),
		"bytes", m.Total(), "pinned", k.Pinned(), "unlisted", Unlisted(in.objects, m))
	objects := byPath(in.objects)
	p := &planned{}
	for _, f := range m.Files {
		if !r.wanted(f.Path) {
			continue
		}
		file, err := sealedFile(k, m, f, objects)
		if err != nil {
			return nil, err
		}
		file.Source, file.ID = in.Source, identify("sealed", string(digest[:]), f.Path)
		p.files, p.need = append(p.files, file), p.need+f.Size
	}
	return p, nil
}

// planOpen plans what no manifest is about.
func (r *request) planOpen(ctx context.Context, in *input) (*planned, error) {
	p := &planned{}
	var wanted []source.Object
	for _, o := range in.objects {
		if r.wanted(o.Path) || r.isDemo(o.Path) {
			wanted = append(wanted, o)
		}
	}
	openers, err := r.openers(ctx, in.Source, wanted)
	if err != nil {
		return nil, err
	}
	files, isLocal := in.Source.(*local.Source)
	if isLocal && len(openers) == 0 && len(wanted) == len(in.objects) && (len(wanted) > 1 || !unpack.Is(wanted[0].Path)) {
		p.link = files
		for _, o := range wanted {
			first, _, _ := strings.Cut(o.Path, "/")
			p.names, p.bare = append(p.names, first), append(p.bare, o.Path)
		}
		return p, nil
	}
	for _, o := range wanted {
		file := fetch.File{Path: o.Path, Mode: 0o644, Size: o.Size, Source: in.Source, Object: o}
		if o.Version != "" {
			file.ID = identify("plain", in.String(), o.Path, o.Version, strconv.FormatInt(o.Size, 10))
		}
		e, encrypted := openers[o.Path]
		if encrypted {
			file.Path, file.Size, file.Transform, file.ID = e.path, -1, e.open, [32]byte{}
			if err := sealed.CheckPath(file.Path); err != nil {
				return nil, podvm.Explain(fmt.Errorf("%w: %q: %w", source.ErrListing, podvm.Printable(o.Path, 200), err), "an object whose name is nothing but an extension")
			}
		}
		if !encrypted || !e.authentic {
			p.bare = append(p.bare, file.Path)
		}
		if encrypted && r.demo != "" {
			p.demo = true
			if r.demoArchive {
				p.archives = append(p.archives, archive{path: file.Path, stripFirst: true})
			}
		}
		p.files, p.need = append(p.files, file), p.need+e.plain(o.Size)
	}
	return p, nil
}

// identify is a name for content, for fetch.File.
func identify(parts ...string) [32]byte { return sha256.Sum256([]byte(strings.Join(parts, "\x00"))) }

// judge says which files nobody vouches for, and whether that may be.
func (r *request) judge(bare []string) error {
	if len(bare) == 0 {
		return nil
	}
	some := bare[:min(len(bare), 10)]
	if r.strict {
		return podvm.Explain(ErrUnauthenticated, fmt.Sprintf("MODEL_STRICT is true and %d files are not authenticated, %s among them", len(bare), podvm.Printable(some[0], 200)))
	}
	r.Log.Warn("Whoever stores these files can change them and not be found out", "files", len(bare), "some", podvm.Printable(strings.Join(some, ", "), 1000))
	return nil
}

// claims are the paths that something is planned for.
type claims map[string]bool

// add claims the paths of p below dir. Errors: ErrCollision.
func (c claims) add(dir string, p *planned) error {
	var own []string
	for _, f := range p.files {
		own = append(own, filepath.Join(dir, f.Path))
	}
	linked := map[string]bool{}
	for _, name := range p.names {
		if !linked[name] {
			own, linked[name] = append(own, filepath.Join(dir, name)), true
		}
	}
	for _, path := range own {
		if c[path] {
			return collision(path)
		}
		c[path] = true
	}
	for path := range c {
		for up := filepath.Dir(path); up != "/" && up != "."; up = filepath.Dir(up) {
			if c[up] {
				return collision(up)
			}
		}
	}
	return nil
}

func collision(path string) error {
	return podvm.Explain(ErrCollision, "two sources, or two objects of one, bring "+podvm.Printable(path, 300))
}
