# The attestation policy for CPU TEEs that applies until the owner uploads
# default_cpu. Without reference values every guest is contraindicated:
# executables 33 (not recognised), hardware 97 (not recognised),
# configuration 36 (not recognised as safe). The numbers are those of AR4SI.
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

listed(name, value) if value in query_reference_value(name)

executables := 3 if listed("launch_digest", input.sample.launch_digest)

hardware := 2 if {
	listed("svn", input.sample.svn)
	input.sample.platform_version.major == query_reference_value("major_version")
	minimum := query_reference_value("minimum_minor_version")
	is_number(minimum)
	input.sample.platform_version.minor >= minimum
}

configuration := 2 if input.sample.debug == false

# What the guest's own policy says it may run, for resource policies to read.
extensions := [{"name": "ear.trustee.identifiers", "key": -18, "value": {"validated": validated}}]

containers := input.init_data_claims.agent_policy_claims.containers

images := [image | some c in containers; image := c.OCI.Annotations["io.kubernetes.cri.image-name"]]

uids := [uid | some c in containers; uid := c.OCI.Process.User.UID]

validated["container_images"] := images if count(images) > 0

validated["container_uids"] := uids if count(uids) > 0
