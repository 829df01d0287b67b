#!/usr/bin/env bash
# hack/helm.sh: prints the path of helm, and builds it first if it is not in the
# cache. Only the first time takes long: about 3 minutes on 2 cores. HELM names
# another one, which must be of version 3.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

HELM_VERSION=3.22.0
# The minor version of Kubernetes that it was made with.
HELM_KUBERNETES=37
# Raised by hand when the steps below change what comes out of them.
RECIPE=1

# No cgo: no C compiler is needed, and the program runs on any libc.
export CGO_ENABLED=0
# Another module's workspace must not change what is built.
export GOWORK=off

# What its own Makefile sets, or helm takes every cluster that it cannot ask for
# Kubernetes 1.20, and a chart for newer ones is refused.
build_helm() {
  local set="-X helm.sh/helm/v3/internal/version.version=v$HELM_VERSION" package
  for package in lint/rules chartutil; do
    set+=" -X helm.sh/helm/v3/pkg/$package.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/$package.k8sVersionMinor=$HELM_KUBERNETES"
  done
  (cd / && GOBIN=$1 go install -v -trimpath -ldflags "-s -w $set" "helm.sh/helm/v3/cmd/helm@v$HELM_VERSION")
}

# build DIR
build() {
  need go "helm is built from its Go module; install Go 1.24 or newer, or set HELM"
  with_progress "building helm $HELM_VERSION (the first time takes about 3 minutes)" "$CACHE/helm.log" build_helm "$WORK"
  mv -T "$WORK" "$1"
}

main() {
  local target=$CACHE/bin/helm-$HELM_VERSION-$RECIPE
  if [[ -n ${HELM:-} ]]; then
    [[ $("$HELM" version --template '{{.Version}}') == v3.* ]] || die "HELM=$HELM is not helm 3"
    echo "$HELM"
    return
  fi
  once "$target" helm build "$target"
  echo "$target/helm"
}

main
