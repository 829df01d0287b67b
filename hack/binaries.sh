#!/usr/bin/env bash
# hack/binaries.sh [--node]: prints the folder of the test cluster's programs, and
# builds them first if they are not in the cache: controlplane (tests/cluster/),
# kwok, its stages, and kubectl. Only the first time takes long: about 7 minutes on
# 2 cores. With --node, those of a real node instead, which take 3 minutes more:
# node and pause (tests/cluster/) and coredns (tests/dns/).
#
# A folder is named after all that goes into it, so that every checkout with
# the same module finds the same one, and none finds a stale one.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

KUBERNETES=1.34.4
KWOK=0.8.0
# Raised by hand when the steps below change what comes out of them.
RECIPE=1

MODULE=$REPO/tests/cluster
DNS=$REPO/tests/dns
BINARIES=$CACHE/bin

# fingerprint FILES...
fingerprint() {
  {
    echo "$RECIPE $KUBERNETES $KWOK $(uname -sm)"
    cat "$MODULE/go.mod" "$MODULE/go.sum" "$@"
  } | sha256sum | cut -c1-16
}

# No cgo: no C compiler is needed, and the program runs on any libc.
export CGO_ENABLED=0
# Another module's workspace must not change what is built.
export GOWORK=off

# build_kubernetes FILE PACKAGE
build_kubernetes() {
  # Unless it is told its version, clients cannot parse what it reports.
  local version=k8s.io/component-base/version minor
  minor=${KUBERNETES#*.}
  cd "$MODULE"
  # -v names each package when it is compiled: the progress that is shown.
  go build -v -mod=readonly -trimpath -o "$1" -ldflags "-s -w \
    -X $version.gitVersion=v$KUBERNETES -X $version.gitMajor=${KUBERNETES%%.*} -X $version.gitMinor=${minor%%.*}" "$2"
}

# CoreDNS likewise is a module of its own.
build_dns() {
  cd "$DNS"
  go build -v -mod=readonly -trimpath -o "$1" -ldflags "-s -w" .
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

build_cluster() {
  with_progress "building the Kubernetes control plane (the first time takes about 7 minutes)" \
    "$1" build_kubernetes "$WORK/controlplane" .
  with_progress "building KWOK" "$1" build_kwok "$WORK"
  write_stages "$WORK"
  write_kubectl "$WORK"
}

build_node() {
  with_progress "building kubelet and kube-proxy" "$1" build_kubernetes "$WORK/node" ./node
  with_progress "building pause" "$1" build_kubernetes "$WORK/pause" ./pause
  with_progress "building CoreDNS" "$1" build_dns "$WORK/coredns"
}

# build WHAT DIR
build() {
  need go "the test cluster is built from Go modules; install Go 1.24 or newer"
  "build_$1" "$CACHE/build.log"
  mv -T "$WORK" "$2"
}

main() {
  local what=cluster target
  case ${1:-} in
    '') target=$BINARIES/cluster-$(fingerprint "$MODULE"/*.go) ;;
    --node) what=node target=$BINARIES/node-$(fingerprint "$MODULE"/{node,pause}/*.go "$DNS"/{go.mod,go.sum,*.go}) ;;
    *) die "usage: hack/binaries.sh [--node]" ;;
  esac
  once "$target" "the test cluster's programs" build "$what" "$target"
  echo "$target"
}

main "$@"
