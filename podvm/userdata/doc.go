// Package userdata turns what the host gives a pod VM at its start, the user
// data, into the files that everything else in the VM is configured by.
//
// Data path: the metadata service of the cloud, or a disk, → Provision →
// /run/peerpod: apf.json for the forwarder, auth.json and cdh.toml for the data
// hub, policy.rego for kata-agent, the init data with its digest, and last
// aa.toml, which is what the attestation agent is started by. The digest is
// extended into PCR 8 before anything is written; the attestation agent binds
// the same init data to the evidence of other TEEs. Package cidata reads the
// disk, package azureready tells Azure that the VM is up.
//
// Trust: all user data is the host's and hostile. It is capped, parsed strictly,
// and may only set the files of a fixed list. What a relying party can hold the
// host to is the init data, which is measured; the other files are not, and
// where one takes the place of measured configuration that is said, or refused
// (Config.MeasuredOnly).
//
// Source: cloud-api-adaptor src/cloud-api-adaptor/pkg/{userdata,initdata,paths}
// and podvm/ at fbdde756.
package userdata
