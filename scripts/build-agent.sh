#!/usr/bin/env bash
# Builds the static agent (profile `agent`: small, stripped) and prints where it is and how large.
set -euo pipefail
cd "$(dirname "$0")/.."
target=x86_64-unknown-linux-gnu
# The flag must not reach proc-macros and build scripts, hence the explicit target.
RUSTFLAGS="-C target-feature=+crt-static" cargo build --profile agent --target "$target" -p hodei-agent
binary=${CARGO_TARGET_DIR:-target}/$target/agent/hodei-agent
size=$(stat -c %s "$binary")
echo "$binary: $size bytes"
limit=$((5 * 1000 * 1000))
if ((size > limit)); then
    echo "the agent must not exceed $limit bytes" >&2
    exit 1
fi
