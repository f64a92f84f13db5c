#!/bin/sh
# Leaves nothing of the build in the image, and no way to log in, but for the
# account that packer is logged in to: that goes at the shutdown. The last script.
set -eu

for unit in apt-daily.timer apt-daily-upgrade.timer unattended-upgrades.service \
  snapd.service snapd.socket snapd.seeded.service motd-news.timer e2scrub_all.timer; do
  systemctl disable "$unit" >/dev/null 2>&1 || true
  systemctl mask "$unit" >/dev/null 2>&1 || true
done
for unit in ssh.service ssh.socket serial-getty@ttyS0.service getty@tty1.service; do
  systemctl disable "$unit" >/dev/null 2>&1 || true
done
# Not stopped: packer is logged in.
systemctl mask ssh.service ssh.socket getty@.service serial-getty@.service debug-shell.service >/dev/null 2>&1

passwd --lock root >/dev/null
rm -rf /root/.ssh /home/*/.ssh /etc/ssh/ssh_host_*

# A socket that is there before its daemon would start the units behind it.
rm -rf /run/kata-containers/agent.sock /run/peerpod /run/confidential-containers
: >/etc/machine-id
rm -f /var/lib/dbus/machine-id /var/lib/systemd/random-seed
apt-get clean
rm -rf /var/lib/apt/lists/* /var/lib/cloud/instances /var/lib/cloud/instance /tmp/* /var/tmp/*
find /var/log -type f -exec truncate -s 0 {} +
sync
