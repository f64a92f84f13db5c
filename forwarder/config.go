package forwarder

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/sealpod/sealpod/forwarder/podnet"
	"github.com/sealpod/sealpod/podvm"
)

// DefaultFile is where process-user-data leaves the configuration, and oldFile is
// the name of older images beside it. Source: cloud-api-adaptor
// src/cloud-api-adaptor/pkg/paths/paths.go at fbdde756.
const (
	DefaultFile = "/run/peerpod/apf.json"
	oldFile     = "daemon.json"
)

// maxFile caps apf.json, in bytes. It comes by the user data of a cloud, which
// is 64 KiB at most.
const maxFile = 1 << 20

// ErrConfig says that apf.json or the TLS settings cannot be used as they stand.
var ErrConfig = errors.New("invalid configuration")

// File is what apf.json says. The host writes it and nothing measures it.
type File struct {
	// PodNetwork is never nil.
	PodNetwork *podnet.Config `json:"pod-network"`
	// PodNamespace and PodName are the pod's names in Kubernetes, for people.
	PodNamespace string `json:"pod-namespace"`
	PodName      string `json:"pod-name"`
	// ServerCert and ServerKey are the pair of the TLS server in PEM, ClientCA
	// is what certificates of clients are verified against; all are empty where
	// the image brings its own.
	ServerCert text `json:"tls-server-cert"`
	ServerKey  text `json:"tls-server-key"`
	ClientCA   text `json:"tls-client-ca"`
	// MinVersion is "", VersionTLS12 or VersionTLS13, CipherSuites are IANA
	// names for TLS 1.2.
	MinVersion   string   `json:"tls-min-version"`
	CipherSuites []string `json:"tls-cipher-suites"`
}

// text is a JSON string that no log shows.
type text struct{ podvm.Secret }

// UnmarshalJSON implements json.Unmarshaler.
func (t *text) UnmarshalJSON(raw []byte) error {
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return errors.New("not a string")
	}
	t.Secret = podvm.Secret(s)
	return nil
}

// Load reads the configuration at path. Where path does not exist, the name it
// had up to cloud-api-adaptor v0.14 is tried in the same directory. unknown are
// keys that nothing reads.
//
// Errors: fs.ErrNotExist, podvm.ErrTooLarge beyond 1 MiB, ErrConfig for content.
func Load(path string) (f File, unknown []string, err error) {
	raw, err := podvm.ReadFileMax(path, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		old := filepath.Join(filepath.Dir(path), oldFile)
		if b, e := podvm.ReadFileMax(old, maxFile); !errors.Is(e, fs.ErrNotExist) {
			raw, err, path = b, e, old
		}
	}
	if err != nil {
		// The words upstream has for it, which people search for.
		return File{}, nil, fmt.Errorf("failed to open %s: %w", path, err)
	}
	defer clear(raw) // it holds a key
	f, unknown, err = Parse(raw)
	if err != nil {
		return File{}, nil, fmt.Errorf("failed to decode the configuration %s: %w", path, err)
	}
	return f, unknown, nil
}

// leftovers are keys of a feature that cloud-api-adaptor no longer has.
var leftovers = []string{"sc-pp-prv", "sc-wn-pub", "sc-inbounds", "sc-outbounds", "sc"}

// Parse is Load for bytes in memory. As upstream's decoder it takes keys in any
// case, the last of those that are the same, and looks at nothing behind the
// first JSON value.
func Parse(raw []byte) (f File, unknown []string, err error) {
	var first json.RawMessage
	if err := json.NewDecoder(bytes.NewReader(raw)).Decode(&first); err != nil {
		return File{}, nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	defer clear(first)
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(first, &keys); err != nil {
		return File{}, nil, fmt.Errorf("%w: want a JSON object", ErrConfig)
	}
	if err := json.Unmarshal(first, &f); err != nil {
		return File{}, nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if f.PodNetwork == nil {
		return File{}, nil, fmt.Errorf("%w: there is no pod-network in it", ErrConfig)
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		clear(keys[key])
		if !slices.ContainsFunc(known, func(k string) bool { return strings.EqualFold(k, key) }) {
			unknown = append(unknown, podvm.Printable(key, 100))
		}
	}
	return f, unknown, nil
}

// known is every key that is read or silently left alone.
var known = append(fieldNames(reflect.TypeFor[File]()), leftovers...)

func fieldNames(t reflect.Type) (names []string) {
	for i := range t.NumField() {
		names = append(names, t.Field(i).Tag.Get("json"))
	}
	return names
}
