package bucket

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/podvm"
)

// store answers from keys, "KEY" or "KEY=SIZE", in order, with an empty page
// before each.
func store(keys ...string) Lister {
	slices.Sort(keys)
	return func(_ context.Context, prefix string, most int, next string) (Page, error) {
		at, _ := strconv.Atoi(next)
		if at%2 == 0 {
			return Page{Next: strconv.Itoa(at + 1)}, nil
		}
		var all []source.Object
		for _, k := range keys {
			name, size, ok := strings.Cut(k, "=")
			n, _ := strconv.ParseInt(size, 10, 64)
			if !ok {
				n = 1
			}
			if strings.HasPrefix(name, prefix) {
				all = append(all, source.Object{Path: name, Size: n})
			}
		}
		from := min(at/2*most, len(all))
		p := Page{Objects: all[from:min(from+most, len(all))]}
		if from+most < len(all) {
			p.Next = strconv.Itoa(at + 1)
		}
		return p, nil
	}
}

func TestWhatAnAddressNames(t *testing.T) {
	keys := []string{"top=3", "empty=0", "m/a", "m/d/b", "m/e=0", "m/f/=5", "m.x", "m2/a", "both", "both/a"}
	for name, tt := range map[string]struct {
		place *Place
		want  string
		key   string // of the first one
	}{
		"folder":               {&Place{Key: "m"}, "a d/b", "m/a"},
		"folder, with slash":   {&Place{Key: "m/"}, "a d/b", "m/a"},
		"with empty ones":      {&Place{Key: "m", Empty: true}, "a d/b e", "m/a"},
		"object":               {&Place{Key: "m/d/b"}, "b", "m/d/b"},
		"object at the top":    {&Place{Key: "top"}, "top", "top"},
		"both":                 {&Place{Key: "both"}, "both", "both"},
		"both, folder first":   {&Place{Key: "both", FolderFirst: true}, "a", "both/a"},
		"object, folder first": {&Place{Key: "m/a", FolderFirst: true}, "a", "m/a"},
		"empty":                {&Place{Key: "empty"}, "", ""},
		"empty, taken":         {&Place{Key: "empty", Empty: true}, "empty", "empty"},
		"nothing":              {&Place{Key: "none"}, "", ""},
		"part of a name":       {&Place{Key: "to"}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := tt.place.List(t.Context(), store(keys...))
			var names []string
			for _, o := range got {
				names = append(names, o.Path)
			}
			if s := strings.Join(names, " "); s != tt.want || (err == nil) != (tt.want != "") || err != nil && !errors.Is(err, source.ErrNotFound) {
				t.Fatalf("%q, %v", s, err)
			}
			if err != nil {
				return
			}
			if key, err := tt.place.KeyOf(names[0]); key != tt.key || err != nil {
				t.Errorf("key %q, %v", key, err)
			}
		})
	}
}

func TestNamesOfAModelBesideOneObject(t *testing.T) {
	p := Place{Key: "m/a"}
	if _, err := p.List(t.Context(), store("m/a")); err != nil {
		t.Fatal(err)
	}
	if _, err := p.KeyOf("b"); !errors.Is(err, source.ErrNotFound) {
		t.Error(err)
	}
	for _, path := range []string{"", strings.Repeat("x", source.MaxName+1)} {
		if _, err := (&Place{Key: "m"}).KeyOf(path); !errors.Is(err, source.ErrListing) {
			t.Error(err)
		}
	}
}

func TestHostilePages(t *testing.T) {
	n := 0
	for name, list := range map[string]Lister{
		"elsewhere": func(context.Context, string, int, string) (Page, error) {
			return Page{Objects: []source.Object{{Path: "n/a"}}}, nil
		},
		"up":         store("m/../../x"),
		"twice":      store("m/a", "m/a"),
		"same token": func(context.Context, string, int, string) (Page, error) { return Page{Next: "t"}, nil },
		"long token": func(context.Context, string, int, string) (Page, error) {
			return Page{Next: strings.Repeat("t", maxToken+1)}, nil
		},
		"without end":   func(context.Context, string, int, string) (Page, error) { n++; return Page{Next: fmt.Sprint(n)}, nil },
		"negative size": store("m/a=-2"),
	} {
		if got, err := (&Place{Key: "m/", Empty: true}).List(t.Context(), list); !errors.Is(err, source.ErrListing) || podvm.Cause(err) == "" {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if n != MaxPages {
		t.Errorf("%d pages", n)
	}
	fault := errors.New("fault")
	if _, err := (&Place{Key: "m"}).List(t.Context(), func(context.Context, string, int, string) (Page, error) { return Page{}, fault }); !errors.Is(err, fault) {
		t.Error(err)
	}
}
