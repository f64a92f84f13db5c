// Package sigv4 signs requests to Amazon's web services, and to object stores
// that understand the same: Signature Version 4. It also knows the services'
// regions, which take part in signatures and in host names.
//
// Data path: the client of AWS KMS and the source of models in S3 sign with it.
//
// Trust: it sees requests of this program only, and keys, which it does not
// keep.
//
// AWS's own signer would cost the guest binary 98,304 bytes and two modules.
package sigv4

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/sealpod/sealpod/podvm"
)

// scheme is the algorithm's name, in the header and in what is signed.
const scheme = "AWS4-HMAC-SHA256"

// Credential is an access key: visible ASCII.
type Credential struct {
	ID      string
	Secret  podvm.Secret
	Session podvm.Secret // of temporary credentials, empty otherwise
}

// Wipe overwrites the secret parts.
func (c *Credential) Wipe() {
	c.Secret.Wipe()
	c.Session.Wipe()
}

// Sign adds date, session token and Authorization to req, whose body has the
// digest bodyHash, see Hash. All headers that are set are signed but those that
// proxies change: User-Agent and Accept-Encoding. The path is signed as it is
// escaped in req, which for S3 must be the way Escape does, and for other
// services must need no escapes.
// Source: AWS IAM User Guide, "Create a signed AWS API request".
func Sign(req *http.Request, bodyHash string, cred *Credential, region, service string, now time.Time) {
	stamp := now.UTC().Format("20060102T150405Z")
	req.Header.Set("X-Amz-Date", stamp)
	if len(cred.Session) > 0 {
		req.Header.Set("X-Amz-Security-Token", string(cred.Session))
	}
	names := []string{"host"}
	values := map[string]string{"host": req.URL.Host}
	for name := range req.Header {
		if name != "User-Agent" && name != "Accept-Encoding" {
			lower := strings.ToLower(name)
			names = append(names, lower)
			values[lower] = req.Header.Get(name)
		}
	}
	slices.Sort(names)
	signed := strings.Join(names, ";")

	path := req.URL.EscapedPath()
	if path == "" {
		path = "/"
	}
	canonical := req.Method + "\n" + path + "\n" + Query(req.URL.Query()) + "\n"
	for _, name := range names {
		canonical += name + ":" + values[name] + "\n"
	}
	canonical += "\n" + signed + "\n" + bodyHash

	scope := stamp[:8] + "/" + region + "/" + service + "/aws4_request"
	key := append([]byte("AWS4"), cred.Secret...)
	for _, part := range strings.Split(scope, "/") {
		next := mac(key, part)
		clear(key)
		key = next
	}
	signature := mac(key, scheme+"\n"+stamp+"\n"+scope+"\n"+Hash([]byte(canonical)))
	clear(key)
	req.Header.Set("Authorization", scheme+" Credential="+cred.ID+"/"+scope+
		", SignedHeaders="+signed+", Signature="+hex.EncodeToString(signature))
}

// Hash is the SHA-256 of b in hexadecimal.
func Hash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Query encodes a query the way it is signed: sorted, with all but letters,
// digits and -._~ escaped.
func Query(q url.Values) string {
	var pairs []string
	for name, values := range q {
		for _, v := range values {
			pairs = append(pairs, Escape(name)+"="+Escape(v))
		}
	}
	slices.Sort(pairs)
	return strings.Join(pairs, "&")
}

// Escape escapes all bytes of s but letters, digits and -._~.
func Escape(s string) string {
	const hexDigits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0 {
			b.WriteByte(c)
			continue
		}
		b.Write([]byte{'%', hexDigits[c>>4], hexDigits[c&15]})
	}
	return b.String()
}

// EscapePath is Escape of each element of a path.
func EscapePath(p string) string { return strings.ReplaceAll(Escape(p), "%2F", "/") }

func mac(key []byte, text string) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(text))
	return m.Sum(nil)
}
