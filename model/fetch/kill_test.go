package fetch

import (
	"context"
	"crypto/rand"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sealpod/sealpod/model/source"
)

// childEnv makes the test binary fetch what sits in "FROM:TO", slowly.
const childEnv = "SEALPOD_TEST_FETCH"

func child() int {
	from, to, _ := strings.Cut(os.Getenv(childEnv), ":")
	if err := childFetch(from, to); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func childFetch(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	files := map[string][]byte{}
	for _, e := range entries {
		if files[e.Name()], err = os.ReadFile(filepath.Join(from, e.Name())); err != nil {
			return err
		}
	}
	s, plan := plainModel(files)
	s.fault = func(source.Object, int64, int64) ([]byte, error) {
		time.Sleep(4 * time.Millisecond)
		return nil, nil
	}
	f, err := OpenFolder(to)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Fetch(context.Background(), plan, 2)
}

// TestKilled kills fetching processes at random, each of which continues what the
// one before has done, and then lets one finish.
func TestKilled(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	want := map[string][]byte{"a": random(40 << 20), "b": random(100), "c": random(17 << 20), "d": random(33<<20 + 1)}
	for name, b := range want {
		if err := os.WriteFile(filepath.Join(from, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const kills = 20
	for i := range kills + 1 {
		ctx, cancel := context.WithCancel(t.Context())
		if i < kills {
			ms, err := rand.Int(rand.Reader, big.NewInt(400))
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel = context.WithTimeout(t.Context(), time.Duration(ms.Int64()+5)*time.Millisecond)
		}
		cmd := exec.CommandContext(ctx, os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+from+":"+to)
		out, err := cmd.CombinedOutput()
		killed := ctx.Err() != nil
		cancel()
		if err == nil {
			t.Logf("through after %d kills", i)
			holds(t, to, want)
			return
		}
		if !killed {
			t.Fatalf("%v\n%s", err, out)
		}
		for name, b := range want { // complete or not there
			if have, err := os.ReadFile(filepath.Join(to, name)); err == nil && string(have) != string(b) {
				t.Fatalf("%s is not complete after %d kills", name, i+1)
			}
		}
	}
}
