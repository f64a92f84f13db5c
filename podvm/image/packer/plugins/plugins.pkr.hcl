# What packer 1.7 and later needs besides: run
#   packer init podvm/image/packer/plugins
# once. It is apart because packer 1.6, which has both builders built in, takes
# this block for a mistake; newer ones find plugins that are installed by
# themselves.
packer {
  required_plugins {
    azure = {
      source  = "github.com/hashicorp/azure"
      version = "~> 2"
    }
    qemu = {
      source  = "github.com/hashicorp/qemu"
      version = "~> 1"
    }
  }
}
