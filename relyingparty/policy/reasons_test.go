package policy

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

const (
	// zeros are a register that nothing was extended into, in hexadecimal.
	zeros = `000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000`

	azSNPInput = `{"az-snp-vtpm":{"measurement":"aa==","tpm":{"pcr04":"04","pcr11":"0b"},"reported_tcb_bootloader":"4",
		"reported_tcb_microcode":"213","reported_tcb_snp":"22","reported_tcb_tee":"0","policy_debug_allowed":"false",
		"policy_migrate_ma":"false","policy_abi_major":"0","policy_abi_minor":"31","policy_single_socket":"false",
		"policy_smt_allowed":"true","platform_smt_enabled":"true","platform_tsme_enabled":"false"},"report_data":"x","init_data":"y"}`
	azTDXInput = `{"az-tdx-vtpm":{"quote":{"header":{"tee_type":"81000000","vendor_id":"939a7233f79c4ca9940a0db3957f0607"},
		"body":{"mr_td":"bb","rtmr_0":"` + zeros + `","rtmr_1":"` + zeros + `","xfam":"e7"}},
		"td_attributes":{"debug":false,"migratable":false},"tcb_status":"UpToDate","collateral_expiration_status":"0",
		"tpm":{"pcr04":"04","pcr11":"0b"}},"report_data":"x","init_data":"y"}`
	tpmInput    = `{"tpm":{"ak_public":"MII=","pcr04":"04","pcr11":"0b"},"report_data":"x","init_data":"y"}`
	azSNPValues = `{"measurement":["aa=="],"snp_pcr11":["0a","0b"],"tcb_bootloader":["4"],"tcb_microcode":["213"],"tcb_snp":["22"],
		"tcb_tee":["0"],"smt_enabled":["true"],"tsme_enabled":["false"],"abi_major":["0"],"abi_minor":["31"],
		"single_socket":["true","false"],"smt_allowed":["true"]}`
	azTDXValues  = `{"tdx_pcr11":["0b"],"mr_td":["bb"],"xfam":["e7"]}`
	tpmValues    = `{"tpm_pcr11":["0b"],"trusted_aks":["MII="]}`
	sampleValues = `{"launch_digest":["abcde"],"svn":["1"],"major_version":1,"minimum_minor_version":4}`
)

// tees are good evidence of every kind, the reference values it takes, and what
// each claim is changed to, by the trust claim that it then costs.
var tees = map[string]struct {
	input, values string
	good          map[string]int
	// bad is by trust claim, and then by the path of a claim: another value, and
	// the reason given behind the path.
	bad map[string]map[string][2]string
}{
	"sample": {
		sampleInput, sampleValues, map[string]int{"executables": 3, "hardware": 2, "configuration": 2},
		map[string]map[string][2]string{
			"executables": {"sample.launch_digest": {`"x"`, `is not among the reference values "launch_digest"`}},
			"hardware": {
				"sample.svn":                    {`"2"`, `is not among the reference values "svn"`},
				"sample.platform_version.major": {`2`, `is not the reference value "major_version"`},
				"sample.platform_version.minor": {`3`, `is not at least the reference value "minimum_minor_version"`},
			},
			"configuration": {"sample.debug": {`true`, `is true`}},
		},
	},
	"snp": {
		snpInput, snpValues, map[string]int{"executables": 3, "hardware": 2, "configuration": 2},
		map[string]map[string][2]string{
			"executables": {"snp.measurement": {`"ab"`, `is not among the reference values "snp_launch_measurement"`}},
			"hardware": {
				"snp.reported_tcb_bootloader": {`3`, `is not among the reference values "snp_bootloader"`},
				"snp.reported_tcb_microcode":  {`"213"`, `is not among the reference values "snp_microcode"`},
				"snp.reported_tcb_snp":        {`23`, `is not among the reference values "snp_snp_svn"`},
				"snp.reported_tcb_tee":        {`false`, `is not among the reference values "snp_tee_svn"`},
			},
			"configuration": {"snp.policy_debug_allowed": {`true`, `is true`}, "snp.policy_migrate_ma": {`"false"`, `is "false"`}},
		},
	},
	"tdx": {
		tdxInput, tdxValues, map[string]int{"executables": 3, "hardware": 2, "configuration": 2},
		map[string]map[string][2]string{
			"executables": {
				"tdx.quote.body.rtmr_1": {`"10"`, `is not among the reference values "rtmr_1"`},
				"tdx.quote.body.rtmr_2": {`"20"`, `is not among the reference values "rtmr_2"`},
			},
			"hardware": {
				"tdx.quote.header.tee_type":        {`"00000000"`, `is "00000000"`},
				"tdx.quote.header.vendor_id":       {`"00"`, `is "00"`},
				"tdx.quote.body.mr_td":             {`"b0"`, `is not among the reference values "mr_td"`},
				"tdx.tcb_status":                   {`"OutOfDate"`, `is "OutOfDate"`},
				"tdx.collateral_expiration_status": {`0`, `is 0`},
			},
			"configuration": {
				"tdx.td_attributes.debug":      {`true`, `is true`},
				"tdx.td_attributes.migratable": {`true`, `is true`},
				"tdx.quote.body.xfam":          {`"ff"`, `is not among the reference values "xfam"`},
			},
		},
	},
	"az-snp-vtpm": {
		azSNPInput, azSNPValues, map[string]int{"executables": 3, "hardware": 2, "configuration": 2},
		map[string]map[string][2]string{
			"executables": {
				"az-snp-vtpm.measurement": {`"ab=="`, `is not among the reference values "measurement"`},
				"az-snp-vtpm.tpm.pcr11":   {`"0c"`, `is not among the reference values "snp_pcr11"`},
			},
			"hardware": {
				"az-snp-vtpm.reported_tcb_bootloader": {`"3"`, `is not among the reference values "tcb_bootloader"`},
				"az-snp-vtpm.reported_tcb_microcode":  {`213`, `is not among the reference values "tcb_microcode"`},
				"az-snp-vtpm.reported_tcb_snp":        {`"23"`, `is not among the reference values "tcb_snp"`},
				"az-snp-vtpm.reported_tcb_tee":        {`""`, `is not among the reference values "tcb_tee"`},
			},
			"configuration": {
				"az-snp-vtpm.policy_debug_allowed":  {`"true"`, `is "true"`},
				"az-snp-vtpm.policy_migrate_ma":     {`"true"`, `is "true"`},
				"az-snp-vtpm.platform_smt_enabled":  {`"false"`, `is not among the reference values "smt_enabled"`},
				"az-snp-vtpm.platform_tsme_enabled": {`"true"`, `is not among the reference values "tsme_enabled"`},
				"az-snp-vtpm.policy_abi_major":      {`"1"`, `is not among the reference values "abi_major"`},
				"az-snp-vtpm.policy_abi_minor":      {`"30"`, `is not among the reference values "abi_minor"`},
				"az-snp-vtpm.policy_single_socket":  {`false`, `is not among the reference values "single_socket"`},
				"az-snp-vtpm.policy_smt_allowed":    {`"false"`, `is not among the reference values "smt_allowed"`},
			},
		},
	},
	"az-tdx-vtpm": {
		azTDXInput, azTDXValues, map[string]int{"executables": 3, "hardware": 2, "configuration": 2},
		map[string]map[string][2]string{
			"executables": {
				"az-tdx-vtpm.quote.body.rtmr_0": {`"00"`, `is "00"`},
				"az-tdx-vtpm.quote.body.rtmr_1": {`"11"`, `is "11"`},
				"az-tdx-vtpm.tpm.pcr11":         {`"0c"`, `is not among the reference values "tdx_pcr11"`},
			},
			"hardware": {
				"az-tdx-vtpm.quote.header.tee_type":  {`"00000000"`, `is "00000000"`},
				"az-tdx-vtpm.quote.header.vendor_id": {`"00"`, `is "00"`},
				"az-tdx-vtpm.quote.body.mr_td":       {`"b0"`, `is not among the reference values "mr_td"`},
				"az-tdx-vtpm.tcb_status":             {`"SWHardeningNeeded"`, `is "SWHardeningNeeded"`},

				"az-tdx-vtpm.collateral_expiration_status": {`"1"`, `is "1"`},
			},
			"configuration": {
				"az-tdx-vtpm.td_attributes.debug":      {`true`, `is true`},
				"az-tdx-vtpm.td_attributes.migratable": {`true`, `is true`},
				"az-tdx-vtpm.quote.body.xfam":          {`"ff"`, `is not among the reference values "xfam"`},
			},
		},
	},
	"tpm": {
		tpmInput, tpmValues, map[string]int{"executables": 3, "hardware": 2, "configuration": 0},
		map[string]map[string][2]string{
			"executables": {
				"tpm.pcr11": {`"0c"`, `is not among the reference values "tpm_pcr11"`},
				// a key that nobody knows costs both
				"tpm.ak_public": {`"MIX="`, `is not among the reference values "trusted_aks"`},
			},
			"hardware": {"tpm.ak_public": {`"MIX="`, `is not among the reference values "trusted_aks"`}},
		},
	},
}

// pins are the reference values that are compared only where they are set.
var pins = map[string]map[string][2]string{ // by trust claim, path: name and the value of the good evidence
	"executables": {
		"tdx.quote.body.rtmr_0": {"rtmr_0", `"10"`},
		"az-snp-vtpm.tpm.pcr04": {"snp_pcr04", `"04"`}, "az-tdx-vtpm.tpm.pcr04": {"tdx_pcr04", `"04"`}, "tpm.pcr04": {"tpm_pcr04", `"04"`},
	},
	"configuration": {"init_data": {"init_data", `"y"`}},
}

var fallback = map[string]int{"executables": 33, "hardware": 97, "configuration": 36}

// set returns the document with the value at the path, or without it if there
// is none.
func set(doc map[string]any, path string, value any) map[string]any {
	out, name := maps.Clone(doc), path
	if first, rest, deep := strings.Cut(path, "."); deep {
		name, value = first, set(doc[first].(map[string]any), rest, value)
	}
	out[name] = value
	if value == nil {
		delete(out, name)
	}
	return out
}

// parse is a JSON value.
func parse(t *testing.T, text string) any {
	t.Helper()
	return decode(t, `{"v":`+text+`}`)["v"]
}

// wantVerdict holds that the vector is the good one but for the trust claims
// that are lost, and that the reasons are these.
func wantVerdict(t *testing.T, what string, a Appraisal, good map[string]int, lost []string, reasons ...string) {
	t.Helper()
	status := Affirming
	for name, n := range good {
		if slices.Contains(lost, name) {
			n = fallback[name]
			if s := tier(n); rank(s) > rank(status) {
				status = s
			}
		}
		if a.Vector[name] != n {
			t.Errorf("%s: %s is %d, want %d", what, name, a.Vector[name], n)
		}
	}
	if a.Status != status || !slices.Equal(a.Reasons, reasons) {
		t.Errorf("%s: %s, want %s for %q", what, a, status, reasons)
	}
}

func TestDefaultCPUPolicyNamesTheClaimThatFailed(t *testing.T) {
	for name, tee := range tees {
		input, ref := decode(t, tee.input), decode(t, tee.values)
		judge := func(ref, input map[string]any) Appraisal {
			a, err := compile(t, Engine{Reference: values(ref)}, defaultCPU).Appraise(t.Context(), input)
			if err != nil {
				t.Fatal(name, err)
			}
			return a
		}
		wantVerdict(t, name, judge(ref, input), tee.good, nil)
		costs := map[string][]string{} // trust claims by path
		for trust, claims := range tee.bad {
			for path := range claims {
				costs[path] = append(costs[path], trust)
			}
		}
		for _, claims := range tee.bad {
			for path, c := range claims {
				wantVerdict(t, path, judge(ref, set(input, path, parse(t, c[0]))), tee.good, costs[path], path+" "+c[1])
				reason := path + " is missing"
				wantVerdict(t, reason, judge(ref, set(input, path, nil)), tee.good, costs[path], reason)
				_, reference, ok := strings.Cut(c[1], `reference value`)
				if !ok {
					continue
				}
				_, reference, _ = strings.Cut(strings.TrimSuffix(reference, `"`), `"`)
				reason = fmt.Sprintf("reference value %q is not set", reference)
				wantVerdict(t, path+": "+reason, judge(set(ref, reference, nil), input), tee.good, costs[path], reason)
				if !strings.Contains(c[1], "among") {
					continue
				}
				reason = fmt.Sprintf("reference value %q is no list", reference)
				for _, value := range []any{"x", map[string]any{"good": ref[reference].([]any)[0]}} {
					wantVerdict(t, path+": "+reason, judge(set(ref, reference, value), input), tee.good, costs[path], reason)
				}
			}
		}
		for trust, claims := range pins {
			for path, pin := range claims {
				if !strings.HasPrefix(path, name+".") && path != "init_data" {
					continue
				}
				input := input
				if name == "sample" {
					input = set(input, path, "y") // as of a guest with init data
				}
				pinned := func(v any) map[string]any { return set(ref, pin[0], v) }
				wantVerdict(t, name+" pinned", judge(pinned([]any{"other", parse(t, pin[1])}), input), tee.good, nil)
				wantVerdict(t, name+" pinned, changed", judge(pinned([]any{"other"}), input), tee.good, []string{trust},
					fmt.Sprintf("%s is not among the reference values %q", path, pin[0]))
				wantVerdict(t, name+" pinned, missing", judge(pinned([]any{"other"}), set(input, path, nil)), tee.good, []string{trust}, path+" is missing")
				wantVerdict(t, name+" pinned to text", judge(pinned("y"), input), tee.good, []string{trust},
					fmt.Sprintf("reference value %q is no list", pin[0]))
				wantVerdict(t, name+" pinned to nothing", judge(pinned([]any{}), input), tee.good, []string{trust},
					fmt.Sprintf("%s is not among the reference values %q", path, pin[0]))
				wantVerdict(t, name+" not pinned, missing", judge(ref, set(input, path, nil)), tee.good, nil)
			}
		}
	}
}

// TestEveryCheckIsTested compares the table of the policy with the one here.
func TestEveryCheckIsTested(t *testing.T) {
	x, err := compile(t, Engine{}, defaultCPU).ask(t.Context(), "x := data.policy.checks", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	checks := x.(map[string]any)
	if len(checks) != len(tees) {
		t.Errorf("%d kinds of TEE in the policy, %d here", len(checks), len(tees))
	}
	for tee, trusts := range checks {
		if rows := trusts.(map[string]any)["configuration"].([]any); !slices.ContainsFunc(rows, func(row any) bool { return row.([]any)[0] == "init_data" }) {
			t.Errorf("%s: init data cannot be pinned", tee)
		}
		for trust, rows := range trusts.(map[string]any) {
			for _, row := range rows.([]any) {
				row := row.([]any)
				table := tees[tee].bad[trust]
				if row[1] == "pinned" {
					table = pins[trust]
				}
				if _, ok := table[row[0].(string)]; !ok {
					t.Errorf("%s: no case for %v", trust, row)
				}
			}
		}
	}
}

func TestReasonsWithoutReferenceValuesAndForOtherTEEs(t *testing.T) {
	p := compile(t, Engine{}, defaultCPU)
	for input, want := range map[string]string{
		`{"csv":{}}`: "the policy has no rules for this kind of TEE",
		`{}`:         "the policy has no rules for this kind of TEE",
		sampleInput:  `reference value "launch_digest" is not set|reference value "major_version" is not set|reference value "minimum_minor_version" is not set|reference value "svn" is not set`,
		tpmInput:     `reference value "tpm_pcr11" is not set|reference value "trusted_aks" is not set`,
	} {
		a, err := p.Appraise(t.Context(), decode(t, input))
		if got := strings.Join(a.Reasons, "|"); err != nil || got != want || a.Status != Contraindicated {
			t.Errorf("%s: %s %q, %v", input, a.Status, got, err)
		}
	}
	if _, err := p.Appraise(t.Context(), decode(t, `{"snp":{},"tdx":{}}`)); err == nil {
		t.Error("evidence of two kinds in one appraisal")
	}
}

func TestReasonsOfTheOtherDefaultPolicies(t *testing.T) {
	const general = "the policy has no rules for executables and configuration of a device"
	for want, ref := range map[string]map[string]any{
		`reference value "device_svn" is not set|` + general:                         nil,
		`sampledevice.svn is not among the reference values "device_svn"|` + general: {"device_svn": []any{"2"}},
		general: {"device_svn": []any{"1"}},
	} {
		a, err := compile(t, Engine{Reference: values(ref)}, defaultGPU).Appraise(t.Context(), decode(t, `{"sampledevice":{"svn":"1"}}`))
		if got := strings.Join(a.Reasons, "|"); err != nil || got != want {
			t.Errorf("%q, want %q; %v", got, want, err)
		}
	}
	p := compile(t, Engine{}, defaultResource)
	for input, want := range map[string]string{
		`{"submods":{"cpu0":{"ear.veraison.annotated-evidence":{"sample":{}}}}}`: "the evidence is only a sample",
		`{"submods":{"cpu0":{"ear.veraison.annotated-evidence":{"tdx":{}}}}}`:    "",
	} {
		got, err := p.Reasons(t.Context(), decode(t, input), map[string]any{"plugin": "resource"})
		if strings.Join(got, "|") != want || err != nil {
			t.Errorf("%s: %q, %v", input, got, err)
		}
	}
}

// TestReasonsAreBounded holds that no rule called reasons, which older policies
// may have for a purpose of their own, breaks an appraisal or grows a token.
func TestReasonsAreBounded(t *testing.T) {
	for name, c := range map[string]struct {
		rule string
		want []string
	}{
		"none":               {``, nil},
		"a list":             {`reasons := ["b", "a", "a"]`, []string{"b", "a", "a"}},
		"an empty set":       {`reasons contains "x" if input.missing`, nil},
		"undefined":          {`reasons := {"x"} if input.missing`, nil},
		"text":               {`reasons := "x"`, nil},
		"an object":          {`reasons := {"a": "x"}`, nil},
		"a function":         {`reasons(x) := {x}`, nil},
		"a package of rules": {`reasons.a := 1`, nil},
		"no strings":         {`reasons := {1, null, true, {"a": 1}, ["x"], "y", "", "  "}`, []string{"y"}},
		"control characters": {`reasons := {"a\u0000\u001b[31m\nb\u202ec"}`, []string{"a  [31m b c"}},
		"long":               {fmt.Sprintf(`reasons := {%q}`, strings.Repeat("ä", 5000)), []string{strings.Repeat("ä", 126) + "…"}},
		"ten thousand": {
			`reasons contains sprintf("%d%d%d%d", [a, b, c, d]) if { some a in numbers; some b in numbers; some c in numbers; some d in numbers }
numbers := {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}`, nil,
		},
	} {
		p, err := Engine{}.Compile(t.Context(), "test", "package policy\ntrust_claims := {\"hardware\": 97}\n"+c.rule)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		a, err := p.Appraise(t.Context(), map[string]any{})
		if err != nil || a.Vector["hardware"] != 97 {
			t.Errorf("%s: %v, %v", name, a, err)
		}
		if name == "ten thousand" {
			if len(a.Reasons) != maxReasons || a.Reasons[0] != "0000" || a.Reasons[maxReasons-1] != "and 9985 more" {
				t.Errorf("%s: %q", name, a.Reasons)
			}
		} else if !slices.Equal(a.Reasons, c.want) {
			t.Errorf("%s: %q, want %q", name, a.Reasons, c.want)
		}
		if reasons, err := p.Reasons(t.Context(), nil, nil); err != nil || !slices.Equal(reasons, a.Reasons) {
			t.Errorf("%s as a resource policy: %q, %v", name, reasons, err)
		}
	}
	bad := compile(t, Engine{}, `package policy
extensions := [{"name": "ear.sealpod.unmet", "key": 1, "value": ["x"]}]`)
	if a, err := bad.Appraise(t.Context(), map[string]any{}); err == nil {
		t.Errorf("an extension replaces the reasons: %v", a)
	}
}

func TestAppraisalInWords(t *testing.T) {
	for want, a := range map[string]Appraisal{
		"affirming": {Status: Affirming, Vector: map[string]int{"hardware": 2, "file-system": 0}},
		"none":      {Status: None},
		"contraindicated (executables 33, hardware 97)": {Status: Contraindicated, Vector: map[string]int{"hardware": 97, "executables": 33, "configuration": 2}},
		"warning (hardware -96): a, b":                  {Status: Warning, Vector: map[string]int{"hardware": -96}, Reasons: []string{"a", "b"}},
	} {
		if got := a.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func FuzzReadReasons(f *testing.F) {
	f.Add(`["a", "b\u0000", 1]`)
	f.Add(`"x"`)
	f.Fuzz(func(t *testing.T, text string) {
		var v any
		if json.Unmarshal([]byte(text), &v) != nil {
			return
		}
		reasons := ReadReasons(v)
		if len(reasons) > maxReasons {
			t.Errorf("%d reasons", len(reasons))
		}
		for _, r := range reasons {
			if r == "" || len(r) > maxReasonBytes || strings.ContainsAny(r, "\x00\n\x1b") {
				t.Errorf("%q", r)
			}
		}
	})
}
