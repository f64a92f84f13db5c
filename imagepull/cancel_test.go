package imagepull

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
	"github.com/sealpod/sealpod/podvm"
)

// TestCancelledAtAnyMoment ends pulls at random: each leaves nothing, and the
// caller is told why, unless it was complete.
func TestCancelledAtAnyMoment(t *testing.T) {
	inBothModes(t, func(t *testing.T, m *machine) {
		broker := &keyBroker{known: map[string]podvm.Secret{}}
		m.deps.KeyUnwrapper = broker
		m.Push(t, "a", "1", registrytest.NewImage(append(twoLayers(t).Layers,
			noiseLayer(t, "big", 2<<20), encrypt(t, noiseLayer(t, "secret", 1<<20), "p", broker))...))
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d", seed)
		random := rand.New(rand.NewPCG(seed, 0))
		var took time.Duration // 0: the first is not cancelled
		cancelled := 0
		for range 40 {
			p, err := New(m.deps)
			if err != nil {
				t.Fatal(err)
			}
			after := time.Minute
			if took > 0 {
				after = time.Duration(random.Int64N(int64(took)))
			}
			ctx, cancel := context.WithTimeout(t.Context(), after)
			start := time.Now()
			_, err = p.Pull(ctx, m.ref("a:1"), m.bundle("b/c"))
			cancel()
			switch {
			case err == nil:
				took = time.Since(start)
				err = errors.Join(p.Remove(t.Context(), m.bundle("b/c")), p.Close(), m.dropLayers(), os.RemoveAll(m.bundle("b")))
			case errors.Is(err, context.DeadlineExceeded):
				cancelled++
				wantCause(t, err, "Failed to pull image "+m.ref("a:1")+": ")
				err = p.Close()
				m.wantNothingLeft(t)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if cancelled == 0 {
			t.Error("no pull was cancelled")
		}
	})
}
