package secret

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/sealpod/sealpod/cdh/kms"
	"github.com/sealpod/sealpod/podvm"
)

var errAbsent = errors.New("absent")

// classes are all that an error can be; ErrProvider is one beside another.
var classes = []error{ErrParse, ErrVersion, ErrSignature, ErrJSON, ErrSigningKey, ErrKeyFetch, ErrIO, ErrVault, ErrEnvelope}

// refused checks that err is of exactly that class and tells why.
func refused(t *testing.T, got podvm.Secret, err, class error, cause string) {
	t.Helper()
	if got != nil || !errors.Is(err, class) {
		t.Fatalf("got %v, %v, want %v", got, err, class)
	}
	n := 0
	for _, c := range classes {
		if errors.Is(err, c) {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%v is of %d classes", err, n)
	}
	if c := podvm.Cause(err); c == "" || !strings.Contains(c, cause) {
		t.Errorf("cause %q, want %q", c, cause)
	}
}

// wiped checks that no key is left in memory that was given out.
func (w *world) wiped(t *testing.T) {
	t.Helper()
	for _, s := range w.given {
		if !bytes.Equal(s, make([]byte, len(s))) {
			t.Error("a key was not wiped")
		}
	}
}

func TestUnseal(t *testing.T) {
	gcm, ctr := envelope(t, "A256GCM"), envelope(t, "A256CTR")
	viaAWS := vault.with("provider", "aws").with("name", "arn:x").with("provider_settings", object{"region": "eu-1"}).
		with("annotations", object{"version_id": "7"})
	tests := map[string]struct {
		payload object
		want    string
		asked   string // after the signing key
	}{
		"a vault secret of kbs":       {vault, "hunter2", "kbs:///acme/db/password"},
		"kbs in capitals":             {vault.with("provider", "KBS"), "hunter2", "kbs:///acme/db/password"},
		"members nobody knows":        {vault.with("future", []int{1}), "hunter2", "kbs:///acme/db/password"},
		"settings that kbs ignores":   {vault.with("annotations", object{"a": object{"b": 1}}), "hunter2", "kbs:///acme/db/password"},
		"a vault secret of aws":       {viaAWS, "from aws", `open aws "eu-1", secret arn:x "7"`},
		"aws in capitals":             {viaAWS.with("provider", "Aws"), "from aws", `open aws "eu-1", secret arn:x "7"`},
		"an envelope, GCM":            {gcm, "in the envelope", `open aws "eu-1", decrypt alias/acme wrapped "c"`},
		"an envelope, CTR that wraps": {ctr, "in the envelope", `open aws "eu-1", decrypt alias/acme wrapped "c"`},
		"an empty secret": {
			gcm.with("encrypted_data", sealedData(t, "A256GCM", bytes.Repeat([]byte{9}, 12), "")), "", `open aws "eu-1", decrypt alias/acme wrapped "c"`,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for _, skip := range []bool{false, true} {
				w := newWorld(t)
				text, asked := w.seal(t, tt.payload), keyURI+", "+tt.asked
				if skip {
					text, asked = fake(tt.payload.json(t)), tt.asked
				}
				got, err := w.unsealer(t.TempDir(), skip).Unseal(t.Context(), []byte(text))
				if err != nil || string(got) != tt.want {
					t.Fatalf("skip %v: %q, %v", skip, []byte(got), err)
				}
				if a := strings.Join(w.asked, ", "); a != asked {
					t.Errorf("skip %v: asked %q, want %q", skip, a, asked)
				}
				w.wiped(t)
			}
		})
	}
}

func TestUnsealRefusesTheProviders(t *testing.T) {
	gcm := envelope(t, "A256GCM")
	tests := map[string]struct {
		payload  object
		change   func(*world)
		class    error
		provider bool // ErrProvider as well
		is       error
		cause    string
	}{
		"a vault without the secret":      {payload: vault.with("name", "kbs:///none"), class: ErrVault, is: errAbsent, cause: "no such resource"},
		"a vault nobody knows":            {payload: vault.with("provider", "ehsm"), class: ErrVault, provider: true, cause: "unknown KMS provider"},
		"a vault without a name":          {payload: vault.with("provider", ""), class: ErrVault, provider: true},
		"an envelope of kbs":              {payload: gcm.with("provider", "kbs"), class: ErrEnvelope, provider: true, cause: "seal it as a vault secret"},
		"an envelope nobody knows":        {payload: gcm.with("provider", "x"), class: ErrEnvelope, provider: true, cause: "unknown KMS provider"},
		"an envelope the client refuses":  {payload: gcm, change: func(w *world) { w.unsupport = true }, class: ErrEnvelope, provider: true, cause: "cannot decrypt"},
		"an envelope the service refuses": {payload: gcm, change: func(w *world) { w.dek = nil }, class: ErrEnvelope, is: kms.ErrService, cause: "refused"},
		"a data key of 31 bytes":          {payload: gcm, change: func(w *world) { w.dek = w.dek[:31] }, class: ErrEnvelope, cause: "not 32 bytes"},
		"a data key of 16 bytes":          {payload: gcm, change: func(w *world) { w.dek = w.dek[:16] }, class: ErrEnvelope, cause: "not 32 bytes"},
		"a data key of 33 bytes":          {payload: gcm, change: func(w *world) { w.dek = append(w.dek, 0) }, class: ErrEnvelope, cause: "not 32 bytes"},
		"another data key":                {payload: gcm, change: func(w *world) { w.dek[0] ^= 1 }, class: ErrEnvelope, cause: "does not open"},
		"GCM data cut short":              {payload: gcm.with("encrypted_data", "AAAA"), class: ErrEnvelope, cause: "does not open"},
		"GCM data changed":                {payload: gcm.with("encrypted_data", "AAAA"+gcm["encrypted_data"].(string)[4:]), class: ErrEnvelope, cause: "does not open"},
		"no IV":                           {payload: gcm.with("iv", ""), class: ErrEnvelope, cause: "does not open"},
		"CTR with an IV of 12 bytes":      {payload: gcm.with("wrap_type", "A256CTR"), class: ErrEnvelope, cause: "does not open"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if tt.change != nil {
				tt.change(w)
			}
			got, err := w.unsealer(t.TempDir(), false).Unseal(t.Context(), []byte(w.seal(t, tt.payload)))
			refused(t, got, err, tt.class, tt.cause)
			if errors.Is(err, ErrProvider) != tt.provider || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error %v", err)
			}
			w.wiped(t)
		})
	}
}

func TestUnsealWithoutProviders(t *testing.T) {
	w := newWorld(t)
	u := New(Config{SkipVerification: true, Log: slog.New(slog.DiscardHandler)})
	got, err := u.Unseal(t.Context(), []byte(fake(vault.json(t))))
	refused(t, got, err, ErrVault, "no key broker")
	got, err = u.Unseal(t.Context(), []byte(fake(envelope(t, "A256GCM").json(t))))
	refused(t, got, err, ErrEnvelope, `no provider "aws"`)
	got, err = New(Config{}).Unseal(t.Context(), []byte(w.seal(t, vault)))
	refused(t, got, err, ErrKeyFetch, "no key broker")
	if !errors.Is(err, ErrProvider) {
		t.Error(err)
	}
}

func TestUnsealOfACallerThatGaveUp(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	got, err := w.unsealer(t.TempDir(), false).Unseal(ctx, []byte(w.seal(t, vault)))
	refused(t, got, err, ErrKeyFetch, "given up")
	got, err = w.unsealer(t.TempDir(), true).Unseal(ctx, []byte(fake(vault.json(t))))
	refused(t, got, err, ErrVault, "given up")
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestUnsealOfACallerOutOfTime(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	got, err := w.unsealer(t.TempDir(), false).Unseal(ctx, []byte(w.seal(t, vault)))
	refused(t, got, err, ErrKeyFetch, "not done in time")
	got, err = w.unsealer(t.TempDir(), true).Unseal(ctx, []byte(fake(vault.json(t))))
	refused(t, got, err, ErrVault, "not done in time")
}

func TestNoErrorAndNoLogTellsTheSecret(t *testing.T) {
	var log bytes.Buffer
	w := newWorld(t)
	w.resources["kbs:///acme/db/password"] = []byte("hunter2")
	w.resources["kbs:///not/a/key"] = []byte(`{"kty":"hunter2","hunter2":"hunter2","x":hunter2}`)
	w.resources["kbs:///not/json"] = []byte("hunter2")
	u := New(Config{Resources: w, KMS: w, Log: slog.New(slog.NewTextHandler(&log, nil))})
	var texts []string
	for _, kid := range []string{"kbs:///not/a/key", "kbs:///not/json", keyURI} {
		_, err := u.Unseal(t.Context(), []byte(w.sealRaw(t, header.with("kid", kid).json(t), vault.json(t))))
		texts = append(texts, fmt.Sprint(err), podvm.Cause(err))
	}
	if all := strings.Join(append(texts, log.String()), "\n"); strings.Contains(all, "hunter2") {
		t.Error(all)
	}
	if !strings.Contains(log.String(), "verified=true") || !strings.Contains(log.String(), "type=vault") {
		t.Errorf("log %q", log.String())
	}
}

func TestSkippingIsSaidLoudly(t *testing.T) {
	for _, skip := range []bool{false, true} {
		var log bytes.Buffer
		New(Config{SkipVerification: skip, Log: slog.New(slog.NewTextHandler(&log, nil))})
		if got := strings.Contains(log.String(), "level=WARN"); got != skip {
			t.Errorf("skip %v: log %q", skip, log.String())
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	w := newWorld(t)
	u := w.unsealer(t.TempDir(), false)
	texts := []string{w.seal(t, vault), w.seal(t, envelope(t, "A256GCM")), w.seal(t, envelope(t, "A256CTR"))}
	wants := []string{"hunter2", "in the envelope", "in the envelope"}
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			got, err := u.Unseal(t.Context(), []byte(texts[i%3]))
			if err != nil || string(got) != wants[i%3] {
				t.Errorf("%q, %v", []byte(got), err)
			}
			got.Wipe()
		})
	}
	wg.Wait()
	w.wiped(t)
}

func BenchmarkUnseal(b *testing.B) {
	for name, payload := range map[string]object{"vault": vault, "envelope": envelope(b, "A256GCM")} {
		b.Run(name, func(b *testing.B) {
			w := newWorld(b)
			u, text := w.unsealer(b.TempDir(), false), []byte(w.seal(b, payload))
			b.ReportAllocs()
			for b.Loop() {
				w.asked, w.given = w.asked[:0], w.given[:0]
				s, err := u.Unseal(context.Background(), text)
				if err != nil {
					b.Fatal(err)
				}
				s.Wipe()
			}
		})
	}
}
