#!/usr/bin/env bash
# Installs Hodei on a machine of its own, as deploy/systemd/README.md says, and breaks that machine.
#
# The machine is a virtual one (qemu) with Debian 12: systemd 252 as process 1 and cgroup v2 alone, which a container
# or a build machine often is not. It has no network but itself. scripts/vm-guest.sh runs inside, prints a line per check
# and asks for what only the outside can do: it is killed like a machine that loses its power while jobs are submitted,
# and started again; then it reboots, and then it is reset and comes back with another address. The last line counts the checks.
#
# usage: scripts/vm-test.sh [--keep]      --keep: leave the machine's disk and its console's output, and say where
#
# HODEI_BIN_DIR: use the binaries in this directory instead of building them. HODEI_VM_CACHE: where the image of the
# system is kept between runs (default: vm in the target directory). Needs root and, once, a Debian mirror. Without KVM the
# machine is emulated, which is many times slower.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

readonly suite=bookworm mirror=${HODEI_VM_MIRROR:-http://deb.debian.org/debian}
readonly packages=systemd-sysv,dbus,linux-image-cloud-amd64,iproute2,jq
target=${CARGO_TARGET_DIR:-$PWD/target}
cache=${HODEI_VM_CACHE:-$target/vm}
keep=no
for argument in "$@"; do
  case $argument in
    --keep) keep=yes ;;
    *) die "unknown argument $argument; usage: scripts/vm-test.sh [--keep]" ;;
  esac
done

[[ $(id -u) == 0 ]] || die "needs root, to make the image of a system"
# A /dev/kvm that is not the processor's own runs only kernels that were made for it.
if [[ -w /dev/kvm ]] && compgen -G '/sys/module/kvm_[ia]*' > /dev/null; then
  processor=(-accel kvm -cpu host) patience=1
else
  say "no KVM of Intel's or AMD's kind: the machine is emulated, which takes a quarter of an hour and more"
  processor=(-accel "tcg,thread=multi" -cpu max) patience=4
fi
readonly boot_limit=$((600 * patience)) # seconds that one boot, with its checks, may take
need qemu-system-x86_64 qemu-system-x86
need qemu-img qemu-utils
need debootstrap debootstrap
need mkfs.ext4 e2fsprogs
need strip binutils

work=$(mktemp -d "${TMPDIR:-/tmp}/hodei-vm.XXXXXX")
readonly results=$work/results # of checks from outside; there from the first boot on
machine="" # the process that has to end with this one
cleanup() {
  local status=$?
  trap - EXIT
  trap '' INT TERM
  [[ -z $machine ]] || kill -KILL "$machine" 2> /dev/null || true
  wait 2> /dev/null || true
  [[ ! -f $results ]] || count
  if [[ $keep == yes ]]; then say "left in $work"; else rm -rf "$work"; fi
  exit "$status"
}
# What was found so far, in the last line.
count() {
  local good bad
  good=$(said_lines 'PASS ') bad=$(said_lines 'FAIL ')
  say "$good passed, $bad failed"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# --- the system ------------------------------------------------------------------------------------------------------

# A Debian of the packages above, as a file system of its own, with its kernel beside it. The product is not in it.
make_image() {
  local root=$work/root into=$work/image
  say "making the image of a system (once)"
  # What it mounts and starts ends with it, also when this is interrupted.
  unshare --mount --pid --fork --kill-child --mount-proc \
    debootstrap --variant=minbase --include="$packages" "$suite" "$root" "$mirror" > "$work/debootstrap.log" 2>&1 &
  machine=$!
  wait "$machine" || { tail -n 5 "$work/debootstrap.log" >&2; die "debootstrap has failed"; }
  machine=""
  echo vm > "$root/etc/hostname"
  printf '127.0.0.1 localhost\n10.77.0.10 vm\n' > "$root/etc/hosts"
  printf '[Match]\nName=en* eth*\n[Network]\nAddress=10.77.0.10/24\nGateway=10.77.0.1\n' > "$root/etc/systemd/network/lan.network"
  echo '/dev/vda / ext4 defaults 0 1' > "$root/etc/fstab"
  : > "$root/etc/machine-id"
  cat > "$root/etc/systemd/system/vm-test.service" << 'UNIT'
[Unit]
Description=The checks of this machine
After=network-online.target
[Service]
ExecStart=/bin/bash -c 'mkdir -p /dev/shm/vm && cd /dev/shm/vm && tar -x -f /dev/vdb && bash scripts/vm-guest.sh; systemctl poweroff --force'
TimeoutStopSec=5s
[Install]
WantedBy=multi-user.target
UNIT
  chroot "$root" systemctl enable --quiet systemd-networkd vm-test
  chroot "$root" systemctl mask --quiet getty.target e2scrub_reap apt-daily.timer apt-daily-upgrade.timer
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}
  mkdir -p "$into"
  cp "$root"/boot/vmlinuz-* "$into/kernel"
  cp "$root"/boot/initrd.img-* "$into/initrd"
  rm -f "$root"/boot/*
  truncate -s 3G "$into/system"
  mkfs.ext4 -q -d "$root" "$into/system"
  mkdir -p "$cache"
  rm -rf "$image" "$root"
  mv "$into" "$image"
}

# One per content of this function and these packages.
image=$cache/$suite-$({ declare -f make_image; say "$packages"; } | sha256sum | cut -c 1-12)
[[ -f $image/system ]] || make_image

# --- the product -----------------------------------------------------------------------------------------------------

if [[ -n ${HODEI_BIN_DIR:-} ]]; then
  bin=$HODEI_BIN_DIR
else
  need_rust
  say "building"
  cargo build --release --locked --bins -p hodei-node -p hodei-agent
  bin=$target/release
fi
[[ -x $bin/hodei-node && -x $bin/hodei-agent ]] || die "no hodei-node and hodei-agent in $bin"

# As the instructions expect it to lie: target/release beside deploy.
mkdir -p "$work/tree/target/release"
for binary in hodei-node hodei-agent; do strip -o "$work/tree/target/release/$binary" "$bin/$binary"; done
cp -r deploy scripts "$work/tree"
tar -c -f "$work/product" -C "$work/tree" .
qemu-img create -q -f qcow2 -F raw -b "$image/system" "$work/disk"

# --- the machine -----------------------------------------------------------------------------------------------------

touch "$results"

# start PHASE: boots. Killing qemu loses what the machine's kernel had not written yet, and of what it had written and not
# flushed at least what lies where nothing was before.
start() {
  qemu-system-x86_64 "${processor[@]}" -smp 2 -m 2560 -nographic -no-reboot -nodefaults \
    -kernel "$image/kernel" -initrd "$image/initrd" -append "root=/dev/vda rw console=ttyS0 quiet hodei.phase=$1 hodei.patience=$patience" \
    -drive "file=$work/disk,format=qcow2,if=virtio,cache=writeback" \
    -drive "file=$work/product,format=raw,if=virtio,readonly=on" \
    -netdev user,id=lan,net=10.77.0.0/24,restrict=on -device virtio-net-pci,netdev=lan \
    -serial "file:$work/console.$1" -serial "file:$work/said.$1" < /dev/null > "$work/qemu.$1" 2>&1 &
  machine=$!
  limit=$((SECONDS + boot_limit))
}

# Everything that was said so far, in lines that are complete.
said() { sed -sn 's/\r$//p' "$work"/said.* 2> /dev/null || true; }
said_lines() { { said && cat "$results"; } | grep -c "^$1" || true; }
runs() { kill -0 "$machine" 2> /dev/null; }

# until_it COMMAND…: waits, and shows the results meanwhile.
until_it() {
  until "$@"; do
    show
    ((SECONDS < limit)) || { show; tail -n 20 "$work"/console.* >&2; die "waited $boot_limit s in vain: $*"; }
    sleep 0.2
  done
  show
}

shown=0
# Prints what is new among the results.
show() {
  local all
  all=$(said | grep -E '^(PASS|FAIL|INFO) ' || true)
  [[ -n $all ]] || return 0
  tail -n "+$((shown + 1))" <<< "$all"
  shown=$(wc -l <<< "$all")
}

has_said() {
  runs || grep -qs "^$1" <(said) || { tail -n 20 "$work"/console.* >&2; die "the machine ended before it said $1"; }
  grep -qs "^$1" <(said)
}
has_ended() { ! runs; }
acknowledged() { (($(said_lines 'ACK ') >= $1)); }

# result PASS|FAIL WHAT…: of a check from outside.
result() { say "$*" | tee -a "$results"; }

say "booting: install, and break what can be broken inside"
start 1
until_it has_said CUT
before=$(said_lines 'ACK ')
until_it acknowledged $((before + 50))
kill -KILL "$machine"
wait "$machine" 2> /dev/null || true
said | sed -n 's/^ACK //p' | sort -u > "$work/acknowledged"
say "power lost with $(wc -l < "$work/acknowledged") jobs acknowledged; booting again"

start 2
until_it has_said LISTED-ALL
((before > 0)) || die "nothing was acknowledged before the cut"
said | sed -n 's/^LISTED //p' | sort -u > "$work/listed"
lost=$(comm -23 "$work/acknowledged" "$work/listed" | wc -l)
if [[ $lost == 0 ]]; then
  result PASS "after the power cut: every acknowledged job is there"
else
  result FAIL "after the power cut: $lost acknowledged jobs are lost"
fi
until_it has_said REBOOT
until_it has_ended
say "rebooted; booting again"
start 3
until_it has_said RESET
until_it has_ended
say "reset; booting with another address"
start 4
until_it has_said DONE
until_it has_ended
machine=""

if (($(said_lines 'FAIL ') > 0)); then
  keep=yes
  exit 1
fi
