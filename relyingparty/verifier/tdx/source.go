package tdx

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/sealpod/sealpod/podvm"
)

const (
	// IntelPCS is Intel's provisioning certification service.
	IntelPCS = "https://api.trustedservices.intel.com"
	// intelRootCRL is where Intel publishes the list that is not in its API.
	intelRootCRL = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"

	pcsTimeout  = 20 * time.Second
	maxDocument = 4 << 20
)

// Update says which TCB levels to ask for: those of new advisories at once, or
// when clouds had time to install them.
type Update string

// The values of Update.
const (
	Early    Update = "early"
	Standard Update = "standard"
)

// PCS is Intel's service, or a caching service (PCCS) with the same API, as a
// Source.
type PCS struct {
	base   string
	update Update
	client *http.Client
}

// NewPCS returns a client of the service at base, as in IntelPCS; its path is
// not used. An empty update means Early. A nil client is one with system roots
// and a timeout of its own.
func NewPCS(base string, update Update, client *http.Client) (*PCS, error) {
	u, err := url.Parse(base)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("collateral service %q: not a URL with a host", base)
	}
	if update == "" {
		update = Early
	}
	if update != Early && update != Standard {
		return nil, fmt.Errorf("TCB update type %q: known are %q and %q", update, Early, Standard)
	}
	if client == nil {
		client = &http.Client{Timeout: pcsTimeout}
	}
	return &PCS{base: u.Scheme + "://" + u.Host, update: update, client: client}, nil
}

// Collateral implements Source.
func (s *PCS) Collateral(ctx context.Context, p Platform) (*Collateral, error) {
	ctx, cancel := context.WithTimeout(ctx, pcsTimeout)
	defer cancel()
	var c Collateral
	rootCRL := s.base + "/sgx/certification/v4/rootcacrl"
	if s.base == IntelPCS {
		rootCRL = intelRootCRL
	}
	for _, r := range []struct {
		url         string
		body, chain *[]byte
		header      string
	}{
		{fmt.Sprintf("%s/tdx/certification/v4/tcb?fmspc=%X&update=%s", s.base, p.FMSPC, s.update), &c.TCBInfo, &c.TCBInfoChain, "TCB-Info-Issuer-Chain"},
		{fmt.Sprintf("%s/tdx/certification/v4/qe/identity?update=%s", s.base, s.update), &c.QEIdentity, &c.QEIdentityChain, "SGX-Enclave-Identity-Issuer-Chain"},
		{fmt.Sprintf("%s/sgx/certification/v4/pckcrl?ca=%s&encoding=der", s.base, p.CA), &c.PCKCRL, nil, ""},
		{rootCRL, &c.RootCRL, nil, ""},
	} {
		body, chain, err := s.get(ctx, r.url, r.header)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrCollateral, err)
		}
		if *r.body = body; r.chain != nil {
			*r.chain = chain
		}
	}
	c.PCKCRL, c.RootCRL = plainDER(c.PCKCRL), plainDER(c.RootCRL)
	return &c, nil
}

func (s *PCS) get(ctx context.Context, address, header string) (body, chain []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, nil, err
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	if resp.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("%s answered %s", address, resp.Status)
	}
	if body, err = podvm.ReadMax(resp.Body, maxDocument); err != nil {
		return nil, nil, fmt.Errorf("reading %s: %w", address, err)
	}
	if header == "" {
		return body, nil, nil
	}
	text, err := url.PathUnescape(resp.Header.Get(header))
	if err != nil || text == "" {
		return nil, nil, fmt.Errorf("%s sent no %s", address, header)
	}
	return body, []byte(text), nil
}

// plainDER undoes the hexadecimal of caching services.
func plainDER(b []byte) []byte {
	if der, err := hex.DecodeString(string(bytes.TrimSpace(b))); err == nil {
		return der
	}
	return b
}

// File is a JSON file written by Intel's PcsClientTool, a Source without a
// network. It is read anew each time.
type File struct {
	Path string
	// Update is as for NewPCS; without early levels in the file, the standard
	// ones serve.
	Update Update
}

// pcsFile is the layout of the file. Source: trustee
// deps/verifier/src/intel_dcap/collateral_service.rs at 78962cd4.
type pcsFile struct {
	Collaterals struct {
		TCBInfos []struct {
			FMSPC string          `json:"fmspc"`
			TDX   json.RawMessage `json:"tdx_tcbinfo"`
			Early json.RawMessage `json:"tdx_tcbinfo_early"`
		} `json:"tcbinfos"`
		PCKCACRL map[string]string `json:"pckcacrl"` // processorCrl, platformCrl
		QE       json.RawMessage   `json:"tdqeidentity"`
		QEEarly  json.RawMessage   `json:"tdqeidentity_early"`
		// Certificates have chains as URL-encoded PEM, and other members.
		Certificates map[string]json.RawMessage `json:"certificates"`
		RootCACRL    string                     `json:"rootcacrl"`
	} `json:"collaterals"`
}

// Collateral implements Source.
func (f File) Collateral(_ context.Context, p Platform) (*Collateral, error) {
	text, err := podvm.ReadFileMax(f.Path, maxDocument)
	if err != nil {
		return nil, fmt.Errorf("%w: reading the collateral file: %w", ErrCollateral, err)
	}
	c, err := f.parse(text, p)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrCollateral, f.Path, err)
	}
	return c, nil
}

func (f File) parse(text []byte, p Platform) (*Collateral, error) {
	var file pcsFile
	if err := json.Unmarshal(text, &file); err != nil {
		return nil, fmt.Errorf("not a file of PcsClientTool: %w", err)
	}
	in := file.Collaterals
	var c Collateral
	for _, t := range in.TCBInfos {
		if strings.EqualFold(t.FMSPC, hex.EncodeToString(p.FMSPC[:])) {
			c.TCBInfo = f.choose(t.TDX, t.Early)
		}
	}
	if c.TCBInfo == nil {
		return nil, fmt.Errorf("it has no TDX TCB info for FMSPC %X", p.FMSPC)
	}
	c.QEIdentity = f.choose(in.QE, in.QEEarly)
	c.TCBInfoChain, c.QEIdentityChain = certificate(in.Certificates["TCB-Info-Issuer-Chain"]), certificate(in.Certificates["SGX-Enclave-Identity-Issuer-Chain"])
	c.PCKCRL, c.RootCRL = plainDER([]byte(in.PCKCACRL[p.CA+"Crl"])), plainDER([]byte(in.RootCACRL))
	return &c, nil
}

// choose returns one of two documents without the white space that the tool
// may have added: signatures are over the compact form.
func (f File) choose(standard, early json.RawMessage) []byte {
	doc := standard
	if f.Update != Standard && len(early) > 0 && string(early) != "null" {
		doc = early
	}
	var out bytes.Buffer
	if err := json.Compact(&out, doc); err != nil || out.String() == "null" {
		return nil
	}
	return out.Bytes()
}

func certificate(raw json.RawMessage) []byte {
	var text string
	if json.Unmarshal(raw, &text) != nil {
		return nil
	}
	pem, err := url.PathUnescape(text)
	if err != nil {
		return nil
	}
	return []byte(pem)
}
