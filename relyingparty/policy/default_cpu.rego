# The attestation policy for CPU TEEs that applies until the owner uploads
# default_cpu. Without reference values every guest is contraindicated:
# executables 33 (not recognised), hardware 97 (not recognised),
# configuration 36 (not recognised as safe). The numbers are those of AR4SI.
#
# The table says what the claims of the evidence must be. Everything else follows
# from it: the trust claims, and the reasons why one is not affirmed. A claim or
# reference value that is missing, or of another type, fails its check. Names of
# reference values and what they are compared with:
# trustee attestation-service/docs/policy.md at 78962cd4.
package policy

# checks has, for each kind of TEE, what each trust claim takes. A claim of the
# evidence, by its path, must be
#   is        that value,
#   listed    in the reference value of that name, a list of what is good,
#   same      the reference value of that name,
#   at least  the reference value of that name, a number, or
#   pinned    listed, where that reference value is set.
#
# init_data is the digest the guest was started with. The host chooses it, so any
# verifies; the owner may pin it, as the evidence has it: in hex HOST_DATA for snp
# (32 bytes), MRCONFIGID for tdx (48 bytes, a shorter digest with zeros behind; the
# digest itself where init_data_binding is rtmr3) and PCR 8 where there is a TPM,
# and the digest in base64 for sample.
checks := {
	# No TEE at all. The resource policy refuses it whatever stands here.
	"sample": {
		"executables": [["sample.launch_digest", "listed", "launch_digest"]],
		"hardware": [
			["sample.svn", "listed", "svn"],
			["sample.platform_version.major", "same", "major_version"],
			["sample.platform_version.minor", "at least", "minimum_minor_version"],
		],
		"configuration": [
			["sample.debug", "is", false],
			["init_data", "pinned", "init_data"],
		],
	},
	# The launch measurement covers firmware and, with direct boot, kernel, initrd
	# and command line.
	"snp": {
		"executables": [["snp.measurement", "listed", "snp_launch_measurement"]],
		"hardware": [
			["snp.reported_tcb_bootloader", "listed", "snp_bootloader"],
			["snp.reported_tcb_microcode", "listed", "snp_microcode"],
			["snp.reported_tcb_snp", "listed", "snp_snp_svn"],
			["snp.reported_tcb_tee", "listed", "snp_tee_svn"],
		],
		"configuration": [
			["snp.policy_debug_allowed", "is", false],
			["snp.policy_migrate_ma", "is", false],
			["init_data", "pinned", "init_data"],
		],
	},
	# The firmware is in MRTD, what it started in RTMR 1 and 2. In RTMR 0 is what the
	# host hands to the firmware, ACPI tables among it, whose code the kernel runs;
	# it changes with the size of the machine, and who knows it pins it. Trustee lets
	# a TD pass that the host may migrate, by a service of its own choice that then
	# has the TD's memory; this policy does not.
	"tdx": {
		"executables": [
			["tdx.quote.body.rtmr_1", "listed", "rtmr_1"],
			["tdx.quote.body.rtmr_2", "listed", "rtmr_2"],
			["tdx.quote.body.rtmr_0", "pinned", "rtmr_0"],
		],
		"hardware": [
			["tdx.quote.header.tee_type", "is", "81000000"],
			["tdx.quote.header.vendor_id", "is", "939a7233f79c4ca9940a0db3957f0607"],
			["tdx.quote.body.mr_td", "listed", "mr_td"],
			["tdx.tcb_status", "is", "UpToDate"],
			["tdx.collateral_expiration_status", "is", "0"],
		],
		"configuration": [
			["tdx.td_attributes.debug", "is", false],
			["tdx.td_attributes.migratable", "is", false],
			["tdx.quote.body.xfam", "listed", "xfam"],
			["init_data", "pinned", "init_data"],
		],
	},
	# On Azure a paravisor is what is launched, and its virtual TPM measures the
	# guest: PCR 11 the unified kernel image with its command line. But any boot
	# loader can extend PCR 11 in the same way. Who does not trust the disk pins
	# PCR 4 as well, in which the firmware records what it starts; Trustee has no
	# such check. Numbers and truth values are text here. Trustee lets a guest pass
	# that the host may debug or migrate; this policy does not.
	"az-snp-vtpm": {
		"executables": [
			["az-snp-vtpm.measurement", "listed", "measurement"],
			["az-snp-vtpm.tpm.pcr11", "listed", "snp_pcr11"],
			["az-snp-vtpm.tpm.pcr04", "pinned", "snp_pcr04"],
		],
		"hardware": [
			["az-snp-vtpm.reported_tcb_bootloader", "listed", "tcb_bootloader"],
			["az-snp-vtpm.reported_tcb_microcode", "listed", "tcb_microcode"],
			["az-snp-vtpm.reported_tcb_snp", "listed", "tcb_snp"],
			["az-snp-vtpm.reported_tcb_tee", "listed", "tcb_tee"],
		],
		"configuration": [
			["az-snp-vtpm.policy_debug_allowed", "is", "false"],
			["az-snp-vtpm.policy_migrate_ma", "is", "false"],
			["az-snp-vtpm.platform_smt_enabled", "listed", "smt_enabled"],
			["az-snp-vtpm.platform_tsme_enabled", "listed", "tsme_enabled"],
			["az-snp-vtpm.policy_abi_major", "listed", "abi_major"],
			["az-snp-vtpm.policy_abi_minor", "listed", "abi_minor"],
			["az-snp-vtpm.policy_single_socket", "listed", "single_socket"],
			["az-snp-vtpm.policy_smt_allowed", "listed", "smt_allowed"],
			["init_data", "pinned", "init_data"],
		],
	},
	# As above. Only a paravisor may say what a TPM measured, and it leaves RTMRs
	# alone. Firmware for bare TDs, which an owner lists under the name mr_td too,
	# extends RTMR 0 before it starts anything, and then RTMR 1: what it starts is
	# no paravisor, whatever PCRs it signs. Trustee does not look; it also lets TDs
	# pass that the host may debug or migrate, or whose collateral has expired.
	"az-tdx-vtpm": {
		"executables": [
			["az-tdx-vtpm.quote.body.rtmr_0", "is", "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"],
			["az-tdx-vtpm.quote.body.rtmr_1", "is", "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"],
			["az-tdx-vtpm.tpm.pcr11", "listed", "tdx_pcr11"],
			["az-tdx-vtpm.tpm.pcr04", "pinned", "tdx_pcr04"],
		],
		"hardware": [
			["az-tdx-vtpm.quote.header.tee_type", "is", "81000000"],
			["az-tdx-vtpm.quote.header.vendor_id", "is", "939a7233f79c4ca9940a0db3957f0607"],
			["az-tdx-vtpm.quote.body.mr_td", "listed", "mr_td"],
			["az-tdx-vtpm.tcb_status", "is", "UpToDate"],
			["az-tdx-vtpm.collateral_expiration_status", "is", "0"],
		],
		"configuration": [
			["az-tdx-vtpm.td_attributes.debug", "is", false],
			["az-tdx-vtpm.td_attributes.migratable", "is", false],
			["az-tdx-vtpm.quote.body.xfam", "listed", "xfam"],
			["init_data", "pinned", "init_data"],
		],
	},
	# A TPM without a TEE. Anybody has one in software, and its evidence verifies:
	# only a key that the owner knows makes it the hardware of anyone. Trustee
	# affirms the hardware of every TPM; this policy does not.
	"tpm": {
		"executables": [
			["tpm.pcr11", "listed", "tpm_pcr11"],
			["tpm.ak_public", "listed", "trusted_aks"],
			["tpm.pcr04", "pinned", "tpm_pcr04"],
		],
		"hardware": [["tpm.ak_public", "listed", "trusted_aks"]],
		"configuration": [["init_data", "pinned", "init_data"]],
	},
}

# The verdict.

default executables := 33

default hardware := 97

default configuration := 36

trust_claims := {
	"executables": executables,
	"hardware": hardware,
	"configuration": configuration,
	"file-system": 0,
	"instance-identity": 0,
	"runtime-opaque": 0,
	"storage-opaque": 0,
	"sourced-data": 0,
}

# 3 when kernel and command line are known by themselves too, as with direct
# boot; 4 when only the registers are, as behind a boot loader.
executables := 4 if {
	"executables" in affirmed
	tee == "tdx"
	not tdx_direct_boot
} else := 3 if "executables" in affirmed

hardware := 2 if "hardware" in affirmed

# 2 when the configuration is the one expected, 3 when the host can at least
# not look into the guest, 0 when the evidence does not say.
configuration := 0 if {
	"configuration" in affirmed
	tee == "tpm"
} else := 3 if {
	"configuration" in affirmed
	tee == "snp"
	not snp_expected
} else := 2 if "configuration" in affirmed

tee := name if {
	some name, _ in checks
	input[name]
}

affirmed contains trust_claim if {
	some trust_claim, rows in checks[tee]
	every check in rows {
		holds(check)
	}
}

holds([claim, "is", value]) if claimed(claim) == value

holds([claim, "listed", name]) if claimed(claim) in list(name)

holds([claim, "same", name]) if {
	value := query_reference_value(name)
	value != null
	claimed(claim) == value
}

holds([claim, "at least", name]) if {
	minimum := query_reference_value(name)
	is_number(minimum)
	value := claimed(claim)
	is_number(value)
	value >= minimum
}

holds([claim, "pinned", name]) if claimed(claim) in list(name)

holds([_, "pinned", name]) if query_reference_value(name) == null

list(name) := value if {
	value := query_reference_value(name)
	is_array(value)
}

# A claim that is missing is like no value that JSON has.
claimed(claim) := object.get(input, split(claim, "."), set())

snp_expected if {
	every check in [
		["snp.platform_smt_enabled", "same", "snp_smt_enabled"],
		["snp.platform_tsme_enabled", "same", "snp_tsme_enabled"],
		["snp.policy_abi_major", "same", "snp_guest_abi_major"],
		["snp.policy_abi_minor", "same", "snp_guest_abi_minor"],
		["snp.policy_single_socket", "same", "snp_single_socket"],
		["snp.policy_smt_allowed", "same", "snp_smt_allowed"],
	] {
		holds(check)
	}
}

# Events of other registers do not count: RTMR 3 is extended by whatever runs in
# the guest.
tdx_boot_events contains event if {
	some event in input.tdx.uefi_event_logs
	event.index in {2, 3} # RTMR 1 and 2
}

tdx_direct_boot if {
	some kernel in tdx_boot_events
	kernel.type_name == "EV_EFI_BOOT_SERVICES_APPLICATION"
	"File(kernel)" in kernel.details.device_paths
	some k in kernel.digests
	k.digest == query_reference_value("tdvfkernel")

	some line in tdx_boot_events
	line.type_name == "EV_EVENT_TAG"
	line.details.string == "LOADED_IMAGE::LoadOptions"
	some l in line.digests
	l.digest == query_reference_value("tdvfkernelparams")
}

# Why a trust claim is not affirmed, for the log and for the guest: claims, which
# are the guest's own, and names of reference values, never what they are.

reasons contains objection(check) if {
	some trust_claim, rows in checks[tee]
	not trust_claim in affirmed
	some check in rows
	not holds(check)
}

reasons contains "the policy has no rules for this kind of TEE" if not tee

objection([claim, kind, want]) := sprintf("reference value %q is not set", [want]) if {
	kind != "is"
	query_reference_value(want) == null
} else := sprintf("reference value %q is no list", [want]) if {
	kind in {"listed", "pinned"}
	not is_array(query_reference_value(want))
} else := sprintf("%s is missing", [claim]) if {
	claimed(claim) == set()
} else := sprintf("%s is %s", [claim, json.marshal(claimed(claim))]) if {
	kind == "is"
} else := sprintf("%s is not %s %q", [claim, kinds[kind], want])

kinds := {
	"listed": "among the reference values",
	"pinned": "among the reference values",
	"same": "the reference value",
	"at least": "at least the reference value",
}

# What the guest's own policy says it may run, for resource policies to read.
extensions := [{"name": "ear.trustee.identifiers", "key": -18, "value": {"validated": validated}}]

containers := input.init_data_claims.agent_policy_claims.containers

images := [image | some c in containers; image := c.OCI.Annotations["io.kubernetes.cri.image-name"]]

uids := [uid | some c in containers; uid := c.OCI.Process.User.UID]

validated["container_images"] := images if count(images) > 0

validated["container_uids"] := uids if count(uids) > 0
