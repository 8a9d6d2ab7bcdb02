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
mkdir -p "$target/failpoints"
for binary in hodei-node hodei-agent; do
  cp "$target/debug/$binary" "$target/failpoints/$binary.new"
  mv "$target/failpoints/$binary.new" "$target/failpoints/$binary"
done
# Cargo keeps both and links the ordinary ones anew, in less than a second.
cargo build --workspace --bins --locked
for binary in hodei-node hodei-agent; do
  # A name of a site that each of them has.
  site=$([[ $binary == hodei-node ]] && echo wal::before-fsync || echo agent::before-result)
  grep -qF "$site" "$target/failpoints/$binary" || die "$target/failpoints/$binary has no failpoints"
  ! grep -qF "$site" "$target/debug/$binary" || die "$target/debug/$binary has failpoints"
done
say "failpoint binaries: $target/failpoints"
