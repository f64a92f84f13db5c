package aliyun

import (
	"errors"
	"net/http"
	"regexp"
	"strings"

	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
)

// service is the name of the KMS for people.
const service = "Alibaba Cloud KMS"

// New returns what opens providers of this kind.
func New(env wire.Env) wire.Opener {
	return func(settings wire.Object) (wire.Provider, error) {
		p, err := open(env, settings)
		if err != nil {
			return nil, wire.Settings(err)
		}
		return p, nil
	}
}

func open(env wire.Env, settings wire.Object) (wire.Provider, error) {
	kind, err := settings.Text("client_type")
	if err != nil {
		return nil, err
	}
	switch kind {
	case "client_key":
		return newInstance(env, settings)
	case "sts_token":
		return newSTSToken(env, settings)
	case "ecs_ram_role":
		return &regional{env: env, login: (&ecsRole{env}).login}, nil
	}
	return nil, errors.New(`member "client_type" is none of client_key, ecs_ram_role, sts_token`)
}

// regionForm is that of the id of a region: a country or a part of the world
// comes first. Other labels before aliyuncs.com belong to customers: below
// oss-cn-beijing are buckets, of which one can be called kms.
// Source: Alibaba Cloud, KMS "Endpoints"; OSS "Bucket naming conventions".
var regionForm = regexp.MustCompile(`^[a-z]{2}(-[a-z0-9]{1,20}){1,4}$`)

// regionID returns the member region_id, which becomes part of a host name.
func regionID(o wire.Object) (string, error) {
	s, err := o.Text("region_id")
	if err == nil && !regionForm.MatchString(s) {
		return "", errors.New(`member "region_id": want a region such as cn-beijing`)
	}
	return s, err
}

// isLabel tells whether s can be one label of a host name.
func isLabel(s string) bool {
	return len(s) <= 63 && isName(s) && s[0] != '-' && s[len(s)-1] != '-' && !strings.ContainsAny(s, "._")
}

// isName tells whether s can be part of a file name, a header or the path of a
// URL as it is: letters, digits, "-", "_" and ".", which does not come first.
func isName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if ('a' > c || c > 'z') && ('A' > c || c > 'Z') && ('0' > c || c > '9') && strings.IndexByte("-_.", c) < 0 {
			return false
		}
	}
	return s != "" && len(s) <= 128 && s[0] != '.'
}

// version returns the annotations of a request for a secret; "" stands for the
// current one.
func version(annotations wire.Object) (stage, id string, err error) {
	if stage, err = annotations.TextOr("version_stage", ""); err == nil {
		id, err = annotations.TextOr("version_id", "")
	}
	if err != nil {
		return "", "", wire.Settings(err)
	}
	return stage, id, nil
}

// refused says why an answer of who is none. code and message are its words.
func refused(who string, status int, code, message string) error {
	if status == http.StatusTooManyRequests || status >= 500 || throttled(code) {
		return wire.Overloaded(who, status, code)
	}
	return wire.Refused(who, status, code, message)
}

// throttled tells whether an error code, which comes with any status, asks to
// come back later.
// Source: Alibaba Cloud, KMS "Common error codes".
func throttled(code string) bool {
	return strings.HasPrefix(code, "Throttling") || strings.HasPrefix(code, "Rejected.Throttling")
}
