#!/usr/bin/env bash
# Shows on this machine what Hodei does: three nodes, two agents, one job, and the leader killed in the middle of it.
#
# It builds the product, makes a cluster on loopback with real one-time tokens over mTLS, and submits to a follower a
# job that compresses and checksums this repository's own source files one by one. It follows the job's log on another
# node and kills the leader (SIGKILL) while the job's agent is connected to it. The log must go on without a lost or
# doubled line, the checksums must be the ones computed here beforehand, and the job must succeed in its first attempt.
# Exits non-zero if any of that is not so, and leaves nothing behind.
#
# HODEI_BIN_DIR: use the binaries in this directory instead of building them.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
root=$PWD
[[ $# == 0 ]] || die "unknown argument $1; it takes none"

need gzip gzip
need sha256sum coreutils
need cmp diffutils

if [[ -n ${HODEI_BIN_DIR:-} ]]; then
  bin=$HODEI_BIN_DIR
else
  need_rust
  say "building (the first time takes some minutes)"
  cargo build --release --locked --bins -p hodei-node -p hodei-agent
  bin=${CARGO_TARGET_DIR:-$root/target}/release
fi
[[ -x $bin/hodei-node && -x $bin/hodei-agent ]] || die "no hodei-node and hodei-agent in $bin"

work=$(mktemp -d)
nodes=() others=() # process ids of what runs
# finish PID…: SIGTERM, and SIGKILL for whoever has not ended five seconds later.
finish() {
  local limit=$((SECONDS + 5))
  (($# > 0)) || return 0
  kill -TERM "$@" 2> /dev/null || return 0
  while kill -0 "$@" 2> /dev/null && ((SECONDS < limit)); do sleep 0.05; done
  kill -KILL "$@" 2> /dev/null || true
}
cleanup() {
  local status=$? log
  trap - EXIT INT TERM
  if [[ $status != 0 && $status != 130 ]]; then
    for log in "$work"/*.err; do
      [[ -s $log ]] && { printf -- '--- last lines of %s\n' "${log##*/}"; tail -n 8 "$log"; } >&2
    done
  fi
  # Clients and agents first, so that they can say goodbye to a node.
  finish "${others[@]}"
  finish "${nodes[@]}"
  wait 2> /dev/null || true
  rm -rf "$work"
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# The command line writes a default identity into the user's home; this one is not the user's.
export HOME=$work/home XDG_CONFIG_HOME=$work/home/.config
mkdir -p "$HOME"
for name in $(compgen -e HODEI_ || true); do unset "$name"; done

# --- helpers ---------------------------------------------------------------------------------------------------------

# hodei NODES ARGS…: the command line as the administrator, with these nodes (numbers, comma-separated) as servers.
hodei() {
  local servers="" node
  for node in ${1//,/ }; do servers+=${servers:+,}127.0.0.$node:$port; done
  shift
  "$bin/hodei-node" --server "$servers" --identity "$work/node1/admin" "$@"
}

# start NAME COMMAND…: in the background, output in files; its process id is ${pid[NAME]}.
declare -A pid
start() {
  local name=$1
  shift
  "$@" > "$work/$name.out" 2> "$work/$name.err" &
  pid[$name]=$!
  if [[ $name == node* ]]; then nodes+=("$!"); else others+=("$!"); fi
}

# within SECONDS WHAT COMMAND…: repeats the command until it succeeds.
within() {
  local limit=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    ((SECONDS < limit)) || die "waited in vain: $what"
    sleep 0.05
  done
}

ready() {
  kill -0 "${pid[$1]}" 2> /dev/null || die "$1 ended before it was ready: $(tail -n 1 "$work/$1.err")"
  grep -qsx ready "$work/$1.out"
}

# A little JSON, so that no other program is needed; our names and values hold no braces, brackets or spaces.
# rows: the objects of the innermost array (or the one object there is), one per line, objects within them left out.
rows() { tr -d ' \n' | sed -E ':again; s/"[a-z_]+":\{[^{}]*\}/"_":0/; t again' | grep -o '{[^{}]*}'; }
# field NAME: the value of the first such field on standard input, without quotes.
field() { grep -o "\"$1\":[^,}]*" | head -n 1 | cut -d : -f 2- | tr -d '"' || true; }

status() { hodei "$1" --request-timeout 1s cluster status --output json 2> /dev/null; }
# The Raft id of the node number $1, and the number of the node with the Raft id $1.
node_id() { status "$alive" | rows | grep -F "\"127.0.0.$1:$port\"" | field id; }
node_number() { status "$alive" | rows | grep -E "\"id\":$1[,}]" | field address | cut -d . -f 4 | cut -d : -f 1; }
# The number of the leader as node $1 knows it; nothing if it knows none.
leader_at() {
  local id
  id=$(status "$1" | tr -d ' \n' | field leader)
  [[ -z $id || $id == null ]] || node_number "$id"
}
job_field() { hodei "$alive" job get "$job" --output json | tr -d ' \n' | sed -E 's/\[[^]]*\]/0/g' | rows | field "$1"; }
# The number of the node that holds the stream of worker $1.
gateway_of() {
  local id
  id=$(hodei "$alive" worker list --output json | rows | grep -F "\"$1\"" | field gateway)
  [[ -z $id || $id == null ]] || node_number "$id"
}
count() { grep -c "$1" || true; }
voters_are() { [[ $(status "$alive" | rows | count '"role":"voter"') == "$1" ]]; }
workers_are() { [[ $(hodei "$alive" worker list --output json | rows | count '"state":"Ready"') == "$1" ]]; }
running() { [[ $(job_field state) == Running ]]; }
leads() { [[ $(leader_at "$1") == "$1" ]]; }
# On a busy machine another one may be elected instead.
lead() { leads "$1" || { hodei 1,2,3 cluster transfer-leader "$(node_id "$1")" > /dev/null 2>&1 || true; leads "$1"; }; }
lines_reach() { kill -0 "${pid[follow]}" 2> /dev/null && (($(wc -l < "$work/follow.out") >= $1)); }
now_ms() { printf '%s' $((${EPOCHREALTIME/[.,]/} / 1000)); }

# --- the work, and what it must come to ------------------------------------------------------------------------------

if git rev-parse --is-inside-work-tree > /dev/null 2>&1; then
  git ls-files -z -- '*.rs' '*.proto' '*.toml' '*.md' '*.sh'
else
  find . -path ./target -prune -o -type f \( -name '*.rs' -o -name '*.proto' -o -name '*.toml' -o -name '*.md' -o -name '*.sh' \) -print0
fi > "$work/files"
files=$(tr -dc '\0' < "$work/files" | wc -c)
((files > 20)) || die "only $files source files found"

# Compresses each file at every level and prints one checksum over all of it.
cat > "$work/job.sh" << 'JOB'
cd "$ROOT"
while IFS= read -r -d '' file; do
  sum=$(for level in 1 2 3 4 5 6 7 8 9; do gzip --no-name -$level --stdout -- "$file"; done | sha256sum)
  printf '%s  %s\n' "${sum%% *}" "$file"
  [ "$PACE" = 0 ] || sleep "$PACE"
done < "$FILES"
JOB
say "computing what the job must print: $files files"
begin=$(now_ms)
ROOT=$root FILES=$work/files PACE=0 bash "$work/job.sh" > "$work/expected"
spent=$(($(now_ms) - begin))
# About ten seconds in all: what this machine needs less is spread over the files.
pace_ms=$((spent < 10000 ? (10000 - spent) / files : 0))
pace=$((pace_ms / 1000)).$(printf '%03d' $((pace_ms % 1000)))

# --- the cluster -----------------------------------------------------------------------------------------------------

in_use() {
  local host
  for host in 127.0.0.1 127.0.0.2 127.0.0.3; do (: < "/dev/tcp/$host/$1") 2> /dev/null && return 0; done
  return 1
}
port=50051
while in_use $port; do port=$((port + 1)); done

serve() { # serve NUMBER VERB…
  local number=$1
  shift
  start "node$number" "$bin/hodei-node" "$@" --data-dir "$work/node$number" --listen "127.0.0.$number:$port" --http off
}
token() { hodei 1 token create --role "$1" --output quiet; }

say "starting three nodes on 127.0.0.1, 127.0.0.2 and 127.0.0.3, port $port"
alive=1,2,3
serve 1 init
within 30 "node 1 is ready" ready node1
for number in 2 3; do
  serve "$number" join "127.0.0.1:$port" --token "$(token node)"
  within 30 "node $number is ready" ready "node$number"
done
within 30 "all three vote" voters_are 3

say "starting two agents, one on node 1 and one on node 2"
for number in 1 2; do
  start "agent$number" "$bin/hodei-agent" --server "127.0.0.$number:$port" --token "$(token agent)" \
    --data-dir "$work/agent$number" --capacity 1
done
within 30 "both agents are ready" workers_are 2

# Node 3 has no agent: the job is submitted there, so it must follow.
! leads 3 || within 10 "node 1 leads" lead 1
within 10 "node 3 follows" eval '[[ -n $(leader_at 3) && $(leader_at 3) != 3 ]]'
job=$(hodei 3 job submit --name compress-and-checksum --env "ROOT=$root" --env "FILES=$work/files" --env "PACE=$pace" \
  --output quiet -- bash "$work/job.sh")
within 10 "the job runs" running
worker=$(job_field worker_id)
gateway=$(gateway_of "$worker")
[[ $gateway == 1 || $gateway == 2 ]] || die "the job's agent is connected to node '$gateway'"
third=$((3 - gateway))
say "job $job runs; its agent is connected to node $gateway; its log is followed on node $third"
start follow hodei "$third" job logs -f "$job"

within 10 "node $gateway leads" lead "$gateway"

# --- the fault -------------------------------------------------------------------------------------------------------

within 60 "half of the lines" lines_reach $((files / 2))
[[ $(gateway_of "$worker") == "$gateway" ]] && leads "$gateway" || die "the leader is not the job's gateway any more"
running || die "the job ended before the leader could be killed"
killed_at=$(wc -l < "$work/follow.out")
old=$(node_id "$gateway")
outage=$(now_ms)
kill -KILL "${pid[node$gateway]}"
{ wait "${pid[node$gateway]}" || true; } 2> /dev/null
nodes=("${pid[node$third]}" "${pid[node3]}")
alive=$third,3
new=null
for ((i = 0; i < 2000; i++)); do
  new=$(status "$third" | tr -d ' \n' | field leader)
  [[ -n $new && $new != null && $new != "$old" ]] && break
done
[[ -n $new && $new != null && $new != "$old" ]] || die "no new leader"
outage=$(($(now_ms) - outage))
after=$(node_number "$new")
say "killed node $gateway, the leader, after $killed_at of $files lines; node $after led $outage ms later"

# --- the verdict -----------------------------------------------------------------------------------------------------

verdict=0
hodei "$alive" job wait --output quiet "$job" > /dev/null || verdict=$?
[[ $verdict == 0 ]] || die "the job ended with $verdict instead of 0"
follow_status=0
wait "${pid[follow]}" || follow_status=$?
others=("${pid[agent1]}" "${pid[agent2]}")
[[ $follow_status == 0 ]] || die "following the log ended with $follow_status"
[[ $(job_field state) == Succeeded ]] || die "the job is $(job_field state)"
[[ $(job_field attempt) == 1 ]] || die "the job took $(job_field attempt) attempts"
((killed_at < files)) || die "the leader was killed after the last line"
cmp "$work/expected" "$work/follow.out" > /dev/null ||
  die "the log differs from what was computed here: $(diff "$work/expected" "$work/follow.out" | head -n 3 | paste -sd ' ')"
for node in ${alive//,/ }; do
  hodei "$node" job logs "$job" | cmp - "$work/expected" > /dev/null || die "node $node shows another log"
done

cat << SUMMARY

  leader before     node $gateway (the job's agent was connected to it)
  leader after      node $after
  without a leader  $outage ms
  lines seen        $(wc -l < "$work/follow.out") of $files, none lost, none doubled, $killed_at of them before the kill
  checksums         all as computed here beforehand
  job               Succeeded in attempt 1
SUMMARY
