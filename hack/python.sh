#!/usr/bin/env bash
# hack/python.sh: prints the path of a Python that has what the examples import
# (psycopg), and makes its environment first if it is not in the cache.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

ensure_python "$REPO/hack/python.txt" "psycopg"
echo "$REPLY/bin/python"
