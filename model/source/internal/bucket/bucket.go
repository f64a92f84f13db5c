// Package bucket finds a model in a store whose objects have keys in one flat
// order, and in which folders are what keys have in common.
//
// Data path: sources of object stores hand it the pages of their listings and
// ask it for keys. What it lists, package listing has judged.
//
// Trust: pages are what a store answers: they may have any keys, come without
// end, or be empty.
package bucket

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/internal/listing"
	"github.com/sealpod/sealpod/podvm"
)

// Limits of a listing.
const (
	MaxPage  = 16 << 20 // bytes of a page
	MaxPages = 5000
	maxToken = 4096 // bytes that say where the next page begins
)

// Page is a part of a listing.
type Page struct {
	Objects []source.Object // Path is the whole key
	Next    string          // where the next page begins, "" after the last one
}

// Lister asks a store for the keys that begin with prefix, at most most on a
// page, from where an earlier page said that the next one begins.
type Lister func(ctx context.Context, prefix string, most int, next string) (Page, error)

// Place is a key in a store that an address names: of an object, or of a folder.
type Place struct {
	// Key is what the address names, "" for all of the store.
	Key string
	// Empty lists objects of no bytes, too. Where it is false they stand for
	// folders.
	Empty bool
	// FolderFirst prefers, where there is an object and a folder of the name, the
	// folder.
	FolderFirst bool

	mu     sync.Mutex
	single bool
}

// List returns the object of the name, or all in the folder of the name. Siblings
// whose names merely begin alike are not listed. Errors: source.ErrListing,
// source.ErrNotFound, those of list.
func (p *Place) List(ctx context.Context, list Lister) ([]source.Object, error) {
	steps := []func(context.Context, Lister) ([]source.Object, error){p.object, p.inFolder}
	if p.FolderFirst {
		steps[0], steps[1] = steps[1], steps[0]
	}
	objects, err := steps[0](ctx, list)
	if errors.Is(err, source.ErrNotFound) {
		objects, err = steps[1](ctx, list)
	}
	return objects, err
}

// object lists the object of the name.
func (p *Place) object(ctx context.Context, list Lister) ([]source.Object, error) {
	var l listing.Listing
	if p.Key == "" || strings.HasSuffix(p.Key, "/") {
		return l.Done()
	}
	// Of all keys that begin with its own, the object's comes first.
	err := pages(ctx, list, p.Key, 1, func(o source.Object) (bool, error) {
		if o.Path != p.Key || o.Size == 0 && !p.Empty {
			return false, nil
		}
		o.Path = base(p.Key)
		return false, l.Add(o)
	})
	if err != nil {
		return nil, err
	}
	objects, err := l.Done()
	p.mu.Lock()
	p.single = err == nil
	p.mu.Unlock()
	return objects, err
}

// inFolder lists what is in the folder of the name.
func (p *Place) inFolder(ctx context.Context, list Lister) ([]source.Object, error) {
	var l listing.Listing
	folder := p.folder()
	err := pages(ctx, list, folder, 1000, func(o source.Object) (bool, error) {
		path, ok := strings.CutPrefix(o.Path, folder)
		if !ok {
			return false, listing.Unacceptable("object %q does not begin with what was asked for", podvm.Printable(o.Path, 200))
		}
		if path == "" || strings.HasSuffix(path, "/") || o.Size == 0 && !p.Empty {
			return true, nil
		}
		o.Path = path
		return true, l.Add(o)
	})
	if err != nil {
		return nil, err
	}
	return l.Done()
}

// pages has each object of a listing visited until visit wants no more. Stores
// may answer with pages that are empty and not the last.
func pages(ctx context.Context, list Lister, prefix string, most int, visit func(source.Object) (more bool, err error)) error {
	next := ""
	for range MaxPages {
		p, err := list(ctx, prefix, most, next)
		if err != nil {
			return err
		}
		for _, o := range p.Objects {
			if more, err := visit(o); err != nil || !more {
				return err
			}
		}
		if p.Next == "" {
			return nil
		}
		if p.Next == next || len(p.Next) > maxToken {
			return listing.Unacceptable("it goes on, and does not say where")
		}
		next = p.Next
	}
	return listing.Unacceptable("more than %d pages", MaxPages)
}

// KeyOf is the key of the object that List calls path. Errors:
// source.ErrNotFound, source.ErrListing.
func (p *Place) KeyOf(path string) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.single && path == base(p.Key):
		return p.Key, nil
	case p.single:
		return "", podvm.Explain(source.ErrNotFound, "the address is that of one object, and the model names another")
	case path == "" || len(path) > source.MaxName:
		return "", fmt.Errorf("%w: a name of %d bytes", source.ErrListing, len(path))
	}
	return p.folder() + path, nil
}

// folder is what keys in the folder begin with.
func (p *Place) folder() string {
	if p.Key == "" || strings.HasSuffix(p.Key, "/") {
		return p.Key
	}
	return p.Key + "/"
}

func base(key string) string { return key[strings.LastIndexByte(key, '/')+1:] }
