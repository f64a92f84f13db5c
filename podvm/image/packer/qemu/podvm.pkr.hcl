# Bakes a pod VM for qemu and libvirt out of a distribution's cloud image. Its
# root file system is neither measured nor read-only: where that matters, take
# the image that make image builds.
#
#   make install DESTDIR=tree && tar -C tree -czf tree.tar.gz .
#   podvm/image/packer/scripts/seed.sh seed
#   packer build -var tree=tree.tar.gz -var seed=seed podvm/image/packer/qemu
#
# For aarch64 and s390x, image_url, qemu_binary, machine_type and firmware change:
# virt and /usr/share/AAVMF/AAVMF_CODE.fd, or s390-ccw-virtio and no firmware.

variable "image_url" {
  type    = string
  default = "https://cloud.debian.org/images/cloud/trixie/latest/debian-13-genericcloud-amd64.qcow2"
}

variable "image_checksum" {
  type    = string
  default = "file:https://cloud.debian.org/images/cloud/trixie/latest/SHA512SUMS"
}

variable "qemu_binary" {
  type    = string
  default = "qemu-system-x86_64"
}

variable "machine_type" {
  type    = string
  default = "q35"
}

variable "firmware" {
  type        = string
  default     = "/usr/share/ovmf/OVMF.fd"
  description = "UEFI firmware; empty is the machine's own."
}

variable "accelerator" {
  type        = string
  default     = "kvm"
  description = "kvm, or tcg where there is none."
}

variable "disk_size" {
  type    = string
  default = "6144M"
}

variable "memory" {
  type    = number
  default = 2048
}

variable "output" {
  type    = string
  default = "output"
}

variable "name" {
  type    = string
  default = "podvm.qcow2"
}

variable "seed" {
  type        = string
  description = "Directory made by seed.sh, with the key that packer logs in with."
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

source "qemu" "podvm" {
  iso_url      = var.image_url
  iso_checksum = var.image_checksum
  disk_image   = true
  format       = "qcow2"
  disk_size    = var.disk_size

  qemu_binary    = var.qemu_binary
  machine_type   = var.machine_type
  accelerator    = var.accelerator
  memory         = var.memory
  cpus           = 2
  disk_interface = "virtio"
  net_device     = "virtio-net"
  headless       = true
  display        = "none"

  qemuargs = [for arg in [["-bios", var.firmware], ["-serial", "file:${var.output}.console"]] : arg if arg[1] != ""]

  # cloud-init's NoCloud source.
  cd_files = ["${var.seed}/user-data", "${var.seed}/meta-data"]
  cd_label = "cidata"

  communicator         = "ssh"
  ssh_username         = "packer"
  ssh_private_key_file = "${var.seed}/key"
  ssh_timeout          = "10m"

  output_directory = var.output
  vm_name          = var.name
  # The account of the build goes last, as packer is logged in to it until then.
  shutdown_command = "sudo sh -c 'userdel --force --remove packer; rm -f /etc/sudoers.d/90-cloud-init-users; shutdown -P now'"
  shutdown_timeout = "5m"
}

build {
  sources = ["source.qemu.podvm"]

  provisioner "file" {
    source      = var.tree
    destination = "/tmp/tree.tar.gz"
  }

  provisioner "shell" {
    scripts          = ["${path.root}/../scripts/install.sh", "${path.root}/../scripts/no-cloud-init.sh", "${path.root}/../scripts/seal.sh"]
    environment_vars = ["FORWARDER_PORT=${var.forwarder_port}", "TLS_OPTIONS=${var.tls_options}"]
    execute_command  = "chmod +x {{ .Path }}; sudo env {{ .Vars }} {{ .Path }}"
  }
}
