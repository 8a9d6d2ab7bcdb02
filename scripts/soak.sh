#!/usr/bin/env bash
# Runs clusters under random faults for some hours and judges everything that happened.
#
#   scripts/soak.sh --hours 2 [--seed S] [--nodes 3|5] [--faults N] [--keep DIR] [--forget-valid]
#   scripts/soak.sh --points [--seed S]        a process dies at each named place in the code
#   scripts/soak.sh --power [--cuts 200]       the power of a log's disk is cut, over and over
#   scripts/soak.sh --simulation [--seeds 100] [--steps 20000] [--seed S] [--jobs J]
#
# The last form simulates replicas in processes of their own, from seed S on, without touching the machine's network or
# disks. All end with what they counted (scripts/bars.sh). The first two:
#
# Each run is a cluster of its own on namespaces and disks of its own, with faults that follow from its seed; the next run
# takes the next seed. DIR (default: target/soak) gets report.md, timeline.svg and the folder of each run, with --forget-valid
# only of those that were not valid: its plan, history and witnesses, and what its processes said. What can be done with those:
#
#   cargo run -p cluster-tests --bin recheck -- DIR/seed-N                 judges one again
#   cargo run -p cluster-tests --bin recheck -- --report TO DIR/seed-*     judges all again, and writes their report anew
#   scripts/soak.sh --plan DIR/seed-N/plan.json                            runs its faults again, into DIR/seed-N-again
#
# Needs root. Exits non-zero if any run was not valid. `--list` names all kinds of fault, `--help` the arguments of runs.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

need_rust
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# counted COMMAND…: runs it, and ends with what it counted beside what is wanted.
counted() {
  local status=0
  # Ctrl-C is for the command: what it has counted until then is told.
  trap : INT
  "$@" 2>&1 | tee -i "$log" || status=$?
  scripts/bars.sh "$log" || status=1
  exit "$status"
}

# simulate [--seeds N] [--steps M] [--seed S] [--jobs J]
simulate() {
  local seeds=100 steps=20000 seed=1 jobs
  jobs=$(nproc)
  while (($# > 0)); do
    [[ $# -ge 2 && $2 =~ ^[0-9]+$ ]] || die "$1 needs a number"
    case $1 in
      --seeds) seeds=$2 ;;
      --steps) steps=$2 ;;
      --seed) seed=$2 ;;
      --jobs) jobs=$2 ;;
      *) die "unknown argument $1; usage: scripts/soak.sh --simulation [--seeds N] [--steps M] [--seed S] [--jobs J]" ;;
    esac
    shift 2
  done
  # Optimized, because it is all computing, with the checks of arithmetic and the assertions of a debug build.
  export CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true
  export HODEI_SEED=$seed HODEI_SIM_SEEDS=$seeds HODEI_SIM_STEPS=$steps HODEI_SIM_JOBS=$jobs
  counted cargo test --locked --release -p hodei-raft --test simulation -- replicas_keep_their_promises --exact --nocapture
}

# power [--cuts N]
power() {
  local cuts=200
  [[ $# == 0 || $# == 2 && $1 == --cuts && $2 =~ ^[0-9]+$ ]] || die "usage: scripts/soak.sh --power [--cuts N]"
  [[ $# == 0 ]] || cuts=$2
  export HODEI_POWER_CUTS=$cuts
  counted cargo test --locked -p hodei-raft --test storage_faults -- nothing_acknowledged_is_lost_by_a_power_cut --exact --nocapture
}

if [[ ${1-} == --simulation ]]; then
  shift
  simulate "$@"
fi

# The program of runs says itself what is bad usage and which binaries it takes, before they are built. The same packages as
# below, so that what they have in common is built once.
packages=(-p hodei-node -p hodei-agent -p cluster-tests)
soak=${CARGO_TARGET_DIR:-target}/debug/soak
if [[ ${1-} != --power ]]; then
  cargo build --quiet --locked "${packages[@]}" --bin soak
  for argument in "$@"; do
    case $argument in
      --list | --help | -h) "$soak" "$argument" && exit 0 || exit ;;
    esac
  done
  binaries=$("$soak" --binaries "$@") || exit
fi

need mkfs.ext4 e2fsprogs
need mount mount
need ip iproute2
need_library libfaketime
[[ $(id -u) == 0 ]] || die "making networks and disks needs root"

if [[ ${1-} == --power ]]; then
  shift
  power "$@"
fi

keep=(--keep "$PWD/target/soak")
for argument in "$@"; do
  [[ $argument != --keep && $argument != --keep=* ]] || keep=()
done

# Built with checks of arithmetic and debug assertions, which are faults to be found, too.
if [[ $binaries == failpoints ]]; then
  scripts/build-failpoints.sh
else
  cargo build --locked --bins "${packages[@]}"
fi
counted "$soak" "${keep[@]}" "$@"
