#!/bin/sh
# Whether the simulator notices a protocol that is wrong: each patch beside this
# script breaks one rule in a copy of the sources, and some seed must fail then,
# of those that hold without it.
set -eu

cd "$(dirname "$0")/../.."
seeds=${SEEDS:-200}
mkdir -p target/mutants/tree
copy=$(pwd)/target/mutants
# Libraries of others are built there already.
target=$(pwd)/target

# Another version: cargo tells crates of a copy from the real ones by nothing
# else, and would take what was built of one for the other.
apart() {
    case $1 in
    Cargo.toml) sed '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/version = "\1-mutant"/' "$1" ;;
    Cargo.lock) sed '/^name = "bellrock/{n;s/^version = "\(.*\)"/version = "\1-mutant"/}' "$1" ;;
    *) cat "$1" ;;
    esac
}

# Makes the copy as the sources are. What did not change keeps its time, so that
# little is built again.
fresh() {
    git ls-files | while read -r file; do
        if ! [ -f "$file" ]; then
            rm -f "$copy/tree/$file"
            continue
        fi
        apart "$file" > "$copy/file"
        cmp -s "$copy/file" "$copy/tree/$file" && continue
        mkdir -p "$copy/tree/$(dirname "$file")"
        cp "$copy/file" "$copy/tree/$file"
    done
}

build() {
    (cd "$copy/tree" && CARGO_TARGET_DIR="$target" cargo build --locked --quiet -p bellrock-sim) > "$copy/log" 2>&1
}

holds() {
    "$target/debug/bellrock-sim" --seeds "$seeds" --until-broken > "$copy/log" 2>&1
}

# A panic is not what is looked for.
noticed() {
    grep -q '^seed .*: invariant (' "$copy/log"
}

failed() {
    echo "$1"
    cat "$copy/log"
    bad=1
}

bad=0
fresh
if ! build || ! holds; then
    failed "without a patch it does not hold"
    exit 1
fi
for patch in sim/mutants/*.patch; do
    name=$(basename "$patch" .patch)
    fresh
    if ! patch --quiet --fuzz=0 --strip=1 --directory="$copy/tree" < "$patch" > "$copy/log" 2>&1; then
        failed "$name: the patch does not apply any more"
    elif ! build; then
        failed "$name: does not build"
    elif holds; then
        failed "$name: $seeds seeds, and none notices"
    elif ! noticed; then
        failed "$name: it ended, but broke no invariant"
    else
        echo "$name: $(grep -m 1 '^seed' "$copy/log" | cut -c 1-120)"
    fi
done
exit "$bad"
