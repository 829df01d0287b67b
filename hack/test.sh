#!/usr/bin/env bash
# hack/test.sh [ARGS of cargo test]: all tests; without ARGS, then the most telling
# stories on a real node (hack/e2e.sh --short), where this machine can run one, and
# those of the database once more on each other supported version of Postgres, unless
# PALISADE_PG_VERSION or PALISADE_PG_BIN names one. They start the Postgres and the
# Kubernetes that they need by hack/postgres.sh and hack/cluster.sh; here we only
# see to it that the programs are there, so that no test's time limit has to cover a
# build, and that nothing runs on afterwards. End it by SIGTERM: what it waits for is in
# a process group of its own, which SIGKILL does not reach.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO"

clean_up() {
  local status=$?
  trap '' INT TERM HUP
  # A node is taken down by it, which takes a while.
  silence 60
  # Most are gone: their watchdogs saw the tests end. This makes it certain, and
  # makes it so by the time the prompt is back.
  find "$RUN" -name '*.pid' -printf '%h\n' 2>/dev/null | sort -u | while read -r dir; do
    "$REPO/hack/cluster.sh" stop "$dir" || true
    "$REPO/hack/postgres.sh" stop "$dir" || true
  done
  case $status in
    # Passed, or somebody wanted it to end. A watchdog may be removing the same.
    0 | 130 | 143) rm -rf "$RUN" || true ;;
    *)
      rmdir "$RUN" 2>/dev/null || say "what the tests left, logs among it, is in $RUN"
      ;;
  esac
  say "tests: $( ((status == 0)) && echo passed || echo "failed (exit code $status)") in $((SECONDS / 60)) min $((SECONDS % 60)) s"
  exit "$status"
}

# The tests' folders lie in one place that user postgres can reach, to be found
# when one of them has to be cleaned up.
RUN=$(mktemp -d "${TMPDIR:-/tmp}/palisade-test.XXXXXX")
chmod 755 "$RUN"
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
export TMPDIR=$RUN
need cargo "the tests are built by it"
aside "$REPO/hack/postgres.sh" ensure
for program in binaries python helm prometheus; do aside "$REPO/hack/$program.sh" >/dev/null; done
aside cargo test --features failpoints --locked "$@"

if (($# == 0)); then
  say "tests: on a real node"
  status=0
  # Not on a cluster of yours: whoever wants that says so, by make e2e.
  aside env -u KUBECONFIG "$REPO/hack/e2e.sh" --short || status=$?
  case $status in
    0) ;;
    77) say "tests: SKIPPED on a real node; why is said above" ;;
    *) exit "$status" ;;
  esac
fi

# In a short form: what the SQL promises, what the library makes of it, and the
# stories of failover. That each of these tests can fail was shown above.
if (($# == 0)) && [[ -z ${PALISADE_PG_VERSION:-}${PALISADE_PG_BIN:-} ]]; then
  for version in 16 18; do
    say "tests: once more on Postgres $version"
    export PALISADE_PG_VERSION=$version
    aside "$REPO/hack/postgres.sh" ensure
    aside cargo test --features failpoints --locked --test sql --test sdk --test failover --test attacks -- \
      --skip broken_rules --skip mutation --skip attacks::matrix --skip attacks::others --skip attacks::rights
  done
fi
