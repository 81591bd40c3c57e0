#!/usr/bin/env bash
# Install the real servers that tests and benchmarks talk to: dnsmasq, etcd and iproute2 from Debian; nginx, and
# Consul, which only Debian 11 has, into .servers/. Nothing is started. Needs root and apt where one is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
want() { command -v "$1" > /dev/null || missing+=("$2"); }
PATH=$PATH:/usr/sbin:/sbin
want dnsmasq dnsmasq-base
want etcd etcd-server
want ip iproute2
want iptables iptables
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" -ne 0 ] || ! command -v apt-get > /dev/null; then
    echo "Some tests need: ${missing[*]}. Install them, or they are reported as skipped." >&2
    exit 0
  fi
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends "${missing[@]}" > /dev/null
fi

# nginx is unpacked, not installed: its package would start it.
if [ ! -x .servers/nginx ] && command -v apt-get > /dev/null; then
  unpacked=$(mktemp -d)
  chmod 755 "$unpacked" # apt's own user writes here
  if (cd "$unpacked" && apt-get -qq -o APT::Sandbox::User=root download nginx) && dpkg-deb -x "$unpacked"/nginx_*.deb "$unpacked"; then
    install -D -m 755 "$unpacked/usr/sbin/nginx" .servers/nginx
  else
    echo "tools/bench/load.py needs nginx, which cannot be had" >&2
  fi
  rm -rf "$unpacked"
fi

[ -x .servers/consul ] && exit 0
command -v apt-get > /dev/null || { echo "Tests with Consul are skipped: no apt-get" >&2; exit 0; }
# A package source of its own: lists, archives and settings of the system stay as they are.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work" # apt's own user writes here
mkdir -p "$work"/{lists,archives}/partial "$work"/{sources,unpacked}
mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep -v security | grep '/debian/*$' | sort -u | sed -n 1p || true)
key=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$key] ${mirror:-http://deb.debian.org/debian} bullseye main" > "$work/sources.list"
options=(
  -o "Dir::Etc::SourceList=$work/sources.list" -o "Dir::Etc::SourceParts=$work/sources"
  -o "Dir::State::Lists=$work/lists" -o "Dir::Cache::archives=$work/archives"
  -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Get::List-Cleanup=0 -o APT::Sandbox::User=root
)
apt-get "${options[@]}" -qq update
(cd "$work" && apt-get "${options[@]}" -qq download consul)
dpkg-deb -x "$work"/consul_*.deb "$work/unpacked"
mkdir -p .servers
install -m 755 "$work/unpacked/usr/bin/consul" .servers/consul
.servers/consul version | sed -n 1p # not head, which ends before consul and kills it
