#!/usr/bin/env bash
# hack/binaries.sh: prints the folder of the test cluster's programs, and builds
# them first if they are not in the cache: controlplane (tests/cluster/), kwok,
# its stages, and kubectl. Only the first time takes long: about 7 minutes on 2
# cores.
#
# The folder is named after all that goes into it, so that every checkout with
# the same module finds the same one, and none finds a stale one.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

KUBERNETES=1.34.4
KWOK=0.8.0
# Raised by hand when the steps below change what comes out of them.
RECIPE=1

MODULE=$REPO/tests/cluster
BINARIES=$CACHE/bin

fingerprint() {
  {
    echo "$RECIPE $KUBERNETES $KWOK $(uname -sm)"
    cat "$MODULE/go.mod" "$MODULE/go.sum" "$MODULE"/*.go
  } | sha256sum | cut -c1-16
}

# No cgo: no C compiler is needed, and the program runs on any libc.
export CGO_ENABLED=0
# Another module's workspace must not change what is built.
export GOWORK=off

build_controlplane() {
  # Unless it is told its version, clients cannot parse what it reports.
  local version=k8s.io/component-base/version minor
  minor=${KUBERNETES#*.}
  cd "$MODULE"
  # -v names each package when it is compiled: the progress that is shown.
  go build -v -mod=readonly -trimpath -o "$1/controlplane" -ldflags "-s -w \
    -X $version.gitVersion=v$KUBERNETES -X $version.gitMajor=${KUBERNETES%%.*} -X $version.gitMinor=${minor%%.*}" .
}

# KWOK is a module of its own: in the control plane's it would move client-go.
build_kwok() {
  GOBIN=$1 go install -v "sigs.k8s.io/kwok/cmd/kwok@v$KWOK"
}

# What KWOK does to nodes and pods is written in stage files of its module.
write_stages() {
  local module stage
  module=$(cd / && go mod download -json "sigs.k8s.io/kwok@v$KWOK" | sed -n 's/^.*"Dir": "\(.*\)".*$/\1/p')
  [[ -d $module ]] || die "the module of KWOK $KWOK is not where go says it is: '$module'"
  for stage in "$module"/kustomize/stage/{node/fast/node-initialize,node/heartbeat/node-heartbeat,pod/fast/pod-ready,pod/fast/pod-complete,pod/fast/pod-delete}.yaml; do
    cat "$stage"
    echo ---
  done >"$1/stages.yaml"
}

write_kubectl() {
  cat >"$1/kubectl" <<'KUBECTL'
#!/bin/sh
exec "$(dirname "$(readlink -f "$0")")/controlplane" kubectl "$@"
KUBECTL
  chmod 755 "$1/kubectl"
}

# build DIR: all of it into a folder that gets its name when it is complete.
build() {
  local target=$1 log=$CACHE/build.log
  need go "the test cluster is built from Go modules; install Go 1.24 or newer"
  BUILD=$(mktemp -d "$BINARIES/.build.XXXXXX")
  trap 'rm -rf "$BUILD"' EXIT
  chmod 755 "$BUILD"
  with_progress "building the Kubernetes control plane (the first time takes about 7 minutes)" \
    "$log" build_controlplane "$BUILD"
  with_progress "building KWOK" "$log" build_kwok "$BUILD"
  write_stages "$BUILD"
  write_kubectl "$BUILD"
  mv -T "$BUILD" "$target"
  trap - EXIT
}

main() {
  local target lock waited=0
  target=$BINARIES/cluster-$(fingerprint)
  if [[ ! -d $target ]]; then
    mkdir -p "$BINARIES"
    exec {lock}>"$BINARIES/.lock"
    until flock -w 10 "$lock"; do
      waited=$((waited + 10))
      say "another run builds the test cluster's programs; waiting ... $waited s"
    done
    # Whoever held the lock may have built just this.
    [[ -d $target ]] || build "$target"
  fi
  echo "$target"
}

main
