package rest

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/ttrpc"

	aa "github.com/sealpod/sealpod/api/attestationagent"
	"github.com/sealpod/sealpod/api/datahub"
	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/podvm"
)

// info answers with what this guest is. Upstream drops the connection when the
// attestation agent fails; here it is a 500 like any other.
func (c *call) info() {
	if c.r.Method != http.MethodGet {
		answer(c.w, http.StatusMethodNotAllowed, "Method Not Allowed")
		return
	}
	doc := struct {
		Version        string   `json:"version"`
		TEE            *string  `json:"tee,omitempty"`
		AdditionalTEEs []string `json:"additional_tees,omitempty"`
		Feature        string   `json:"feature"`
	}{Version: "Guest Components Version: " + c.h.version, Feature: c.h.features}
	if c.h.aa != nil {
		err := c.h.aa.do(c.r.Context(), func(ctx context.Context, conn *ttrpc.Client) error {
			client := aa.NewAttestationAgentServiceClient(conn)
			tee, err := client.GetTeeType(ctx, &aa.GetTeeTypeRequest{})
			if err != nil {
				return err
			}
			more, err := client.GetAdditionalTees(ctx, &aa.GetAdditionalTeesRequest{})
			if err != nil {
				return err
			}
			doc.TEE, doc.AdditionalTEEs = &tee.Tee, more.GetAdditionalTees()
			return nil
		})
		if err != nil {
			c.failed(err)
			return
		}
	}
	body, err := json.Marshal(doc)
	if err != nil {
		c.fault("encoding the answer", err)
		return
	}
	c.json(body)
}

// failed answers for a call to a peer that did not work.
func (c *call) failed(err error) {
	text := "ttrpc request error"
	if e := new(peerError); errors.As(err, &e) {
		text = e.text
	}
	c.fault(text, err)
}

// data serves /cdh/. Below /cdh/resource everything goes to the data hub as it
// was sent, whatever the method.
func (c *call) data(path string) {
	if c.h.cdh == nil {
		answer(c.w, http.StatusNotFound, "Resource Feature Not Enabled")
		return
	}
	resource, ok := strings.CutPrefix(path, "/cdh/resource")
	if !ok || !strings.HasPrefix(resource, "/") {
		c.urlNotFound()
		return
	}
	var content podvm.Secret
	err := c.h.cdh.do(c.r.Context(), func(ctx context.Context, conn *ttrpc.Client) error {
		resp, err := datahub.NewGetResourceServiceClient(conn).
			GetResource(ctx, &datahub.GetResourceRequest{ResourcePath: "kbs://" + resource})
		content = resp.GetResource()
		return err
	})
	defer content.Wipe()
	if err != nil {
		c.failed(err)
		return
	}
	c.octets(content)
}

// attestation serves /aa/.
func (c *call) attestation(path string) {
	if c.h.aa == nil {
		answer(c.w, http.StatusNotFound, "Attestation Feature Not Enabled")
		return
	}
	switch c.r.Method + " " + path {
	case "GET /aa/token":
		c.token()
	case "GET /aa/evidence":
		c.evidence(aa.AttestationAgentServiceService.GetEvidence)
	case "GET /aa/additional-evidence":
		c.evidence(func(s aa.AttestationAgentServiceService, ctx context.Context, r *aa.GetEvidenceRequest) (*aa.GetEvidenceResponse, error) {
			return s.GetAdditionalEvidence(ctx, &aa.GetAdditionalEvidenceRequest{RuntimeData: r.RuntimeData})
		})
	case "POST /aa/aael":
		c.event()
	default:
		c.urlNotFound()
	}
}

func (c *call) token() {
	kind, ok := parseQuery(c.r.URL.RawQuery)["token_type"]
	if !ok {
		c.badRequest()
		return
	}
	var token podvm.Secret
	err := c.h.aa.do(c.r.Context(), func(ctx context.Context, conn *ttrpc.Client) error {
		resp, err := aa.NewAttestationAgentServiceClient(conn).GetToken(ctx, &aa.GetTokenRequest{TokenType: kind})
		token = resp.GetToken()
		return err
	})
	defer token.Wipe()
	if err != nil {
		c.failed(err)
		return
	}
	c.octets(token)
}

func (c *call) evidence(get func(aa.AttestationAgentServiceService, context.Context, *aa.GetEvidenceRequest) (*aa.GetEvidenceResponse, error)) {
	data, err := runtimeData(parseQuery(c.r.URL.RawQuery))
	if err != nil {
		c.badRequest()
		return
	}
	var evidence []byte
	err = c.h.aa.do(c.r.Context(), func(ctx context.Context, conn *ttrpc.Client) error {
		resp, err := get(aa.NewAttestationAgentServiceClient(conn), ctx, &aa.GetEvidenceRequest{RuntimeData: data})
		evidence = resp.GetEvidence()
		return err
	})
	if err != nil {
		c.failed(err)
		return
	}
	c.octets(evidence)
}

// runtimeData reads the report data of an evidence request: the bytes of the
// decoded value, or what they are the unpadded base64url of.
func runtimeData(query map[string]string) ([]byte, error) {
	data, ok := query["runtime_data"]
	if !ok {
		return nil, errors.New("runtime_data is missing")
	}
	encoding, given := query["encoding"]
	switch {
	case !given:
		return []byte(data), nil
	case encoding != "base64":
		return nil, errors.New("unknown encoding")
	case strings.ContainsAny(data, "\r\n"): // which the decoder would skip
		return nil, errors.New("a line end in base64")
	}
	return base64.RawURLEncoding.Strict().DecodeString(data)
}

// Answers to an event. Their spelling, texts for booleans included, is
// upstream's.
const (
	eventDone         = `{"success":"true"}`
	eventNotSupported = `{"success":"false","message": "The platform does not support runtime measurement"}`
	eventNotEnabled   = `{"success":"false","message": "Attestation Agent does not enable eventlog recording"}`
	eventUnknown      = `{"success":"false","message": "Unknown runtime measurement result"}`
)

// event extends the runtime measurement.
func (c *call) event() {
	req, err := readEvent(c.r.Body)
	if err != nil {
		// The bound stays: net/http goes on to read what is left of the body.
		c.fault("Illegal AAEL eventry format", podvm.Explain(err, podvm.Printable(err.Error(), 200)))
		return
	}
	setReadDeadline(c.w, time.Time{}) // it would end a call that takes longer
	var result aa.RuntimeMeasurementResult
	err = c.h.aa.do(c.r.Context(), func(ctx context.Context, conn *ttrpc.Client) error {
		resp, err := aa.NewAttestationAgentServiceClient(conn).ExtendRuntimeMeasurement(ctx, req)
		result = resp.GetResult()
		return err
	})
	if err != nil {
		c.failed(err)
		return
	}
	switch result {
	case aa.RuntimeMeasurementResult_OK:
		c.json([]byte(eventDone))
	case aa.RuntimeMeasurementResult_NOT_SUPPORTED:
		c.json([]byte(eventNotSupported))
	case aa.RuntimeMeasurementResult_NOT_ENABLED:
		c.json([]byte(eventNotEnabled))
	default:
		c.json([]byte(eventUnknown))
	}
}

// readEvent reads {"domain","operation","content"}, all texts, all required.
func readEvent(body io.Reader) (*aa.ExtendRuntimeMeasurementRequest, error) {
	raw, err := io.ReadAll(body) // bounded by ServeHTTP
	if err != nil {
		var big *http.MaxBytesError
		if errors.As(err, &big) {
			return nil, fmt.Errorf("more than %d bytes", big.Limit)
		}
		return nil, errors.New("the body was cut short")
	}
	o, err := strict.Parse(raw)
	if err != nil {
		return nil, err
	}
	req := &aa.ExtendRuntimeMeasurementRequest{}
	for name, dst := range map[string]*string{"domain": &req.Domain, "operation": &req.Operation, "content": &req.Content} {
		if *dst, err = o.Text(name); err != nil {
			return nil, err
		}
	}
	return req, nil
}
