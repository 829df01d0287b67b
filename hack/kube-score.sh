#!/usr/bin/env bash
# hack/kube-score.sh: an independent linter's opinion of the chart, as it is installed
# with each file of values in its ci/. The network policies are turned on, for they are
# off by default: many clusters ignore them, and all differ in what they need. What it
# finds and we leave is listed here, each with the reason; all else fails. Builds the
# linter first if it is not in the cache (about a minute).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

VERSION=1.20.0
BIN=$CACHE/tools/kube-score-$VERSION

IGNORED=(
  # IfNotPresent, with a version as the tag, or a digest. A node that restarts a worker
  # must not need the registry of images for it.
  container-image-pull-policy
  # Nothing is written: the root is read-only, and there is no scratch volume. Logs
  # are rotated by the kubelet. (Postgres, for trying out, has a volume.)
  container-ephemeral-storage-request-and-limit
  # Pods are spread by topologySpreadConstraints, which it does not know.
  deployment-has-host-podantiaffinity
  statefulset-has-host-podantiaffinity
)

# shellcheck disable=SC2329 # with_progress calls it
build_kube_score() {
  (cd / && CGO_ENABLED=0 GOWORK=off GOBIN=$1 go install -trimpath -ldflags '-s -w' "github.com/zegl/kube-score/cmd/kube-score@v$VERSION")
}

# shellcheck disable=SC2329 # once calls it
build() {
  need go "kube-score is built from its Go module; install Go 1.24 or newer"
  with_progress "building kube-score $VERSION" "$CACHE/tools/kube-score.log" build_kube_score "$WORK"
  mv -T "$WORK" "$BIN"
}

once "$BIN" kube-score build
HELM=$("$REPO/hack/helm.sh")
# A CPU limit pauses a process when its quota is used up, and a paused worker loses its
# leases. The request is what the scheduler needs. Memory has a limit.
arguments=(--ignore-container-cpu-limit)
for test in "${IGNORED[@]}"; do arguments+=(--ignore-test "$test"); done

WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
failed=0
for values in "$REPO"/charts/palisade/ci/*-values.yaml; do
  "$HELM" template palisade "$REPO/charts/palisade" --namespace palisade-system --values "$values" \
    --set networkPolicy.enabled=true >"$WORK/objects.yaml"
  status=0
  "$BIN/kube-score" score --kubernetes-version v1.33 --output-format ci "${arguments[@]}" \
    "$WORK/objects.yaml" >"$WORK/found" || status=$?
  # It says which objects it looked at: an answer without any is none.
  if ((status > 1)) || ! grep -q '^\[OK\]' "$WORK/found"; then
    die "kube-score failed (exit code $status) at $(basename "$values")"
  fi
  if grep -E '^\[(CRITICAL|WARNING)\]' "$WORK/found" >&2; then
    say "found with $(basename "$values")"
    failed=1
  fi
done
exit "$failed"
