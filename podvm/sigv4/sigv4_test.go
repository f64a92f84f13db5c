package sigv4

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sealpod/sealpod/podvm"
)

// The key and the time of AWS's Signature Version 4 test suite.
const (
	suiteID     = "AKIDEXAMPLE"
	suiteSecret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
)

var suiteTime = time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC)

// suite has cases of AWS's test suite, by their names there: requests to "/" of
// example.amazonaws.com for "service" in us-east-1, and their signatures.
// Source: AWS Signature Version 4 test suite (aws-sig-v4-test-suite).
var suite = map[string]struct {
	method, contentType, body, session string
	signedHeaders, signature           string
}{
	"get-vanilla": {
		method: "GET", signedHeaders: "host;x-amz-date",
		signature: "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
	},
	"post-vanilla": {
		method: "POST", signedHeaders: "host;x-amz-date",
		signature: "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
	},
	"post-x-www-form-urlencoded": {
		method: "POST", contentType: "application/x-www-form-urlencoded", body: "Param1=value1",
		signedHeaders: "content-type;host;x-amz-date",
		signature:     "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
	},
	"post-sts-header-before": {
		method: "POST", session: "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA==",
		signedHeaders: "host;x-amz-date;x-amz-security-token",
		signature:     "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead",
	},
}

func TestSignaturesAreThoseOfTheTestSuiteOfAWS(t *testing.T) {
	for name, tt := range suite {
		t.Run(name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), tt.method, "https://example.amazonaws.com/", strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("User-Agent", "not signed")
			if tt.contentType != "" {
				req.Header.Set("Content-Type", tt.contentType)
			}
			cred := &Credential{ID: suiteID, Secret: podvm.Secret(suiteSecret), Session: podvm.Secret(tt.session)}
			Sign(req, Hash([]byte(tt.body)), cred, "us-east-1", "service", suiteTime)
			want := "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=" +
				tt.signedHeaders + ", Signature=" + tt.signature
			if got := req.Header.Get("Authorization"); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
			if string(cred.Secret) != suiteSecret {
				t.Error("signing used up the key")
			}
		})
	}
}

func TestSignaturesOfS3AreThoseOfItsGuide(t *testing.T) {
	cred := &Credential{ID: "AKIAIOSFODNN7EXAMPLE", Secret: podvm.Secret("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")}
	at := time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC)
	// Source: Amazon S3 API Reference, "Signature calculations for the
	// Authorization header: transferring payload in a single chunk", examples.
	for name, tt := range map[string]struct{ url, ranges, want string }{
		"get object":   {"https://examplebucket.s3.amazonaws.com/test.txt", "bytes=0-9", "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"},
		"lifecycle":    {"https://examplebucket.s3.amazonaws.com/?lifecycle", "", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"},
		"list objects": {"https://examplebucket.s3.amazonaws.com/?max-keys=2&prefix=J", "", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, tt.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if tt.ranges != "" {
			req.Header.Set("Range", tt.ranges)
		}
		req.Header.Set("X-Amz-Content-Sha256", Hash(nil))
		Sign(req, Hash(nil), cred, "us-east-1", "s3", at)
		if got := req.Header.Get("Authorization"); !strings.HasSuffix(got, "Signature="+tt.want) {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestEscapes(t *testing.T) {
	if got := EscapePath("a b/ü+%~-._*'()!:@$&,;=?#"); got != "a%20b/%C3%BC%2B%25~-._%2A%27%28%29%21%3A%40%24%26%2C%3B%3D%3F%23" {
		t.Error(got)
	}
}

func TestClockIsCorrectedOnceAndForAReason(t *testing.T) {
	base := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	date := func(d time.Duration) string { return base.Add(d).Format(http.TimeFormat) }
	c := NewClock(func() time.Time { return base })
	for name, tt := range map[string]struct{ code, date string }{
		"near":        {"RequestTimeTooSkewed", date(time.Minute)},
		"other fault": {"NoSuchKey", date(time.Hour)},
		"no date":     {"RequestTimeTooSkewed", "yesterday"},
	} {
		if c.Learn(tt.code, tt.date) || !c.Now().Equal(base) {
			t.Error(name)
		}
	}
	if !c.Learn("RequestTimeTooSkewed", date(-time.Hour)) || !c.Now().Equal(base.Add(-time.Hour)) {
		t.Errorf("it is %s", c.Now())
	}
	if c.Learn("RequestTimeTooSkewed", date(2*time.Hour)) {
		t.Error("a second time")
	}
}
