# The attestation policy for CPU TEEs that applies until the owner uploads
# default_cpu. Without reference values every guest is contraindicated:
# executables 33 (not recognised), hardware 97 (not recognised),
# configuration 36 (not recognised as safe). The numbers are those of AR4SI.
#
# A claim or reference value that is missing makes a rule undefined, and the
# fallback stands. Names of reference values and what they are compared with:
# trustee attestation-service/docs/policy.md at 78962cd4.
package policy

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

# Most reference values are lists of what is good; some are the one value.
listed(name, value) if value in query_reference_value(name)

same(name, value) if value == query_reference_value(name)

# sample: no TEE at all. The resource policy refuses it whatever stands here.

executables := 3 if listed("launch_digest", input.sample.launch_digest)

hardware := 2 if {
	listed("svn", input.sample.svn)
	same("major_version", input.sample.platform_version.major)
	minimum := query_reference_value("minimum_minor_version")
	is_number(minimum)
	input.sample.platform_version.minor >= minimum
}

configuration := 2 if input.sample.debug == false

# snp: the launch measurement covers firmware and, with direct boot, kernel,
# initrd and command line.

executables := 3 if listed("snp_launch_measurement", input.snp.measurement)

hardware := 2 if {
	listed("snp_bootloader", input.snp.reported_tcb_bootloader)
	listed("snp_microcode", input.snp.reported_tcb_microcode)
	listed("snp_snp_svn", input.snp.reported_tcb_snp)
	listed("snp_tee_svn", input.snp.reported_tcb_tee)
}

# 2 when the configuration is the one expected, 3 when the host can at least
# not look into the guest.
configuration := 2 if {
	snp_closed
	same("snp_smt_enabled", input.snp.platform_smt_enabled)
	same("snp_tsme_enabled", input.snp.platform_tsme_enabled)
	same("snp_guest_abi_major", input.snp.policy_abi_major)
	same("snp_guest_abi_minor", input.snp.policy_abi_minor)
	same("snp_single_socket", input.snp.policy_single_socket)
	same("snp_smt_allowed", input.snp.policy_smt_allowed)
} else := 3 if snp_closed

snp_closed if {
	input.snp.policy_debug_allowed == false
	input.snp.policy_migrate_ma == false
}

# tdx: the firmware is in MRTD, what it started in RTMR 1 and 2. 3 when kernel
# and command line are known by themselves too, as with direct boot; 4 when only
# the registers are, as behind a boot loader. Events of other registers do not
# count: RTMR 3 is extended by whatever runs in the guest.

executables := 3 if {
	tdx_boot_listed
	tdx_kernel_same
	tdx_command_line_same
} else := 4 if tdx_boot_listed

tdx_boot_listed if {
	listed("rtmr_1", input.tdx.quote.body.rtmr_1)
	listed("rtmr_2", input.tdx.quote.body.rtmr_2)
}

tdx_boot_events contains event if {
	some event in input.tdx.uefi_event_logs
	event.index in {2, 3} # RTMR 1 and 2
}

tdx_kernel_same if {
	some event in tdx_boot_events
	event.type_name == "EV_EFI_BOOT_SERVICES_APPLICATION"
	"File(kernel)" in event.details.device_paths
	some d in event.digests
	same("tdvfkernel", d.digest)
}

tdx_command_line_same if {
	some event in tdx_boot_events
	event.type_name == "EV_EVENT_TAG"
	event.details.string == "LOADED_IMAGE::LoadOptions"
	some d in event.digests
	same("tdvfkernelparams", d.digest)
}

# The vendor is Intel, by the id of its quoting enclaves.
hardware := 2 if {
	input.tdx.quote.header.tee_type == "81000000"
	input.tdx.quote.header.vendor_id == "939a7233f79c4ca9940a0db3957f0607"
	listed("mr_td", input.tdx.quote.body.mr_td)
	input.tdx.tcb_status == "UpToDate"
	input.tdx.collateral_expiration_status == "0"
}

configuration := 2 if {
	input.tdx.td_attributes.debug == false
	listed("xfam", input.tdx.quote.body.xfam)
}

# What the guest's own policy says it may run, for resource policies to read.
extensions := [{"name": "ear.trustee.identifiers", "key": -18, "value": {"validated": validated}}]

containers := input.init_data_claims.agent_policy_claims.containers

images := [image | some c in containers; image := c.OCI.Annotations["io.kubernetes.cri.image-name"]]

uids := [uid | some c in containers; uid := c.OCI.Process.User.UID]

validated["container_images"] := images if count(images) > 0

validated["container_uids"] := uids if count(uids) > 0
