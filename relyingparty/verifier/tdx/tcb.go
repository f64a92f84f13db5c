package tdx

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/go-tdx-guest/pcs"
)

// The statuses that only a comparison of two versions of the TDX module gives.
const (
	relaunchAdvised       = "TDRelaunchAdvised"
	relaunchAdvisedConfig = "TDRelaunchAdvisedConfigurationNeeded"
	statusRevoked         = string(pcs.TcbComponentStatusRevoked)
)

// verdict is the TCB of a platform, judged by Intel's collateral.
type verdict struct {
	status     string
	date       time.Time // the oldest of the levels it rests on
	advisories []string
}

// judge finds the levels of platform, TDX module and quoting enclave, and the
// status they give together. Source: Intel PCS API v4, "Get TDX TCB Info", and
// the status rules of Intel's quote verification library.
func (c *checked) judge(q *Quote, p *pckInfo) (*verdict, error) {
	if !strings.EqualFold(c.tcb.PceID, hex.EncodeToString(p.pceID)) {
		return nil, errors.New("the TCB info is for another provisioning enclave")
	}
	qe, err := c.judgeQE(q.qeReport)
	if err != nil {
		return nil, fmt.Errorf("quoting enclave: %w", err)
	}
	levels, err := c.levels(q, p, q.TCBSVN())
	if err != nil {
		return nil, err
	}
	v := &verdict{status: merge(append(levels, qe))}
	if svn2 := q.tcbSVN2(); svn2 != nil && len(levels) == 2 && levels[1].TcbStatus == pcs.TcbComponentStatusOutOfDate {
		// The TD was launched by an older module than the one that runs now.
		if newer, err := c.levels(q, p, svn2); err == nil {
			v.status = relaunched(v.status, merge(append(newer, qe)))
		}
	}
	for i, l := range append(levels, qe) {
		date, err := time.Parse(time.RFC3339, l.TcbDate)
		if err != nil {
			return nil, fmt.Errorf("date of a TCB level: %w", err)
		}
		if i == 0 || date.Before(v.date) {
			v.date = date
		}
		v.advisories = append(v.advisories, l.AdvisoryIDs...)
	}
	slices.Sort(v.advisories)
	v.advisories = slices.Compact(v.advisories)
	if v.status == statusRevoked {
		return nil, errors.New("the TCB level is revoked: the platform is not to be trusted any more")
	}
	return v, nil
}

// relaunched is the status of a TD whose module was out of date at its launch,
// by what it was then and what it would be now. Source: Intel
// SGX-TDX-DCAP-QuoteVerificationLibrary, TDRelaunchCheck.cpp.
func relaunched(then, now string) string {
	switch {
	case !strings.HasPrefix(then, "OutOfDate") || strings.HasPrefix(now, "OutOfDate") || now == statusRevoked:
		return then
	case strings.Contains(then+now, "Configuration"):
		return relaunchAdvisedConfig
	}
	return relaunchAdvised
}

// levels are the level of the platform and, from TDX 1.5 on, of the module.
func (c *checked) levels(q *Quote, p *pckInfo, svn []byte) ([]pcs.TcbLevel, error) {
	signer, attributes := q.field(64, 48), q.field(112, 8)
	module, wanted := c.tcb.TdxModule, (*pcs.TdxModuleIdentity)(nil)
	if svn[1] > 0 {
		id := fmt.Sprintf("TDX_%02x", svn[1])
		i := slices.IndexFunc(c.tcb.TdxModuleIdentities, func(m pcs.TdxModuleIdentity) bool { return strings.EqualFold(m.ID, id) })
		if i < 0 {
			return nil, fmt.Errorf("TDX module of version %s is not in the TCB info", id)
		}
		wanted = &c.tcb.TdxModuleIdentities[i]
		module = pcs.TdxModule{Mrsigner: wanted.Mrsigner, Attributes: wanted.Attributes, AttributesMask: wanted.AttributesMask}
	}
	if !bytes.Equal(signer, module.Mrsigner.Bytes) || !masked(attributes, module.AttributesMask.Bytes, module.Attributes.Bytes) {
		return nil, errors.New("the TDX module is not the one in the TCB info")
	}
	at := slices.IndexFunc(c.tcb.TcbLevels, func(l pcs.TcbLevel) bool {
		from := 0
		if svn[1] > 0 {
			from = 2 // the first two are the module's, judged apart
		}
		return p.pceSVN >= l.Tcb.Pcesvn && reaches(p.components[:], l.Tcb.SgxTcbcomponents, 0) && reaches(svn, l.Tcb.TdxTcbcomponents, from)
	})
	if at < 0 {
		return nil, errors.New("the TCB of the platform is below every level in the TCB info")
	}
	levels := []pcs.TcbLevel{c.tcb.TcbLevels[at]}
	if wanted != nil {
		i := slices.IndexFunc(wanted.TcbLevels, func(l pcs.TcbLevel) bool { return uint32(svn[0]) >= l.Tcb.Isvsvn })
		if i < 0 {
			return nil, errors.New("the version of the TDX module is below every level in the TCB info")
		}
		levels = append(levels, wanted.TcbLevels[i])
	}
	return levels, nil
}

// reaches says whether versions are at least those of a level.
func reaches(have []byte, want []pcs.TcbComponent, from int) bool {
	if len(have) != len(want) {
		return false
	}
	for i := from; i < len(have); i++ {
		if have[i] < want[i].Svn {
			return false
		}
	}
	return true
}

// masked says whether value and mask give want.
func masked(value, mask, want []byte) bool {
	if len(value) != len(mask) || len(value) != len(want) {
		return false
	}
	for i := range value {
		if value[i]&mask[i] != want[i] {
			return false
		}
	}
	return true
}

// judgeQE compares the report of the quoting enclave with its identity. Source
// of the offsets: Intel SDM, SGX REPORT structure.
func (c *checked) judgeQE(report []byte) (pcs.TcbLevel, error) {
	le := binary.LittleEndian
	misc := slices.Clone(c.qe.Miscselect.Bytes)
	mask := slices.Clone(c.qe.MiscselectMask.Bytes)
	slices.Reverse(misc) // the document has the number, the report its bytes
	slices.Reverse(mask)
	if !masked(report[16:20], mask, misc) || !masked(report[48:64], c.qe.AttributesMask.Bytes, c.qe.Attributes.Bytes) ||
		!bytes.Equal(report[128:160], c.qe.Mrsigner.Bytes) || le.Uint16(report[256:]) != c.qe.IsvProdID {
		return pcs.TcbLevel{}, errors.New("it is not the one Intel published")
	}
	svn := uint32(le.Uint16(report[258:]))
	for _, l := range c.qe.TcbLevels {
		if l.Tcb.Isvsvn <= svn {
			return l, nil
		}
	}
	return pcs.TcbLevel{}, errors.New("its version is below every level")
}

// merge is the status of levels together; the first is the platform's. What is
// out of date or revoked anywhere is so in all.
func merge(levels []pcs.TcbLevel) string {
	status := string(levels[0].TcbStatus)
	for _, l := range levels[1:] {
		switch {
		case l.TcbStatus == pcs.TcbComponentStatusRevoked || status == statusRevoked:
			status = statusRevoked
		case !strings.HasPrefix(string(l.TcbStatus), "OutOfDate"):
			status = worse(status, string(l.TcbStatus))
		case strings.Contains(status, "Configuration"):
			status = string(pcs.TcbComponentStatusOutOfDateConfigurationNeeded)
		case status != string(pcs.TcbComponentStatusOutOfDateConfigurationNeeded):
			status = string(l.TcbStatus)
		}
	}
	return status
}

// worse joins what two statuses ask for, neither of which is the second out of
// date.
func worse(a, b string) string {
	config := strings.Contains(a+b, "Configuration")
	switch hardening := strings.Contains(a+b, "SWHardening"); {
	case strings.HasPrefix(a, "OutOfDate") && config:
		return string(pcs.TcbComponentStatusOutOfDateConfigurationNeeded)
	case strings.HasPrefix(a, "OutOfDate"):
		return a
	case config && hardening:
		return string(pcs.TcbComponentStatusConfigurationAndSWHardeningNeeded)
	case config:
		return string(pcs.TcbComponentStatusConfigurationNeeded)
	case hardening:
		return string(pcs.TcbComponentStatusSwHardeningNeeded)
	}
	return string(pcs.TcbComponentStatusUpToDate)
}
