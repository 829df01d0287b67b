#!/usr/bin/env bash
# hack/prometheus.sh: prints the folder of prometheus and promtool, by which alerts
# and dashboard are tested: that of PATH, or else that of Debian's package, which is
# unpacked into the cache and not installed.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# unpack DIR
unpack() {
  command -v apt-get >/dev/null ||
    die "neither prometheus nor promtool is in PATH, and this is no Debian whose package could be unpacked: install prometheus"
  apt_unpack "$WORK" prometheus
  mv -T "$WORK" "$1"
}

main() {
  local target=$CACHE/tools/prometheus
  if command -v promtool >/dev/null && command -v prometheus >/dev/null; then
    dirname "$(command -v prometheus)"
    return
  fi
  once "$target" prometheus unpack "$target"
  echo "$target/usr/bin"
}

main
