#!/usr/bin/env bash
# hack/prometheus.sh: prints the folder of prometheus and promtool, by which alerts
# and dashboard are tested: that of PATH, or else that of Debian's package, which is
# unpacked into the cache and not installed.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

unpack() {
  local work=$1
  cd "$work"
  # As root, apt would hand the download to a user who cannot write here.
  apt-get download -q -o APT::Sandbox::User=root prometheus
  dpkg-deb -x prometheus_*.deb .
}

main() {
  local target=$CACHE/tools/prometheus lock log=$CACHE/tools/prometheus.log
  if command -v promtool >/dev/null && command -v prometheus >/dev/null; then
    dirname "$(command -v prometheus)"
    return
  fi
  if [[ ! -x $target/usr/bin/promtool ]]; then
    need apt-get "neither prometheus nor promtool is in PATH, and this is no Debian whose package could be unpacked: install prometheus"
    mkdir -p "$CACHE/tools"
    exec {lock}>"$CACHE/apt.lock"
    flock "$lock"
    # Whoever held the lock may have unpacked just this.
    if [[ ! -x $target/usr/bin/promtool ]]; then
      WORK=$(mktemp -d "$CACHE/tools/.prometheus.XXXXXX")
      trap 'rm -rf "$WORK"' EXIT
      # There may be no list of packages yet, or one that is too old to be of use.
      if ! with_progress "unpacking Debian's prometheus" "$log" unpack "$WORK"; then
        ((EUID == 0)) || die "apt-get cannot download prometheus: run apt-get update as root, or install prometheus"
        with_progress "updating the list of packages" "$log" apt-get update -q
        with_progress "unpacking Debian's prometheus, again" "$log" unpack "$WORK"
      fi
      rm -rf "$target"
      mv -T "$WORK" "$target"
      trap - EXIT
    fi
    exec {lock}>&-
  fi
  echo "$target/usr/bin"
}

main
