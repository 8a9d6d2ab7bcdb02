#!/usr/bin/env bash
# Every test of the workspace: formatting, lints, documentation, unit tests, storage under faults, clusters of real processes,
# the systemd units, and the quickstart. Ends with the runners' closing lines and one line per step.
#
# usage: scripts/test.sh [--no-quickstart]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

quickstart=yes
for argument in "$@"; do
  case $argument in
    --no-quickstart) quickstart=no ;;
    *) die "unknown argument $argument; usage: scripts/test.sh [--no-quickstart]" ;;
  esac
done

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
report=()
failed=0

# step NAME COMMAND…: runs it, shows its output as it comes, and remembers how it ended.
step() {
  local name=$1 start=$SECONDS status=0
  shift
  printf '\n==> %s\n' "$name"
  "$@" 2>&1 | tee "$logs/$name" || status=1
  local closing
  closing=$(sed 's/\x1b\[[0-9;]*m//g; s/^ *//' "$logs/$name" | grep -aE '^(Summary|test result:)' | tail -n 3 | paste -sd ';' || true)
  if [[ $status == 0 ]]; then
    report+=("ok      $(printf '%-11s %4d s  %s' "$name" $((SECONDS - start)) "$closing")")
  else
    report+=("FAILED  $(printf '%-11s %4d s  %s' "$name" $((SECONDS - start)) "$closing")")
    failed=1
  fi
}

run_tests() {
  if command -v cargo-nextest > /dev/null; then
    cargo nextest run --workspace --no-fail-fast --color never
  else
    # One test at a time where each test is a cluster or a mount. What fails first does not keep the rest from being run.
    local status=0
    cargo test --workspace --exclude cluster-tests --exclude hodei-raft --no-fail-fast -- --show-output || status=1
    cargo test -p hodei-raft -p cluster-tests --no-fail-fast -- --test-threads=1 --show-output || status=1
    return "$status"
  fi
}

run_doctests() { cargo test --workspace --doc --no-fail-fast; }

run_docs() { RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items; }

# The units name the installed binaries; verify them against what was just built.
run_units() {
  if ! command -v systemd-analyze > /dev/null; then
    (need systemd-analyze systemd) || { say "skipped: systemd-analyze is missing and could not be installed"; return 0; }
  fi
  local unit verdict units=(hodei-node hodei-jobs hodei-agent)
  for unit in "${units[@]}"; do
    sed "s|/usr/bin/|$PWD/target/debug/|" "deploy/systemd/$unit.service" > "$logs/$unit.service"
  done
  for unit in "${units[@]}"; do
    verdict=$(systemd-analyze verify --man=no "$logs/$unit.service" 2>&1 | grep -F "$unit" || true)
    [[ -z $verdict ]] || { say "$verdict"; return 1; }
    say "$unit.service: verified"
  done
}

run_scripts() {
  local script
  for script in scripts/*.sh .ci/run; do bash -n "$script" || return 1; done
  if command -v shellcheck > /dev/null; then shellcheck --severity=warning -x scripts/*.sh .ci/run; fi
}

need_rust
need mkfs.ext4 e2fsprogs
need mount mount
need ip iproute2
need_library libfaketime

step format cargo fmt --all --check
step scripts run_scripts
step clippy cargo clippy --workspace --all-targets --locked -- -D warnings
step docs run_docs
# The ordinary binaries, and beside them those that tests can have die, with the proof that the ordinary ones cannot.
step build scripts/build-failpoints.sh
step tests run_tests
step doctests run_doctests
step units run_units
if [[ $quickstart == yes ]]; then
  step quickstart env HODEI_BIN_DIR="$PWD/target/debug" scripts/quickstart.sh
fi

step bars scripts/bars.sh "$logs/tests"

printf '\n'
printf '%s\n' "${report[@]}"
[[ $failed == 0 ]] || die "not everything passed"
say "all passed in $((SECONDS / 60)) min $((SECONDS % 60)) s on $(nproc) cores"
