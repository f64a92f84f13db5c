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
	"github.com/sealpod/sealpod/podvm/sigv4"
)

// The key of AWS's Signature Version 4 test suite.
const (
	suiteID     = "AKIDEXAMPLE"
	suiteSecret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
)

func TestCheckerOfSignatures(t *testing.T) {
	at := time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC)
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "https://example.amazonaws.com/", strings.NewReader("x"))
	cred := &sigv4.Credential{ID: suiteID, Secret: podvm.Secret(suiteSecret)}
	req.URL.Host = req.Host
	sigv4.Sign(req, sigv4.Hash([]byte("x")), cred, "us-east-1", "service", at)
	if err := checkSignature(req, []byte("x"), suiteSecret, "us-east-1", "service"); err != nil {
		t.Error(err)
	}
	req.Header.Set("X-Amz-Date", "20150830T123601Z")
	if err := checkSignature(req, []byte("x"), suiteSecret, "us-east-1", "service"); err == nil {
		t.Error("the checker accepts a changed header")
	}
}

// checkSignature verifies a request the way a service does, from AWS's
// documentation "Create a signed AWS API request": it shares nothing with what signs.
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
