#!/bin/sh
# Makes the directory $1 with a key for this build alone, and cloud-init's user
# data that let it in to the build machine.
set -eu
[ $# -eq 1 ] || { echo "usage: $0 DIRECTORY" >&2; exit 2; }
umask 077
mkdir -p "$1"
rm -f "$1/key" "$1/key.pub"
ssh-keygen -q -t ed25519 -N '' -C podvm-build -f "$1/key"
echo 'instance-id: podvm-build' >"$1/meta-data"
cat >"$1/user-data" <<EOF
#cloud-config
users:
  - name: packer
    lock_passwd: true
    shell: /bin/sh
    sudo: ALL=(ALL) NOPASSWD:ALL
    ssh_authorized_keys:
      - $(cat "$1/key.pub")
ssh_pwauth: false
EOF
