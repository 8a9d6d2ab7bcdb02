#!/usr/bin/env bash
# Has the product show one deliberate bug after the other, and proves that a test notices each.
#
#   scripts/mutants.sh [NAME…]             all of cluster-tests/mutants.txt, or these; as root, since some tests need it
#   scripts/mutants.sh --runs [NAME…]      all of cluster-tests/mutants-in-runs.txt, or these: in whole runs under faults
#
# The product and its tests are built once, with the feature `failpoints`. Each test has to pass without a bug, and to fail with
# the bug that it is to catch. Ends with a table and a count; exits non-zero if fewer are caught than must be.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

# Of all bugs at most this many may go unnoticed, and there have to be at least so many.
unnoticed=1
least=25
# No test takes longer, not even one that a bug has made to hang.
patience=300
list=$PWD/cluster-tests/mutants.txt

need_rust
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

scripts/build-failpoints.sh

# runs [NAME…]: the checker that is named must find a violation in the run, whatever others find.
runs() {
  local bug checker kinds verdict run caught=0 total=0 seed=0 begun
  printf '%-30s %-12s %-8s %5s  %s\n' bug checker verdict s 'all that is not valid'
  while IFS='|' read -r bug checker kinds; do
    read -r bug checker kinds <<< "$bug $checker $kinds"
    [[ -z $bug || $bug == '#'* ]] && continue
    seed=$((seed + 1))
    [[ $# == 0 || " $* " == *" $bug "* ]] || continue
    total=$((total + 1)) begun=$SECONDS verdict=MISSED
    # With small logs, so that snapshots are taken and installed.
    run=("${CARGO_TARGET_DIR:-target}/debug/soak" --small-logs --kind "$kinds" --seed "$seed" --keep "$work/$bug")
    if [[ $checker == liveness ]] && ! "${run[@]}" > "$work/output" 2>&1; then
      verdict=unclear # It is not valid without the bug, either: this machine is too slow for it.
    else
      FAILPOINTS="bug::${bug//+/=return;bug::}=return" "${run[@]}" > "$work/output" 2>&1 || true
      if grep -qE "^$checker .* INVALID " "$work/output"; then verdict=caught caught=$((caught + 1)); fi
    fi
    printf '%-30s %-12s %-8s %5d  %s\n' "$bug" "$checker" "$verdict" $((SECONDS - begun)) \
      "$(sed -n 's/^\([a-z]*\) .* INVALID .*/\1/p' "$work/output" | paste -sd ' ')"
    rm -rf "${work:?}/$bug"
  done < "$PWD/cluster-tests/mutants-in-runs.txt"
  [[ $total -gt 0 ]] || die "no such bug in cluster-tests/mutants-in-runs.txt: $*"
  say "bar: deliberate bugs caught in runs: $caught"
  say "$caught of $total deliberate bugs caught in runs"
  [[ $caught == "$total" ]] || die "the suite is to notice each of them"
}

if [[ ${1-} == --runs ]]; then
  shift
  runs "$@"
  exit
fi

HODEI_BIN_DIR=$(realpath "${CARGO_TARGET_DIR:-target}")/failpoints
export HODEI_BIN_DIR
say "building the tests"
features=hodei-node/failpoints,hodei-agent/failpoints
cargo test --workspace --no-run --locked --features "$features" --message-format json > "$work/built.json"
# Cargo has put the binaries with failpoints where the ordinary ones were.
cargo build --workspace --bins --locked --quiet

# DIRECTORY KIND NAME EXECUTABLE of each test binary.
sed -n 's|.*"manifest_path":"'"$PWD"'/\([^"]*\)/Cargo.toml","target":{"kind":\["\([a-z]*\)"\].*"name":"\([^"]*\)","src_path".*"profile":{[^}]*"test":true}.*"executable":"\([^"]*\)".*|\1 \2 \3 \4|p' \
  "$work/built.json" > "$work/executables"

# executable DIRECTORY:TARGET
executable() {
  awk -v dir="${1%%:*}" -v of="${1#*:}" \
    '$1 == dir && ($2 == of || ($2 == "test" && $3 == of)) { print $4; exit }' "$work/executables"
}

# run TESTS FILTER: runs them as cargo would. Below the limit of time a failure is a failure of the tests.
run() {
  local program
  program=$(executable "$1")
  [[ -n $program ]] || die "there are no tests $1"
  (cd "${1%%:*}" && PROPTEST_DISABLE_FAILURE_PERSISTENCE=true CARGO_MANIFEST_DIR=$PWD timeout "$patience" "$program" "$2" --test-threads 2) > "$work/output" 2>&1
}

# The names of the tests that failed, as far as there is room.
culprits() {
  sed 's/\x1b\[[0-9;]*m//g' "$work/output" |
    sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p; s|^.*/scripts/\([a-z_]*\): Err.*|\1|p' | head -n 2 | paste -sd ' '
}

declare -A passes
caught=0 total=0
printf '%-30s %-9s %-8s %5s  %s\n' bug layer verdict s 'noticed by'
while IFS='|' read -r bug layer tests filter _; do
  read -r bug layer tests filter <<< "$bug $layer $tests $filter"
  [[ -z $bug || $bug == '#'* ]] && continue
  [[ $# == 0 || " $* " == *" $bug "* ]] || continue
  if [[ -z ${passes[$tests $filter]:-} ]]; then
    run "$tests" "$filter" || { cat "$work/output"; die "$tests $filter does not pass without a bug"; }
    grep -q '^test result: ok. [1-9]' "$work/output" || die "$tests $filter: there is no such test"
    passes[$tests $filter]=yes
  fi
  total=$((total + 1)) begun=$SECONDS verdict=caught
  if FAILPOINTS="bug::$bug=return" run "$tests" "$filter"; then verdict=MISSED; else caught=$((caught + 1)); fi
  printf '%-30s %-9s %-8s %5d  %s\n' "$bug" "$layer" "$verdict" $((SECONDS - begun)) "$tests $(culprits)"
done < "$list"
[[ $total -gt 0 ]] || die "no such bug in cluster-tests/mutants.txt: $*"
say "bar: deliberate bugs caught: $caught"
say "$caught of $total deliberate bugs caught"
[[ $((total - caught)) -le $unnoticed ]] || die "more than $unnoticed went unnoticed"
[[ $# -gt 0 || $total -ge $least ]] || die "there have to be $least"
