package aws

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
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
			cred := &credential{id: suiteID, secret: podvm.Secret(suiteSecret), session: podvm.Secret(tt.session)}
			sign(req, []byte(tt.body), cred, "us-east-1", "service", suiteTime)
			want := "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=" +
				tt.signedHeaders + ", Signature=" + tt.signature
			if got := req.Header.Get("Authorization"); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
			if string(cred.secret) != suiteSecret {
				t.Error("signing used up the key")
			}
			// The test's own checker, which the fake services stand on, agrees.
			got := httptest.NewRequestWithContext(t.Context(), tt.method, "https://example.amazonaws.com/", strings.NewReader(tt.body))
			got.Header = req.Header
			if err := checkSignature(got, []byte(tt.body), suiteSecret, "us-east-1", "service"); err != nil {
				t.Error(err)
			}
			got.Header.Set("X-Amz-Date", "20150830T123601Z")
			if err := checkSignature(got, []byte(tt.body), suiteSecret, "us-east-1", "service"); err == nil {
				t.Error("the checker accepts a changed header")
			}
		})
	}
}

// checkSignature verifies a request the way a service does, from AWS's
// documentation "Create a signed AWS API request": it shares nothing with sign.
func checkSignature(r *http.Request, body []byte, secret, region, service string) error {
	auth, ok := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	if !ok {
		return errors.New("no Signature Version 4")
	}
	fields := map[string]string{}
	for _, f := range strings.Split(auth, ",") {
		k, v, _ := strings.Cut(strings.TrimSpace(f), "=")
		fields[k] = v
	}
	scope := strings.Split(fields["Credential"], "/")
	date := r.Header.Get("X-Amz-Date")
	if len(scope) != 5 || !slices.Equal(scope[1:], []string{date[:min(8, len(date))], region, service, "aws4_request"}) {
		return fmt.Errorf("credential scope %q", fields["Credential"])
	}
	signed := strings.Split(fields["SignedHeaders"], ";")
	if !slices.IsSorted(signed) || !slices.Contains(signed, "host") {
		return fmt.Errorf("signed headers %q", signed)
	}
	for name := range r.Header {
		lower := strings.ToLower(name)
		if (strings.HasPrefix(lower, "x-amz-") || lower == "content-type") && !slices.Contains(signed, lower) {
			return fmt.Errorf("header %s is not signed", name)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%s\n%s\n", r.Method, r.URL.EscapedPath(), r.URL.RawQuery)
	for _, name := range signed {
		value := strings.Join(r.Header.Values(name), ",")
		if name == "host" {
			value = r.Host
		}
		fmt.Fprintf(&b, "%s:%s\n", name, strings.Join(strings.Fields(value), " "))
	}
	fmt.Fprintf(&b, "\n%s\n%x", fields["SignedHeaders"], sha256.Sum256(body))
	toSign := fmt.Sprintf("AWS4-HMAC-SHA256\n%s\n%s\n%x", date, strings.Join(scope[1:], "/"), sha256.Sum256([]byte(b.String())))

	sum := func(key []byte, s string) []byte {
		h := hmac.New(sha256.New, key)
		_, _ = io.WriteString(h, s)
		return h.Sum(nil)
	}
	key := sum(sum(sum(sum([]byte("AWS4"+secret), scope[1]), region), service), "aws4_request")
	if want := fmt.Sprintf("%x", sum(key, toSign)); want != fields["Signature"] {
		return errors.New("the signature does not match")
	}
	return nil
}
