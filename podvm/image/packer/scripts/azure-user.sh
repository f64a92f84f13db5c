#!/bin/sh
# The account that cloud-api-adaptor names for every machine it makes at Azure.
# Nobody logs in to it: it is there so that nothing has to make it later.
# Source: cloud-api-adaptor src/cloud-providers/azure/provider.go at fbdde756.
set -eu
id peerpod >/dev/null 2>&1 || useradd --create-home --shell /usr/sbin/nologin peerpod
passwd --lock peerpod >/dev/null
