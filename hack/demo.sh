#!/usr/bin/env bash
# hack/demo.sh [ARGS of palisade demo]: the story of a paused worker, with real
# processes on a real Postgres; no cluster.
#
# DATABASE_URL   the Postgres to use, by a role that may create the schema; else a
#                throwaway one is started, and stopped at the end
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

clean_up() {
  trap '' INT TERM HUP
  "$REPO/hack/postgres.sh" stop "$RUN"
  rm -rf "$RUN"
}

palisade=$(build_palisade)
if [[ -z ${DATABASE_URL:-} ]]; then
  RUN=$(mktemp -d "${TMPDIR:-/tmp}/palisade-demo.XXXXXX")
  trap clean_up EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  DATABASE_URL=$("$REPO/hack/postgres.sh" start "$RUN" --parent $$)
  export DATABASE_URL
fi
"$palisade" demo "$@"
