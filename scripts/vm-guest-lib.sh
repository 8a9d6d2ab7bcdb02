# shellcheck shell=bash disable=SC2016
# What scripts/vm-guest.sh says its checks with. Sourced inside the machine.

tell() { printf '%s\n' "$*" > /dev/ttyS1; }

# check NAME FUNCTION: runs it by itself, with errexit; its last lines say what was wrong.
check() {
  local name=$1 said status
  said=$(set -e; "$2" 2>&1)
  status=$?
  if [[ $status == 0 ]]; then
    tell "PASS $name"
  else
    tell "FAIL $name: $(tail -n 4 <<< "$said" | paste -sd '|' | cut -c 1-900)"
    { printf -- '--- %s\n%s\n---\n' "$name" "$said"; journalctl --boot --no-pager --lines 40; } > /dev/ttyS0
  fi
  return "$status"
}

# expect WHAT GOT WANTED: WANTED is a pattern.
expect() {
  # shellcheck disable=SC2053
  [[ $2 == $3 ]] || { printf '%s is "%s", expected "%s"\n' "$1" "$2" "$3"; exit 1; }
}

# within SECONDS COMMAND…: repeats it, in a subshell, until it succeeds. An emulated machine is given more time.
patience=$(sed -n 's/.*hodei\.patience=\([0-9]*\).*/\1/p' /proc/cmdline)
within() {
  local limit=$((SECONDS + $1 * patience))
  shift
  until ("$@"); do
    ((SECONDS < limit)) || { printf 'waited in vain: %s\n' "$*"; exit 1; }
    sleep 0.1
  done
}

# --- Hodei -----------------------------------------------------------------------------------------------------------

# An emulated machine takes its time.
hodei() { hodei-node --request-timeout 60s "$@"; }
submit() { hodei job submit --output quiet "$@"; }
run() { hodei job run "$@"; }
job() { hodei job get "$1" --output json | jq -r "$2"; }
state_is() { [[ $(job "$1" .state) == "$2" ]]; }
is_over() { [[ $(job "$1" ".finished_at != null") == true ]]; }
worker() { hodei worker list --output json 2> /dev/null | jq -r "$1"; }
# The state of the worker of this host, or of another label; without one: the first.
ready() { [[ $(worker '[.[] | select(.state == "Ready" or .state == "Busy")] | length') == "${1:-1}" ]]; }
label() { worker "[.[] | select(.state == \"Ready\" or .state == \"Busy\")][0].labels[\"hodei.$1\"]"; }
says_line() { (($(hodei job logs "$1" 2> /dev/null | wc -l) >= $2)); }
main_pid() { systemctl show --property MainPID --value "$1"; }
# Processes whose command line has this word.
processes() { pgrep_all "$1" | wc -l; }
# (The word is not among the arguments of grep, which would find itself.)
pgrep_all() { grep -lzxF -f <(printf %s "$1") /proc/[0-9]*/cmdline 2> /dev/null | cut -d / -f 3; }
nothing_left() { [[ $(processes "$1") == 0 ]]; }

# block HEADING N: the n-th block of commands below a heading of the instructions.
block() {
  awk -v heading="## $1" -v wanted="$2" '
    /^## / { here = ($0 == heading) }
    here && /^```/ { if (inside) inside = 0; else inside = ++count; next }
    here && inside == wanted' deploy/systemd/README.md
}

# follow HEADING N [EXPRESSION…]: does what these commands say, literally but for what sed makes of them.
follow() {
  local commands
  commands=$(block "$1" "$2" | sed "${@:3}" -e '')
  [[ -n $commands ]] || { echo "no block $2 below \"$1\""; exit 1; }
  bash -euxc "$commands"
}

# A job that prints 1, 2, 3 …, a number every 10 ms or so, until it is told that it is enough.
count() {
  submit --memory 64M --cpu 1 "$@" -- bash -c 'exec 3<> <(:)
    until [[ -e /run/enough/$HODEI_JOB_ID ]]; do echo $((++i)); read -rt 0.01 -u 3; done; true'
}
goes_on() { within 20 says_line "$1" "$(($(hodei job logs "$1" | wc -l) + 10))"; }
enough() { mkdir -p /run/enough && touch "/run/enough/$1"; }

# counted ID: ends it; it ends well, in its first attempt, and its log is 1 … n.
counted() {
  local log=/run/enough/$1.log
  enough "$1"
  within 30 is_over "$1"
  expect "the job" "$(job "$1" '.state + " " + (.attempt | tostring)')" "Succeeded 1"
  hodei job logs "$1" > "$log"
  expect "the lines it has" "$(wc -l < "$log")" "$(job "$1" .log_lines)"
  cmp "$log" <(seq "$(wc -l < "$log")")
}

kill_agent() {
  local before
  before=$(main_pid hodei-agent)
  systemctl kill --kill-who=main --signal=KILL hodei-agent
  within 10 another_main_than "$before"
  within 10 ready
}
# another_main_than PID [UNIT]
another_main_than() {
  local now
  now=$(main_pid "${2:-hodei-agent}")
  [[ $now != 0 && $now != "$1" ]]
}
