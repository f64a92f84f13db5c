package s3

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/sigv4"
)

func serve(t testing.TB, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

// listingOf is a page with these inner parts.
func listingOf(parts string) string {
	return `<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><EncodingType>url</EncodingType>` + parts + `</ListBucketResult>`
}

func entryOf(key string, size int) string {
	return fmt.Sprintf(`<Contents><Key>%s</Key><Size>%d</Size><ETag>&quot;e&quot;</ETag></Contents>`, key, size)
}

func TestHostileListings(t *testing.T) {
	bomb := `<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><ListBucketResult><Contents><Key>&b;</Key></Contents></ListBucketResult>`
	for name, tt := range map[string]struct {
		body string
		is   error
	}{
		"good":               {listingOf(entryOf("m/a", 1)), nil},
		"up":                 {listingOf(entryOf("m/../../etc/passwd", 1)), source.ErrListing},
		"up, escaped":        {listingOf(entryOf("m/%2e%2e%2Fx", 1)), source.ErrListing},
		"absolute":           {listingOf(entryOf("m//etc/passwd", 1)), source.ErrListing},
		"NUL":                {listingOf(entryOf("m/a%00b", 1)), source.ErrListing},
		"in progress":        {listingOf(entryOf("m/.a.part", 1)), source.ErrListing},
		"bad escape":         {listingOf(entryOf("m/%zz", 1)), source.ErrListing},
		"elsewhere":          {listingOf(entryOf("n/a", 1)), source.ErrListing},
		"no key":             {listingOf(entryOf("", 1)), source.ErrListing},
		"negative":           {listingOf(entryOf("m/a", -1)), source.ErrListing},
		"huge":               {listingOf(`<Contents><Key>m/a</Key><Size>99999999999999999999</Size></Contents>`), source.ErrListing},
		"twice":              {listingOf(entryOf("m/a", 1) + entryOf("m/a", 2)), source.ErrListing},
		"file and folder":    {listingOf(entryOf("m/a", 1) + entryOf("m/a/b", 2)), source.ErrListing},
		"only empty ones":    {listingOf(entryOf("m/a", 0) + entryOf("m/d/", 3)), source.ErrNotFound},
		"no token":           {listingOf(entryOf("m/a", 1) + `<IsTruncated>true</IsTruncated>`), source.ErrListing},
		"same token":         {listingOf(`<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>`), source.ErrListing},
		"long token":         {listingOf(`<IsTruncated>true</IsTruncated><NextContinuationToken>` + strings.Repeat("t", 5000) + `</NextContinuationToken>`), source.ErrListing},
		"an entity bomb":     {bomb, source.ErrListing},
		"an external entity": {`<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><ListBucketResult><Contents><Key>m/&a;</Key><Size>1</Size></Contents></ListBucketResult>`, source.ErrListing},
		"deep":               {"<ListBucketResult>" + strings.Repeat("<Contents>", 100_000), source.ErrListing},
		"another document":   {`<ListAllMyBucketsResult/>`, source.ErrListing},
		"a web page":         {`<!DOCTYPE html><html><body><br></body></html>`, source.ErrListing},
		"nothing":            {``, source.ErrListing},
		"longer than a page": {strings.Repeat(" ", maxPage+1), source.ErrListing},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Query().Get("max-keys") == "1" {
					_, _ = io.WriteString(w, listingOf(""))
					return
				}
				_, _ = io.WriteString(w, tt.body)
			})
			got, err := open(t, "s3://bucket/m", at(s.URL)).List(t.Context())
			if !errors.Is(err, tt.is) || (err != nil) != (podvm.Cause(err) != "") {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
}

func TestListingWithoutEnd(t *testing.T) {
	n := 0
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		n++
		fmt.Fprint(w, listingOf(fmt.Sprintf(`<IsTruncated>true</IsTruncated><NextContinuationToken>%d</NextContinuationToken>`, n)))
	})
	if _, err := open(t, "s3://bucket", at(s.URL)).List(t.Context()); !errors.Is(err, source.ErrListing) || n != maxPages {
		t.Errorf("%v after %d pages", err, n)
	}
}

func TestAddressesOfBuckets(t *testing.T) {
	const virtual, accelerate, endpoint, region = "S3_USER_VIRTUAL_BUCKET", "S3_USE_ACCELERATE", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"
	for name, tt := range map[string]struct {
		bucket string
		vars   []string
		want   string // "": refused
	}{
		"AWS, no region":       {"models", nil, "https://models.s3.us-east-1.amazonaws.com/"},
		"AWS, a region":        {"models", []string{region, "eu-west-1"}, "https://models.s3.eu-west-1.amazonaws.com/"},
		"AWS, the other name":  {"models", []string{"AWS_REGION", "eu-west-1"}, "https://models.s3.eu-west-1.amazonaws.com/"},
		"AWS, China":           {"models", []string{region, "cn-north-1"}, "https://models.s3.cn-north-1.amazonaws.com.cn/"},
		"AWS, dots":            {"my.models", nil, "https://s3.us-east-1.amazonaws.com/my.models/"},
		"AWS, capitals":        {"Models", nil, "https://s3.us-east-1.amazonaws.com/Models/"},
		"AWS, old endpoint":    {"models", []string{endpoint, "https://s3.amazonaws.com", region, "eu-west-1"}, "https://models.s3.eu-west-1.amazonaws.com/"},
		"AWS, its endpoint":    {"models", []string{endpoint, "https://s3.eu-west-1.amazonaws.com/"}, "https://models.s3.eu-west-1.amazonaws.com/"},
		"AWS, VPC endpoint":    {"models", []string{endpoint, "https://bucket.vpce-1.s3.eu-west-1.vpce.amazonaws.com"}, "https://bucket.vpce-1.s3.eu-west-1.vpce.amazonaws.com/models/"},
		"AWS, accelerated":     {"models", []string{accelerate, "TRUE", region, "eu-west-1"}, "https://models.s3-accelerate.amazonaws.com/"},
		"accelerated, dots":    {"my.models", []string{accelerate, "true"}, ""},
		"no region of AWS":     {"models", []string{region, "x.evil.example/"}, ""},
		"another store":        {"models", []string{endpoint, "http://minio.ns.svc:9000"}, "http://minio.ns.svc:9000/models/"},
		"another, with a path": {"models", []string{endpoint, "https://gw.example/s3/", region, "auto"}, "https://gw.example/s3/models/"},
		"another, virtual":     {"models", []string{endpoint, "https://s3.example:9000", virtual, "true"}, "https://models.s3.example:9000/"},
		"virtual, dots":        {"my.models", []string{endpoint, "https://s3.example", virtual, "true"}, ""},
		"virtual, an address":  {"models", []string{endpoint, "http://127.0.0.1:1", virtual, "true"}, ""},
		"another, accelerated": {"models", []string{endpoint, "https://s3.example", accelerate, "true"}, ""},
		"endpoint no URL":      {"models", []string{endpoint, "minio:9000"}, ""},
		"endpoint with a key":  {"models", []string{endpoint, "https://a:hunter2@minio"}, ""},
		"region with a slash":  {"models", []string{endpoint, "https://minio", region, "a/b"}, ""},
		"timeout":              {"models", []string{"S3_READ_TIMEOUT", "hunter2"}, ""},
		"attempts":             {"models", []string{"S3_MAX_ATTEMPTS", "0"}, ""},
		"concurrency":          {"models", []string{"S3_MAX_FILE_CONCURRENCY", "-1"}, ""},
	} {
		vars := map[string]string{"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
		for i := 0; i < len(tt.vars); i += 2 {
			vars[tt.vars[i]] = tt.vars[i+1]
		}
		s, err := New("s3://"+tt.bucket+"/x", environ(t, vars))
		if tt.want == "" {
			if !errors.Is(err, source.ErrUsage) || podvm.Cause(err) == "" || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || s.conf.base(s.region) != tt.want {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
	for _, address := range []string{"", "s3://", "s3:///x", "S3://b/x", "s3://b/x", "s3://a@evil.example/x", "s3://bucket:80/x", "s3://bucket?x/y", "s3://..%2f/x", "s3://../x", "s3://bucket/" + strings.Repeat("x", 1025)} {
		if _, err := New(address, environ(t, at("http://127.0.0.1:1"))); !errors.Is(err, source.ErrUsage) {
			t.Errorf("%.40q: %v", address, err)
		}
	}
	c, err := readConfig(environ(t, map[string]string{"S3_MAX_FILE_CONCURRENCY": "9", "S3_READ_TIMEOUT": "60", "S3_CONNECT_TIMEOUT": "5", "S3_MAX_ATTEMPTS": "7", "S3_VERIFY_SSL": "False", "AWS_CA_BUNDLE": "/none"}), "models")
	if err != nil || c.concurrency != 9 || c.http.ReadTimeout != time.Minute || c.http.ConnectTimeout != 5*time.Second || c.http.Attempts != 7 || !c.http.SkipVerify || c.http.CAFile != "" {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestBucketInAnotherRegion(t *testing.T) {
	var hosts []string
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hosts = append(hosts, r.Host)
		if r.Host != "models.s3.eu-west-1.amazonaws.com" || !strings.Contains(r.Header.Get("Authorization"), "/eu-west-1/s3/") {
			w.Header().Set("X-Amz-Bucket-Region", "eu-west-1")
			w.WriteHeader(http.StatusMovedPermanently)
			return
		}
		fmt.Fprint(w, listingOf(entryOf("a", 1)))
	}))
	t.Cleanup(s.Close)
	// AWS's names lead to the test server.
	env := environ(t, map[string]string{"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "S3_VERIFY_SSL": "0"})
	env.Dial = (&lead{to: s.Listener.Addr().String()}).dial
	src, err := New("s3://models", env)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(src.Close)
	if got, err := src.List(t.Context()); err != nil || len(got) != 1 || len(hosts) != 2 {
		t.Errorf("%v, %v, asked %v", got, err, hosts)
	}
	for _, region := range []string{"us-east-1", "evil.example", "cn-north-1", ""} { // known, no region, of another partition
		other := &Source{conf: config{aws: true, region: "us-east-1", http: src.conf.http}, region: "us-east-1"}
		if other.relocate(region, true) {
			t.Errorf("moves to %q", region)
		}
	}
}

func TestClockOfTheGuestIsCorrected(t *testing.T) {
	n := 0
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		n++
		at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
		if err != nil || time.Since(at).Abs() > time.Minute {
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `<Error><Code>RequestTimeTooSkewed</Code><Message>The difference</Message></Error>`)
			return
		}
		fmt.Fprint(w, listingOf(entryOf("a", 1)))
	})
	src := open(t, "s3://models", at(s.URL))
	src.clock = sigv4.NewClock(func() time.Time { return time.Now().Add(-24 * time.Hour) })
	if got, err := src.List(t.Context()); err != nil || len(got) != 1 || n != 2 {
		t.Errorf("%v, %v, %d requests", got, err, n)
	}
}

func TestWebIdentityBecomesACredential(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("pod-token"), 0o600); err != nil {
		t.Fatal(err)
	}
	var grants atomic.Int32
	expires := time.Now().Add(time.Hour)
	sts := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.PostFormValue("Action") != "AssumeRoleWithWebIdentity" || r.PostFormValue("WebIdentityToken") != "pod-token" || r.Header.Get("Authorization") != "" {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `<ErrorResponse><Error><Type>Sender</Type><Code>InvalidIdentityToken</Code><Message>no</Message></Error></ErrorResponse>`)
			return
		}
		fmt.Fprintf(w, `<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult><Credentials>
<SessionToken>session</SessionToken><SecretAccessKey>secret</SecretAccessKey><Expiration>%s</Expiration><AccessKeyId>ASIA%d</AccessKeyId>
</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`, expires.UTC().Format(time.RFC3339), grants.Add(1))
	})
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Amz-Security-Token") != "session" || !strings.Contains(r.Header.Get("Authorization"), "Credential=ASIA"+fmt.Sprint(grants.Load())+"/") {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		fmt.Fprint(w, listingOf(entryOf("a", 1)))
	})
	vars := map[string]string{"AWS_ENDPOINT_URL": s.URL, "AWS_ENDPOINT_URL_STS": sts.URL, "AWS_WEB_IDENTITY_TOKEN_FILE": token, "AWS_ROLE_ARN": "arn:aws:iam::1:role/x"}
	src := open(t, "s3://models", vars)
	for range 3 {
		if _, err := src.List(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if grants.Load() != 1 {
		t.Errorf("%d grants", grants.Load())
	}
	src.keys.(*webIdentity).now = func() time.Time { return expires.Add(-time.Minute) }
	if _, err := src.List(t.Context()); err != nil || grants.Load() != 2 {
		t.Errorf("before it ends: %v, %d grants", err, grants.Load())
	}
	if err := os.WriteFile(token, []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := open(t, "s3://models", vars).List(t.Context())
	if !errors.Is(err, source.ErrRefused) || !strings.Contains(podvm.Cause(err), "InvalidIdentityToken: no") {
		t.Errorf("token refused: %v", err)
	}
	vars["AWS_WEB_IDENTITY_TOKEN_FILE"] = "/none"
	if _, err := open(t, "s3://models", vars).List(t.Context()); !errors.Is(err, source.ErrRefused) {
		t.Errorf("no token: %v", err)
	}
	vars["AWS_ENDPOINT_URL_STS"] = "http://sts.example"
	if _, err := New("s3://models", environ(t, vars)); !errors.Is(err, source.ErrUsage) {
		t.Errorf("the pod's token in clear: %v", err)
	}
	// A store that need not say who it is does not spare the token service that.
	secure := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the pod's token goes to anybody") }))
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	secure.StartTLS()
	t.Cleanup(secure.Close)
	vars["AWS_ENDPOINT_URL_STS"], vars["S3_VERIFY_SSL"], vars["AWS_WEB_IDENTITY_TOKEN_FILE"] = secure.URL, "0", token
	if _, err := open(t, "s3://models", vars).List(t.Context()); !errors.Is(err, source.ErrUnreachable) || !strings.Contains(podvm.Cause(err), "not trusted") {
		t.Errorf("a token service nobody vouches for: %v", err)
	}
	delete(vars, "AWS_ROLE_ARN")
	if _, err := New("s3://models", environ(t, vars)); !errors.Is(err, source.ErrUsage) || !strings.Contains(podvm.Cause(err), "no credentials") {
		t.Errorf("no role: %v", err)
	}
}

func FuzzPage(f *testing.F) {
	f.Add([]byte(listingOf(entryOf("m/a%20b", 1) + `<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>`)))
	f.Add([]byte(`<ListBucketResult><Contents><Key>a</Key><Size>1</Size></Contents></ListBucketResult>`))
	f.Add([]byte(`<Error><Code>SlowDown</Code></Error>`))
	f.Add([]byte(`<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>a</AccessKeyId><SecretAccessKey>b</SecretAccessKey></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		_ = parseFault(raw).text()
		if cred, _, err := parseGrant(raw, time.Now()); (cred == nil) == (err == nil) {
			t.Errorf("%v, %v", cred, err)
		}
		p, err := parsePage(raw)
		if err != nil {
			return
		}
		for _, e := range p.Contents {
			if e.Key == "" || e.Size < 0 {
				t.Errorf("%+v", e)
			}
			if v := e.object("x").Version; v != "" && (len(v) < 3 || v[0] != '"' || strings.ContainsAny(v[1:len(v)-1], "\"\r\n ")) {
				t.Errorf("version %q", v)
			}
		}
	})
}
