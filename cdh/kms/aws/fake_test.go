package aws

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/podvm"
)

const (
	region  = "eu-west-1"
	keyID   = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
	session = "IQoJb3JpZ2luX2VjE//+=="
)

// cloud is KMS and Secrets Manager on one address. It takes requests that are
// signed with the suite's key, within five minutes of its clock, and encrypts.
type cloud struct {
	*httptest.Server
	mu       sync.Mutex
	keys     map[string]cipher.AEAD
	secrets  map[string]map[string]string // id or id@version -> members of the answer
	session  string
	ahead    time.Duration // its clock
	requests int
	// answer, when not nil, answers in place of the cloud if it returns true.
	answer func(w http.ResponseWriter, n int) bool
}

func newCloud(t testing.TB) *cloud {
	c := &cloud{keys: map[string]cipher.AEAD{}, secrets: map[string]map[string]string{}}
	for _, id := range []string{keyID, "alias/other"} {
		key := make([]byte, 32)
		_, _ = rand.Read(key)
		block, err := aes.NewCipher(key)
		if err != nil {
			t.Fatal(err)
		}
		if c.keys[id], err = cipher.NewGCM(block); err != nil {
			t.Fatal(err)
		}
	}
	c.Server = httptest.NewServer(c)
	t.Cleanup(c.Close)
	return c
}

// fail answers as the services do, with their media type and their one status.
func fail(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"__type":%q,"message":%q}`, code, message)
}

func (c *cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests++
	now := time.Now().Add(c.ahead).UTC()
	w.Header().Set("Date", now.Format(http.TimeFormat))
	if c.answer != nil && c.answer(w, c.requests) {
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	prefix, operation, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	service := map[string]string{"TrentService": "kms", "secretsmanager": "secretsmanager"}[prefix]
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	switch {
	case r.Method != http.MethodPost || r.URL.String() != "/" || r.Header.Get("Content-Type") != "application/x-amz-json-1.1" || service == "":
		fail(w, 400, "UnknownOperationException", "")
	case err != nil || at.Before(now.Add(-5*time.Minute)) || at.After(now.Add(5*time.Minute)):
		fail(w, 400, "InvalidSignatureException", "Signature expired: "+at.String()+" is now earlier than "+now.String())
	case !strings.Contains(r.Header.Get("Authorization"), " Credential="+suiteID+"/") || r.Header.Get("X-Amz-Security-Token") != c.session:
		fail(w, 400, "UnrecognizedClientException", "The security token included in the request is invalid.")
	case checkSignature(r, body, suiteSecret, region, service) != nil:
		fail(w, 400, "InvalidSignatureException", "The request signature we calculated does not match the signature you provided.")
	default:
		c.perform(w, operation, body)
	}
}

func (c *cloud) perform(w http.ResponseWriter, operation string, body []byte) {
	var in struct {
		KeyID             string `json:"KeyId"`
		CiphertextBlob    []byte
		Plaintext         []byte
		EncryptionContext map[string]string
		SecretID          string `json:"SecretId"`
		VersionID         string `json:"VersionId"`
		VersionStage      string
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		fail(w, 400, "SerializationException", err.Error())
		return
	}
	aad, err := json.Marshal(in.EncryptionContext) // whose names json sorts
	if err != nil {
		panic(err)
	}
	key := c.keys[in.KeyID]
	if key == nil && operation != "GetSecretValue" {
		fail(w, 400, "com.amazonaws.kms#NotFoundException", "Key '"+in.KeyID+"' does not exist")
		return
	}
	out := map[string]string{}
	switch operation {
	case "Encrypt":
		nonce := make([]byte, key.NonceSize())
		_, _ = rand.Read(nonce)
		out["CiphertextBlob"] = base64.StdEncoding.EncodeToString(key.Seal(nonce, nonce, in.Plaintext, aad))
		out["KeyId"] = in.KeyID
	case "Decrypt":
		n := min(key.NonceSize(), len(in.CiphertextBlob))
		plain, err := key.Open(nil, append(in.CiphertextBlob[:n:n], make([]byte, key.NonceSize()-n)...), in.CiphertextBlob[n:], aad)
		if err != nil {
			fail(w, 400, "InvalidCiphertextException", "")
			return
		}
		out["KeyId"], out["EncryptionAlgorithm"] = in.KeyID, "SYMMETRIC_DEFAULT"
		out["Plaintext"] = base64.StdEncoding.EncodeToString(plain)
	case "GetSecretValue":
		out = c.secrets[in.SecretID+"@"+in.VersionID+in.VersionStage]
		if out == nil {
			fail(w, 400, "ResourceNotFoundException", "Secrets Manager can't find the specified secret.")
			return
		}
	default:
		fail(w, 400, "UnknownOperationException", "")
		return
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	_ = json.NewEncoder(w).Encode(out)
}

// env is a guest with the suite's credential that finds both services at c.
func env(t testing.TB, c *cloud, cfg wire.ClientConfig) wire.Env {
	t.Helper()
	dir := t.TempDir()
	host := podvm.Host{LookupEnv: func(name string) (string, bool) {
		v, ok := map[string]string{
			"AWS_ENDPOINT_URL_KMS":             c.URL,
			"AWS_ENDPOINT_URL_SECRETS_MANAGER": c.URL + "/",
			"AWS_IN_GUEST_KEY_PATH":            dir,
		}[name]
		return v, ok
	}}
	cfg.Log = slog.New(slog.DiscardHandler)
	if cfg.Backoff == 0 {
		cfg.Backoff = time.Millisecond
	}
	e := wire.Env{Host: host, HTTP: wire.NewClient(cfg), Files: wire.CredentialDir(host, "aws"), Now: time.Now, Log: cfg.Log}
	t.Cleanup(e.HTTP.Close)
	place(t, e, `{"access_key_id":"`+suiteID+`","secret_access_key":"`+suiteSecret+`","session_token":null}`)
	return e
}

func place(t testing.TB, e wire.Env, credential string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(e.Host.Getenv("AWS_IN_GUEST_KEY_PATH"), CredentialFile), []byte(credential), 0o600); err != nil {
		t.Fatal(err)
	}
}

func object(t testing.TB, text string) wire.Object {
	t.Helper()
	o, err := strict.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func open(t testing.TB, e wire.Env) wire.Provider {
	t.Helper()
	p, err := New(e)(object(t, `{"region":"`+region+`"}`))
	if err != nil {
		t.Fatal(err)
	}
	return p
}
