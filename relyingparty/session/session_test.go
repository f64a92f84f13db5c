package session

import (
	"encoding/base64"
	"errors"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// clock is a time that tests set.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.t }

func (c *clock) add(d time.Duration) { c.mu.Lock(); defer c.mu.Unlock(); c.t = c.t.Add(d) }

func newClock() *clock { return &clock{t: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }

func TestNewHasTheWireForms(t *testing.T) {
	a, b := New("sample", time.Time{}), New("sample", time.Time{})
	if !regexp.MustCompile(`^[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}$`).MatchString(a.ID) {
		t.Errorf("id %q is no version 4 UUID", a.ID)
	}
	if raw, err := base64.StdEncoding.DecodeString(a.Nonce); err != nil || len(raw) != 32 || len(a.Nonce) != 44 {
		t.Errorf("nonce %q: %d bytes, %v", a.Nonce, len(raw), err)
	}
	if a.ID == b.ID || a.Nonce == b.Nonce {
		t.Error("two sessions alike")
	}
}

func TestSessionLivesUntilItsExpiry(t *testing.T) {
	c := newClock()
	m := NewMemory(c.now, 0, 0)
	s := New("sample", c.now().Add(5*time.Minute))
	must(t, m.Put(t.Context(), s))
	if err := m.Put(t.Context(), s); err == nil {
		t.Error("the id was taken twice")
	}
	c.add(5*time.Minute - 1)
	if got, err := m.Get(t.Context(), s.ID); err != nil || got != s {
		t.Errorf("%+v, %v", got, err)
	}
	c.add(1)
	if _, err := m.Get(t.Context(), s.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("expired: %v", err)
	}
	if _, err := m.Settle(t.Context(), s.ID, "token"); !errors.Is(err, ErrNotFound) {
		t.Errorf("settling an expired session: %v", err)
	}
	must(t, m.Put(t.Context(), New("sample", c.now().Add(5*time.Minute))))
	if m.Len() != 1 {
		t.Errorf("%d sessions: the expired one was not purged", m.Len())
	}
}

func TestSettleHasOneWinner(t *testing.T) {
	c := newClock()
	m := NewMemory(c.now, 0, 0)
	s := New("sample", c.now().Add(time.Minute))
	must(t, m.Put(t.Context(), s))
	got := make([]string, 16)
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() {
			var err error
			if got[i], err = m.Settle(t.Context(), s.ID, strings.Repeat("t", i+1)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, tok := range got {
		if tok != got[0] {
			t.Fatalf("two tokens: %q and %q", got[0], tok)
		}
	}
}

func TestFloodGivesUpTheOldestAndStaysBounded(t *testing.T) {
	c := newClock()
	m := NewMemory(c.now, 100, 1000)
	expires := c.now().Add(time.Minute)
	first := New("sample", expires)
	must(t, m.Put(t.Context(), first))
	var last Session
	for range 500 {
		last = New("sample", expires)
		must(t, m.Put(t.Context(), last))
	}
	if m.Len() != 100 {
		t.Errorf("%d sessions", m.Len())
	}
	if _, err := m.Get(t.Context(), first.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("the oldest stayed: %v", err)
	}
	if _, err := m.Get(t.Context(), last.ID); err != nil {
		t.Errorf("the newest went: %v", err)
	}
	for e := m.order.Front(); e != nil; e = e.Next() {
		id := e.Value.(Session).ID
		if _, err := m.Settle(t.Context(), id, strings.Repeat("t", 100)); err != nil {
			break
		}
		if m.bytes > 1000 {
			t.Fatalf("%d bytes of tokens", m.bytes)
		}
	}
}

func TestLongTokensOfOneStrangerDoNotEndOtherSessions(t *testing.T) {
	c := newClock()
	m := NewMemory(c.now, 100, 1000)
	expires := c.now().Add(time.Minute)
	underway, attested := New("sample", expires), New("sample", expires)
	must(t, m.Put(t.Context(), underway))
	must(t, m.Put(t.Context(), attested))
	if _, err := m.Settle(t.Context(), attested.ID, "short"); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		s := New("sample", expires)
		must(t, m.Put(t.Context(), s))
		if tok, err := m.Settle(t.Context(), s.ID, strings.Repeat("t", 400)); err != nil || len(tok) != 400 {
			t.Fatalf("%d bytes of token, %v", len(tok), err)
		}
	}
	if m.bytes > 1000 {
		t.Errorf("%d bytes of tokens", m.bytes)
	}
	for _, s := range []Session{underway, attested} {
		if _, err := m.Get(t.Context(), s.ID); err != nil {
			t.Errorf("a session from before the flood: %v", err)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
