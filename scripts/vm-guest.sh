#!/usr/bin/env bash
# The part of scripts/vm-test.sh that runs inside its machine, as a service of systemd, in the directory of the product.
# Says on the second serial line what it finds: PASS, FAIL and INFO for people, the rest for the script outside.
# shellcheck disable=SC2016
set -uo pipefail

phase=$(sed -n 's/.*hodei\.phase=\([0-9]*\).*/\1/p' /proc/cmdline)
export HODEI_SERVER=vm:50051 HODEI_IDENTITY=/var/lib/hodei/node/admin HOME=/root
readonly jobs=/var/lib/vm-test # what is to be known after a power cut

. scripts/vm-guest-lib.sh

# --- installation ----------------------------------------------------------------------------------------------------

# From the next start on.
change_address() { sed -i "s/10\.77\.0\.10/$1/" /etc/systemd/network/lan.network /etc/hosts; }

is_version_two_alone() {
  expect "the file system of control groups" "$(stat -fc %T /sys/fs/cgroup)" cgroup2fs
  expect "hierarchies of version 1" "$(grep -c ' - cgroup ' /proc/self/mountinfo)" 0
  expect "process 1" "$(cat /proc/1/comm)" systemd
}

install_node() {
  [[ $(block "A node" 1) == *useradd* && $(block "A node" 2) == *init* ]]
  follow "A node" 1
  follow "A node" 2
  expect "hodei-node" "$(systemctl is-active hodei-node)" active
  within 10 hodei cluster status --output quiet
}

install_agent() {
  [[ $(block "An agent" 1) == *a:50051,b:50051,c:50051* ]]
  follow "An agent" 1 -e s/a:50051,b:50051,c:50051/vm:50051/
  sed -i /HODEI_TOKEN/d /etc/hodei/agent.env
  within 10 ready
  expect "hodei-agent" "$(systemctl is-active hodei-agent)" active
}

has_isolation() {
  expect isolation "$(label isolation)" cgroup2
  expect limits "$(label limits)" memory,cpu
}

# --- what a job has --------------------------------------------------------------------------------------------------

ends_as_it_does() {
  local status=0
  run -- sh -c 'echo out; exit 7' > /run/out || status=$?
  expect "the exit code" "$status" 7
  expect "the output" "$(cat /run/out)" out
}

has_a_group_of_its_own() {
  local own agent
  own=$(run -- sed s/0:://p -n /proc/self/cgroup)
  expect "the job's group" "$own" "/system.slice/hodei-jobs.service/hodei-*"
  agent=$(sed s/0:://p -n "/proc/$(main_pid hodei-agent)/cgroup")
  tell "INFO the job's group is $own, the agent's $agent"
  [[ $agent != "${own%/*}" ]] || { echo "the agent is in the group that hands down"; exit 1; }
  expect "its score when memory is short" "$(run -- cat /proc/self/oom_score_adj)" 0
  [[ ! -e /sys/fs/cgroup$own ]] || { echo "the group is still there"; exit 1; }
}

# out_of_memory COMMAND…: the job has 64 MiB.
out_of_memory() {
  local id status=0
  run --name oom --memory 64M -- "$@" || status=$?
  id=$(hodei job list --limit 1 --output json | jq -r '.[0].id')
  expect "the exit code" "$status" 137
  expect "the reason" "$(job "$id" .reason.kind)" out_of_memory
}
dies_of_memory() { out_of_memory tail /dev/zero; }
dies_of_memory_as_a_whole() { out_of_memory bash -c 'tail /dev/zero; echo survived; sleep 5'; }

# The job measures itself: CPU time of its group against time.
keeps_to_its_cpu() {
  local share
  share=$(run --cpu 0.5 -- bash -c '
    used() { sed -n "s/^usage_usec //p" "/sys/fs/cgroup$(sed s/0:://p -n /proc/self/cgroup)/cpu.stat"; }
    now() { echo "${EPOCHREALTIME/./}"; }
    (while :; do :; done) & (while :; do :; done) &
    sleep 0.3; a=$(used) s=$(now); sleep 4; b=$(used) e=$(now)
    echo $((100 * (b - a) / (e - s)))')
  tell "INFO a job with --cpu 0.5 and two busy loops used $share % of a core"
  ((share >= 40 && share <= 60)) || { echo "it used $share % of a core"; exit 1; }
}

takes_what_detached_itself_with_it() {
  run -- bash -c 'setsid sleep 86301 & (setsid sh -c "sleep 86302 & sleep 86302" &) ; sleep 0.3'
  expect "what is left" "$(processes 86301) $(processes 86302)" "0 0"
}

runs_as_another_user() {
  local file
  expect "the user" "$(run --user nobody -- id -un)" nobody
  for file in /var/lib/hodei/agent /var/lib/hodei/agent/pki /var/lib/hodei/agent/attempts /etc/hodei/agent.env /var/lib/hodei/node; do
    ! run --user nobody -- ls "$file/" > /dev/null || { echo "nobody lists $file"; exit 1; }
    ! run --user nobody -- head -c 1 "$file" > /dev/null || { echo "nobody reads $file"; exit 1; }
  done
  ! run --user nobody -- sh -c 'echo $$ > /sys/fs/cgroup/cgroup.procs' || { echo "nobody leaves its group"; exit 1; }
  expect "a command of its own" "$(run --user nobody -- sh -c 'echo x > file; cat file')" x
}

# What builds and containers need, with root and without.
may_make_namespaces() {
  run --user nobody -- unshare --user --map-root-user --mount --pid --fork --mount-proc true
  run -- unshare --mount --pid --fork --mount-proc true
  run -- ls "/lib/modules/$(uname -r)/kernel" > /dev/null
  expect "what sudo and su need" "$(run --user nobody -- sed -n 's/^NoNewPrivs:\t//p' /proc/self/status)" 0
}

may_not_touch_the_kernel() {
  ! run -- date --set=2000-01-01 || { echo "a job sets the clock"; exit 1; }
  ! run -- modprobe dummy || { echo "a job loads a module"; exit 1; }
}

# --- restarts --------------------------------------------------------------------------------------------------------

survives_the_agents_death() {
  local id
  id=$(count)
  goes_on "$id"
  kill_agent
  expect "the job" "$(job "$id" .state)" Running
  goes_on "$id"
  counted "$id"
  within 5 has_isolation
}

# Again and again, since each start finds more of the last one.
survives_many_deaths() {
  local id
  id=$(count)
  goes_on "$id"
  for _ in 1 2 3; do kill_agent; done
  goes_on "$id"
  counted "$id"
}

is_draining() { [[ $(worker '.[0].state') == Draining ]]; }

drains_when_stopped() {
  local id later
  id=$(count)
  goes_on "$id"
  systemctl stop hodei-agent &
  within 10 is_draining
  later=$(submit -- true)
  goes_on "$id"
  expect "the job" "$(job "$id" .state)" Running
  counted "$id"
  wait
  expect "a job that came meanwhile" "$(job "$later" .state)" Pending
  systemctl start hodei-agent
  within 10 state_is "$later" Succeeded
}

hands_back_what_takes_longer() {
  local id dir=/etc/systemd/system/hodei-agent.service.d
  mkdir -p "$dir"
  { echo '[Service]' && echo ExecStart= &&
    sed -n '/^ExecStart=/s/--drain-timeout 80s/--drain-timeout 1s/p' /etc/systemd/system/hodei-agent.service; } > "$dir/drain.conf"
  systemctl daemon-reload
  systemctl restart hodei-agent
  within 10 ready
  id=$(submit --retry-infrastructure 0 -- bash -c 'echo $HODEI_ATTEMPT; [[ $HODEI_ATTEMPT == 2 ]] || sleep 86341')
  within 10 says_line "$id" 1
  systemctl stop hodei-agent
  expect "what is left" "$(processes 86341)" 0
  expect "the job" "$(job "$id" '.state')" Pending
  rm -r "$dir"
  systemctl daemon-reload
  systemctl start hodei-agent
  within 30 is_over "$id"
  expect "the job" "$(job "$id" '.state + " " + (.attempt | tostring)')" "Succeeded 2"
}

# Whoever ends it ends the jobs as well; but then all is as it was.
survives_its_keeper() {
  local keeper agent
  keeper=$(main_pid hodei-jobs) agent=$(main_pid hodei-agent)
  kill -KILL "$keeper"
  within 10 another_main_than "$keeper" hodei-jobs
  within 10 works_below_its_keeper
  within 10 ready
  tell "INFO without its keeper the agent was $([[ $(main_pid hodei-agent) != "$agent" ]] || echo "not ")started again"
}
works_below_its_keeper() { has_isolation && has_a_group_of_its_own && out_of_memory tail /dev/zero; }

restarts_the_node() {
  local id
  id=$(count)
  goes_on "$id"
  systemctl restart hodei-node
  within 15 ready
  goes_on "$id"
  counted "$id"
}

# --- three nodes -----------------------------------------------------------------------------------------------------

# As their own users would be too much: they have directories and ports of their own.
join_node() {
  local file=/etc/hodei/node$1.toml dir=/var/lib/hodei/node$1
  printf 'listen = "0.0.0.0:5005%d"\nhttp = "127.0.0.1:808%d"\n' "$1" "$1" > "$file"
  install -d -m 700 -o hodei -g hodei "$dir"
  runuser -u hodei -- hodei-node join vm:50051 --token "$(hodei token create --role node --output quiet)" \
    --prepare-only --data-dir "$dir" --config "$file"
  sed "s#hodei/node\b#&$1#g" deploy/systemd/hodei-node.service > "/etc/systemd/system/hodei-node$1.service"
  systemctl enable --now "hodei-node$1"
}
healthy_voters() {
  [[ $(hodei cluster status --output json | jq '[.nodes[] | select(.role == "voter" and .healthy)] | length') == "$1" ]]
}

becomes_three() {
  join_node 2
  within 20 healthy_voters 2
  join_node 3
  within 20 healthy_voters 3
}

# The new binaries are the old ones, in files of their own.
upgrades_in_place() {
  local id node old
  id=$(count)
  goes_on "$id"
  for node in hodei-node hodei-node2 hodei-node3; do
    old=$(main_pid "$node")
    follow "An upgrade" 1 -e "s/restart hodei-node/restart $node/"
    [[ $(main_pid "$node") != "$old" && -n $(find "/proc/$(main_pid "$node")/exe" -samefile /usr/bin/hodei-node -follow) ]]
    within 20 healthy_voters 3
    goes_on "$id"
  done
  old=$(main_pid hodei-agent)
  follow "An upgrade" 2
  within 10 another_main_than "$old"
  within 10 ready
  goes_on "$id"
  counted "$id"
}

becomes_one_again() {
  local node id
  for node in 2 3; do
    id=$(hodei cluster status --output json | jq -r ".nodes[] | select(.address | endswith(\":5005$node\")).id")
    # The agent was with each of them for a while, and its logs may be nowhere else.
    follow "Removal" 2 -e "s/ID/$id --lose-logs/"
    systemctl disable --now "hodei-node$node"
    rm -r "/etc/systemd/system/hodei-node$node.service" "/etc/hodei/node$node.toml" "/var/lib/hodei/node$node"
  done
  systemctl daemon-reload
  within 10 healthy_voters 1
  expect "nodes" "$(hodei cluster status --output json | jq '.nodes | length')" 1
  ends_as_it_does
}

# --- agent and watchdog killed together ------------------------------------------------------------------------------

# A job of several processes whose agent and watchdog are killed at once.
dies_with_agent_and_watchdog() {
  local id
  id=$(submit --lost-after 5s --retry-infrastructure 0 -- bash -c 'setsid sleep 86311 & setsid sleep 86311 & sleep 86311')
  within 10 eval '[[ $(processes 86311) == 3 ]]'
  # shellcheck disable=SC2046
  kill -KILL "$(main_pid hodei-agent)" $(grep -lx hodei-watchdog /proc/[0-9]*/comm | cut -d / -f 3)
  within 10 nothing_left 86311
  within 20 is_over "$id"
  expect "the reason" "$(job "$id" .reason.kind)" worker_lost
}

# --- without root ----------------------------------------------------------------------------------------------------

# rootless UNIT PROPERTY…: an agent of a plain user as a transient service.
rootless() {
  local unit=$1 token
  shift
  token=$(hodei token create --role agent --output quiet)
  systemd-run --quiet --unit="$unit" --uid=plain --setenv=HOME=/home/plain "$@" hodei-agent --server vm:50051 \
    --token "$token" --data-dir "/home/plain/$unit" --label "unit=$unit"
  within 10 is_there "$unit"
}
of_unit() { worker "[.[] | select(.labels.unit == \"$1\" and (.state == \"Ready\" or .state == \"Busy\"))][0]$2"; }
is_there() { [[ $(of_unit "$1" .state) == Ready ]]; }

stop_and_remove() {
  local id
  id=$(of_unit "$1" .id)
  systemctl stop "$1"
  hodei worker remove "$id"
}

plain_agent_without_delegation() {
  useradd --create-home plain
  rootless bare
  expect isolation "$(of_unit bare '.labels["hodei.isolation"]')" process-tree
  expect limits "$(of_unit bare '.labels["hodei.limits"]')" none
  expect "the user" "$(run --constraint label.unit=bare -- id -un)" plain
  run --constraint label.unit=bare -- bash -c 'setsid sleep 86321 & (setsid sleep 86321 &); sleep 0.3'
  expect "what is left" "$(processes 86321)" 0
  stop_and_remove bare
}

plain_agent_with_delegation() {
  local own
  rootless given --property=Delegate=yes
  expect isolation "$(of_unit given '.labels["hodei.isolation"]')" cgroup2
  expect limits "$(of_unit given '.labels["hodei.limits"]')" memory,cpu
  own=$(run --constraint label.unit=given -- sed s/0:://p -n /proc/self/cgroup)
  expect "the job's group" "$own" "/system.slice/given.service/hodei-*"
  run --constraint label.unit=given -- bash -c 'setsid sleep 86322 & (setsid sleep 86322 &); sleep 0.3'
  expect "what is left" "$(processes 86322)" 0
  local status=0
  run --constraint label.unit=given --memory 64M -- tail /dev/zero || status=$?
  expect "the exit code of a job that runs out of memory" "$status" 137
  stop_and_remove given
}

# --- the journal -----------------------------------------------------------------------------------------------------

journal_has_no_errors() {
  local bad
  bad=$(journalctl --boot --output cat --unit hodei-node --unit hodei-agent "$@" | grep -E ' ERROR |panicked|status=2' || true)
  expect "the journal" "$bad" ""
}

exposure() {
  local unit
  for unit in hodei-node hodei-agent; do
    tell "INFO systemd-analyze security: $(systemd-analyze security "$unit" --no-pager | tail -n 1 | tr -d '→')"
  done
}

came_back() {
  expect hodei-node "$(systemctl is-active hodei-node)" active
  expect hodei-agent "$(systemctl is-active hodei-agent)" active
  expect restarts "$(systemctl show --property NRestarts --value hodei-node hodei-agent | paste -sd ' ')" "0*0"
}

# For whoever wants to know why; goes to the console.
show_journal() { journalctl --boot --no-pager > /dev/ttyS0; }

# --- phases ----------------------------------------------------------------------------------------------------------

load() {
  local loop
  for loop in 1 2 3; do
    while :; do
      id=$(submit --name "load-$loop" --lost-after 5s -- true) && tell "ACK $id"
    done &
  done
}

first() {
  tell "INFO $(. /etc/os-release && echo "$PRETTY_NAME"), Linux $(uname -r), $(systemctl --version | head -n 1)"
  check "the machine has systemd and cgroup v2 alone" is_version_two_alone
  check "a node is installed as the instructions say" install_node &&
    check "an agent is installed as the instructions say" install_agent || return 1
  # What follows kills the only agent more often than a worker may lose what it runs.
  hodei scheduler set --set-aside-flaps 0
  check "the worker says cgroup2, and that memory and CPU are bounded" has_isolation
  check "a job ends with its own exit code" ends_as_it_does
  check "a job has a control group of its own, which goes with it" has_a_group_of_its_own
  check "a job that takes more memory than it has ends as out_of_memory" dies_of_memory
  check "so does one whose child does" dies_of_memory_as_a_whole
  check "a job with half a core uses half a core" keeps_to_its_cpu
  check "what a job detaches ends with it" takes_what_detached_itself_with_it
  check "a job runs as another user, who cannot read what is the agent's" runs_as_another_user
  check "a job may make namespaces and become another user, with root and without" may_make_namespaces
  check "a job of root may not load modules or set the clock" may_not_touch_the_kernel
  check "a job survives kill -9 of its agent and loses no line" survives_the_agents_death
  check "and several in a row" survives_many_deaths
  check "a job survives a restart of the node" restarts_the_node
  check "the agent and its jobs' groups come back when the keeper of these is killed" survives_its_keeper
  check "systemctl stop drains" drains_when_stopped
  check "what takes longer than the drain is handed back and run again" hands_back_what_takes_longer
  check "two more nodes join" becomes_three
  check "three nodes and the agent are upgraded one by one, and a job that runs loses no line" upgrades_in_place
  check "two nodes are removed as the instructions say" becomes_one_again
  check "a plain user's agent without delegation says so, and its jobs die with their tree" plain_agent_without_delegation
  check "with delegation it has what root has" plain_agent_with_delegation
  check "the journal has no errors" journal_has_no_errors
  check "nothing of a job outlives agent and watchdog" dies_with_agent_and_watchdog
  exposure
  mkdir -p "$jobs"
  # Its first attempt ends with the machine.
  submit --name long --lost-after 5s -- bash -c '[[ $HODEI_ATTEMPT == 2 ]] || sleep 86341' > "$jobs/long"
  within 10 state_is "$(cat "$jobs/long")" Running
  sync -f "$jobs/long"
  show_journal
  load
  sleep 3
  tell CUT
  sleep infinity
}

all_ended_well() {
  local states
  within 90 eval '[[ $(hodei job list --limit 1000000 --output json | jq "[.[] | select(.finished_at == null)] | length") == 0 ]]'
  states=$(hodei job list --limit 1000000 --output json | jq -r '[.[] | select(.name | tostring | startswith("load-")) | .state] | unique | join(" ")')
  expect "their states" "$states" Succeeded
}

ran_again() {
  expect "the job that ran" "$(job "$(cat "$jobs/long")" '.state + " " + (.attempt | tostring)')" "Succeeded 2"
}

second() {
  check "after the power cut node and agent form again by themselves" forms_again
  hodei job list --limit 1000000 --output json | jq -r '.[].id' | sed 's/^/LISTED /' > /dev/ttyS1
  tell LISTED-ALL
  check "all jobs of the time of the cut have ended well" all_ended_well
  check "the one that ran then was run again" ran_again
  check "units have not been restarted" came_back
  check "the journal of this boot has no errors" journal_has_no_errors
  # It takes longer than everything else that has to end.
  submit --name lasting -- bash -c 'exec 3<> <(:); for ((i = 1; i <= 100; i++)); do echo $i; read -rt 0.05 -u 3; done; true' > "$jobs/last"
  within 10 says_line "$(cat "$jobs/last")" 1
  show_journal
  tell REBOOT
  systemctl reboot
  sleep infinity
}
forms_again() { within 60 ready; }

finished_while_shutting_down() {
  local id
  id=$(cat "$jobs/last")
  expect "the job" "$(job "$id" '.state + " " + (.attempt | tostring)')" "Succeeded 1"
  cmp <(hodei job logs "$id") <(seq 100)
  # The agent ended before the node did.
  journalctl --boot=-1 --unit hodei-agent --unit hodei-node --output cat | grep -E '^Stopped hodei-' | tail -n 2 > /run/stopped
  expect "what was stopped first" "$(head -n 1 /run/stopped)" 'Stopped hodei-agent*'
}

third() {
  check "after a reboot they form again" forms_again
  check "the job that ran then was let finish, and has every line" finished_while_shutting_down
  check "the journal of this boot has no errors" journal_has_no_errors
  show_journal
  change_address 10.77.0.20
  sync -f /etc/hosts
  tell RESET
  echo b > /proc/sysrq-trigger
}

has_the_new_address() {
  expect "the node's address" "$(hodei cluster status --output json | jq -r '.nodes[0].address')" 10.77.0.20:50051
}

removes_the_agent() {
  follow "Removal" 1 -e "s/ID/$(worker '[.[] | select(.state == "Ready")][0].id')/"
  expect "workers" "$(worker '[.[] | select(.state != "Terminated")] | length')" 0
}

removes_the_node() {
  follow "Removal" 3
  expect "processes" "$(cat /proc/[0-9]*/comm | grep -c '^hodei')" 0
  expect "units" "$(systemctl list-units --all --no-legend 'hodei*')" ""
  expect "files" "$(find / -xdev -name '*hodei*' ! -path '/var/log/*' ! -path '/tmp/*' | paste -sd ' ')" ""
  expect "control groups" "$(find /sys/fs/cgroup -name '*hodei*')" ""
  ! id hodei
}

fourth() {
  check "after a reset, with another address, they form again" forms_again
  check "the node is known by its new address" has_the_new_address
  check "jobs run" ends_as_it_does
  check "units have not been restarted" came_back
  check "the agent is removed as the instructions say" removes_the_agent
  check "so is the node, and nothing is left" removes_the_node
}

case $phase in
  1) first || show_journal ;;
  2) second ;;
  3) third ;;
  4) fourth; show_journal; tell DONE ;;
esac
# The machine goes with this service.
