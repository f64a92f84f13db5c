package policy

import (
	"maps"
	"strings"
	"testing"
)

const (
	snpInput = `{"snp":{"measurement":"aa","reported_tcb_bootloader":4,"reported_tcb_microcode":213,"reported_tcb_snp":22,
		"reported_tcb_tee":0,"policy_debug_allowed":false,"policy_migrate_ma":false,"policy_abi_major":0,"policy_abi_minor":31,
		"policy_single_socket":false,"policy_smt_allowed":true,"platform_smt_enabled":true,"platform_tsme_enabled":false,
		"chip_id":"cc"},"report_data":"x","init_data":"y"}`
	tdxInput = `{"tdx":{"quote":{"header":{"tee_type":"81000000","vendor_id":"939a7233f79c4ca9940a0db3957f0607"},
		"body":{"mr_td":"bb","rtmr_0":"10","rtmr_1":"11","rtmr_2":"22","xfam":"e7"}},"td_attributes":{"debug":false,"migratable":false},
		"tcb_status":"UpToDate","collateral_expiration_status":"0","uefi_event_logs":[
		{"index":2,"type_name":"EV_EFI_BOOT_SERVICES_APPLICATION","digests":[{"alg":"SHA-384","digest":"0a"}],"details":{"device_paths":["PciRoot","File(kernel)"]}},
		{"index":3,"type_name":"EV_EVENT_TAG","digests":[{"alg":"SHA-384","digest":"0b"}],"details":{"string":"LOADED_IMAGE::LoadOptions"}},
		{"index":3,"type_name":"EV_SEPARATOR","digests":[{"alg":"SHA-384","digest":"0c"}],"details":{}}]},"report_data":"x","init_data":"y"}`
	snpValues = `{"snp_launch_measurement":["00","aa"],"snp_bootloader":[4],"snp_microcode":[213],"snp_snp_svn":[21,22],
		"snp_tee_svn":[0],"snp_smt_enabled":true,"snp_tsme_enabled":false,"snp_guest_abi_major":0,"snp_guest_abi_minor":31,
		"snp_single_socket":false,"snp_smt_allowed":true}`
	tdxValues = `{"mr_td":["bb"],"rtmr_1":["11"],"rtmr_2":["00","22"],"xfam":["e7"],"tdvfkernel":"0a","tdvfkernelparams":"0b"}`
)

// verdict is what the default policy says of a TEE.
type verdict struct {
	executables, hardware, configuration int
	status                               string
}

func judge(t *testing.T, ref map[string]any, input any) verdict {
	t.Helper()
	a, err := compile(t, Engine{Reference: values(ref)}, defaultCPU).Appraise(t.Context(), input)
	if err != nil {
		t.Fatal(err)
	}
	for name, claim := range a.Vector {
		if name != "executables" && name != "hardware" && name != "configuration" && claim != 0 {
			t.Errorf("%s is %d", name, claim)
		}
	}
	return verdict{a.Vector["executables"], a.Vector["hardware"], a.Vector["configuration"], a.Status}
}

func TestDefaultCPUPolicyWithoutReferenceValues(t *testing.T) {
	for input, want := range map[string]verdict{
		snpInput: {33, 97, 3, Contraindicated}, tdxInput: {33, 97, 36, Contraindicated}, `{"az-snp-vtpm":{}}`: {33, 97, 36, Contraindicated}, `{}`: {33, 97, 36, Contraindicated},
	} {
		if got := judge(t, nil, decode(t, input)); got != want {
			t.Errorf("%.20s: %v, want %v", input, got, want)
		}
	}
}

// TestDefaultCPUPolicyOnHardware changes one claim or one reference value in
// each row, of evidence that is affirmed as it stands.
func TestDefaultCPUPolicyOnHardware(t *testing.T) {
	for _, tee := range []struct {
		input, values string
		rows          map[string]verdict // by the JSON that replaces something: old -> new
	}{
		{snpInput, snpValues, map[string]verdict{
			"->":                                     {3, 2, 2, Affirming},
			`"measurement":"aa"->"measurement":"ab"`: {33, 2, 2, Warning},
			`"measurement":"aa"->"measurement":["aa"]`:                             {33, 2, 2, Warning},
			`"reported_tcb_bootloader":4->"reported_tcb_bootloader":3`:             {3, 97, 2, Contraindicated},
			`"reported_tcb_bootloader":4->"reported_tcb_bootloader":"4"`:           {3, 97, 2, Contraindicated},
			`"reported_tcb_microcode":213->"reported_tcb_microcode":214`:           {3, 97, 2, Contraindicated},
			`"reported_tcb_snp":22->"reported_tcb_snp":20`:                         {3, 97, 2, Contraindicated},
			`"reported_tcb_tee":0->"reported_tcb_tee":1`:                           {3, 97, 2, Contraindicated},
			`"policy_debug_allowed":false->"policy_debug_allowed":true`:            {3, 2, 36, Warning},
			`"policy_debug_allowed":false->"policy_debug_allowed":null`:            {3, 2, 36, Warning},
			`"policy_migrate_ma":false->"policy_migrate_ma":true`:                  {3, 2, 36, Warning},
			`"platform_smt_enabled":true->"platform_smt_enabled":false`:            {3, 2, 3, Affirming},
			`"platform_tsme_enabled":false->"platform_tsme_enabled":true`:          {3, 2, 3, Affirming},
			`"policy_abi_major":0->"policy_abi_major":1`:                           {3, 2, 3, Affirming},
			`"policy_abi_minor":31->"policy_abi_minor":30`:                         {3, 2, 3, Affirming},
			`"policy_single_socket":false->"policy_single_socket":true`:            {3, 2, 3, Affirming},
			`"policy_smt_allowed":true->"policy_smt_allowed":false`:                {3, 2, 3, Affirming},
			`"snp_launch_measurement":["00","aa"]->"snp_launch_measurement":"aaa"`: {33, 2, 2, Warning},
			`"snp_smt_enabled":true->"snp_smt_enabled":[true]`:                     {3, 2, 3, Affirming},
		}},
		{tdxInput, tdxValues, map[string]verdict{
			"->":                           {3, 2, 2, Affirming},
			`"rtmr_1":"11"->"rtmr_1":"12"`: {33, 2, 2, Warning},
			`"rtmr_2":"22"->"rtmr_2":"23"`: {33, 2, 2, Warning},
			`"digest":"0a"->"digest":"0d"`: {4, 2, 2, Affirming},
			`"digest":"0b"->"digest":"0d"`: {4, 2, 2, Affirming},
			// the right digest at the wrong event
			`"File(kernel)"->"File(shim)"`:                   {4, 2, 2, Affirming},
			`LOADED_IMAGE::LoadOptions->LOADED_IMAGE::Other`: {4, 2, 2, Affirming},
			`EV_EVENT_TAG->EV_IPL`:                           {4, 2, 2, Affirming},
			`EV_EFI_BOOT_SERVICES_APPLICATION->EV_IPL`:       {4, 2, 2, Affirming},
			// what the guest may extend when it runs
			`"index":2->"index":4`:                   {4, 2, 2, Affirming},
			`"index":3->"index":4`:                   {4, 2, 2, Affirming},
			`"tdvfkernel":"0a"->"tdvfkernel":["0a"]`: {4, 2, 2, Affirming},
			`"mr_td":"bb"->"mr_td":"bc"`:             {3, 97, 2, Contraindicated},
			`81000000->00000000`:                     {3, 97, 2, Contraindicated},
			`939a7233->939a7234`:                     {3, 97, 2, Contraindicated},
			`UpToDate->OutOfDate`:                    {3, 97, 2, Contraindicated},
			`UpToDate->SWHardeningNeeded`:            {3, 97, 2, Contraindicated},
			`"collateral_expiration_status":"0"->"collateral_expiration_status":"1"`: {3, 97, 2, Contraindicated},
			`"collateral_expiration_status":"0"->"collateral_expiration_status":0`:   {3, 97, 2, Contraindicated},
			`"debug":false->"debug":true`:                                            {3, 2, 36, Warning},
			`"xfam":"e7"->"xfam":"e5"`:                                               {3, 2, 36, Warning},
		}},
	} {
		for row, want := range tee.rows {
			old, changed, _ := strings.Cut(row, "->")
			input, ref := strings.Replace(tee.input, old, changed, 1), strings.Replace(tee.values, old, changed, 1)
			if got := judge(t, decode(t, ref), decode(t, input)); got != want {
				t.Errorf("%s: %v, want %v", row, got, want)
			}
		}
	}
}

// without returns the document once for each of its members, at any depth,
// with that member removed, by path.
func without(doc any) map[string]any {
	out := map[string]any{}
	switch v := doc.(type) {
	case map[string]any:
		for name, value := range v {
			less := maps.Clone(v)
			delete(less, name)
			out["."+name] = less
			for path, inner := range without(value) {
				changed := maps.Clone(v)
				changed[name] = inner
				out["."+name+path] = changed
			}
		}
	case []any:
		for i, value := range v {
			less := append([]any{}, v[:i]...)
			out["[]"] = append(less, v[i+1:]...)
			for path, inner := range without(value) {
				changed := append([]any{}, v...)
				changed[i] = inner
				out["["+string(rune('0'+i))+"]"+path] = changed
			}
		}
	}
	return out
}

// ignored are members of the inputs that the default policy has no rule for, or
// one only where the owner pins them.
func ignored(path string) bool {
	for _, end := range []string{".chip_id", ".report_data", ".init_data", ".alg", ".rtmr_0"} {
		if strings.HasSuffix(path, end) {
			return true
		}
	}
	return strings.HasPrefix(path, ".tdx.uefi_event_logs[2]") || path == ".tdx.uefi_event_logs[]" || strings.HasSuffix(path, ".device_paths[]")
}

func TestDefaultCPUPolicyTrustsNothingThatIsMissing(t *testing.T) {
	for _, tee := range []struct{ input, values string }{{snpInput, snpValues}, {tdxInput, tdxValues}} {
		input, ref := decode(t, tee.input), decode(t, tee.values)
		full := judge(t, ref, input)
		lower := func(what string, got verdict) {
			t.Helper()
			known := 0
			for _, pair := range [][2]int{{got.executables, full.executables}, {got.hardware, full.hardware}, {got.configuration, full.configuration}} {
				if pair[0] < pair[1] {
					t.Errorf("without %s: %v is better than %v", what, got, full)
				}
				if pair[0] == pair[1] {
					known++
				}
			}
			if known == 3 {
				t.Errorf("without %s: still %v", what, got)
			}
		}
		for path, less := range without(input) {
			if !ignored(path) {
				lower(path, judge(t, ref, less))
			}
		}
		for name := range ref {
			less := maps.Clone(ref)
			delete(less, name)
			lower("reference value "+name, judge(t, less, input))
		}
	}
}
