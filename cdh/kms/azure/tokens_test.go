package azure

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/podvm"
)

func TestCallerThatGivesUpLeavesTheOthersAlone(t *testing.T) {
	kept := newTokens(time.Now)
	ctx, cancel := context.WithCancel(t.Context())
	entered := make(chan struct{})
	first := make(chan error, 1)
	go func() {
		_, _, err := kept.get(ctx, tokenKey{}, "", func(ctx context.Context) (string, time.Duration, error) {
			close(entered)
			<-ctx.Done()
			return "", 0, ctx.Err()
		})
		first <- err
	}()
	<-entered
	second := make(chan string, 1)
	go func() {
		v, _, _ := kept.get(t.Context(), tokenKey{}, "", func(context.Context) (string, time.Duration, error) { return "good", time.Hour, nil })
		second <- v
	}()
	waiting, stop := context.WithCancel(t.Context())
	stop()
	if _, _, err := kept.get(waiting, tokenKey{}, "", nil); !errors.Is(err, wire.ErrUnreachable) || !errors.Is(err, context.Canceled) || podvm.Cause(err) == "" {
		t.Errorf("who waits: %v", err)
	}
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if v := <-second; v != "good" {
		t.Errorf("got %q", v)
	}
}

func TestFailureIsSharedWithWhoWaitedAndNoLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kept := newTokens(time.Now)
		failed := errors.New("failed")
		fetches := 0
		release := make(chan struct{})
		fetch := func(context.Context) (string, time.Duration, error) {
			fetches++
			<-release
			return "", 0, failed
		}
		get := func() {
			if _, _, err := kept.get(t.Context(), tokenKey{}, "", fetch); !errors.Is(err, failed) {
				t.Error(err)
			}
		}
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(get)
		}
		synctest.Wait() // one fetches, four wait for it
		close(release)
		wg.Wait()
		if fetches != 1 {
			t.Errorf("%d fetches", fetches)
		}
		if get(); fetches != 2 {
			t.Errorf("%d fetches: a failure was kept", fetches)
		}
	})
}

func TestFewTokensAreKept(t *testing.T) {
	kept := newTokens(time.Now)
	for i := range 10 * maxKept {
		v, _, err := kept.get(t.Context(), keyOf(strconv.Itoa(i)), "", func(context.Context) (string, time.Duration, error) { return "t", time.Hour, nil })
		if v != "t" || err != nil {
			t.Fatal(v, err)
		}
	}
	if n := len(kept.byID); n != maxKept {
		t.Errorf("%d are kept", n)
	}
}

func TestKeysOfTokensDiffer(t *testing.T) {
	if keyOf("a", "bc") == keyOf("ab", "c") || keyOf("a", "") == keyOf("a") {
		t.Error("two identities share a token")
	}
}

func FuzzToken(f *testing.F) {
	f.Add([]byte(`{"access_token":"a","token_type":"Bearer","expires_in":"3599"}`))
	f.Add([]byte(`{"access_token":"a","token_type":"bearer","expires_in":3599}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		v, life, err := parseToken(raw)
		if err == nil && (v == "" || strings.ContainsAny(v, " \r\n\x00") || life <= 0 || life > maxLife) {
			t.Fatalf("%q, %s", v, life)
		}
		fault(raw)
	})
}

func FuzzCredential(f *testing.F) {
	f.Add([]byte(credFile))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if tenant, _, err := parseCredential(raw); err == nil && (tenant == "" || strings.ContainsAny(tenant, "/?#%") || strings.Contains(tenant, "..")) {
			t.Fatalf("%q", tenant)
		}
	})
}

func FuzzKey(f *testing.F) {
	f.Add([]byte(`"AAAA"`))
	f.Add([]byte(`"AA\nA"`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if s, err := secretBase64(raw); err != nil && s != nil {
			t.Fatalf("%q beside %v", []byte(s), err)
		}
	})
}

func FuzzPlace(f *testing.F) {
	f.Add(vaultURL, keyID)
	f.Add("https://a.vault.azure.cn/", "https://a.vault.azure.cn/keys/k/v")
	f.Fuzz(func(t *testing.T, url, id string) {
		p, err := parsePlace(url)
		if err != nil {
			return
		}
		if strings.Count(p.host(), ".") != strings.Count(p.domain, ".")+1 || strings.ContainsAny(p.host(), "/?#@:%\\ ") {
			t.Fatalf("host %q", p.host())
		}
		if path, err := p.object("keys", id); err == nil && (strings.Contains(path, "..") || strings.ContainsAny(path, "?#%\\ ") || strings.Count(path, "/") > 3) {
			t.Fatalf("path %q", path)
		}
	})
}
