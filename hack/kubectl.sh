#!/usr/bin/env bash
# hack/kubectl.sh ARGS...: kubectl, also where none is installed. It is the one of
# the test cluster's binary, so it is never of the wrong version.
set -euo pipefail
bin=$("$(dirname "${BASH_SOURCE[0]}")/binaries.sh")
exec "$bin/kubectl" "$@"
