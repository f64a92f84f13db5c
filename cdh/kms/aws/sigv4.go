package aws

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
	"time"
)

// scheme is the algorithm's name, in the header and in what is signed.
const scheme = "AWS4-HMAC-SHA256"

// sign adds date, session token and Authorization to req: Signature Version 4
// over method, path, all headers that are set but User-Agent, and body. req must
// have no query and a path without characters that need escapes.
// Source: AWS IAM User Guide, "Create a signed AWS API request".
func sign(req *http.Request, body []byte, cred *credential, region, service string, now time.Time) {
	stamp := now.UTC().Format("20060102T150405Z")
	req.Header.Set("X-Amz-Date", stamp)
	if len(cred.session) > 0 {
		req.Header.Set("X-Amz-Security-Token", string(cred.session))
	}
	names := []string{"host"}
	values := map[string]string{"host": req.URL.Host}
	for name := range req.Header {
		if name != "User-Agent" { // proxies may change it
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
	canonical := req.Method + "\n" + path + "\n\n"
	for _, name := range names {
		canonical += name + ":" + values[name] + "\n"
	}
	canonical += "\n" + signed + "\n" + hash(body)

	scope := stamp[:8] + "/" + region + "/" + service + "/aws4_request"
	key := append([]byte("AWS4"), cred.secret...)
	for _, part := range strings.Split(scope, "/") {
		next := mac(key, part)
		clear(key)
		key = next
	}
	signature := mac(key, scheme+"\n"+stamp+"\n"+scope+"\n"+hash([]byte(canonical)))
	clear(key)
	req.Header.Set("Authorization", scheme+" Credential="+cred.id+"/"+scope+
		", SignedHeaders="+signed+", Signature="+hex.EncodeToString(signature))
}

func hash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func mac(key []byte, text string) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(text))
	return m.Sum(nil)
}
