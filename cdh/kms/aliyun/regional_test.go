package aliyun

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sealpod/sealpod/cdh/kms/internal/kmstest"
	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/podvm"
)

const (
	accessKey   = "STS.NUz1"
	accessToken = "CAIS+/x=="
	stsSettings = `{"client_type":"sts_token","token_path":"token","region_id":"cn-beijing"}`
	ecsSettings = `{"client_type":"ecs_ram_role"}`
	ecsFile     = `{"ecs_ram_role_name":"Role-1.a_b","region_id":"cn-beijing"}`
)

// api is the KMS endpoint of a region with one identity and one secret.
type api struct {
	// answer replaces the answer when it returns true.
	answer func(w http.ResponseWriter, n int) bool

	mu     sync.Mutex
	n      int
	nonces map[string]bool
}

func (s *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	status, code, text := 200, "", ""
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err == nil {
		err = s.check(r, q)
	}
	switch {
	case err != nil:
		status, code, text = 400, "SignatureDoesNotMatch", err.Error()
	case s.answer != nil && s.answer(w, s.n):
		return
	case q.Get("SecretName") != "d b*~/é":
		status, code, text = 404, "Forbidden.ResourceNotFound", "no such \x1b secret"
	}
	if status != 200 {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]any{"HttpStatus": status, "Code": code, "Message": text, "RequestId": "r"})
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{
		"SecretName": q.Get("SecretName"), "SecretData": "s3cret/" + q.Get("VersionStage") + "/" + q.Get("VersionId"), "VersionStages": map[string]any{},
	})
}

// check verifies the signature by what was received, with net/url in place of
// the code under test.
func (s *api) check(r *http.Request, q url.Values) error {
	given := q.Get("Signature")
	q.Del("Signature")
	openAPI := strings.NewReplacer("+", "%20", "*", "%2A", "%7E", "~")
	toSign := r.Method + "&%2F&" + openAPI.Replace(url.QueryEscape(openAPI.Replace(q.Encode())))
	mac := hmac.New(sha1.New, []byte("s/k+&"))
	mac.Write([]byte(toSign))
	at, err := time.Parse("2006-01-02T15:04:05Z", q.Get("Timestamp"))
	switch {
	case r.Method != "POST" || r.URL.Path != "/" || r.Host != "kms.cn-beijing.aliyuncs.com" || r.ContentLength != 0:
		return fmt.Errorf("%s %s at %s", r.Method, r.URL.Path, r.Host)
	case given != base64.StdEncoding.EncodeToString(mac.Sum(nil)):
		return fmt.Errorf("signature %s", given)
	case q.Get("AccessKeyId") != accessKey || q.Get("SecurityToken") != accessToken:
		return fmt.Errorf("identity")
	case q.Get("Action") != "GetSecretValue" || q.Get("Version") != "2016-01-20" || q.Get("RegionId") != "cn-beijing" || q.Get("Format") != "json" ||
		q.Get("FetchExtendedConfig") != "true" || q.Get("SignatureMethod") != "HMAC-SHA1" || q.Get("SignatureVersion") != "1.0":
		return fmt.Errorf("parameters %v", q)
	case err != nil || time.Since(at).Abs() > 15*time.Minute:
		return fmt.Errorf("timestamp %s", q.Get("Timestamp"))
	case len(q.Get("SignatureNonce")) < 16 || s.nonces[q.Get("SignatureNonce")]:
		return fmt.Errorf("nonce %s", q.Get("SignatureNonce"))
	}
	s.nonces[q.Get("SignatureNonce")] = true
	return nil
}

// region is a guest in one, with all credentials.
func region(t testing.TB, metadata http.HandlerFunc) (*kmstest.Cloud, *api) {
	t.Helper()
	s := &api{nonces: map[string]bool{}}
	c := kmstest.New(t, kmstest.Config{Provider: "aliyun", Names: []string{"kms.cn-beijing.aliyuncs.com"}, Handler: s.ServeHTTP, Metadata: metadata})
	c.Write(t, "token", []byte(accessKey+":s/k+:"+accessToken))
	c.Write(t, "ecsRamRole.json", []byte(ecsFile))
	return c, s
}

func role(w http.ResponseWriter, r *http.Request) {
	if r.Method != "GET" || r.URL.String() != "/latest/meta-data/ram/security-credentials/Role-1.a_b" {
		http.NotFound(w, r)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]string{
		"AccessKeyId": accessKey, "AccessKeySecret": "s/k+", "SecurityToken": accessToken, "Expiration": "2030-01-01T00:00:00Z", "Code": "Success",
	})
}

func secretOf(t testing.TB, c *kmstest.Cloud, settings, name, annotations string) (podvm.Secret, error) {
	t.Helper()
	p, err := New(c.Env)(object(t, settings))
	if err != nil {
		t.Fatal(err)
	}
	return p.Secret(t.Context(), name, object(t, annotations))
}

func TestSecretOfARegion(t *testing.T) {
	c, _ := region(t, role)
	for _, settings := range []string{
		stsSettings, ecsSettings,
		`{"client_type":"sts_token","token_path":"/run/confidential-containers/cdh/kbs/kms-credential/aliyun/token","region_id":"cn-beijing"}`,
	} {
		got, err := secretOf(t, c, settings, "d b*~/é", `{}`)
		if err != nil || string(got) != "s3cret//" {
			t.Fatalf("%s: %q, %v", settings, []byte(got), err)
		}
		got, err = secretOf(t, c, settings, "d b*~/é", `{"version_stage":"a","version_id":"b"}`)
		if err != nil || string(got) != "s3cret/a/b" {
			t.Errorf("%s: %q, %v", settings, []byte(got), err)
		}
		got, err = secretOf(t, c, settings, "nope", `{}`)
		fails(t, got, err, wire.ErrService, "Forbidden.ResourceNotFound: no such   secret")
		got, err = secretOf(t, c, settings, "", `{}`)
		fails(t, got, err, wire.ErrSettings, "empty")
	}
	if n := c.Metadata.Load(); n != 3 {
		t.Errorf("%d requests for credentials", n)
	}
}

func TestTokenBesideOtherCredentials(t *testing.T) {
	c, _ := region(t, nil)
	dir := c.Host.Path(podvm.CDHResourceDir)
	for name, content := range map[string]string{
		"sts": accessKey + ":s/k+:" + accessToken + "\n",
		// Three parts, but none of a token.
		"aws.json": `{"access_key_id":"AKIA","secret_access_key":"hush"}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	at := func(name string) string {
		return `{"client_type":"sts_token","token_path":"/run/confidential-containers/cdh/kbs/` + name + `","region_id":"cn-beijing"}`
	}
	if got, err := secretOf(t, c, at("sts"), "d b*~/é", `{}`); err != nil || len(got) == 0 {
		t.Fatal(err)
	}
	n := c.Requests.Load()
	for _, name := range []string{"aws.json", "link", "absent", "kms-credential"} {
		got, err := secretOf(t, c, at(name), "d b*~/é", `{}`)
		fails(t, got, err, wire.ErrCredential, "credential file")
	}
	if c.Requests.Load() != n {
		t.Error("a credential was sent out")
	}
}

// TestBucketIsNoRegion: kms.oss-cn-beijing.aliyuncs.com is the bucket "kms" of
// whoever has it. Its owner may read requests in its logs, and a signature over a
// query does not say for which host it is.
func TestBucketIsNoRegion(t *testing.T) {
	c, _ := region(t, role)
	for _, name := range []string{
		"oss-cn-beijing", "oss-cn-beijing-internal", "oss-accelerate", "vpc100-oss-cn-beijing", "s3-cn-beijing", "cn", "cn-", "cn--beijing",
		"cr-abc.cn-beijing", "CN-beijing", "1a-x", "",
	} {
		p, err := New(c.Env)(object(t, strings.Replace(stsSettings, "cn-beijing", name, 1)))
		if p != nil {
			t.Errorf("%s: opened", name)
		}
		fails(t, nil, err, wire.ErrSettings, `"region_id"`)
	}
	for _, name := range []string{
		"cn-beijing", "cn-hongkong", "ap-southeast-1", "us-west-1", "eu-central-1", "me-east-1", "cn-shanghai-finance-1", "cn-north-2-gov-1", "cn-heyuan-acdr-1",
	} {
		if _, err := New(c.Env)(object(t, strings.Replace(stsSettings, "cn-beijing", name, 1))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOnlyClientKeysDecrypt(t *testing.T) {
	c, _ := region(t, role)
	for _, settings := range []string{stsSettings, ecsSettings} {
		p, err := New(c.Env)(object(t, settings))
		if err != nil {
			t.Fatal(err)
		}
		got, err := p.Decrypt(t.Context(), "key-1", []byte("x"), object(t, ivAnnotation))
		fails(t, got, err, wire.ErrUnsupported, "client_key only")
	}
	if c.Requests.Load()+c.Metadata.Load() != 0 {
		t.Error("somebody was asked")
	}
}

func TestUnusableLogins(t *testing.T) {
	for name, tt := range map[string]struct{ file, content string }{
		"two parts":          {"token", "AK:SK"},
		"four parts":         {"token", "AK:SK:STS:more"},
		"an empty part":      {"token", "AK::STS"},
		"nothing":            {"token", ""},
		"white space inside": {"token", "AK: SK:STS"},
		"a line end inside":  {"token", "AK\n:SK:STS"},
		"not ASCII":          {"token", "AK:SK:ü"},
		"far too long":       {"token", "AK:SK:" + strings.Repeat("x", 9000)},
		"not JSON":           {"ecsRamRole.json", "role"},
		"no role":            {"ecsRamRole.json", `{"region_id":"cn-beijing"}`},
		"no region":          {"ecsRamRole.json", `{"ecs_ram_role_name":"r"}`},
		"role elsewhere":     {"ecsRamRole.json", `{"ecs_ram_role_name":"../user-data","region_id":"cn-beijing"}`},
		"role as a query":    {"ecsRamRole.json", `{"ecs_ram_role_name":"r?x","region_id":"cn-beijing"}`},
		"region elsewhere":   {"ecsRamRole.json", `{"ecs_ram_role_name":"r","region_id":"evil.example/"}`},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := region(t, role)
			c.Write(t, tt.file, []byte(tt.content))
			settings := stsSettings
			if tt.file != "token" {
				settings = ecsSettings
			}
			got, err := secretOf(t, c, settings, "x", `{}`)
			fails(t, got, err, wire.ErrCredential, tt.file)
			if c.Requests.Load() != 0 {
				t.Error("the service was asked")
			}
		})
	}
}

func TestMetadataServiceThatGivesNoLogin(t *testing.T) {
	for name, tt := range map[string]struct {
		status   int
		body     string
		is       error
		requests int64
	}{
		"no such role":  {404, "<html>", wire.ErrService, 1},
		"overloaded":    {503, "", wire.ErrUnreachable, 3},
		"redirect":      {302, "", wire.ErrService, 1},
		"not JSON":      {200, "<html>", wire.ErrService, 1},
		"empty":         {200, "", wire.ErrService, 1},
		"no key":        {200, `{"Code":"Failed"}`, wire.ErrService, 1},
		"hostile token": {200, `{"AccessKeyId":"a","AccessKeySecret":"b","SecurityToken":"c\nd"}`, wire.ErrService, 1},
		"huge":          {200, strings.Repeat(" ", 2<<20), wire.ErrService, 1},
	} {
		c, _ := region(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(tt.status)
			_, _ = w.Write([]byte(tt.body))
		})
		got, err := secretOf(t, c, ecsSettings, "d b*~/é", `{}`)
		fails(t, got, err, tt.is, "the ECS metadata service")
		if n := c.Metadata.Load(); n != tt.requests || c.Requests.Load() != 0 {
			t.Errorf("%s: %d requests", name, n)
		}
	}
}

// Each try is signed anew: a nonce counts once.
func TestRegionThatIsBusyIsAskedAgain(t *testing.T) {
	for name, tt := range map[string]struct {
		status int
		body   string
	}{
		"throttling by code":   {400, `{"Code":"Throttling.User","Message":"slow down"}`},
		"throttling by status": {429, ``},
		"server fault":         {503, `{"Code":"ServiceUnavailableTemporary"}`},
	} {
		for _, tries := range []int{2, 9} {
			c, s := region(t, nil)
			s.answer = func(w http.ResponseWriter, n int) bool {
				if n <= tries {
					w.WriteHeader(tt.status)
					_, _ = w.Write([]byte(tt.body))
				}
				return n <= tries
			}
			got, err := secretOf(t, c, stsSettings, "d b*~/é", `{}`)
			if n := c.Requests.Load(); n != 3 {
				t.Errorf("%s: %d requests", name, n)
			}
			if tries == 9 {
				fails(t, got, err, wire.ErrUnreachable, "overloaded")
			} else if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func TestAnswersOfARegionThatAreNone(t *testing.T) {
	for name, body := range map[string]string{
		"empty":          ``,
		"not JSON":       `<html>`,
		"no secret":      `{"SecretName":"x"}`,
		"null":           `{"SecretData":null}`,
		"empty secret":   `{"SecretData":""}`,
		"a number":       `{"SecretData":7}`,
		"twice":          `{"SecretData":"a","SecretData":"b"}`,
		"data after it":  `{"SecretData":"a"}{`,
		"not UTF-8":      "{\"SecretData\":\"\xff\"}",
		"another case":   `{"secretdata":"a"}`,
		"over the limit": `{"SecretData":"` + strings.Repeat("a", 2<<20) + `"}`,
	} {
		c, s := region(t, nil)
		s.answer = func(w http.ResponseWriter, _ int) bool { _, _ = w.Write([]byte(body)); return true }
		got, err := secretOf(t, c, stsSettings, "d b*~/é", `{}`)
		fails(t, got, err, wire.ErrService, "unusable")
		if n := c.Requests.Load(); n != 1 {
			t.Errorf("%s: %d requests", name, n)
		}
	}
}

// The token is in the URL, which Go's HTTP client puts in its errors.
func TestErrorsDoNotHoldTheToken(t *testing.T) {
	c, s := region(t, nil)
	s.answer = func(w http.ResponseWriter, _ int) bool {
		conn, _, _ := w.(http.Hijacker).Hijack()
		_ = conn.Close()
		return true
	}
	got, err := secretOf(t, c, stsSettings, "d b*~/é", `{}`)
	fails(t, got, err, wire.ErrUnreachable, "broke")
	for _, part := range []string{"CAIS", accessKey, "Signature"} {
		if strings.Contains(err.Error(), part) {
			t.Errorf("%v", err)
		}
	}
}

// The worked example of Alibaba Cloud's documentation.
// Source: Alibaba Cloud ECS API reference, "Signature method" (DescribeRegions).
func TestSignatureOfTheDocumentation(t *testing.T) {
	got := rpcQuery("GET", map[string]string{
		"Timestamp": "2016-02-23T12:46:24Z", "Format": "XML", "AccessKeyId": "testid", "Action": "DescribeRegions", "SignatureMethod": "HMAC-SHA1",
		"SignatureNonce": "3ee8c1b8-83d3-44af-a94f-4e0ad82fd6cf", "Version": "2014-05-26", "SignatureVersion": "1.0",
	}, []byte("testsecret"))
	if !strings.HasSuffix(got, "&Signature=OLeaidS1JvxuMvnyHOwuJ%2BuX5qY%3D") {
		t.Error(got)
	}
}

func FuzzLogins(f *testing.F) {
	f.Add([]byte("AK:SK:STS"))
	f.Add([]byte(`{"AccessKeyId":"a","AccessKeySecret":"b","SecurityToken":"c"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, parse := range []func([]byte) (login, error){parseToken, parseSession} {
			if l, err := parse(raw); err == nil && (l.id == "" || len(l.secret) == 0 || strings.ContainsAny(l.id+l.token, " \r\n")) {
				t.Fatalf("%+v", l)
			}
		}
	})
}

func FuzzRegionAnswer(f *testing.F) {
	f.Add([]byte(`{"SecretData":"x","Code":"Throttling","Message":"m"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if s, err := secretJSON(raw); (err == nil) != (len(s) > 0) {
			t.Fatalf("%q beside %v", []byte(s), err)
		}
		apiError(raw)
	})
}
