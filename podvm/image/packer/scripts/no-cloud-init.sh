#!/bin/sh
# User data of a pod VM are for process-user-data, and come in the same way as
# those that cloud-init would follow. IBM's machines on s390x have no other reader.
set -eu
if [ "$(uname -m)" != s390x ]; then
  touch /etc/cloud/cloud-init.disabled
  # What cloud-init has configured is for the build machine's card alone.
  rm -f /etc/netplan/50-cloud-init.yaml /etc/network/interfaces.d/50-cloud-init
  cat >/etc/systemd/network/80-dhcp.network <<EOF
[Match]
Name=en* eth*

[Network]
DHCP=yes
EOF
  systemctl enable systemd-networkd >/dev/null 2>&1
fi
