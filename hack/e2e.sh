#!/usr/bin/env bash
# hack/e2e.sh [ARGS of tests/e2e.rs]: Palisade on a real node, as a user installs it:
# builds images and helm, starts a node (hack/node.sh), has tests/e2e.rs install the
# chart and tell its stories, and takes everything down, however it ends.
#
#   hack/e2e.sh              all stories
#   hack/e2e.sh --short      the most telling ones
#   hack/e2e.sh NAME         those with NAME in their name, and what they need before
#   hack/e2e.sh --list       what there is
#
# Exit code 77, with the reason, where no node can run, or where KUBECONFIG names another
# cluster: the stories cannot be told there.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO"

clean_up() {
  local status=$?
  trap '' INT TERM HUP
  hack/node.sh stop "$RUN/node"
  case $status in
    0 | 130 | 143) rm -rf "$RUN" ;;
    *)
      rm -rf "$RUN/node/containerd" # the images, unpacked
      say "what it left, logs among it, is in $RUN"
      ;;
  esac
  say "e2e: $( ((status == 0)) && echo passed || echo "failed (exit code $status)") in $((SECONDS / 60)) min $((SECONDS % 60)) s"
  exit "$status"
}

# certificates: a CA of this run, and Postgres' certificate by it.
certificates() {
  local dir=$RUN/tls
  mkdir -p "$dir"
  {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=a CA of this test run" \
      -keyout "$dir/ca.key" -out "$dir/ca.crt"
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=postgres" \
      -keyout "$dir/server.key" -out "$dir/server.csr"
    openssl x509 -req -in "$dir/server.csr" -CA "$dir/ca.crt" -CAkey "$dir/ca.key" -CAcreateserial -days 2 \
      -extfile <(echo "subjectAltName=DNS:postgres.database.svc") -out "$dir/server.crt"
  } >"$dir/log" 2>&1 || die "openssl makes no certificates: $(tail -n 3 "$dir/log")"
  chmod 755 "$RUN" "$dir"
  chown postgres "$dir/server.key"
  chmod 600 "$dir/server.key"
  # Nobody comes in from the pods' network without TLS and a password.
  cat >"$RUN/pg_hba.conf" <<'HBA'
local   all all              trust
host    all all 127.0.0.1/32 trust
hostssl all all 10.244.0.0/24 scram-sha-256
HBA
  chmod 644 "$RUN/pg_hba.conf"
  # 15 is Debian's, with OpenSSL. The history of a story needs the time of each commit, and
  # the doctor wants fsync.
  export PALISADE_PG_FSYNC=on
  export PALISADE_PG_VERSION=15
  PALISADE_PG_ARGS="-c listen_addresses=* -c ssl=on -c ssl_cert_file=$dir/server.crt -c ssl_key_file=$dir/server.key"
  export PALISADE_PG_ARGS+=" -c hba_file=$RUN/pg_hba.conf -c track_commit_timestamp=on"
}

# import NAMES OF TARS...: into the node.
import() {
  local tar
  for tar; do
    with_progress "importing $(basename "$tar")" "$RUN/import.log" hack/node.sh enter "$RUN/node" \
      ctr --address "$RUN/node/containerd.sock" --namespace k8s.io image import "$tar"
  done
}

main() {
  local test palisade mlserver postgres helm
  need cargo "the stories are a test of it"
  need openssl "it makes the certificates of Postgres"
  if [[ -n ${KUBECONFIG:-} ]]; then
    say "KUBECONFIG names a cluster of yours, and the stories stop kubelets, freeze processes and import images: they need a node of their own; unset it"
    exit 77
  fi
  hack/node.sh check
  PALISADE_PG_VERSION=15 hack/postgres.sh ensure
  cargo test --features failpoints --locked --test e2e --no-run >&2
  test=$(cargo test --features failpoints --locked --test e2e --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"name":"e2e".*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
  [[ -x $test ]] || die "cargo built no test e2e"
  if [[ " $* " == *" --list "* ]]; then exec "$test" --list; fi
  helm=$(hack/helm.sh)
  mlserver=$(hack/images.sh mlserver)
  postgres=$(hack/images.sh postgres)
  palisade=$(hack/image.sh --failpoints)
  RUN=$(mktemp -d "${TMPDIR:-/tmp}/palisade-e2e.XXXXXX")
  trap clean_up EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  certificates
  hack/node.sh start "$RUN/node" --parent $$ --remove >/dev/null
  import "$palisade" "$mlserver" "$postgres"
  mkdir -m 777 "$RUN/tmp"
  PALISADE_E2E_DIR=$RUN PALISADE_E2E_HELM=$helm PALISADE_E2E_MODELS=${mlserver%.tar}.models \
    PALISADE_E2E_KUBECTL=$(hack/binaries.sh)/kubectl TMPDIR=$RUN/tmp \
    hack/node.sh enter "$RUN/node" "$test" "$@"
}

main "$@"
