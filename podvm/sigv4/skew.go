package sigv4

import (
	"net/http"
	"slices"
	"sync"
	"time"
)

// Tolerated is how far a clock may be off before it is the likely reason for a
// refusal; AWS takes five minutes.
const Tolerated = 4 * time.Minute

// Clock is the clock of a guest, which the host sets, corrected by that of the
// service, once. It is safe for concurrent use.
type Clock struct {
	now func() time.Time

	mu sync.Mutex
	by time.Duration
}

// NewClock returns a Clock that goes by now until it is corrected.
func NewClock(now func() time.Time) *Clock { return &Clock{now: now} }

// Now is the corrected time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now().Add(c.by)
}

// Off returns how far date, a header of an answer, is ahead of the guest's
// clock; 0 when it is no date.
func (c *Clock) Off(date string) time.Duration {
	at, err := http.ParseTime(date)
	if err != nil {
		return 0
	}
	return at.Sub(c.now())
}

// Learn sets the correction when code may mean a wrong clock and date is far
// off, and tells whether it did.
// Source: AWS SDK for Go v2, aws/retry/middleware.go at v1.48.0.
func (c *Clock) Learn(code, date string) bool {
	suspect := slices.Contains([]string{
		"InvalidSignatureException", "SignatureDoesNotMatch", "AuthFailure", "RequestTimeTooSkewed", "AccessDeniedException",
	}, code)
	d := c.Off(date)
	if !suspect || d < Tolerated && d > -Tolerated {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by != 0 {
		return false
	}
	c.by = d
	return true
}
