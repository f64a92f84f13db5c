package kms

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/podvm"
)

// willing is a provider that does whatever it is asked.
type willing struct{ calls int }

func (w *willing) Decrypt(context.Context, string, []byte, Object) (podvm.Secret, error) {
	w.calls++
	return podvm.Secret("key"), nil
}

func (w *willing) Secret(context.Context, string, Object) (podvm.Secret, error) {
	w.calls++
	return podvm.Secret("secret"), nil
}

// A document of megabytes of name is refused before a provider copies it.
func TestWhatADocumentNamesIsShort(t *testing.T) {
	w := &willing{}
	p, ctx, long := bounded{w}, t.Context(), strings.Repeat("x", maxName+1)
	for name, call := range map[string]func() (podvm.Secret, error){
		"key id":      func() (podvm.Secret, error) { return p.Decrypt(ctx, long, nil, nil) },
		"wrapped key": func() (podvm.Secret, error) { return p.Decrypt(ctx, "k", make([]byte, maxWrapped+1), nil) },
		"name":        func() (podvm.Secret, error) { return p.Secret(ctx, long, nil) },
	} {
		if got, err := call(); got != nil || !errors.Is(err, ErrSettings) || !strings.Contains(podvm.Cause(err), "too long") {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if w.calls != 0 {
		t.Errorf("the provider was asked %d times", w.calls)
	}
	_, err1 := p.Decrypt(ctx, long[1:], make([]byte, maxWrapped), nil)
	_, err2 := p.Secret(ctx, long[1:], nil)
	if err := errors.Join(err1, err2); err != nil || w.calls != 2 {
		t.Errorf("%v after %d calls", err, w.calls)
	}
}
