package tdx

import (
	"crypto/ecdsa"
	"crypto/sha512"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"time"
)

// bodyFields are the claims below quote.body, by offset and length.
var bodyFields = []struct {
	name     string
	at, size int
}{
	{"tcb_svn", 0, 16}, {"mr_seam", 16, 48}, {"mrsigner_seam", 64, 48}, {"seam_attributes", 112, 8},
	{"td_attributes", 120, 8}, {"xfam", 128, 8}, {"mr_td", 136, 48}, {"mr_config_id", 184, 48},
	{"mr_owner", 232, 48}, {"mr_owner_config", 280, 48}, {"rtmr_0", 328, 48}, {"rtmr_1", 376, 48},
	{"rtmr_2", 424, 48}, {"rtmr_3", 472, 48}, {"report_data", 520, 64},
	{"tee_tcb_svn2", 584, 16}, {"mr_servicetd", 600, 48}, // of TDX 1.5
}

// attributeMasks are the claims below td_attributes: whether any of these bits is
// set. debug is the whole group TUD: with any of its bits, a host may look into
// the TD. Trustee's is bit 0 alone, and it has no migratable. Source: Intel TDX
// DCAP A.3.4; Linux arch/x86/include/asm/shared/tdx.h at v6.16.
var attributeMasks = map[string]uint64{
	"debug": 0xFF, "septve_disable": 1 << 28, "migratable": 1 << 29, "protection_keys": 1 << 30, "key_locker": 1 << 31, "perfmon": 1 << 63,
}

// claims returns what the quote says, in the names of trustee.
func (q *Quote) claims() map[string]any {
	header := map[string]any{}
	for name, at := range map[string][2]int{
		"version": {0, 2}, "att_key_type": {2, 4}, "tee_type": {4, 8}, "reserved": {8, 12}, "vendor_id": {12, 28}, "user_data": {28, 48},
	} {
		header[name] = hex.EncodeToString(q.Header[at[0]:at[1]])
	}
	body := map[string]any{}
	for _, f := range bodyFields {
		if f.at+f.size <= len(q.Body) {
			body[f.name] = hex.EncodeToString(q.field(f.at, f.size))
		}
	}
	quote := map[string]any{"header": header, "body": body}
	if q.Version == quoteVersion5 {
		quote["type"], quote["size"] = hex.EncodeToString(q.BodyType), hex.EncodeToString(q.BodySize)
	}
	attributes := map[string]any{}
	for name, mask := range attributeMasks {
		attributes[name] = binary.LittleEndian.Uint64(q.field(120, 8))&mask != 0
	}
	return map[string]any{
		"quote": quote, "td_attributes": attributes,
		"report_data": hex.EncodeToString(q.ReportData()), "init_data": hex.EncodeToString(q.MRConfigID()),
	}
}

var sgxTypes = map[int]string{0: "Standard", 1: "Scalable", 2: "Scalable with Integrity"}

// platformClaims returns what collateral and PCK certificate say.
func platformClaims(p *pckInfo, ch *chain, c *checked, v *verdict, now time.Time) map[string]any {
	d, expired := c.dates(ch), "0"
	if now.After(d.firstExpiry) {
		expired = "1"
	}
	kind, ok := sgxTypes[p.sgxType]
	if !ok {
		kind = "Unknown"
	}
	advisories := []any{}
	for _, a := range v.advisories {
		advisories = append(advisories, a)
	}
	date := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	claims := map[string]any{
		"tcb_status": v.status, "tcb_date": date(v.date), "advisory_ids": advisories,
		"tcb_eval_num":                 min(c.tcb.TcbEvaluationDataNumber, c.qe.TcbEvaluationDataNumber),
		"collateral_expiration_status": expired,
		"earliest_issue_date":          date(d.firstIssue), "latest_issue_date": date(d.lastIssue),
		"earliest_expiration_date": date(d.firstExpiry),
		"pck_crl_num":              number(c.pckCRL.Number), "root_ca_crl_num": number(c.rootCRL.Number),
		"platform_provider_id": hex.EncodeToString(p.ppid), "root_key_id": keyID(ch.root), "sgx_type": kind,
	}
	if p.sgxType > 0 {
		claims["is_dynamic_platform"], claims["is_cached_keys"], claims["is_smt_enabled"] = p.dynamic, p.cached, p.smt
	}
	if p.multi {
		id := slices.Clone(p.instance) // a number, little-endian
		slices.Reverse(id)
		claims["platform_instance_id"] = hex.EncodeToString(id)
	}
	return claims
}

// keyID is the SHA-384 of the point of a public key, uncompressed.
func keyID(cert *x509.Certificate) string {
	key, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return ""
	}
	point, err := key.Bytes()
	if err != nil {
		return ""
	}
	sum := sha512.Sum384(point)
	return hex.EncodeToString(sum[:])
}
