#!/usr/bin/env bash
# Builds Kith's core with each planted defect in turn, and without any, and has the swarm look for it: `simulations/planted.sh [SEEDS] [DEFECT...]`.
# All of it happens in a target folder of its own: nothing of a defect gets into what is shipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seeds="${1:-2000}"
shift || true
# All that are in the source.
mapfile -t all < <(grep -rhoE 'planted = "[a-z-]+"' --include=*.rs protocol crdt node/core | sed 's/.*"\(.*\)"/\1/' | sort -u)
if [ "$#" -gt 0 ]; then
    all=("$@")
fi
folder="$PWD/target/planted"
mkdir -p "$folder"
missed=0
for defect in "${all[@]}" none; do
    # Only crates of the workspace get it, so that what they depend on is built once; by another name each, so that they are built anew.
    wrapper="$folder/with-$defect"
    cfg=""
    if [ "$defect" != none ]; then
        cfg="--cfg planted=\\\"$defect\\\""
    fi
    printf '#!/bin/sh\nprogram="$1"\nshift\nexec "$program" "$@" %s\n' "$cfg" >"$wrapper"
    chmod +x "$wrapper"
    RUSTC_WORKSPACE_WRAPPER="$wrapper" cargo build --release --quiet --package kith-simulations --example seeds --target-dir "$folder"
    began=$SECONDS
    if said="$("$folder/release/examples/seeds" "$seeds" 2>&1)"; then
        found=no
    else
        found=yes
    fi
    ran="$(grep -c '^seed ' <<<"$said" || true)"
    what="$(grep -m1 -E '^FAILED|panicked' -A1 <<<"$said" | tr '\n' ' ' | cut -c1-200 || true)"
    printf '%-26s found: %-3s after %5s seeds, %4s s  %s\n' "$defect" "$found" "$ran" "$((SECONDS - began))" "$what"
    if [ "$defect" = none ]; then wanted=no; else wanted=yes; fi
    if [ "$found" != "$wanted" ]; then
        missed=1
    fi
done
exit "$missed"
