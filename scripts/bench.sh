#!/usr/bin/env bash
# Sets Hodei beside etcd on this machine and prints tables: durable writes per second at several numbers of clients,
# submission to process start on the idle cluster, no-op jobs per second beside what the machine can start at all (and
# beside HyperQueue where `hq` is on the PATH), kill -9 of the leader to the next accepted write, and what machine this was
# and how busy. All systems keep their data on the disk of this repository.
#
# usage: scripts/bench.sh [all|submit|started|noop|failover] [--rounds N] [--seconds N] [--clients 1,16,…] [--jobs N] [--help]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

need_rust
case " $* " in
  *" --without-etcd "* | *" started "* | *" noop "* | *" failover "* | *" --help "*) ;;
  *) need etcd etcd-server ;;
esac

cargo build --release --locked --bins -p hodei-node -p hodei-agent -p cluster-tests
target=${CARGO_TARGET_DIR:-$PWD/target}
export HODEI_BIN_DIR=$target/release
# The same disk for both, and not a RAM disk as /tmp may be.
export TMPDIR=$target/bench
mkdir -p "$TMPDIR"

[[ ${1:-} == [a-z]* ]] || set -- all "$@"
"$HODEI_BIN_DIR/bench" "$@" | tee "$TMPDIR/report.md"
