// Package listing collects what a store says it has into a listing that may
// become files.
//
// Data path: each source that lists objects adds them here.
//
// Trust: stores name and count objects as they like. What comes out is capped,
// and its names are paths that fit into one folder together.
package listing

import (
	"cmp"
	"fmt"
	"path"
	"slices"

	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/podvm"
)

// Listing is what was listed so far. The zero value is empty.
type Listing struct{ objects []source.Object }

// Add adds an object. Errors: source.ErrListing.
func (l *Listing) Add(o source.Object) error {
	if len(l.objects) >= source.MaxObjects {
		return Unacceptable("more than %d objects", source.MaxObjects)
	}
	if err := sealed.CheckPath(o.Path); err != nil {
		return Unacceptable("object %q: %v", podvm.Printable(o.Path, 200), err)
	}
	if o.Size < -1 || o.Size > sealed.MaxSize+sealed.MaxSize/1024 { // with room for tags
		return Unacceptable("object %q: a size of %d bytes", podvm.Printable(o.Path, 200), o.Size)
	}
	l.objects = append(l.objects, o)
	return nil
}

// Done returns the objects, sorted by path. Errors: source.ErrListing when two
// have one path or one is a folder of another, source.ErrNotFound when there are
// none.
func (l *Listing) Done() ([]source.Object, error) {
	if len(l.objects) == 0 {
		return nil, podvm.Explain(source.ErrNotFound, "there is no model at this address: no objects, or empty ones only")
	}
	slices.SortFunc(l.objects, func(a, b source.Object) int { return cmp.Compare(a.Path, b.Path) })
	paths := make(map[string]bool, len(l.objects))
	for _, o := range l.objects {
		if paths[o.Path] {
			return nil, Unacceptable("object %q: listed twice", podvm.Printable(o.Path, 200))
		}
		paths[o.Path] = true
	}
	for _, o := range l.objects {
		for dir := path.Dir(o.Path); dir != "."; dir = path.Dir(dir) {
			if paths[dir] {
				return nil, Unacceptable("object %q: %q is an object, too", podvm.Printable(o.Path, 200), podvm.Printable(dir, 200))
			}
		}
	}
	return l.objects, nil
}

// Unacceptable is a source.ErrListing that says why, to anybody. What comes from
// the store must be printable.
func Unacceptable(format string, args ...any) error {
	why := fmt.Sprintf(format, args...)
	return podvm.Explain(fmt.Errorf("%w: %s", source.ErrListing, why), "unacceptable listing: "+why)
}
