package server

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/kbs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func jwt(id int, issued, expires time.Time) string {
	claims := fmt.Sprintf(`{"iat":%d,"exp":%d,"jti":"%d"}`, issued.Unix(), expires.Unix(), id)
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"
}

// counter attests without a KBS: each token is a new one, valid for 5 minutes.
type counter struct {
	key   *kbs.TEEKey
	delay time.Duration
	err   error
	skew  time.Duration // how far the issuer's clock is ahead

	mu    sync.Mutex
	calls int
}

func newCounter(t testing.TB) *counter {
	t.Helper()
	key, err := kbs.GenerateTEEKey("")
	if err != nil {
		t.Fatal(err)
	}
	return &counter{key: key}
}

func (c *counter) attest(ctx context.Context) (*kbs.Token, error) {
	c.mu.Lock()
	c.calls++
	n := c.calls
	c.mu.Unlock()
	select {
	case <-time.After(c.delay):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if c.err != nil {
		return nil, c.err
	}
	now := time.Now().Add(c.skew)
	return kbs.NewToken(jwt(n, now, now.Add(5*time.Minute)), c.key)
}

func (c *counter) tokens(t *testing.T, keep bool) *tokens {
	ts := newTokens(c.attest, keep, slog.New(slog.DiscardHandler))
	t.Cleanup(ts.close)
	return ts
}

func get(t *testing.T, ts *tokens, refused string) *kbs.Token {
	t.Helper()
	tok, err := ts.get(t.Context(), refused)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestTokenIsKeptForFourFifthsOfItsLife(t *testing.T) {
	for name, skew := range map[string]time.Duration{"clocks agree": 0, "KBS behind": -time.Hour, "KBS ahead": time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCounter(t)
				c.skew = skew
				ts := c.tokens(t, true)
				first := get(t, ts, "")
				time.Sleep(4*time.Minute - time.Second)
				if get(t, ts, "") != first || c.calls != 1 {
					t.Errorf("%d attestations before 0.8", c.calls)
				}
				time.Sleep(time.Second)
				if get(t, ts, "") == first || c.calls != 2 {
					t.Errorf("%d attestations after 0.8", c.calls)
				}
			})
		})
	}
}

func TestConcurrentCallersShareOneAttestation(t *testing.T) {
	for name, keep := range map[string]bool{"cache on": true, "cache off": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCounter(t)
				c.delay = time.Second
				ts := c.tokens(t, keep)
				var wg sync.WaitGroup
				for range 50 {
					wg.Go(func() { get(t, ts, "") })
				}
				wg.Wait()
				if c.calls != 1 {
					t.Errorf("%d attestations", c.calls)
				}
				get(t, ts, "")
				if want := map[bool]int{true: 1, false: 2}[keep]; c.calls != want {
					t.Errorf("%d attestations after one more call, want %d", c.calls, want)
				}
			})
		})
	}
}

func TestCallerWhoGivesUpDoesNotEndTheAttestation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCounter(t)
		c.delay = 2 * time.Second
		ts := c.tokens(t, true)
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := ts.get(impatient, ""); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("impatient: %v", err)
			}
		})
		wg.Go(func() { get(t, ts, "") })
		wg.Wait()
		if c.calls != 1 {
			t.Errorf("%d attestations", c.calls)
		}
	})
}

func TestAttestationIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCounter(t)
		c.delay = time.Hour
		start := time.Now()
		if _, err := c.tokens(t, true).get(t.Context(), ""); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != attestTimeout {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestFailureIsNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCounter(t)
		c.err = kbs.ErrUnreachable
		ts := c.tokens(t, true)
		if _, err := ts.get(t.Context(), ""); !errors.Is(err, kbs.ErrUnreachable) {
			t.Errorf("got %v", err)
		}
		c.err = nil
		get(t, ts, "")
	})
}

// A KBS that lost its signing key refuses tokens that look fine here: the
// caller names the one it was refused with and gets another, and nobody else
// attests for it again.
func TestRefusedTokenIsReplacedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCounter(t)
		ts := c.tokens(t, true)
		refused := tokenHash(get(t, ts, ""))
		second := get(t, ts, refused)
		if tokenHash(second) == refused || c.calls != 2 {
			t.Fatalf("%d attestations", c.calls)
		}
		for _, hint := range []string{refused, "", "nonsense"} {
			if get(t, ts, hint) != second {
				t.Errorf("hint %q: another attestation", hint)
			}
		}
	})
}

func TestMeasurementDropsTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCounter(t)
		ts := c.tokens(t, true)
		first := get(t, ts, "")
		ts.drop()
		if get(t, ts, "") == first {
			t.Error("a token from before the measurement")
		}
		// One that is under way when the measurement comes is as stale.
		ts.drop()
		c.delay = time.Minute / 2
		var wg sync.WaitGroup
		var before *kbs.Token
		wg.Go(func() { before = get(t, ts, "") })
		synctest.Wait()
		ts.drop()
		after := get(t, ts, "")
		wg.Wait()
		if after == before {
			t.Error("joined an attestation from before the measurement")
		}
		if get(t, ts, "") == before {
			t.Error("kept the token of an attestation from before the measurement")
		}
	})
}

func TestCloseEndsARunningAttestation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCounter(t)
		c.delay = time.Hour
		ts := c.tokens(t, true)
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := ts.get(t.Context(), ""); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		})
		synctest.Wait()
		ts.close()
		wg.Wait()
		if _, err := ts.get(t.Context(), ""); !errors.Is(err, context.Canceled) {
			t.Errorf("after the end: %v", err)
		}
	})
}

// Whoever can both record events and ask for tokens cannot make attestations
// pile up, and still nobody gets a token from before an event.
func TestEventsDoNotPileUpAttestations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCounter(t)
		c.delay = time.Minute / 2
		ts := c.tokens(t, true)
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		for range 1000 {
			if _, err := ts.get(gone, ""); !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			synctest.Wait()
			ts.drop()
		}
		if c.calls > maxAttesting {
			t.Errorf("%d attestations at once", c.calls)
		}
		dropped := time.Now()
		tok := get(t, ts, "")
		if issued := tok.Issued(); issued.Before(dropped.Add(c.delay).Truncate(time.Second)) {
			t.Errorf("a token of %v, made before %v", issued, dropped)
		}
		if get(t, ts, "") != tok || c.calls > maxAttesting+1 {
			t.Errorf("%d attestations", c.calls)
		}
	})
}
