package relyingparty

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
)

// The error variants of the protocol and their texts.
// Source: trustee kbs/src/error.rs at 78962cd4.
const (
	variantAttestation   = "AttestationError"
	variantAdmin         = "AdminAuthAccess"
	variantPluginAdmin   = "AdminAuthInitialization"
	variantNoToken       = "TokenNotFound"
	variantToken         = "TokenVerifierError"
	variantDenied        = "PolicyDeny"
	variantParsePolicy   = "ParsePolicyError"
	variantPolicyEngine  = "PolicyEngineError"
	variantPlugin        = "PluginInternalError"
	variantJWE           = "JweError"
	variantSerde         = "SerdeError"
	variantReferenceData = "RvpsError"

	detailPlugin = "Plugin internal error"
)

const (
	// maxDetailBytes cuts a cause in a detail: our client reads 1024 bytes of it,
	// and the text before it and the request id are to be among them.
	maxDetailBytes = 896
	// maxLogBytes cuts an error in the log.
	maxLogBytes = 4096
)

// failure is an answer that is not 200. detail goes to the client, with the id
// under which the log has the rest; err is the whole story and goes to the log
// only.
type failure struct {
	status  int
	variant string
	detail  string
	err     error
}

func (f *failure) Error() string {
	if f.err != nil {
		return f.err.Error()
	}
	return f.detail
}

func (f *failure) Unwrap() error { return f.err }

// fault is a failure with status 401, as nearly all have: a client cannot tell
// a missing resource from a forbidden one.
func fault(variant, detail string, err error) error {
	return &failure{status: http.StatusUnauthorized, variant: variant, detail: detail, err: err}
}

// because adds a cause to a detail that the client may know: a guest what it
// sent itself, an authenticated administrator anything.
func because(detail string, err error) string {
	return detail + ": " + podvm.Printable(err.Error(), maxDetailBytes)
}

// fail answers with the failure and logs it.
func (s *Server) fail(c *call, err error) {
	var f *failure
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		f = &failure{status: http.StatusRequestEntityTooLarge, variant: "PayloadTooLarge", detail: "Request body too large", err: err}
	case !errors.As(err, &f):
		f = &failure{status: http.StatusUnauthorized, variant: variantPlugin, detail: detailPlugin, err: err}
	}
	c.log.Warn("Request refused", "status", f.status, "variant", f.variant, "err", podvm.Printable(f.Error(), maxLogBytes))
	body, err := json.Marshal(kbs.ErrorInfo{Type: kbs.ErrorTypePrefix + f.variant, Detail: f.detail + " (KBS request " + c.id + ")"})
	if err != nil {
		c.log.Error("Encoding the answer", "err", err)
	}
	c.w.Header().Set("Content-Type", "application/json")
	c.w.WriteHeader(f.status)
	c.write(body)
}

// body reads the request body, at most the configured size; more is an
// *http.MaxBytesError, which fail answers with 413.
func (c *call) body() ([]byte, error) { return io.ReadAll(c.r.Body) }

// write sends the answer; a client that went away is not an event.
func (c *call) write(b []byte) {
	if _, err := c.w.Write(b); err != nil {
		c.log.Debug("Answer not delivered", "err", err)
	}
}

// reply sends a 200 answer of that content type.
func (c *call) reply(contentType string, body []byte) {
	c.w.Header().Set("Content-Type", contentType)
	c.write(body)
}

// replyJSON sends v as JSON.
func (c *call) replyJSON(v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fault(variantSerde, "Serialization/deserialization error", err)
	}
	c.reply("application/json", body)
	return nil
}
