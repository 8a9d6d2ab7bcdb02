#!/usr/bin/env bash
# Builds hodei-node and hodei-agent with the feature `failpoints` into target/failpoints/, beside the ordinary binaries,
# which stay as they are.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

need_rust
target=${CARGO_TARGET_DIR:-target}
# The whole workspace, so that third-party crates have the features that they have otherwise, and are built once.
cargo build --workspace --bins --locked --features hodei-node/failpoints,hodei-agent/failpoints
# A name of a site that each of them has.
site() { [[ $1 == hodei-node ]] && echo wal::before-fsync || echo agent::before-result; }

mkdir -p "$target/failpoints"
trap 'rm -f "$target"/failpoints/*.new' EXIT
for binary in hodei-node hodei-agent; do
  cp "$target/debug/$binary" "$target/failpoints/$binary.new"
  grep -qF "$(site "$binary")" "$target/failpoints/$binary.new" || die "$target/debug/$binary was built without failpoints"
done
# Cargo keeps both and links the ordinary ones anew, in less than a second.
cargo build --workspace --bins --locked
for binary in hodei-node hodei-agent; do
  ! grep -qF "$(site "$binary")" "$target/debug/$binary" || die "$target/debug/$binary has failpoints"
done
# Published once all of them are what they are to be.
for binary in hodei-node hodei-agent; do mv "$target/failpoints/$binary.new" "$target/failpoints/$binary"; done
say "failpoint binaries: $target/failpoints"
