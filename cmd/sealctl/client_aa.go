package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	aa "github.com/sealpod/sealpod/api/attestationagent"
	"github.com/sealpod/sealpod/cmd/internal/cli"
	"github.com/sealpod/sealpod/podvm"
)

const agentService = "attestation_agent.AttestationAgentService"

// agentClient is "sealctl client aa", with all calls of the attestation agent.
func agentClient() *cobra.Command {
	var f clientFlags
	root := &cobra.Command{
		Use:   "aa CALL",
		Short: "Call the attestation agent",
		Long: `Calls the attestation agent. Evidence and tokens are printed as they are: a token
of type kbs holds the private key that belongs to it.`,
		Example: `  sealctl client aa get-evidence --runtime-data bm9uY2U=
  sealctl client aa get-token --token-type kbs
  sealctl client aa --json get-additional-tees
  sealctl client aa -s http://127.0.0.1:50002 bind-init-data --digest "$(openssl dgst -sha256 -binary initdata.toml | base64)"`,
	}
	root = f.root(agentDaemon, root, f.getTEE(), f.getTEEs(), f.getEvidence(), f.getAdditionalEvidence(), f.getToken(), f.extend(), f.bindInitData())
	// Upstream's ttrpc-aa-client has its own name for the socket.
	root.Flags().StringVarP(&f.address, "attestation_sock", "a", f.address, "the same as --socket")
	return root
}

// agentCall is a call of the attestation agent.
func agentCall(method string) rpcCall {
	return rpcCall{service: agentService, method: method, timeout: callTimeout}
}

func (f *clientFlags) getTEE() *cobra.Command {
	return &cobra.Command{
		Use: "get-tee-type", Aliases: []string{"get-tee"}, Short: "Print the name of the TEE",
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := &aa.GetTeeTypeResponse{}
			c := agentCall("GetTeeType")
			c.in, c.out = &aa.GetTeeTypeRequest{}, out
			c.text = func() (string, error) { return podvm.Printable(out.GetTee(), 100), nil }
			return f.do(cmd, c)
		},
	}
}

func (f *clientFlags) getTEEs() *cobra.Command {
	return &cobra.Command{
		Use: "get-additional-tees", Short: "Print the names of the devices, a line each",
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := &aa.GetAdditionalTeesResponse{}
			c := agentCall("GetAdditionalTees")
			c.in, c.out = &aa.GetAdditionalTeesRequest{}, out
			c.text = func() (string, error) {
				lines := out.GetAdditionalTees()
				for i, l := range lines {
					lines[i] = podvm.Printable(l, 100)
				}
				return strings.Join(lines, "\n"), nil
			}
			return f.do(cmd, c)
		},
	}
}

func (f *clientFlags) getEvidence() *cobra.Command {
	return f.evidence(&cobra.Command{Use: "get-evidence", Short: "Print evidence of the TEE"}, func(data []byte, out *aa.GetEvidenceResponse) rpcCall {
		c := agentCall("GetEvidence")
		c.in, c.out = &aa.GetEvidenceRequest{RuntimeData: data}, out
		return c
	})
}

func (f *clientFlags) getAdditionalEvidence() *cobra.Command {
	return f.evidence(&cobra.Command{Use: "get-additional-evidence", Short: "Print evidence of the devices, nothing without devices"},
		func(data []byte, out *aa.GetEvidenceResponse) rpcCall {
			c := agentCall("GetAdditionalEvidence")
			c.in, c.out = &aa.GetAdditionalEvidenceRequest{RuntimeData: data}, out
			return c
		})
}

// evidence adds to cmd what both kinds of evidence share.
func (f *clientFlags) evidence(cmd *cobra.Command, call func(data []byte, out *aa.GetEvidenceResponse) rpcCall) *cobra.Command {
	var data string
	cmd.Flags().StringVarP(&data, "runtime-data", "r", "", "what the evidence is to contain, as `base64`; 64 bytes at most on most TEEs")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		raw, err := base64Flag(cmd, "runtime-data", data)
		if err != nil {
			return err
		}
		out := &aa.GetEvidenceResponse{}
		c := call(raw, out)
		c.text = func() (string, error) { return text(out.GetEvidence()) }
		return f.do(cmd, c)
	}
	return cmd
}

func (f *clientFlags) getToken() *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use: "get-token", Short: "Print an attestation token",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := required(cmd, "token-type"); err != nil {
				return err
			}
			out := &aa.GetTokenResponse{}
			c := agentCall("GetToken")
			c.in, c.out = &aa.GetTokenRequest{TokenType: kind}, out
			c.text = func() (string, error) { return text(out.GetToken()) }
			defer func() { clear(out.GetToken()) }()
			return f.do(cmd, c)
		},
	}
	cmd.Flags().StringVarP(&kind, "token-type", "t", "", "`who` issues it: kbs or coco_as")
	return cmd
}

func (f *clientFlags) extend() *cobra.Command {
	var pcr uint64
	in := &aa.ExtendRuntimeMeasurementRequest{}
	cmd := &cobra.Command{
		Use: "extend-runtime-measurement", Short: "Record an event and extend a measurement register with it",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := required(cmd, "domain", "operation", "content"); err != nil {
				return err
			}
			if cmd.Flags().Changed("pcr") {
				in.RegisterIndex = &pcr
			}
			out := &aa.ExtendRuntimeMeasurementResponse{}
			c := agentCall("ExtendRuntimeMeasurement")
			c.in, c.out = in, out
			c.text = func() (string, error) { return extended(out.GetResult()) }
			return f.do(cmd, c)
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&in.Domain, "domain", "d", "", "whose event it is, as `example.org/app`")
	fl.StringVarP(&in.Operation, "operation", "o", "", "`what` was done, without blanks")
	fl.StringVarP(&in.Content, "content", "c", "", "the rest, on a `line`")
	fl.Uint64VarP(&pcr, "pcr", "p", 0, "the register's `number`; without it the agent's init_pcr")
	return cmd
}

// extended is what upstream's client says of a result.
// Source: guest-components attestation-agent/src/bin/ttrpc-aa-client.rs at 8246e5e.
func extended(r aa.RuntimeMeasurementResult) (string, error) {
	switch r {
	case aa.RuntimeMeasurementResult_OK:
		return "Extended.", nil
	case aa.RuntimeMeasurementResult_NOT_SUPPORTED:
		return "Current platform does not support runtime measurement.", nil
	case aa.RuntimeMeasurementResult_NOT_ENABLED:
		return "Runtime measurement is not enabled in Attestation Agent configuration.", nil
	}
	return "", fmt.Errorf("a result that is not known: %d", r)
}

func (f *clientFlags) bindInitData() *cobra.Command {
	var digest string
	cmd := &cobra.Command{
		Use: "bind-init-data", Short: "Bind the digest of init data to the TEE; over gRPC only",
		RunE: func(cmd *cobra.Command, _ []string) error {
			raw, err := base64Flag(cmd, "digest", digest)
			if err != nil {
				return err
			}
			c := agentCall("BindInitData")
			c.in, c.out = &aa.BindInitDataRequest{Digest: raw}, &aa.BindInitDataResponse{}
			c.text = func() (string, error) { return "Bound.", nil }
			if err = f.do(cmd, c); err != nil && !f.overGRPC() {
				return fmt.Errorf("%w\nhint: an agent binds init data over gRPC only, as at -s http://127.0.0.1:50002", err)
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&digest, "digest", "d", "", "the digest as `base64`")
	return cmd
}

// base64Flag decodes the standard base64 of a flag that has to be there.
func base64Flag(cmd *cobra.Command, name, value string) ([]byte, error) {
	if err := required(cmd, name); err != nil {
		return nil, err
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(value)
	if err != nil || strings.ContainsAny(value, "\r\n") { // which the decoder skips
		return nil, fmt.Errorf("--%s: not standard base64 with padding (%w)", name, cli.ErrUsage)
	}
	return raw, nil
}

// text is bytes that have to be UTF-8.
func text(b []byte) (string, error) {
	if !utf8.Valid(b) {
		return "", errors.New("the response is not text; --json prints it as base64")
	}
	return string(b), nil
}
