# Bakes a pod VM on Azure, from an Ubuntu image for confidential VMs into a
# version of a gallery image. Its root file system is neither measured nor
# read-only: where that matters, take the image that make image builds.
#
#   make install DESTDIR=tree && tar -C tree -czf tree.tar.gz .
#   packer build -var tree=tree.tar.gz -var subscription_id=… … podvm/image/packer/azure-arm

variable "subscription_id" {
  type        = string
  description = "Where the build machine and the image are."
}

variable "client_id" {
  type        = string
  default     = ""
  description = "Service principal that builds. Empty is whoever is logged in with the az command."
}

variable "client_secret" {
  type      = string
  default   = ""
  sensitive = true
}

variable "tenant_id" {
  type    = string
  default = ""
}

variable "location" {
  type    = string
  default = "eastus"
}

variable "vm_size" {
  type        = string
  default     = "Standard_D2as_v5"
  description = "Of the build machine, which is no confidential VM."
}

variable "image_publisher" {
  type    = string
  default = "Canonical"
}

variable "image_offer" {
  type    = string
  default = "0001-com-ubuntu-confidential-vm-jammy"
}

variable "image_sku" {
  type    = string
  default = "22_04-lts-cvm"
}

variable "resource_group" {
  type        = string
  description = "Of the managed image and of the gallery."
}

variable "gallery" {
  type = string
}

variable "gallery_image" {
  type        = string
  description = "Its definition: Linux, generation 2, security type ConfidentialVMSupported."
}

variable "gallery_version" {
  type    = string
  default = "0.0.1"
}

variable "replication_regions" {
  type    = list(string)
  default = []
}

variable "managed_image" {
  type    = string
  default = "podvm"
}

variable "tree" {
  type        = string
  description = "Archive (tar.gz) of what make install leaves in DESTDIR, with /usr/local/bin/kata-agent and /pause_bundle."
}

variable "forwarder_port" {
  type    = string
  default = "15150"
}

variable "tls_options" {
  type        = string
  default     = ""
  description = "Of agent-protocol-forwarder, as -ca-cert-file /etc/certificates/ca.crt. Empty where apf.json has the certificates."
}

source "azure-arm" "podvm" {
  use_azure_cli_auth = var.client_id == ""
  subscription_id    = var.subscription_id
  client_id          = var.client_id
  client_secret      = var.client_secret
  tenant_id          = var.tenant_id

  location        = var.location
  vm_size         = var.vm_size
  os_type         = "Linux"
  image_publisher = var.image_publisher
  image_offer     = var.image_offer
  image_sku       = var.image_sku

  managed_image_name                = var.managed_image
  managed_image_resource_group_name = var.resource_group

  shared_image_gallery_destination {
    # On Standard_LRS, which is what Azure does of itself: packer 1.6 cannot name
    # the type of storage.
    subscription        = var.subscription_id
    resource_group      = var.resource_group
    gallery_name        = var.gallery
    image_name          = var.gallery_image
    image_version       = var.gallery_version
    replication_regions = length(var.replication_regions) > 0 ? var.replication_regions : [var.location]
  }
}

build {
  sources = ["source.azure-arm.podvm"]

  provisioner "file" {
    source      = var.tree
    destination = "/tmp/tree.tar.gz"
  }

  provisioner "shell" {
    scripts          = ["${path.root}/../scripts/install.sh", "${path.root}/../scripts/azure-user.sh", "${path.root}/../scripts/seal.sh"]
    environment_vars = ["FORWARDER_PORT=${var.forwarder_port}", "TLS_OPTIONS=${var.tls_options}"]
    execute_command  = "chmod +x {{ .Path }}; sudo env {{ .Vars }} {{ .Path }}"
  }

  # The last: it removes the account that packer has logged in to.
  provisioner "shell" {
    inline          = ["waagent -force -deprovision+user && sync"]
    execute_command = "chmod +x {{ .Path }}; sudo env {{ .Vars }} sh {{ .Path }}"
  }
}
