#!/usr/bin/env bash
# hack/bench.sh [--quick] [--only NAME,...] [--json FILE] [--update-docs] [--list]:
# what Palisade costs, side by side with what people use instead. docs/performance.md
# says how to read it. It starts what it compares, on free ports and in folders of its
# own, and nothing runs on afterwards. Quick: under 3 minutes; else half an hour.
#
# Nothing else should run on the machine: figures drift with its load, and ratios too
# if it changes within a run.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO"

clean_up() {
  trap '' INT TERM
  find "$RUN" -name '*.pid' -printf '%h\n' 2>/dev/null | sort -u | while read -r dir; do
    "$REPO/hack/cluster.sh" stop "$dir" || true
    "$REPO/hack/postgres.sh" stop "$dir" || true
  done
  rm -rf "$RUN" || true
}

need cargo "the benchmarks are built by it"
"$REPO/hack/postgres.sh" ensure
RUN=$(mktemp -d "${TMPDIR:-/tmp}/palisade-bench.XXXXXX")
chmod 755 "$RUN"
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
export TMPDIR=$RUN
# As people run it, not as the tests do.
export PALISADE_PG_FSYNC=on PALISADE_PG_CONNECTIONS=100
cargo bench --locked --bench palisade -- "$@"
