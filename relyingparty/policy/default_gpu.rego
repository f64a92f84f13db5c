# The attestation policy for devices that applies until the owner uploads
# default_gpu. The fallbacks are those of default_cpu.
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

hardware := 2 if input.sampledevice.svn in query_reference_value("device_svn")

reasons contains "the policy has no rules for executables and configuration of a device"

reasons contains "reference value \"device_svn\" is not set" if query_reference_value("device_svn") == null

reasons contains "sampledevice.svn is not among the reference values \"device_svn\"" if {
	query_reference_value("device_svn") != null
	hardware != 2
}
