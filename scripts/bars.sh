#!/usr/bin/env bash
# Adds up what tests have counted, beside what there has to be of it before a release.
#
#   scripts/bars.sh [--release] [LOG…]      logs of scripts/test.sh, soak.sh and mutants.sh, or standard input
#
# A test counts by printing a line: `bar: WHAT: NUMBER` adds, and `bar: WHAT: NAME` counts each name once. A single run of the
# tests is a sample; the whole counts take soaks. Exits non-zero where something was counted of which there must be none, and
# with --release also where there is less of something than there has to be.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

release=0
case ${1-} in
  --release) release=1; shift ;;
  -*) die "unknown argument $1; usage: scripts/bars.sh [--release] [LOG…]" ;;
esac

# WHAT | how much there has to be at least; `none`: not a single one | `longest`: the largest number counts, not the sum.
bars='
kinds of fault | 48
failpoints | 30
tokens raced across a cut | 20
power cuts | 200
acknowledged writes lost | none
damages of files | 3000
silent damages | none
simulated seeds | 100
simulated steps | 2000000
jobs under faults | 5000
further attempts witnessed | 50
runs under faults | 50
green runs in a row | 50 | longest
promises judged | 25
runs that were not valid | none
violations of S1-S17 | none
known-bad histories | 54
deliberate bugs caught | 24
deliberate bugs caught in runs | 15
'

sed 's/\x1b\[[0-9;]*m//g' "$@" | awk -v bars="$bars" -v release="$release" '
  BEGIN {
    rows = split(bars, lines, "\n")
    for (row = 1; row <= rows; row++) if (split(lines[row], cells, / \| /) == 3) longest[cells[1]] = 1
  }
  match($0, /^ *bar: [^:]*: /) {
    what = substr($0, RSTART, RLENGTH); sub(/^ *bar: /, "", what); sub(/: $/, "", what)
    value = substr($0, RSTART + RLENGTH)
    if (value ~ /^[0-9]+$/ && what in longest) counts[what] = value + 0 > counts[what] + 0 ? value + 0 : counts[what] + 0
    else if (value ~ /^[0-9]+$/) counts[what] += value
    else if (!((what, value) in seen)) { seen[what, value] = 1; counts[what]++ }
    known[what] = 1
  }
  END {
    printf "%-28s %10s %12s\n", "counted", "here", "wanted in all"
    for (row = 1; row <= rows; row++) {
      if (split(lines[row], cells, / \| /) < 2) continue
      what = cells[1]; wanted = cells[2]; listed[what] = 1
      printf "%-28s %10s %12s\n", what, (what in known) ? counts[what] : "-", wanted
      if (wanted == "none" && counts[what] > 0) bad = bad " " what ";"
      if (wanted != "none" && counts[what] + 0 < wanted + 0) few = few " " what ";"
    }
    for (what in known) if (!(what in listed)) { print "nobody wants to know: " what; bad = bad " " what ";" }
    if (bad) print "there must be none:" bad
    if (release && few) print "there must be more:" few
    exit (bad || release && few) ? 1 : 0
  }'
