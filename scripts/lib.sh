# shellcheck shell=bash disable=SC1091
# Shared by the scripts beside it; sourced, never executed.

# Says one line on standard error and ends.
die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

say() { printf '%s\n' "$*"; }

# need COMMAND PACKAGE: makes sure that COMMAND is there; as root on Debian it is installed, otherwise one line says
# what is missing.
need() {
  local command=$1 package=$2
  command -v "$command" > /dev/null && return
  if [[ $(id -u) == 0 ]] && command -v apt-get > /dev/null; then
    say "installing $package"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package"; } \
      > /dev/null 2>&1 || die "$command is missing and \`apt-get install $package\` failed"
    hash -r
  fi
  command -v "$command" > /dev/null || die "$command is missing: install the package $package"
}

# need_library PACKAGE: the same for a package without a command.
need_library() {
  local package=$1
  dpkg-query -W -f '${Status}' "$package" 2> /dev/null | grep -q 'ok installed' && return
  if [[ $(id -u) == 0 ]] && command -v apt-get > /dev/null; then
    say "installing $package"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package"; } \
      > /dev/null 2>&1 || die "\`apt-get install $package\` failed"
    return
  fi
  die "the package $package is missing"
}

# Rust cannot be had from Debian in the version that is needed.
need_rust() {
  [[ -f $HOME/.cargo/env ]] && ! command -v cargo > /dev/null && . "$HOME/.cargo/env"
  command -v cargo > /dev/null || die "cargo is missing: install Rust 1.95 or newer with rustup"
  need cc gcc
  need make make # the node's allocator is built with it
}
