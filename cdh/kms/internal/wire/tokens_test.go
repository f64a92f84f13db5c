package wire

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sealpod/sealpod/podvm"
)

// issuer counts logins, each of which takes a second.
type issuer struct {
	n    int
	life time.Duration
	err  error
}

func (i *issuer) fetch(ctx context.Context) (podvm.Secret, time.Duration, error) {
	if err := sleep(ctx, time.Second); err != nil {
		return nil, 0, err
	}
	i.n++
	if i.err != nil {
		return nil, 0, i.err
	}
	return podvm.Secret(fmt.Sprintf("token-%d", i.n)), i.life, nil
}

func TestTokensLiveAndAreReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{life: time.Hour}
		tokens := NewTokens(time.Now)
		key := KeyOf([]byte("a"))
		want := func(value string, refused podvm.Secret) {
			t.Helper()
			tok, err := tokens.Get(t.Context(), key, refused, i.fetch)
			if err != nil || string(tok.Value) != value {
				t.Errorf("%q, %v, want %q", []byte(tok.Value), err, value)
			}
			tok.Value.Wipe() // a copy
		}
		want("token-1", nil)
		time.Sleep(54 * time.Minute)
		want("token-1", nil)
		time.Sleep(time.Minute)
		want("token-2", nil)
		want("token-2", podvm.Secret("token-1")) // somebody else replaced it already
		i.life = Forever
		want("token-3", podvm.Secret("token-2"))
		time.Sleep(100 * 365 * 24 * time.Hour)
		want("token-3", nil)
		i.life = 10 * time.Second
		want("token-4", podvm.Secret("token-3"))
		time.Sleep(7 * time.Second) // from the start of a login, which took one
		want("token-5", nil)
	})
}

func TestCallersShareOneLoginAndItsFailure(t *testing.T) {
	for name, fault := range map[string]error{"well": nil, "refused": errors.New("refused")} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := &issuer{life: time.Hour, err: fault}
				tokens := NewTokens(time.Now)
				var wg sync.WaitGroup
				for range 20 {
					wg.Go(func() {
						tok, err := tokens.Get(t.Context(), TokenKey{}, nil, i.fetch)
						if !errors.Is(err, fault) || (string(tok.Value) == "token-1") != (fault == nil) {
							t.Errorf("%q, %v", []byte(tok.Value), err)
						}
					})
				}
				wg.Wait()
				if i.n != 1 {
					t.Errorf("%d logins", i.n)
				}
				i.err = nil // a failure is not kept for those who come later
				if _, err := tokens.Get(t.Context(), TokenKey{}, nil, i.fetch); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestCallerWhoGivesUpLeavesTheLoginToTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{life: time.Hour}
		tokens := NewTokens(time.Now)
		get := func(ctx context.Context, limit time.Duration) error {
			ctx, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			_, err := tokens.Get(ctx, TokenKey{}, nil, i.fetch)
			return err
		}
		first, second := make(chan error, 1), make(chan error, 1)
		go func() { first <- get(t.Context(), 500*time.Millisecond) }()
		synctest.Wait()
		go func() { second <- get(t.Context(), time.Minute) }()
		if err := get(t.Context(), 100*time.Millisecond); !errors.Is(err, ErrUnreachable) || podvm.Cause(err) != "no login at the KMS in time" {
			t.Errorf("who gave up waiting: %v", err)
		}
		if err := <-first; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("who gave up in the login: %v", err)
		}
		if err := <-second; err != nil || i.n != 1 {
			t.Errorf("who stayed: %v, %d logins", err, i.n)
		}
	})
}

// TestCallerInAHurryKeepsItsFailure: without the time for every try it fails where
// others would not.
func TestCallerInAHurryKeepsItsFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{life: time.Hour, err: ErrUnreachable}
		tokens := NewTokens(time.Now)
		first, second := make(chan error, 1), make(chan error, 1)
		get := func(limit time.Duration, done chan<- error) {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			_, err := tokens.Get(ctx, TokenKey{}, nil, func(ctx context.Context) (podvm.Secret, time.Duration, error) {
				defer func() { i.err = nil }() // the service is back
				return i.fetch(ctx)
			})
			done <- err
		}
		go get(2*time.Second, first)
		synctest.Wait()
		go get(45*time.Second, second)
		if err := <-first; !errors.Is(err, ErrUnreachable) {
			t.Error(err)
		}
		if err := <-second; err != nil {
			t.Errorf("who had time: %v", err)
		}
	})
}

// TestLoginsThatFailKeepNoPlace: whoever asks as many who do not exist does not
// make the one who does log in again.
func TestLoginsThatFailKeepNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good, bad := &issuer{life: time.Hour}, &issuer{err: ErrService}
		tokens := NewTokens(time.Now)
		for i := range 10 * maxTokens {
			if _, err := tokens.Get(t.Context(), KeyOf([]byte("good")), nil, good.fetch); err != nil {
				t.Fatal(err)
			}
			if _, err := tokens.Get(t.Context(), KeyOf([]byte("bad"), []byte{byte(i)}), nil, bad.fetch); !errors.Is(err, ErrService) {
				t.Fatal(err)
			}
		}
		if good.n != 1 {
			t.Errorf("%d logins", good.n)
		}
	})
}

func TestTokensDoNotPileUp(t *testing.T) {
	tokens := NewTokens(time.Now)
	for i := range 3 * maxTokens {
		tokens.find(KeyOf([]byte(strings.Repeat("x", i))))
	}
	if len(tokens.byID) != maxTokens {
		t.Errorf("%d kept", len(tokens.byID))
	}
	if KeyOf([]byte("ab"), []byte("c")) == KeyOf([]byte("a"), []byte("bc")) || KeyOf([]byte("a")) == KeyOf([]byte("a"), nil) {
		t.Error("different logins share a key")
	}
}
