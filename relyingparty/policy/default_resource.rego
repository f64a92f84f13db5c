# The resource policy that applies until the owner uploads one: a guest may read
# resources when the attestation policy affirms every part of it, which takes
# reference values, and its evidence is not only a sample. Trustee's default
# also serves a genuine guest in any state, a debug VM included.
package policy

default allow := false

allow if {
	data.plugin == "resource"
	count(input.submods) > 0
	every part in input.submods {
		part["ear.status"] == "affirming"
	}
	not sampled
}

reasons contains "the evidence is only a sample" if sampled

reasons contains "only the plugin \"resource\" is open" if data.plugin != "resource"

sampled if input.submods.cpu0["ear.veraison.annotated-evidence"].sample
