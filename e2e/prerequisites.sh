#!/usr/bin/env bash
# Checks for what the labs need, and installs the Debian or Ubuntu packages
# that are missing: e2e/prerequisites.sh [cluster]
# With `cluster` also what the cluster lab needs: Docker, unless an engine runs.
set -euo pipefail

fail() { printf '%s\n' "$@" >&2; exit 1; }

# version_of COMMAND...: the first dotted number that it prints
version_of() { "$@" 2>/dev/null | grep -oE '[0-9]+\.[0-9]+(\.[0-9]+)?' | head -n 1; }

# at_least HAVE WANT
at_least() { [ -n "$1" ] && [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

rust=$(version_of rustc --version || true)
at_least "$rust" 1.95 || fail "Rust 1.95 or newer is needed (found: ${rust:-none}). Install it with rustup: https://rustup.rs"

go=$(version_of go version || true)
at_least "$go" 1.26 || fail "Go 1.26 or newer is needed to build Kubernetes for the lab (found: ${go:-none}). See https://go.dev/doc/install"

# program -> package that brings it
needs=(
	"cc gcc" "ip iproute2" "nft nftables" "iptables iptables" "tcpdump tcpdump" "tshark tshark" "conntrack conntrack"
	"arping iputils-arping" "ping iputils-ping" "/usr/lib/frr/bgpd frr" "bird bird2"
	"bgpctl openbgpd" "exabgp exabgp" "unshare util-linux" "ps procps" "promtool prometheus"
)
if [ "${1:-}" = cluster ]; then
	needs+=("mmdebstrap mmdebstrap" "setpriv util-linux")
	docker version >/dev/null 2>&1 ||
		needs+=("dockerd docker.io" "docker docker.io" "containerd containerd" "runc runc")
fi
missing=()
PATH="$PATH:/usr/sbin:/sbin"
for need in "${needs[@]}"; do
	read -r program package <<<"$need"
	command -v "$program" >/dev/null || [[ " ${missing[*]-} " == *" $package "* ]] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

command -v apt-get >/dev/null ||
	fail "These programs are needed; install the packages that bring them (Debian's names): ${missing[*]}"
[ "$(id -u)" = 0 ] ||
	fail "These packages are needed. Run: sudo apt-get update && sudo apt-get install ${missing[*]}"
printf 'installing %s\n' "${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
# What is installed for a lab is started by the lab, and only for its time.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
	trap 'rm -f "$policy"' EXIT
fi
{ apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 || {
	cat "$log" >&2
	fail "apt-get could not install: ${missing[*]}"
}
rm -f "$log"
