package aliyun

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/cdh/kms/internal/kmstest"
	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/podvm"
)

const (
	clientKeySettings = `{"client_type":"client_key","client_key_id":"KAAP.0123","kms_instance_id":"kst-abc123"}`
	instanceHost      = "kst-abc123.cryptoservice.kms.aliyuncs.com"
	ivAnnotation      = `{"iv":"dHdlbHZlIGJ5dGVz"}` // dkmsIV
)

// world is a guest before a KMS instance.
type world struct {
	*kmstest.Cloud
	kms   *dkms
	owner Owner
}

func newWorld(t testing.TB, change ...func(*kmstest.Config)) *world {
	t.Helper()
	key := sharedKey()
	w := &world{kms: &dkms{t: t, public: &key.PublicKey}}
	cfg := kmstest.Config{Provider: "aliyun", Names: []string{"*.cryptoservice.kms.aliyuncs.com"}, Handler: w.kms.ServeHTTP, Untrusted: true}
	for _, c := range change {
		c(&cfg)
	}
	w.Cloud = kmstest.New(t, cfg)
	w.owner = Owner{InstanceID: "kst-abc123", ClientKey: clientKeyFile(t, key), Password: []byte(testPassword + "\n"), CA: w.CA}
	w.Write(t, "clientKey_KAAP.0123.json", w.owner.ClientKey)
	w.Write(t, "password_KAAP.0123.json", w.owner.Password)
	w.Write(t, "PrivateKmsCA_kst-abc123.pem", w.owner.CA)
	return w
}

func object(t testing.TB, text string) wire.Object {
	t.Helper()
	o, err := strict.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func (w *world) open(t testing.TB, settings string) wire.Provider {
	t.Helper()
	p, err := New(w.Env)(object(t, settings))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// fails checks an error and what it says to whom.
func fails(t testing.TB, got podvm.Secret, err, is error, cause string) {
	t.Helper()
	if !errors.Is(err, is) || got != nil {
		t.Fatalf("got %q, %v; want %v", []byte(got), err, is)
	}
	if c := podvm.Cause(err); c == "" || !strings.Contains(c, cause) {
		t.Errorf("cause %q, want %q", c, cause)
	}
	if strings.Contains(err.Error(), testPassword) || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("it says too much: %v", err)
	}
}

func TestWhatTheOwnerEncryptsTheGuestDecrypts(t *testing.T) {
	w := newWorld(t)
	dek := bytes.Repeat([]byte{7}, 32)
	wrapped, err := Encrypt(t.Context(), w.Env, w.owner, "key-1", dek)
	if err != nil {
		t.Fatal(err)
	}
	settings, _ := json.Marshal(wrapped.Settings)
	annotations, _ := json.Marshal(wrapped.Annotations)
	if string(annotations) != ivAnnotation || !bytes.Equal(wrapped.Ciphertext, turned(dek)) {
		t.Errorf("%s, %x", annotations, wrapped.Ciphertext)
	}
	got, err := w.open(t, string(settings)).Decrypt(t.Context(), "key-1", wrapped.Ciphertext, object(t, string(annotations)))
	if err != nil || !bytes.Equal(got, dek) {
		t.Fatalf("%x, %v", []byte(got), err)
	}
	if addr := w.Dialled(); addr != instanceHost+":443" {
		t.Errorf("dialled %s", addr)
	}
	if n := w.Requests.Load(); n != 2 {
		t.Errorf("%d requests", n)
	}
}

func TestSecretOfAnInstance(t *testing.T) {
	p := newWorld(t).open(t, clientKeySettings)
	for annotations, want := range map[string]string{
		`{}`: "s3cret/<nil>/<nil>",
		`{"version_stage":"ACSPrevious","version_id":"v1","other":1}`: "s3cret/ACSPrevious/v1",
	} {
		got, err := p.Secret(t.Context(), "db", object(t, annotations))
		if err != nil || string(got) != want {
			t.Errorf("%q, %v", []byte(got), err)
		}
	}
	got, err := p.Secret(t.Context(), "nope", nil)
	fails(t, got, err, wire.ErrService, "Forbidden.ResourceNotFound: no such resource")
}

func TestUnusableSettings(t *testing.T) {
	w := newWorld(t)
	for settings, cause := range map[string]string{
		`{}`:                           `"client_type" is missing`,
		`{"client_type":null}`:         `"client_type": not a string`,
		`{"client_type":"Client_Key"}`: "none of client_key, ecs_ram_role, sts_token",
		`{"client_type":"client_key","kms_instance_id":"kst-a"}`:                                                        `"client_key_id" is missing`,
		`{"client_type":"client_key","client_key_id":"k"}`:                                                              `"kms_instance_id" is missing`,
		`{"client_type":"client_key","client_key_id":"../../etc/passwd","kms_instance_id":"k"}`:                         `"client_key_id": want`,
		`{"client_type":"client_key","client_key_id":"..","kms_instance_id":"k"}`:                                       `"client_key_id": want`,
		`{"client_type":"client_key","client_key_id":"","kms_instance_id":"k"}`:                                         `"client_key_id": want`,
		`{"client_type":"client_key","client_key_id":"a\n","kms_instance_id":"k"}`:                                      `"client_key_id": want`,
		`{"client_type":"client_key","client_key_id":"k","kms_instance_id":"evil.example/"}`:                            `"kms_instance_id": want`,
		`{"client_type":"client_key","client_key_id":"k","kms_instance_id":"evil.example#"}`:                            `"kms_instance_id": want`,
		`{"client_type":"client_key","client_key_id":"k","kms_instance_id":"a@b"}`:                                      `"kms_instance_id": want`,
		`{"client_type":"client_key","client_key_id":"k","kms_instance_id":"-a"}`:                                       `"kms_instance_id": want`,
		`{"client_type":"client_key","client_key_id":"k","kms_instance_id":"a\u0131"}`:                                  `"kms_instance_id": want`,
		`{"client_type":"client_key","client_key_id":"k","kms_instance_id":"` + strings.Repeat("a", 64) + `"}`:          `"kms_instance_id": want`,
		`{"client_type":"sts_token","token_path":"t"}`:                                                                  `"region_id" is missing`,
		`{"client_type":"sts_token","region_id":"cn-beijing"}`:                                                          `"token_path" is missing`,
		`{"client_type":"sts_token","token_path":"t","region_id":"evil.example/?"}`:                                     `"region_id": want`,
		`{"client_type":"sts_token","token_path":"/etc/shadow","region_id":"cn-beijing"}`:                               `"token_path": want`,
		`{"client_type":"sts_token","token_path":"../aws/credential.json","region_id":"cn-beijing"}`:                    `"token_path": want`,
		`{"client_type":"sts_token","token_path":"/run/confidential-containers/cdh/kbs/../x","region_id":"cn-beijing"}`: `"token_path": want`,
		`{"client_type":"sts_token","token_path":"/run/confidential-containers/cdh/kbs","region_id":"cn-beijing"}`:      `"token_path": want`,
		`{"client_type":"sts_token","token_path":"","region_id":"cn-beijing"}`:                                          `"token_path": want`,
	} {
		p, err := New(w.Env)(object(t, settings))
		if p != nil {
			t.Errorf("%s: opened", settings)
		}
		fails(t, nil, err, wire.ErrSettings, cause)
	}
	p := w.open(t, clientKeySettings)
	for annotations, cause := range map[string]string{
		`{}`:                         `"iv" is missing`,
		`{"iv":""}`:                  "empty",
		`{"iv":null}`:                `"iv"`,
		`{"iv":[1,2]}`:               `"iv"`,
		`{"iv":"AAAA\n"}`:            `"iv"`,
		`{"iv":"AAAAA"}`:             `"iv"`,
		`{"IV":"dHdlbHZlIGJ5dGVz"}`:  `"iv" is missing`,
		`{"iv":"dHdlbHZlIGJ5dGVz "}`: `"iv"`,
	} {
		got, err := p.Decrypt(t.Context(), "key-1", []byte("x"), object(t, annotations))
		fails(t, got, err, wire.ErrSettings, cause)
	}
	got, err := p.Decrypt(t.Context(), "", []byte("x"), object(t, ivAnnotation))
	fails(t, got, err, wire.ErrSettings, "empty")
	got, err = p.Decrypt(t.Context(), "key-1", nil, object(t, ivAnnotation))
	fails(t, got, err, wire.ErrSettings, "empty")
	got, err = p.Secret(t.Context(), "", nil)
	fails(t, got, err, wire.ErrSettings, "empty")
	got, err = p.Secret(t.Context(), "db", object(t, `{"version_id":3}`))
	fails(t, got, err, wire.ErrSettings, `"version_id"`)
	if n := w.Requests.Load(); n != 0 {
		t.Errorf("%d requests", n)
	}
}

func TestUnusableCredentials(t *testing.T) {
	other := clientKeyFile(t, newRSAKey())
	elsewhere := kmstest.New(t, kmstest.Config{Provider: "aliyun", Names: []string{"x"}})
	const key, password, ca = "clientKey_KAAP.0123.json", "password_KAAP.0123.json", "PrivateKmsCA_kst-abc123.pem"
	for name, tt := range map[string]struct {
		file    string
		content []byte // nil: taken away
		is      error
		cause   string
	}{
		"no client key":       {key, nil, wire.ErrCredential, key},
		"no password":         {password, nil, wire.ErrCredential, password},
		"no CA":               {ca, nil, wire.ErrCredential, ca},
		"wrong password":      {password, []byte("guess"), wire.ErrCredential, key},
		"empty password":      {password, []byte("\n"), wire.ErrCredential, key},
		"client key not JSON": {key, []byte("MIIJ"), wire.ErrCredential, key},
		"huge client key":     {key, bytes.Repeat([]byte(" "), 1<<20), wire.ErrCredential, key},
		"CA not PEM":          {ca, []byte("----"), wire.ErrCredential, ca},
		"CA of another":       {ca, elsewhere.CA, wire.ErrUnreachable, "not trusted"},
		"key the service does not know": {key, other, wire.ErrService,
			"Forbidden.Signature: crypto/rsa: verification error"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if tt.content == nil {
				w.Remove(t, tt.file)
			} else {
				w.Write(t, tt.file, tt.content)
			}
			got, err := w.open(t, clientKeySettings).Secret(t.Context(), "db", nil)
			fails(t, got, err, tt.is, tt.cause)
		})
	}
}

// The name in the certificate counts, whoever signed it.
func TestInstanceUnderAnotherName(t *testing.T) {
	w := newWorld(t, func(c *kmstest.Config) { c.Names = []string{"kst-other.cryptoservice.kms.aliyuncs.com"} })
	got, err := w.open(t, clientKeySettings).Secret(t.Context(), "db", nil)
	fails(t, got, err, wire.ErrUnreachable, "for another name")
}

func TestInstanceThatIsBusyIsAskedAgain(t *testing.T) {
	for name, busy := range map[string]func(*dkms, http.ResponseWriter){
		"throttling by code":   func(s *dkms, w http.ResponseWriter) { s.refuse(w, 400, "Rejected.Throttling", "slow down") },
		"throttling by status": func(s *dkms, w http.ResponseWriter) { s.refuse(w, 429, "x", "slow down") },
		"server fault":         func(_ *dkms, w http.ResponseWriter) { w.WriteHeader(503) },
		"connection broken": func(_ *dkms, w http.ResponseWriter) {
			c, _, _ := w.(http.Hijacker).Hijack()
			_ = c.Close()
		},
	} {
		for _, tries := range []int{2, 9} { // of 3 that are made
			w := newWorld(t)
			w.kms.answer = func(rw http.ResponseWriter, n int) bool {
				if n <= tries {
					busy(w.kms, rw)
				}
				return n <= tries
			}
			got, err := w.open(t, clientKeySettings).Secret(t.Context(), "db", nil)
			if n := w.Requests.Load(); n != 3 {
				t.Errorf("%s: %d requests", name, n)
			}
			if tries == 9 {
				fails(t, got, err, wire.ErrUnreachable, "Alibaba Cloud KMS")
			} else if err != nil || len(got) == 0 {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func TestAnswersThatAreNone(t *testing.T) {
	long := bytes.Repeat([]byte{'x'}, 2<<20)
	for name, tt := range map[string]struct {
		status int
		body   []byte
		is     error
		cause  string
	}{
		"nothing":                      {200, nil, wire.ErrService, "unusable"},
		"not protobuf":                 {200, []byte("<html>"), wire.ErrService, "unusable"},
		"cut short":                    {200, []byte{0x12, 0x20, 1, 2}, wire.ErrService, "unusable"},
		"a length beyond the answer":   {200, []byte{0x12, 0xff, 0xff, 0xff, 0xff, 0x7f}, wire.ErrService, "unusable"},
		"the plaintext as a number":    {200, []byte{0x10, 0x02, 0x08, 0x01}, wire.ErrService, "unusable"},
		"a field number of zero":       {200, []byte{0x02, 0x00}, wire.ErrService, "unusable"},
		"an empty plaintext":           {200, []byte{0x12, 0x00}, wire.ErrService, "unusable"},
		"no plaintext":                 {200, write("DecryptResponse", map[string]any{"KeyId": "k"}), wire.ErrService, "unusable"},
		"a huge plaintext":             {200, write("DecryptResponse", map[string]any{"Plaintext": long}), wire.ErrService, "unusable"},
		"groups in groups":             {200, bytes.Repeat([]byte{0x1b}, 100_000), wire.ErrService, "unusable"},
		"an empty 204":                 {204, nil, wire.ErrService, "HTTP status 204"},
		"a refusal that is none":       {403, []byte("\x1b[31mhostile"), wire.ErrService, "HTTP status 403"},
		"a refusal with hostile words": {400, write("Error", map[string]any{"ErrorCode": "\x1b[31m", "ErrorMessage": strings.Repeat("y", 9000)}), wire.ErrService, "yyy"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.kms.answer = func(rw http.ResponseWriter, _ int) bool {
				rw.WriteHeader(tt.status)
				_, _ = rw.Write(tt.body)
				return true
			}
			got, err := w.open(t, clientKeySettings).Decrypt(t.Context(), "key-1", []byte("x"), object(t, ivAnnotation))
			fails(t, got, err, tt.is, tt.cause)
			if n := w.Requests.Load(); n != 1 || len(podvm.Cause(err)) > 1000 {
				t.Errorf("%d requests, cause of %d bytes", n, len(podvm.Cause(err)))
			}
			if _, err := Encrypt(t.Context(), w.Env, w.owner, "key-1", []byte("x")); !errors.Is(err, tt.is) {
				t.Errorf("encrypting: %v", err)
			}
		})
	}
}

func TestSecretThatIsNotText(t *testing.T) {
	w := newWorld(t)
	w.kms.answer = func(rw http.ResponseWriter, _ int) bool {
		_, _ = rw.Write([]byte{0x1a, 2, 0xff, 0xfe})
		return true
	}
	got, err := w.open(t, clientKeySettings).Secret(t.Context(), "db", nil)
	fails(t, got, err, wire.ErrService, "unusable")
}

func TestRedirectIsNotFollowed(t *testing.T) {
	w := newWorld(t)
	w.kms.answer = func(rw http.ResponseWriter, _ int) bool {
		rw.Header().Set("Location", "https://kst-abc123.cryptoservice.kms.aliyuncs.com/elsewhere")
		rw.WriteHeader(307)
		return true
	}
	got, err := w.open(t, clientKeySettings).Secret(t.Context(), "db", nil)
	fails(t, got, err, wire.ErrService, "redirects")
	if n := w.Requests.Load(); n != 1 {
		t.Errorf("%d requests", n)
	}
}

func TestAnswerThatDrips(t *testing.T) {
	w := newWorld(t, func(c *kmstest.Config) { c.TryTimeout = 30 * time.Millisecond })
	stop := make(chan struct{})
	w.kms.answer = func(rw http.ResponseWriter, _ int) bool {
		_, _ = rw.Write([]byte{0x12})
		rw.(http.Flusher).Flush()
		<-stop
		return true
	}
	defer close(stop)
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Millisecond)
	defer cancel()
	got, err := w.open(t, clientKeySettings).Secret(ctx, "db", nil)
	fails(t, got, err, wire.ErrUnreachable, "no answer in time")
}

func TestCallerThatGivesUp(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	w.kms.answer = func(rw http.ResponseWriter, _ int) bool { cancel(); rw.WriteHeader(503); return true }
	got, err := w.open(t, clientKeySettings).Secret(ctx, "db", nil)
	fails(t, got, err, wire.ErrUnreachable, "gave up")
}

func TestEncryptRefusesWhatCannotBeRight(t *testing.T) {
	w := newWorld(t)
	for name, change := range map[string]func(*Owner){
		"instance":   func(o *Owner) { o.InstanceID = "evil.example/" },
		"password":   func(o *Owner) { o.Password = []byte("x") },
		"client key": func(o *Owner) { o.ClientKey = nil },
		"CA":         func(o *Owner) { o.CA = []byte(base64.StdEncoding.EncodeToString(o.CA)) },
	} {
		o := w.owner
		change(&o)
		if _, err := Encrypt(t.Context(), w.Env, o, "key-1", []byte("x")); podvm.Cause(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Encrypt(t.Context(), w.Env, w.owner, "key-1", nil); !errors.Is(err, wire.ErrSettings) {
		t.Errorf("no key: %v", err)
	}
	if n := w.Requests.Load(); n != 0 {
		t.Errorf("%d requests", n)
	}
}
