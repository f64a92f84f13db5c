package listing

import (
	"errors"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/podvm"
)

func TestListingsThatAreNoFolder(t *testing.T) {
	for name, tt := range map[string]struct {
		paths []string
		is    error
	}{
		"sorted":            {[]string{"b/c", "a", "b/a", "b.x"}, nil},
		"nothing":           {nil, source.ErrNotFound},
		"outside":           {[]string{"../x"}, source.ErrListing},
		"outside, deep":     {[]string{"a/../../x"}, source.ErrListing},
		"absolute":          {[]string{"/etc/passwd"}, source.ErrListing},
		"empty":             {[]string{""}, source.ErrListing},
		"empty part":        {[]string{"a//b"}, source.ErrListing},
		"NUL":               {[]string{"a\x00b"}, source.ErrListing},
		"not UTF-8":         {[]string{"a\xffb"}, source.ErrListing},
		"in progress":       {[]string{"d/.a.part"}, source.ErrListing},
		"long":              {[]string{strings.Repeat("a/", 600) + "b"}, source.ErrListing},
		"twice":             {[]string{"a", "b", "a"}, source.ErrListing},
		"a file's file":     {[]string{"a/b/c", "a"}, source.ErrListing},
		"not quite the one": {[]string{"a/b", "a.b", "ab"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var l Listing
			var err error
			for _, p := range tt.paths {
				err = errors.Join(err, l.Add(source.Object{Path: p}))
			}
			if err == nil {
				var got []source.Object
				if got, err = l.Done(); err == nil && (len(got) != len(tt.paths) || got[0].Path != "a" && got[0].Path != "a.b") {
					t.Errorf("%v", got)
				}
			}
			if !errors.Is(err, tt.is) || err != nil && podvm.Cause(err) == "" {
				t.Error(err)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	for size, ok := range map[int64]bool{-1: true, 0: true, sealed.MaxSize: true, -2: false, 1 << 62: false} {
		if err := new(Listing).Add(source.Object{Path: "a", Size: size}); (err == nil) != ok {
			t.Errorf("%d: %v", size, err)
		}
	}
	l := Listing{objects: make([]source.Object, source.MaxObjects)}
	if err := l.Add(source.Object{Path: "a"}); !errors.Is(err, source.ErrListing) {
		t.Error(err)
	}
}
