package s3

import (
	"net/netip"
	"net/url"
	"strings"

	"github.com/sealpod/sealpod/model/source/internal/httpsrc"
	"github.com/sealpod/sealpod/model/source/settings"
	"github.com/sealpod/sealpod/podvm/sigv4"
)

// isBucket tells whether s is what stores accept as a bucket's name, old ones of
// AWS and those of other stores among them, and has nothing that means something
// in a URL.
func isBucket(s string) bool {
	return len(s) >= 2 && len(s) <= 255 && isWord(s, "._-") && isWord(s[:1], "")
}

// fitsHost tells whether a bucket can be part of a host name under a wildcard
// certificate.
func fitsHost(s string) bool {
	return len(s) >= 3 && len(s) <= 63 && isWord(s, "-") && s == strings.ToLower(s) && s[0] != '-' && s[len(s)-1] != '-'
}

// isSigned tells whether s is what any store calls a region.
func isSigned(s string) bool { return len(s) >= 1 && len(s) <= 64 && isWord(s, "_-") }

// isWord tells whether s has only ASCII letters, digits and what is in others.
// Regular expressions for it cost every start of the binary 0.3 ms.
func isWord(s, others string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(others, r)
	})
}

// config is what the environment says about S3.
type config struct {
	http        httpsrc.Config
	bucket      string
	endpoint    *url.URL // nil: AWS, by region
	region      string
	aws         bool // the host name depends on the region
	virtual     bool // the bucket is part of the host name
	accelerate  bool
	anonymous   bool
	concurrency int
}

// readConfig reads the variables of the environment.
// Source: kserve python/storage/kserve_storage/kserve_storage.py, get_S3_config
// and _get_s3_client_kwargs, and pkg/credentials/s3 at aaac4e2.
func readConfig(env *settings.Env, bucket string) (config, error) {
	c := config{
		http:       httpsrc.Config{Env: env, Name: "S3", CAFile: "AWS_CA_BUNDLE"},
		bucket:     bucket,
		virtual:    env.True("S3_USER_VIRTUAL_BUCKET"), // so spelled
		accelerate: env.True("S3_USE_ACCELERATE"),
		anonymous:  env.True("awsAnonymousCredential"),
	}
	var err error
	if c.http.ConnectTimeout, err = env.Seconds("S3_CONNECT_TIMEOUT", 0); err != nil {
		return c, err
	}
	if c.http.ReadTimeout, err = env.Seconds("S3_READ_TIMEOUT", 0); err != nil {
		return c, err
	}
	if c.http.Attempts, err = env.Number("S3_MAX_ATTEMPTS", 0, 1, 100); err != nil {
		return c, err
	}
	if c.concurrency, err = env.Number("S3_MAX_FILE_CONCURRENCY", 4, 1, 1024); err != nil {
		return c, err
	}
	switch strings.ToLower(env.Host.Getenv("S3_VERIFY_SSL")) {
	case "0", "false":
		c.http.SkipVerify, c.http.CAFile = true, ""
		env.Log.Warn("S3_VERIFY_SSL says to trust any server: who is on the way can read the credentials' use and change what is not sealed")
	}
	return c, c.place(env)
}

// place decides where the bucket is.
func (c *config) place(env *settings.Env) error {
	for _, name := range []string{"AWS_DEFAULT_REGION", "AWS_REGION"} {
		if c.region == "" {
			c.region = env.Host.Getenv(name)
		}
	}
	text := env.Host.Getenv("AWS_ENDPOINT_URL")
	if text != "" {
		u, err := url.Parse(text)
		if err != nil || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "http" && u.Scheme != "https" {
			return settings.Usage("environment variable AWS_ENDPOINT_URL: want http[s]://HOST[:PORT]")
		}
		c.endpoint = u
	}
	if c.endpoint != nil {
		if region, ok := ofAWS(c.endpoint); ok {
			c.endpoint = nil // and the region leads to the bucket, as with upstream
			if c.region == "" {
				c.region = region
			}
		}
	}
	if c.region == "" {
		c.region = "us-east-1"
	}
	c.aws = c.endpoint == nil
	switch {
	case c.aws && !sigv4.IsRegion(c.region):
		return settings.Usage("environment variable AWS_DEFAULT_REGION: not an AWS region such as eu-west-1")
	case !isSigned(c.region):
		return settings.Usage("environment variable AWS_DEFAULT_REGION: not a region")
	case c.accelerate && !c.aws:
		return settings.Usage("S3_USE_ACCELERATE is for AWS, and AWS_ENDPOINT_URL is another server")
	}
	if c.aws {
		c.virtual = fitsHost(c.bucket)
	}
	switch {
	case c.accelerate && !c.virtual, c.virtual && !fitsHost(c.bucket):
		return settings.Usage("bucket %s: not a name that can be part of a host name", c.bucket)
	case c.virtual && !c.aws && isAddress(c.endpoint.Hostname()):
		return settings.Usage("S3_USER_VIRTUAL_BUCKET is set, and AWS_ENDPOINT_URL has an address in place of a host name")
	}
	return nil
}

// ofAWS tells whether an endpoint is one of AWS's own addresses of S3, and which
// region is in it, if any.
func ofAWS(u *url.URL) (region string, ok bool) {
	host, found := strings.CutSuffix(u.Host, ".amazonaws.com")
	if !found {
		host, found = strings.CutSuffix(u.Host, ".amazonaws.com.cn")
	}
	if !found || u.Scheme != "https" || strings.Trim(u.Path, "/") != "" {
		return "", false
	}
	if host == "s3" {
		return "", true
	}
	region, found = strings.CutPrefix(host, "s3.")
	if !found {
		region, found = strings.CutPrefix(host, "s3-")
	}
	return region, found && sigv4.IsRegion(region)
}

func isAddress(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil
}

// base is the URL of the bucket, with a slash at its end.
// Source: Amazon S3 User Guide, "Virtual hosting of buckets" and "Transfer
// Acceleration".
func (c *config) base(region string) string {
	u := url.URL{Scheme: "https"}
	switch {
	case c.endpoint != nil:
		u = *c.endpoint
	case c.accelerate:
		u.Host = "s3-accelerate.amazonaws.com"
	default:
		u.Host = "s3." + region + "." + sigv4.DNSSuffix(region)
	}
	path := strings.TrimRight(u.Path, "/") + "/"
	if c.virtual {
		u.Host = c.bucket + "." + u.Host
	} else {
		path += c.bucket + "/"
	}
	return u.Scheme + "://" + u.Host + sigv4.EscapePath(path)
}
