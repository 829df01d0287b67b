#!/usr/bin/env bash
# hack/krew.sh DIR [BINARY]: kubectl's plugin for this machine's platform, as krew
# takes it: DIR/kubectl-palisade_OS_ARCH.tar.gz and DIR/palisade.yaml, the manifest
# of plugin/palisade.yaml with version and hash. Prints the manifest's path, the
# only line on stdout.
#
#   kubectl krew install --manifest=DIR/palisade.yaml --archive=DIR/kubectl-palisade_linux_amd64.tar.gz
#
# BINARY   the program to pack; else it is built, for a release
# SOURCE_DATE_EPOCH   the files' time (the commit's)
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[[ $# -ge 1 && $1 != -* ]] || {
  sed -n '2,/^set -e/{/^set -e/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2
  exit 2
}
mkdir -p "$1"
DIR=$(cd "$1" && pwd)
BINARY=${2:-}
if [[ -z $BINARY ]]; then
  need cargo "it builds palisade"
  (cd "$REPO" && cargo build --locked --release --bin palisade) >&2
  BINARY=$CARGO_TARGET_DIR/release/palisade
fi

# As Go names them: so does krew.
case $(uname -m) in
  x86_64) ARCH=amd64 ;;
  aarch64 | arm64) ARCH=arm64 ;;
  *) die "krew knows no name for $(uname -m)" ;;
esac
OS=$(uname -s | tr '[:upper:]' '[:lower:]')
VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p;T;q' "$REPO/Cargo.toml")
EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$REPO" log -1 --format=%ct 2>/dev/null || echo 0)}
ARCHIVE=kubectl-palisade_${OS}_$ARCH.tar.gz

WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
install -m 755 "$BINARY" "$WORK/kubectl-palisade"
install -m 644 "$REPO/LICENSE" "$WORK/LICENSE"
# The same program gives the same bytes, and so the same hash.
tar -C "$WORK" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$EPOCH" -cf - LICENSE kubectl-palisade |
  gzip -n >"$DIR/$ARCHIVE"
SHA256=$(sha256sum "$DIR/$ARCHIVE" | cut -d' ' -f1)
sed -e '/^#/d' -e "s/\${VERSION}/$VERSION/g" -e "s/\${OS}/$OS/" -e "s/\${ARCH}/$ARCH/" \
  -e "s/\${ARCHIVE}/$ARCHIVE/" -e "s/\${SHA256}/$SHA256/" "$REPO/plugin/palisade.yaml" >"$DIR/palisade.yaml"
echo "$DIR/palisade.yaml"
