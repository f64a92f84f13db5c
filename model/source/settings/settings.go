// Package settings reads what KServe tells a storage initializer through its
// environment, once for all sources: the storage secret laid over the variables
// it stands for, and the CA bundles of the cluster.
//
// Data path: the storage initializer loads an Env and hands it to the sources,
// each of which reads its own variables there.
//
// Trust: the environment is part of the pod, which the host's control plane
// wrote: values are checked, and a mistake is named without quoting the value,
// which may be a secret.
package settings

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/podvm"
)

// Limits, in bytes.
const (
	maxConfig = 1 << 20 // of STORAGE_CONFIG and what is laid over it
	maxBundle = 4 << 20 // of a CA bundle
)

// Env is the world around a source.
type Env struct {
	// Host has the environment, with the storage secret laid over it.
	Host podvm.Host
	// Log takes a line for each request that is tried again. Not nil.
	Log *slog.Logger
	// Backoff is the longest wait before a second try, doubled for each further
	// one; 0 means 500 ms. Tests shorten it.
	Backoff time.Duration
	// Dial, when not nil, makes the connections. Tests lead names elsewhere.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Load reads the environment of host. A nil log means slog.Default. Errors:
// source.ErrUsage.
func Load(host podvm.Host, log *slog.Logger) (*Env, error) {
	over, err := storageConfig(host)
	if err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.Default()
	}
	env := &Env{Host: host, Log: log}
	if len(over) > 0 {
		env.Host.LookupEnv = func(name string) (string, bool) {
			if v, ok := over[name]; ok {
				return v, true
			}
			return host.Env(name)
		}
	}
	return env, nil
}

// variables are those the members of an S3 storage secret stand for.
// Source: kserve python/storage/kserve_storage/kserve_storage.py,
// _update_with_storage_spec, at aaac4e2.
var variables = map[string]string{
	"endpoint_url":      "AWS_ENDPOINT_URL",
	"access_key_id":     "AWS_ACCESS_KEY_ID",
	"secret_access_key": "AWS_SECRET_ACCESS_KEY",
	"region":            "AWS_DEFAULT_REGION",
	"ca_bundle":         "AWS_CA_BUNDLE",
	"verify_ssl":        "S3_VERIFY_SSL",
	"anonymous":         "awsAnonymousCredential",
}

// storageConfig returns the variables that STORAGE_CONFIG sets, with
// STORAGE_OVERRIDE_CONFIG over it. Secrets of other types than s3 set none.
func storageConfig(host podvm.Host) (map[string]string, error) {
	members := map[string]any{}
	for _, name := range []string{"STORAGE_CONFIG", "STORAGE_OVERRIDE_CONFIG"} {
		text := host.Getenv(name)
		if text == "" {
			continue
		}
		var m map[string]any
		if len(text) > maxConfig || json.Unmarshal([]byte(text), &m) != nil {
			return nil, Usage("environment variable %s: not a JSON object", name)
		}
		maps.Copy(members, m)
	}
	if members["type"] != "s3" {
		return nil, nil
	}
	over := map[string]string{}
	for member, name := range variables {
		v, ok := members[member]
		if !ok {
			continue
		}
		switch v := v.(type) {
		case string:
			over[name] = v
		case bool:
			over[name] = strconv.FormatBool(v)
		default:
			return nil, Usage("environment variable STORAGE_CONFIG: member %q is not text", member)
		}
	}
	return over, nil
}

// Usage is a source.ErrUsage that says why, to anybody.
func Usage(format string, args ...any) error {
	why := fmt.Sprintf(format, args...)
	return podvm.Explain(fmt.Errorf("%w: %s", source.ErrUsage, why), why)
}

// True tells whether a variable is "true", in any case, as KServe's switches
// are.
func (e *Env) True(name string) bool { return strings.EqualFold(e.Host.Getenv(name), "true") }

// Number returns a variable that is a whole number from least to most, or
// byDefault when it is not set. Errors: source.ErrUsage.
func (e *Env) Number(name string, byDefault, least, most int) (int, error) {
	text := e.Host.Getenv(name)
	if text == "" {
		return byDefault, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most {
		return 0, Usage("environment variable %s: not a number from %d to %d", name, least, most)
	}
	return n, nil
}

// Seconds is Number for a time of 1 to 3600 seconds, which may have a fraction.
func (e *Env) Seconds(name string, byDefault time.Duration) (time.Duration, error) {
	text := e.Host.Getenv(name)
	if text == "" {
		return byDefault, nil
	}
	s, err := strconv.ParseFloat(text, 64)
	if err != nil || !(s >= 1 && s <= 3600) {
		return 0, Usage("environment variable %s: not a number of seconds from 1 to 3600", name)
	}
	return time.Duration(s * float64(time.Second)), nil
}

// CABundle returns PEM certificates to trust beside the system's: those of the
// cluster, where CA_BUNDLE_CONFIGMAP_NAME says that there are any, and those of
// the file that the variable named extra holds, if that is not "". Nil: none.
// Errors: source.ErrUsage.
// Source: kserve pkg/webhook/admission/pod/storage_initializer_injector.go at
// aaac4e2.
func (e *Env) CABundle(extra string) ([]byte, error) {
	var files []string
	if e.Host.Getenv("CA_BUNDLE_CONFIGMAP_NAME") != "" {
		dir := e.Host.Getenv("CA_BUNDLE_VOLUME_MOUNT_POINT")
		if dir == "" {
			dir = "/etc/ssl/custom-certs"
		}
		files = append(files, path.Join(dir, "cabundle.crt"))
	}
	if extra != "" {
		if f := e.Host.Getenv(extra); f != "" {
			files = append(files, f)
		}
	}
	var out []byte
	for _, f := range files {
		b, err := podvm.ReadFileMax(e.Host.Path(f), maxBundle)
		if err != nil {
			return nil, podvm.Explain(errors.Join(source.ErrUsage, err), fmt.Sprintf("CA bundle %s cannot be read", podvm.Printable(f, 200)))
		}
		out = append(append(out, b...), '\n')
	}
	return out, nil
}
