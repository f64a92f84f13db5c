package registry

// Rules say where images really come from: mirrors, rewrites, blocks. The
// format is a subset of containers-registries.conf(5); the zero value changes
// nothing. Source: guest-components image-rs registry/mod.rs at 8246e5e.
type Rules struct {
	// UnqualifiedSearch lists the registries tried for an image of docker.io,
	// whether or not its reference says so. Nil means docker.io only.
	UnqualifiedSearch []string `config:"unqualified-search-registries"`
	// Registry holds the rules; the longest matching prefix wins.
	Registry []Rule `config:"registry"`
}

// Rule is one [[registry]] table.
type Rule struct {
	// Prefix selects images: host[:port][/path…], or *.domain for any
	// subdomain. Empty means Location.
	Prefix string `config:"prefix"`
	// Location replaces the matched prefix; empty keeps the name.
	Location string `config:"location"`
	// Insecure selects plain HTTP; it counts only when Location is set.
	Insecure bool `config:"insecure"`
	// Blocked refuses every image the rule selects.
	Blocked bool `config:"blocked"`
	// Mirror are tried in order before Location.
	Mirror []Mirror `config:"mirror"`
}

// Mirror is one [[registry.mirror]] table.
type Mirror struct {
	// Location replaces the matched prefix.
	Location string `config:"location"`
	// Insecure selects plain HTTP.
	Insecure bool `config:"insecure"`
}
