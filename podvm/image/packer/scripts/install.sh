#!/bin/sh
# Installs the tree /tmp/tree.tar.gz and what its programs need of the
# distribution, Debian or Ubuntu. Runs as root on the build machine.
# FORWARDER_PORT and TLS_OPTIONS are agent-protocol-forwarder's.
set -eu
export DEBIAN_FRONTEND=noninteractive

# cloud-init may still be at work on the same lists of packages.
if command -v cloud-init >/dev/null; then
  cloud-init status --wait >/dev/null || true
fi
apt-get update -qq
apt-get install -y -qq --no-install-recommends \
  iproute2 iptables cryptsetup-bin e2fsprogs xfsprogs dmsetup fuse3 gocryptfs \
  libseccomp2 ca-certificates dbus libtss2-tcti-device0 >/dev/null 2>&1 ||
  # The name since the 64-bit time_t.
  apt-get install -y -qq --no-install-recommends \
    iproute2 iptables cryptsetup-bin e2fsprogs xfsprogs dmsetup fuse3 gocryptfs \
    libseccomp2 ca-certificates dbus libtss2-tcti-device0t64 >/dev/null

# Links like /lib are the distribution's to keep.
tar -xzf /tmp/tree.tar.gz -C / --no-same-owner --keep-directory-symlink
rm /tmp/tree.tar.gz

mkdir -p /etc/default /etc/kata-opa /media/cidata
cat >/etc/default/agent-protocol-forwarder <<EOF
TLS_OPTIONS=${TLS_OPTIONS}
OPTIONS=-listen 0.0.0.0:${FORWARDER_PORT}
EOF

for file in /usr/local/bin/sealpod /usr/local/bin/kata-agent; do
  if [ ! -x "$file" ]; then
    echo "the tree has no $file" >&2
    exit 1
  fi
done
[ -d /pause_bundle ] || echo "WARNING: the tree has no /pause_bundle" >&2

systemctl daemon-reload
systemctl preset-all --preset-mode=enable-only >/dev/null 2>&1
