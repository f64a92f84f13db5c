// Package session remembers the handshakes of a relying party: the nonce given
// to a client and, once it attested, its token.
//
// Place in the data path: POST auth makes a session, POST attest settles it,
// later requests name it by cookie. Memory is the default. Several relying
// parties behind a load balancer need either sticky cookies or an
// implementation of Store they share; nothing else in relyingparty keeps
// per-client state.
//
// Trust: anybody may make a session without credentials, so Memory has a cap
// on count, where it gives up the oldest first, and on bytes of tokens, where it
// gives up the longest first. A guest whose session went is told "no token" and
// attests again.
package session

import (
	"container/list"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"sync"
	"time"
)

// ErrNotFound says that there is no such session, or no longer.
var ErrNotFound = errors.New("no such session")

// Session is one handshake.
type Session struct {
	// ID is the cookie value: 32 lowercase hex digits of a random (version 4)
	// UUID, 122 random bits.
	ID string
	// TEE is the wire name the client announced.
	TEE string
	// Nonce is the challenge, padded standard base64 of 32 random bytes.
	Nonce string
	// Expires ends the session; attesting does not extend it.
	Expires time.Time
	// Token is the signed token, "" until the session attested.
	Token string
}

// Store keeps sessions. All methods may be called at the same time. Sessions
// past Expires are ErrNotFound.
type Store interface {
	// Put adds a new session.
	Put(ctx context.Context, s Session) error
	// Get returns the session with that id.
	Get(ctx context.Context, id string) (Session, error)
	// Settle gives the session its token unless it has one, and returns the one
	// it has, so that two attestations of one session get one token.
	Settle(ctx context.Context, id, token string) (string, error)
}

// New returns a fresh session, with its id and nonce, for a client with that TEE.
func New(tee string, expires time.Time) Session {
	var id [16]byte
	var nonce [32]byte
	_, _ = rand.Read(id[:]) // crypto/rand never returns an error
	_, _ = rand.Read(nonce[:])
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return Session{
		ID: hex.EncodeToString(id[:]), TEE: tee, Expires: expires,
		Nonce: base64.StdEncoding.EncodeToString(nonce[:]),
	}
}

// Caps of a Memory made with zero limits.
const (
	DefaultMax      = 16384
	DefaultMaxBytes = 64 << 20
)

// Memory is a Store in memory. Every session must live equally long: the
// oldest is then the first to expire, and expired ones leave as new ones come.
type Memory struct {
	now      func() time.Time
	max      int
	maxBytes int

	mu    sync.Mutex
	byID  map[string]*list.Element
	order *list.List // of Session, oldest first
	bytes int        // of all tokens
}

// NewMemory returns an empty store of at most limit sessions with limitBytes of
// tokens; zero means the default. now is the clock, nil for time.Now.
func NewMemory(now func() time.Time, limit, limitBytes int) *Memory {
	m := &Memory{now: now, max: limit, maxBytes: limitBytes, byID: map[string]*list.Element{}, order: list.New()}
	if now == nil {
		m.now = time.Now
	}
	if limit <= 0 {
		m.max = DefaultMax
	}
	if limitBytes <= 0 {
		m.maxBytes = DefaultMaxBytes
	}
	return m
}

// Put implements Store.
func (m *Memory) Put(_ context.Context, s Session) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.byID[s.ID]; ok {
		return errors.New("adding a session: the id is taken")
	}
	m.byID[s.ID] = m.order.PushBack(s)
	m.bytes += len(s.Token)
	m.trim()
	return nil
}

// Get implements Store.
func (m *Memory) Get(_ context.Context, id string) (Session, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, err := m.find(id)
	if err != nil {
		return Session{}, err
	}
	return e.Value.(Session), nil
}

// Settle implements Store.
func (m *Memory) Settle(_ context.Context, id, token string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, err := m.find(id)
	if err != nil {
		return "", err
	}
	s := e.Value.(Session)
	if s.Token != "" {
		return s.Token, nil
	}
	s.Token = token
	e.Value = s
	m.bytes += len(token)
	m.trim()
	return token, nil
}

// Len returns the number of sessions held, expired ones included.
func (m *Memory) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.order.Len()
}

func (m *Memory) find(id string) (*list.Element, error) {
	e, ok := m.byID[id]
	if !ok || !m.now().Before(e.Value.(Session).Expires) {
		return nil, ErrNotFound
	}
	return e, nil
}

// trim drops sessions from the oldest on while they are expired or too many,
// and those with the longest tokens while the tokens are too many bytes: one
// stranger with huge evidence crowds out its like, not everybody else.
func (m *Memory) trim() {
	now := m.now()
	for e := m.order.Front(); e != nil; e = m.order.Front() {
		if now.Before(e.Value.(Session).Expires) && m.order.Len() <= m.max {
			break
		}
		m.drop(e)
	}
	for m.bytes > m.maxBytes {
		longest := m.order.Front()
		for e := longest; e != nil; e = e.Next() {
			if len(e.Value.(Session).Token) > len(longest.Value.(Session).Token) {
				longest = e
			}
		}
		m.drop(longest)
	}
}

func (m *Memory) drop(e *list.Element) {
	s := m.order.Remove(e).(Session)
	delete(m.byID, s.ID)
	m.bytes -= len(s.Token)
}
