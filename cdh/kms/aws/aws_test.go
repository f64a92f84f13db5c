package aws

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/sigv4"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// owner has the suite's key.
var owner = Owner{Region: region, Credential: []byte(`{"access_key_id":"` + suiteID + `","secret_access_key":"` + suiteSecret + `"}`)}

const dek = "\x00\x01\xff 32 bytes of a key, more or less"

func annotations(t testing.TB, w wire.Wrapped) wire.Object {
	t.Helper()
	raw, err := json.Marshal(w.Annotations)
	if err != nil {
		t.Fatal(err)
	}
	return object(t, string(raw))
}

func TestKeyWrappedByTheOwnerOpensInTheGuest(t *testing.T) {
	for name, with := range map[string]map[string]string{
		"without a context": nil,
		"with a context":    {"purpose": "cdh", "ünicode <&>": ""},
	} {
		t.Run(name, func(t *testing.T) {
			e := env(t, newCloud(t), wire.ClientConfig{})
			w, err := Encrypt(t.Context(), e, owner, keyID, podvm.Secret(dek), with)
			if err != nil {
				t.Fatal(err)
			}
			if w.Settings["region"] != region || (len(w.Annotations) == 0) != (with == nil) {
				t.Errorf("settings %v, annotations %v", w.Settings, w.Annotations)
			}
			p := open(t, e)
			got, err := p.Decrypt(t.Context(), keyID, w.Ciphertext, annotations(t, w))
			if err != nil || string(got) != dek {
				t.Fatalf("%q, %v", []byte(got), err)
			}
			if with != nil {
				if got, err := p.Decrypt(t.Context(), keyID, w.Ciphertext, nil); !errors.Is(err, wire.ErrService) || got != nil {
					t.Errorf("without its context: %q, %v", []byte(got), err)
				}
			}
		})
	}
}

func TestSecretsAndTheirVersions(t *testing.T) {
	c := newCloud(t)
	c.secrets["db@"] = map[string]string{"SecretString": "pass\"word\n", "Name": "db"}
	c.secrets["db@AWSPREVIOUS"] = map[string]string{"SecretBinary": "AAH/"}
	c.secrets["db@v-1"] = map[string]string{"SecretString": "plain", "SecretBinary": "AAH/"}
	c.secrets["empty@"] = map[string]string{"SecretString": ""}
	p := open(t, env(t, c, wire.ClientConfig{}))
	for _, tt := range []struct{ name, annotations, want string }{
		{"db", `{}`, "pass\"word\n"},
		{"db", `{"version_id":"","version_stage":""}`, "pass\"word\n"},
		{"db", `{"version_stage":"AWSPREVIOUS"}`, "\x00\x01\xff"},
		{"db", `{"version_id":"v-1","other":1}`, "plain"},
		{"empty", `{}`, ""},
	} {
		got, err := p.Secret(t.Context(), tt.name, object(t, tt.annotations))
		if err != nil || string(got) != tt.want {
			t.Errorf("%s %s: %q, %v", tt.name, tt.annotations, []byte(got), err)
		}
	}
	_, err := p.Secret(t.Context(), "nope", nil)
	if want := "AWS Secrets Manager refused (HTTP status 400): ResourceNotFoundException: Secrets Manager can't find"; !errors.Is(err, wire.ErrService) || !strings.HasPrefix(podvm.Cause(err), want) {
		t.Errorf("absent secret: %v", err)
	}
}

func TestTemporaryCredentialsComeWithTheirToken(t *testing.T) {
	c := newCloud(t)
	c.session, c.secrets["db@"] = session, map[string]string{"SecretString": "x"}
	e := env(t, c, wire.ClientConfig{})
	if _, err := open(t, e).Secret(t.Context(), "db", nil); !errors.Is(err, wire.ErrService) {
		t.Errorf("without the token: %v", err)
	}
	place(t, e, `{"access_key_id":"`+suiteID+`","secret_access_key":"`+suiteSecret+`","session_token":"`+session+`"}`)
	if _, err := open(t, e).Secret(t.Context(), "db", nil); err != nil {
		t.Error(err)
	}
}

func TestClockOfTheGuestIsCorrectedOnce(t *testing.T) {
	c := newCloud(t)
	c.secrets["db@"] = map[string]string{"SecretString": "x"}
	e := env(t, c, wire.ClientConfig{})
	for _, off := range []time.Duration{-100 * 24 * time.Hour, 6 * time.Minute} {
		e.Now = func() time.Time { return time.Now().Add(off) }
		c.requests = 0
		if _, err := open(t, e).Secret(t.Context(), "db", nil); err != nil || c.requests != 2 {
			t.Errorf("%s off: %v, %d requests", off, err, c.requests)
		}
	}
	// A wrong key is not taken for a wrong clock: tried once more, then said.
	place(t, e, `{"access_key_id":"`+suiteID+`","secret_access_key":"wrong"}`)
	c.requests = 0
	_, err := open(t, e).Secret(t.Context(), "db", nil)
	if !errors.Is(err, wire.ErrService) || c.requests != 2 || !strings.Contains(podvm.Cause(err), "the clock of this guest differs by") {
		t.Errorf("wrong key and clock: %v, %d requests", err, c.requests)
	}
	e.Now, c.requests = time.Now, 0
	_, err = open(t, e).Secret(t.Context(), "db", nil)
	if !errors.Is(err, wire.ErrService) || c.requests != 1 || strings.Contains(podvm.Cause(err), "clock") {
		t.Errorf("wrong key: %v, %d requests", err, c.requests)
	}
}

func TestTroubleOfTheServices(t *testing.T) {
	const leak = "aHVudGVyMg=="
	write := func(status int, body string) func(http.ResponseWriter, int) bool {
		return func(w http.ResponseWriter, _ int) bool {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
			return true
		}
	}
	// once spoils the first answer only.
	once := func(answer func(http.ResponseWriter, int) bool) func(http.ResponseWriter, int) bool {
		return func(w http.ResponseWriter, n int) bool { return n == 1 && answer(w, n) }
	}
	for name, tt := range map[string]struct {
		answer   func(w http.ResponseWriter, n int) bool
		is       error // nil: it succeeds in the end
		requests int
		cause    string
		limit    time.Duration // of one try
	}{
		"throttled once":   {answer: once(write(400, `{"__type":"ThrottlingException","message":"Rate exceeded"}`)), requests: 2},
		"an internal once": {answer: once(write(500, `{"__type":"KMSInternalException"}`)), requests: 2},
		"throttled": {
			answer: write(400, `{"__type":"ThrottlingException","message":"Rate exceeded"}`), is: wire.ErrUnreachable, requests: 3,
			cause: "AWS KMS is overloaded or broken (HTTP status 400): ThrottlingException",
		},
		"down": {answer: write(503, ``), is: wire.ErrUnreachable, requests: 3, cause: "AWS KMS is overloaded or broken (HTTP status 503)"},
		"denied": {
			answer: write(400, `{"__type":"com.amazon.coral.service#AccessDeniedException","Message":"User: arn\u001b[31m is not authorized"}`),
			is:     wire.ErrService, requests: 1, cause: "AWS KMS refused (HTTP status 400): AccessDeniedException: User: arn [31m is not authorized",
		},
		"code in a header": {
			answer: func(w http.ResponseWriter, _ int) bool {
				w.Header().Set("X-Amzn-Errortype", "DisabledException:http://internal.amazon.com/x#y/")
				w.WriteHeader(400)
				return true
			},
			is: wire.ErrService, requests: 1, cause: "AWS KMS refused (HTTP status 400): DisabledException",
		},
		"not JSON":             {answer: write(200, `<html>`+leak), is: wire.ErrService, requests: 1, cause: "AWS KMS answered with something unusable"},
		"an error not in JSON": {answer: write(403, `<html>`+leak), is: wire.ErrService, requests: 1, cause: "AWS KMS refused (HTTP status 403)"},
		"no plaintext":         {answer: write(200, `{"KeyId":"x"}`), is: wire.ErrService, requests: 1, cause: "AWS KMS answered with something unusable"},
		"plaintext not base64": {answer: write(200, `{"Plaintext":"`+leak+`!"}`), is: wire.ErrService, requests: 1, cause: "unusable"},
		"two plaintexts":       {answer: write(200, `{"Plaintext":"AA==","Plaintext":"`+leak+`"}`), is: wire.ErrService, requests: 1, cause: "unusable"},
		"plaintext null":       {answer: write(200, `{"Plaintext":null}`), is: wire.ErrService, requests: 1, cause: "unusable"},
		"more after it":        {answer: write(200, `{"Plaintext":"`+leak+`"} x`), is: wire.ErrService, requests: 1, cause: "unusable"},
		"huge":                 {answer: write(200, `{"Plaintext":"`+strings.Repeat("A", 1<<20)+`"}`), is: wire.ErrService, requests: 1, cause: "unusable"},
		"huge error":           {answer: write(400, strings.Repeat("A", 2<<20)), is: wire.ErrService, requests: 1, cause: "unusable"},
		"a redirect": {
			answer: func(w http.ResponseWriter, _ int) bool {
				w.Header().Set("Location", "http://127.0.0.1:1/")
				w.WriteHeader(307)
				return true
			},
			is: wire.ErrService, requests: 1, cause: "AWS KMS redirects elsewhere, which is not followed",
		},
		"slow drip": {
			answer: drip(t), limit: 50 * time.Millisecond,
			is: wire.ErrUnreachable, requests: 3, cause: "AWS KMS not reachable: no answer in time",
		},
		"cut short": {
			answer: func(w http.ResponseWriter, _ int) bool {
				w.Header().Set("Content-Length", "100")
				_, _ = io.WriteString(w, leak)
				return true
			},
			is: wire.ErrUnreachable, requests: 3, cause: "AWS KMS not reachable: the connection broke",
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCloud(t)
			w, err := Encrypt(t.Context(), env(t, c, wire.ClientConfig{}), owner, keyID, podvm.Secret(dek), nil)
			if err != nil {
				t.Fatal(err)
			}
			c.requests, c.answer = 0, tt.answer
			got, err := open(t, env(t, c, wire.ClientConfig{TryTimeout: tt.limit})).Decrypt(t.Context(), keyID, w.Ciphertext, nil)
			if !errors.Is(err, tt.is) || (tt.is == nil) != (string(got) == dek) || c.requests != tt.requests {
				t.Fatalf("%q, %v, %d requests", []byte(got), err, c.requests)
			}
			if err == nil {
				return
			}
			if !strings.Contains(podvm.Cause(err), tt.cause) {
				t.Errorf("cause %q, want %q", podvm.Cause(err), tt.cause)
			}
			for _, secret := range []string{leak, suiteSecret} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("%q in %v", secret, err)
				}
			}
		})
	}
}

// drip answers with a byte now and then for as long as anybody listens.
func drip(t *testing.T) func(http.ResponseWriter, int) bool {
	return func(w http.ResponseWriter, _ int) bool {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-t.Context().Done():
				return true
			}
			if _, err := io.WriteString(w, " "); err != nil || http.NewResponseController(w).Flush() != nil {
				return true
			}
		}
	}
}

func TestWrongKey(t *testing.T) {
	e := env(t, newCloud(t), wire.ClientConfig{})
	w, err := Encrypt(t.Context(), e, owner, keyID, podvm.Secret(dek), nil)
	if err != nil {
		t.Fatal(err)
	}
	for id, code := range map[string]string{"alias/other": "InvalidCiphertextException", "alias/none": "NotFoundException: Key 'alias/none' does not exist"} {
		got, err := open(t, e).Decrypt(t.Context(), id, w.Ciphertext, nil)
		if !errors.Is(err, wire.ErrService) || got != nil || !strings.HasSuffix(podvm.Cause(err), code) {
			t.Errorf("%s: %q, %v", id, []byte(got), err)
		}
	}
}

func TestRegionChoosesTheHostAndNothingElse(t *testing.T) {
	for region, want := range map[string]string{
		"us-east-1": "kms.us-east-1.amazonaws.com:443", "us-gov-west-1": "kms.us-gov-west-1.amazonaws.com:443",
		"cn-north-1": "kms.cn-north-1.amazonaws.com.cn:443", "eusc-de-east-1": "kms.eusc-de-east-1.amazonaws.eu:443",
		"us-isob-east-1": "kms.us-isob-east-1.sc2s.sgov.gov:443",
		"":               "", "eu-west": "", "EU-WEST-1": "", "eu-west-1.evil.example/": "", "evil.example/x-y-1": "", "eu-west-1\n": "", "eu-west-1#": "", "eu--1": "",
		"aws-global": "", "eu-west-123": "", "x@eu-west-1": "", strings.Repeat("aaaaaaaaaaaa-", 50) + "1": "",
	} {
		var dialled string
		e := env(t, newCloud(t), wire.ClientConfig{Dial: func(_ context.Context, _, addr string) (net.Conn, error) {
			dialled = addr
			return nil, net.UnknownNetworkError("none")
		}})
		dir := e.Host.Getenv("AWS_IN_GUEST_KEY_PATH")
		e.Host.LookupEnv = func(string) (string, bool) { return "", false }
		e.Files = wire.Dir(dir)
		raw, err := json.Marshal(map[string]string{"region": region})
		if err != nil {
			t.Fatal(err)
		}
		p, err := New(e)(object(t, string(raw)))
		if want == "" {
			if !errors.Is(err, wire.ErrSettings) || podvm.Cause(err) == "" {
				t.Errorf("%q: %v", region, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", region, err)
			continue
		}
		if _, err := p.Decrypt(t.Context(), keyID, []byte("x"), nil); !errors.Is(err, wire.ErrUnreachable) || dialled != want {
			t.Errorf("%q: dialled %q, %v", region, dialled, err)
		}
	}
}

func TestUnusableInputNeverReachesTheService(t *testing.T) {
	c := newCloud(t)
	e := env(t, c, wire.ClientConfig{})
	p := open(t, e)
	for name, do := range map[string]func() error{
		"settings": func() error { _, err := New(e)(nil); return err },
		"region is a number": func() error {
			_, err := New(e)(object(t, `{"region":1}`))
			return err
		},
		"no key id": func() error { _, err := p.Decrypt(t.Context(), "", []byte("x"), nil); return err },
		"long key id": func() error {
			_, err := p.Decrypt(t.Context(), strings.Repeat("x", 2049), []byte("x"), nil)
			return err
		},
		"no ciphertext":   func() error { _, err := p.Decrypt(t.Context(), keyID, nil, nil); return err },
		"long ciphertext": func() error { _, err := p.Decrypt(t.Context(), keyID, make([]byte, 6145), nil); return err },
		"context no object": func() error {
			_, err := p.Decrypt(t.Context(), keyID, []byte("x"), object(t, `{"encryption_context":["a"]}`))
			return err
		},
		"context of numbers": func() error {
			_, err := p.Decrypt(t.Context(), keyID, []byte("x"), object(t, `{"encryption_context":{"a":1}}`))
			return err
		},
		"no name":      func() error { _, err := p.Secret(t.Context(), "", nil); return err },
		"version null": func() error { _, err := p.Secret(t.Context(), "db", object(t, `{"version_id":null}`)); return err },
		"stage list":   func() error { _, err := p.Secret(t.Context(), "db", object(t, `{"version_stage":[]}`)); return err },
		"no key":       func() error { _, err := Encrypt(t.Context(), e, owner, keyID, nil, nil); return err },
		"long key": func() error {
			_, err := Encrypt(t.Context(), e, owner, keyID, make([]byte, 4097), nil)
			return err
		},
	} {
		if err := do(); !errors.Is(err, wire.ErrSettings) || podvm.Cause(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, bad := range []string{
		``, `[]`, `{}`, `{"access_key_id":"a"}`, `{"access_key_id":"","secret_access_key":"hunter2"}`,
		`{"access_key_id":"a b","secret_access_key":"hunter2"}`, `{"access_key_id":"a","secret_access_key":""}`,
		`{"access_key_id":"a","secret_access_key":"hunter2\n"}`, `{"access_key_id":"a","secret_access_key":"hunter2","session_token":"a\r\nX: y"}`,
		`{"access_key_id":"a","secret_access_key":"hunter2","session_token":1}`, `{"access_key_id":"a","secret_access_key":"hunter2"}{}`,
	} {
		place(t, e, bad)
		if _, err := p.Secret(t.Context(), "db", nil); !errors.Is(err, wire.ErrCredential) || strings.Contains(err.Error(), "hunter2") || podvm.Cause(err) == "" {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if c.requests != 0 {
		t.Errorf("%d requests", c.requests)
	}
}

func FuzzSettings(f *testing.F) {
	for _, s := range []string{`{"region":"eu-west-1"}`, `{"region":"eu-west-1.evil.example"}`, `{"region":null}`, `{}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		o, err := strict.Parse(raw)
		if err != nil {
			return
		}
		p, err := New(wire.Env{})(o)
		if err != nil {
			return
		}
		c, ok := p.(*client)
		if !ok || strings.ContainsAny(c.region, "./:@?#%\\ \n") || len(c.region) > 46 {
			t.Errorf("region %q", c.region)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add(200, []byte(`{"Plaintext":"AAE=","SecretString":"x","SecretBinary":"AAE="}`))
	f.Add(400, []byte(`{"__type":"a#b:c","message":"m"}`))
	f.Fuzz(func(t *testing.T, status int, raw []byte) {
		resp := &wire.Response{Status: status, Header: http.Header{}, Body: raw}
		if err := refusal(kms, resp, sigv4.NewClock(time.Now)); podvm.Cause(err) == "" || len(podvm.Cause(err)) > 3<<9 {
			t.Errorf("refusal: %v", err)
		}
		if o, err := strict.Parse(raw); err == nil {
			_, _ = plaintext(o)
			_, _ = secretValue(o)
		}
		_, _ = parseCredential(raw)
	})
}
