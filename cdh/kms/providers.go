package kms

import (
	"maps"
	"slices"

	"github.com/sealpod/sealpod/cdh/kms/aliyun"
	"github.com/sealpod/sealpod/cdh/kms/aws"
	"github.com/sealpod/sealpod/cdh/kms/azure"
	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/cdh/kms/vault"
)

// Names lists the providers of this build, in order.
func Names() []string { return slices.Sorted(maps.Keys(providers)) }

// providers has what this build knows. What New of a provider package returns
// may keep state, such as a login; it lives as long as the Client.
var providers = map[string]func(wire.Env) wire.Opener{
	"aliyun": aliyun.New,
	"aws":    aws.New,
	"azure":  azure.New,
	"vault":  vault.New,
}
