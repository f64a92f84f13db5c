package s3

import (
	"encoding/xml"
	"errors"
	"fmt"
	"time"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/internal/httpsrc"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/sigv4"
)

// fault is the body of an answer that is an error, of S3 or, within Error, of
// the Security Token Service.
type fault struct {
	Code    string
	Message string
	Region  string
	Error   *fault
}

func parseFault(body []byte) fault {
	var f fault
	if xml.Unmarshal(body, &f) != nil {
		return fault{}
	}
	if f.Error != nil {
		return *f.Error
	}
	return f
}

func (f fault) text() string {
	if f.Message == "" {
		return f.Code
	}
	return f.Code + ": " + f.Message
}

// explain implements httpsrc.Request.Explain.
// Source: Amazon S3 API Reference, "Error responses".
func (s *Source) explain(a *httpsrc.Fault) (string, error) {
	f := parseFault(a.Body)
	text := f.text()
	region := a.Header.Get("X-Amz-Bucket-Region")
	if region == "" {
		region = f.Region
	}
	if (a.Status/100 == 3 || a.Status == 400 || a.Status == 403) && s.relocate(region, f.Code == "AuthorizationHeaderMalformed") {
		return "the bucket is in another region", source.ErrUnreachable
	}
	switch f.Code {
	case "RequestTimeTooSkewed", "SignatureDoesNotMatch":
		if s.clock.Learn(f.Code, a.Header.Get("Date")) {
			return text, errors.Join(source.ErrRefused, httpsrc.ErrAgain)
		}
	case "SlowDown", "InternalError", "RequestTimeout", "ServiceUnavailable":
		return text, errors.Join(source.ErrUnreachable, httpsrc.ErrAgain)
	case "InvalidAccessKeyId", "XAdminUserNotFound": // the latter of versitygw, with 404
		return text, source.ErrRefused
	case "ExpiredToken", "InvalidToken", "AuthorizationHeaderMalformed", "InvalidRequest", "InvalidArgument":
		if a.Status == 400 {
			return text, source.ErrRefused
		}
	}
	if d := s.clock.Off(a.Header.Get("Date")); a.Status == 403 && (d >= sigv4.Tolerated || d <= -sigv4.Tolerated) {
		text += fmt.Sprintf(" (the clock of this guest differs by %s)", d.Round(time.Second))
	}
	return text, nil
}

// relocate notes the region of the bucket and tells whether that is news. A store
// that is not AWS is believed where all that changes is what is signed for.
func (s *Source) relocate(region string, toSign bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if region == s.region || s.region != s.conf.region {
		return false
	}
	if s.conf.aws && (!sigv4.IsRegion(region) || sigv4.DNSSuffix(region) != sigv4.DNSSuffix(s.region)) ||
		!s.conf.aws && (!toSign || !isSigned(region)) {
		return false
	}
	s.conf.http.Env.Log.Warn("The bucket is in another region than configured", "bucket", s.bucket, "region", podvm.Printable(region, 40))
	s.region = region
	return true
}
