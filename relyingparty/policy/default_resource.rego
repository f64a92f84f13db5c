# The resource policy that applies until the owner uploads one: every attested
# guest may read resources, except one whose evidence is only a sample.
package policy

default allow := false

allow if {
	data.plugin == "resource"
	not sampled
}

sampled if input.submods.cpu0["ear.veraison.annotated-evidence"].sample
