#!/usr/bin/env bash
# Licences, duplicates and sources of the dependencies. cargo-deny is built
# once into the lab's cache folder. Advisories are left out: their database is
# fetched at run time, and a check must not depend on that.
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.20.2
cache=${BELLROCK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bellrock}/cargo-deny-$version
if [ ! -x "$cache/bin/cargo-deny" ]; then
	printf 'building cargo-deny %s (a few minutes, once)\n' "$version"
	cargo install --quiet --locked --root "$cache" --version "$version" cargo-deny
fi
"$cache/bin/cargo-deny" --log-level warn check bans licenses sources
