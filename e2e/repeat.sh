#!/usr/bin/env bash
# Runs the namespace and lab suites N times while busy loops compete with them
# (BURNERS, 1 by default): what passes here does not depend on a quiet machine.
set -euo pipefail
cd "$(dirname "$0")/.."
n=${1:?how many times}

burners=()
for _ in $(seq "${BURNERS:-1}"); do
	(while :; do :; done) &
	burners+=($!)
done
trap 'kill "${burners[@]}" 2>/dev/null' EXIT

for round in $(seq "$n"); do
	printf '== round %s of %s\n' "$round" "$n"
	make --no-print-directory test-netns e2e
done
printf '== %s rounds passed\n' "$n"
