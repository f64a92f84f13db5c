package tdx

import (
	"crypto/x509"
	"fmt"
	"strings"
	"time"
)

// The versions of a platform that is up to date, and of one that is not.
const (
	enclaveSVN       = 4
	moduleGeneration = 1 // TDX 1.5
	moduleSVN        = 5
	staleModule      = 2
)

// Level is a TCB level.
type Level struct {
	// SVN is the version that all parts must have reached.
	SVN int
	// Status is as in PCS, for example "UpToDate".
	Status     string
	Date       time.Time
	Advisories []string
}

// TCB is what collateral says about a platform.
type TCB struct {
	ID    string // "TDX"
	FMSPC string // 12 hexadecimal digits
	// Platform, Module and Enclave are the levels of the platform, of the TDX
	// module from TDX 1.5 on and of the quoting enclave, the newest first.
	Platform, Module, Enclave []Level
	// Revoked are certificates of the platform, for the revocation lists.
	Revoked            []*x509.Certificate
	Issued, NextUpdate time.Time
}

// TCB returns what is true of the platform now: the versions that it has are up
// to date, those of a stale TD out of date.
func (p *Platform) TCB() TCB {
	now := p.now().UTC().Truncate(time.Second)
	current := func(svn int) Level {
		return Level{SVN: svn, Status: "UpToDate", Date: time.Date(2025, 6, 1, 0, 0, 0, 0, time.UTC)}
	}
	old := func(svn int) Level {
		return Level{SVN: svn, Status: "OutOfDate", Date: time.Date(2025, 3, 1, 0, 0, 0, 0, time.UTC), Advisories: []string{"SIMULATED-SA-1"}}
	}
	return TCB{
		ID: "TDX", FMSPC: p.FMSPC(),
		Platform: []Level{current(componentSVN), old(staleModule)},
		Module:   []Level{current(moduleSVN), old(staleModule)},
		Enclave:  []Level{current(enclaveSVN), old(1)},
		Issued:   now, NextUpdate: now.Add(collateralLife),
	}
}

// The documents of PCS, in its order of members.
type (
	component struct {
		SVN int `json:"svn"`
	}
	platformTCB struct {
		SGX    [16]component `json:"sgxtcbcomponents"`
		PCESVN int           `json:"pcesvn"`
		TDX    [16]component `json:"tdxtcbcomponents"`
	}
	moduleTCB struct {
		ISVSVN int `json:"isvsvn"`
	}
	level struct {
		TCB        any      `json:"tcb"`
		Date       string   `json:"tcbDate"`
		Status     string   `json:"tcbStatus"`
		Advisories []string `json:"advisoryIDs,omitempty"`
	}
	module struct {
		Mrsigner       string `json:"mrsigner"`
		Attributes     string `json:"attributes"`
		AttributesMask string `json:"attributesMask"`
	}
	moduleIdentity struct {
		ID string `json:"id"`
		module
		Levels []level `json:"tcbLevels"`
	}
	tcbInfo struct {
		ID         string           `json:"id"`
		Version    int              `json:"version"`
		IssueDate  string           `json:"issueDate"`
		NextUpdate string           `json:"nextUpdate"`
		FMSPC      string           `json:"fmspc"`
		PCEID      string           `json:"pceId"`
		Type       int              `json:"tcbType"`
		Evaluation int              `json:"tcbEvaluationDataNumber"`
		Module     module           `json:"tdxModule"`
		Modules    []moduleIdentity `json:"tdxModuleIdentities"`
		Levels     []level          `json:"tcbLevels"`
	}
	enclaveIdentity struct {
		ID             string  `json:"id"`
		Version        int     `json:"version"`
		IssueDate      string  `json:"issueDate"`
		NextUpdate     string  `json:"nextUpdate"`
		Evaluation     int     `json:"tcbEvaluationDataNumber"`
		Miscselect     string  `json:"miscselect"`
		MiscselectMask string  `json:"miscselectMask"`
		Attributes     string  `json:"attributes"`
		AttributesMask string  `json:"attributesMask"`
		Mrsigner       string  `json:"mrsigner"`
		ISVProdID      int     `json:"isvprodid"`
		Levels         []level `json:"tcbLevels"`
	}
)

func date(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// levels are those of a list, with what tells the versions.
func levels(list []Level, tcb func(svn int) any) []level {
	out := []level{}
	for _, l := range list {
		out = append(out, level{tcb(l.SVN), date(l.Date), l.Status, l.Advisories})
	}
	return out
}

func oneVersion(svn int) any { return moduleTCB{svn} }

func allVersions(svn int) any {
	t := platformTCB{PCESVN: svn}
	for i := range t.SGX {
		t.SGX[i].SVN, t.TDX[i].SVN = svn, svn
	}
	t.TDX[1].SVN = 0 // the generation of the module
	return t
}

// The evaluation numbers of the two documents.
const (
	infoEvaluation     = 17
	identityEvaluation = 18
)

func (t TCB) info() tcbInfo {
	// A module that Intel signed has zeros for its signer.
	m := module{strings.Repeat("00", DigestSize), strings.Repeat("00", 8), strings.Repeat("FF", 8)}
	return tcbInfo{
		ID: t.ID, Version: 3, IssueDate: date(t.Issued), NextUpdate: date(t.NextUpdate), FMSPC: t.FMSPC, PCEID: "0000",
		Evaluation: infoEvaluation, Module: m,
		Modules: []moduleIdentity{{fmt.Sprintf("TDX_%02d", moduleGeneration), m, levels(t.Module, oneVersion)}},
		Levels:  levels(t.Platform, allVersions),
	}
}

func (t TCB) identity() enclaveIdentity {
	return enclaveIdentity{
		ID: "TD_QE", Version: 2, IssueDate: date(t.Issued), NextUpdate: date(t.NextUpdate), Evaluation: identityEvaluation,
		Miscselect: "00000000", MiscselectMask: "FFFFFFFF",
		Attributes: "11" + strings.Repeat("00", 15), AttributesMask: "FBFFFFFFFFFFFFFF" + strings.Repeat("00", 8),
		Mrsigner: "51" + strings.Repeat("00", 31), ISVProdID: 2, Levels: levels(t.Enclave, oneVersion),
	}
}
