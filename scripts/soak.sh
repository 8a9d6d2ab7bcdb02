#!/usr/bin/env bash
# Runs clusters under random faults for some hours and judges everything that happened.
#
#   scripts/soak.sh --hours 2 [--seed S] [--nodes 3|5] [--faults N] [--keep DIR]
#
# Each run is a cluster of its own on namespaces and disks of its own, with faults that follow from its seed; the next run
# takes the next seed. DIR (default: target/soak) gets report.md, timeline.svg and the folder of each run that was not valid:
# its plan, its history and its witnesses. `cargo run -p cluster-tests --bin recheck -- DIR/seed-N` judges it again, and
# `scripts/soak.sh --plan DIR/seed-N/plan.json` runs its faults again. Needs root. Exits non-zero if any run was not valid.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

need_rust
need mkfs.ext4 e2fsprogs
need mount mount
need ip iproute2
need_library libfaketime
[[ $(id -u) == 0 ]] || die "making networks and disks needs root"

keep=(--keep "$PWD/target/soak")
for argument in "$@"; do [[ $argument == --keep* ]] && keep=(); done

# Built with checks of arithmetic and debug assertions, which are faults to be found, too.
cargo build --locked --bins -p hodei-node -p hodei-agent -p cluster-tests
exec "${CARGO_TARGET_DIR:-target}/debug/soak" "${keep[@]}" "$@"
