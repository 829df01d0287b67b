#!/usr/bin/env bash
# hack/rootfs.sh BINARY DIR: puts into DIR, which is new, all files of the image:
# the program, what it is linked against, the roots of TLS, a user. No shell, no
# package manager, no /tmp: nothing in it is ever written. Also run by the
# Containerfile, so it needs nothing but Debian's base system.
set -euo pipefail

BINARY=${1:?"hack/rootfs.sh BINARY DIR"}
DIR=${2:?"hack/rootfs.sh BINARY DIR"}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ROOTS=/etc/ssl/certs/ca-certificates.crt

# package FILE: the Debian package that brought it, or nothing. dpkg knows some
# libraries by the path that they had before /lib became a link to /usr/lib.
package() {
  local path
  for path in "$1" "$(readlink -f "$1")" "/lib/${1#/usr/lib/}"; do
    dpkg-query --search "$path" 2>/dev/null | sed 's/:.*//' && return
  done || true
}

# note PACKAGE: its licence, and its version where scanners of images look for it.
note() {
  local doc=usr/share/doc/$1
  mkdir -p "$DIR/$doc" "$DIR/var/lib/dpkg/status.d"
  cp -L "/$doc/copyright" "$DIR/$doc/copyright"
  dpkg-query --status "$1" >"$DIR/var/lib/dpkg/status.d/$1"
}

[[ -s $ROOTS ]] || {
  echo "error: $ROOTS is not there: install the package ca-certificates" >&2
  exit 1
}
mkdir -p "$(dirname "$DIR")"
mkdir "$DIR"
install -D -m 755 "$BINARY" "$DIR/usr/local/bin/palisade"
ln -s palisade "$DIR/usr/local/bin/kubectl-palisade"
install -D -m 644 "$HERE/LICENSE" "$DIR/usr/share/doc/palisade/copyright"

# The loader, too; the kernel's own vdso has no path.
packages=(ca-certificates)
while read -r library; do
  install -D -m 755 "$library" "$DIR$library"
  packages+=("$(package "$library")")
done < <(ldd "$BINARY" | grep -o '/[^ ]*' | sort -u)
if command -v dpkg-query >/dev/null; then
  for name in $(printf '%s\n' "${packages[@]}" | sort -u); do note "$name"; done
fi

install -D -m 644 "$ROOTS" "$DIR$ROOTS"
[[ ! -e /etc/os-release ]] || install -m 644 "$(readlink -f /etc/os-release)" "$DIR/etc/os-release"
# Since 2.34 these two ways of looking up a name are in glibc's libc.so itself.
printf '%s\n' 'hosts: files dns' >"$DIR/etc/nsswitch.conf"
printf '%s\n' 'root:x:0:0:root:/:/sbin/nologin' 'palisade:x:65532:65532:palisade:/:/sbin/nologin' >"$DIR/etc/passwd"
printf '%s\n' 'root:x:0:' 'palisade:x:65532:' >"$DIR/etc/group"
find "$DIR" -type d -exec chmod 755 {} +
find "$DIR/etc" "$DIR/var" "$DIR/usr/share" -type f -exec chmod 644 {} +
