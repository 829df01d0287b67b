#!/usr/bin/env bash
# hack/prometheus.sh: prints the folder of prometheus and promtool, by which alerts
# and dashboard are tested: that of PATH, or else that of Debian's package, which is
# unpacked into the cache and not installed.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

main() {
  local target=$CACHE/tools/prometheus
  if command -v promtool >/dev/null && command -v prometheus >/dev/null; then
    dirname "$(command -v prometheus)"
    return
  fi
  if [[ ! -x $target/usr/bin/promtool ]]; then
    need apt-get "neither prometheus nor promtool is in PATH, and this is no Debian whose package could be unpacked: install prometheus"
    mkdir -p "$CACHE/tools"
    WORK=$(mktemp -d "$CACHE/tools/.prometheus.XXXXXX")
    trap 'rm -rf "$WORK"' EXIT
    apt_unpack "$WORK" prometheus
    # Another run may have been first.
    mv -T "$WORK" "$target" 2>/dev/null || [[ -x $target/usr/bin/promtool ]]
  fi
  echo "$target/usr/bin"
}

main
