package agenttest

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
)

// A Call is what the agent got of one call.
type Call struct {
	Method   string        // "/grpc.AgentService/CreateContainer"
	Payload  []byte        // for a stream, what the first message brought, if any
	Timeout  time.Duration // what the caller left; 0 for no end
	Metadata ttrpc.MD
}

type record struct {
	mu        sync.Mutex
	calls     []Call
	delivered map[string]int
}

// Calls returns the calls so far, of every method or of one, in the order in
// which they came. Config.Record must be set.
func (a *Agent) Calls(method ...string) []Call {
	a.log.mu.Lock()
	defer a.log.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(a.log.calls), func(c Call) bool {
		return len(method) > 0 && !slices.Contains(method, c.Method)
	})
}

// Delivered returns how often each AskID came.
func (a *Agent) Delivered() map[string]int {
	a.log.mu.Lock()
	defer a.log.mu.Unlock()
	return maps.Clone(a.log.delivered)
}

// deliver notes a call before it is served.
func (a *Agent) deliver(ctx context.Context, method string, payload func() ([]byte, error)) error {
	md, _ := ttrpc.GetMetadata(ctx)
	id := ask(md, AskID)
	if id == "" && !a.cfg.Record {
		return nil
	}
	c := Call{Method: method, Metadata: md.Clone()}
	if a.cfg.Record {
		if deadline, ok := ctx.Deadline(); ok {
			c.Timeout = time.Until(deadline)
		}
		var err error
		if c.Payload, err = payload(); err != nil {
			return err
		}
	}
	if a.cfg.Record {
		a.log.mu.Lock()
		a.log.calls = append(a.log.calls, c)
		a.log.mu.Unlock()
	}
	return a.count(id, method)
}

// count notes a delivery of id, if it is one.
func (a *Agent) count(id, method string) error {
	if id == "" {
		return nil
	}
	a.log.mu.Lock()
	defer a.log.mu.Unlock()
	if a.log.delivered == nil {
		a.log.delivered = map[string]int{}
	}
	a.log.delivered[id]++
	if a.cfg.Journal != nil {
		if _, err := fmt.Fprintf(a.cfg.Journal, "%q %s\n", id, method); err != nil {
			return fmt.Errorf("writing the journal: %w", err)
		}
	}
	return nil
}

// ReadJournal returns how often each AskID is in the journal at path, which
// several agents may have written one after the other. The last line may be cut
// short: its call was not served.
func ReadJournal(path string) (map[string]int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	delivered := map[string]int{}
	for line := range bytes.Lines(b) {
		var id, method string
		if !strings.HasSuffix(string(line), "\n") {
			continue
		}
		if _, err := fmt.Sscanf(string(line), "%q %s\n", &id, &method); err != nil {
			return nil, fmt.Errorf("reading the journal's line %q: %w", line, err)
		}
		delivered[id]++
	}
	return delivered, nil
}
