package refvalue

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/sealpod/sealpod/relyingparty/store"
)

func sample(payload string) []byte {
	return fmt.Appendf(nil, `{"version":"0.1.0","type":"sample","payload":%q}`, base64.StdEncoding.EncodeToString([]byte(payload)))
}

func TestRegisteredValuesComeBack(t *testing.T) {
	s := store.NewMemory()
	p := New(s, func() time.Time { return time.Date(2026, 2, 3, 4, 5, 6, 7, time.FixedZone("x", 3600)) })
	if err := p.Register(t.Context(), sample(`{"svn":["1"],"major":1,"flag":true,"a/b":"x"}`)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]any{
		"svn": []any{"1"}, "major": json.Number("1"), "flag": true, "a/b": "x", "missing": nil, "../x": nil, "": nil,
	} {
		if got, err := p.Query(t.Context(), name); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	raw, err := s.Get(t.Context(), store.ReferenceValue, "svn")
	if want := `{"version":"0.1.0","name":"svn","expiration":"2027-02-03T03:05:06Z","value":["1"]}`; err != nil || string(raw) != want {
		t.Errorf("stored %s, %v", raw, err)
	}
	if err := p.Register(t.Context(), sample(`{"svn":["2"]}`)); err != nil {
		t.Fatal(err)
	}
	if got, err := p.Raw(t.Context(), "svn"); err != nil || string(got) != `["2"]` {
		t.Errorf("after overwriting: %s, %v", got, err)
	}
	if _, err := p.Raw(t.Context(), "missing"); !errors.Is(err, ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
}

func TestVersionMayBeLeftOut(t *testing.T) {
	p := New(store.NewMemory(), nil)
	if err := p.Register(t.Context(), []byte(`{"type":"sample","payload":"e30="}`)); err != nil {
		t.Error(err)
	}
}

func TestMessagesThatAreRefusedStoreNothing(t *testing.T) {
	s := store.NewMemory()
	p := New(s, nil)
	for name, raw := range map[string][]byte{
		"empty": nil, "no JSON": []byte("x"), "array": []byte(`[]`), "trailing data": []byte(`{"type":"sample","payload":"e30="}{}`),
		"other version": []byte(`{"version":"0.2.0","type":"sample","payload":"e30="}`),
		"corim":         []byte(`{"type":"corim","payload":"e30="}`), "no type": []byte(`{"payload":"e30="}`),
		"payload no base64": []byte(`{"type":"sample","payload":"%"}`), "payload no object": sample(`["x"]`), "payload null": sample(`null`),
		"one bad name": sample(`{"good":1,"../bad":2}`), "empty name": sample(`{"":1}`),
	} {
		if err := p.Register(t.Context(), raw); !errors.Is(err, ErrMessage) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if keys, _ := s.List(t.Context(), store.ReferenceValue); len(keys) != 0 {
		t.Errorf("stored %v", keys)
	}
	if err := s.Put(t.Context(), store.ReferenceValue, "damaged", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Query(t.Context(), "damaged"); err == nil {
		t.Error("a damaged value reads as none")
	}
}

func FuzzRegister(f *testing.F) {
	f.Add(sample(`{"svn":["1"]}`))
	f.Add([]byte(`{"type":"sample","payload":"e30="}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if err := New(store.NewMemory(), nil).Register(t.Context(), raw); err != nil && !errors.Is(err, ErrMessage) && !errors.Is(err, store.ErrFull) {
			t.Error(err)
		}
	})
}
