#!/usr/bin/env bash
# hack/e2e.sh [ARGS of tests/e2e.rs]: Palisade on a real node, as a user installs it:
# builds images and helm, starts a node (hack/node.sh), has tests/e2e.rs install the
# chart and tell its stories, and takes everything down, however it ends.
#
#   hack/e2e.sh              all stories
#   hack/e2e.sh --short      the most telling ones. They install the image of tests, which
#                            is built already: a release build, which is what users get and
#                            all others install, takes a cold machine 10 CPU minutes
#   hack/e2e.sh NAME         those with NAME in their name, and what they need before
#   hack/e2e.sh --list       what there is
#
# If KUBECONFIG names a cluster, its current context is used instead of a node, by
# nothing but its API, as a cluster administrator. Stories that act on the node are not
# told there; each is named. Its nodes pull what they run, from where you have pushed it
# (skopeo copy "docker-archive:$(hack/image.sh)" "docker://$PALISADE_E2E_IMAGE"):
#
#   PALISADE_E2E_IMAGE            Palisade, as `make image` builds it
#   PALISADE_E2E_MLSERVER_IMAGE   as hack/images.sh mlserver builds it, here: the models for
#                                 it stand beside its archive
#   PALISADE_E2E_POSTGRES_IMAGE   as hack/images.sh postgres builds it, or another one
#
# All that is made goes at the end (not after SIGKILL): namespaces, which have names of the run, releases,
# CRD, policies. The models' database is the chart's throwaway Postgres. Stories are told
# once there: the API server must be restarted (docs/install.md, Uninstall) before the
# next time.
#
# Exit code 77, with the reason, where no node can run, where an image is not named,
# where Palisade is in the cluster already, or where nothing of what is asked for is told
# there; 2, with the list, for a NAME that no story has.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
HERE=$PWD
cd "$REPO"

RUN='' PREFIX=''

clean_up() {
  local status=$?
  trap '' INT TERM HUP
  # What it has started ends, too: helm may be at work.
  silence 10
  if [[ -n $PREFIX ]]; then
    # 77: nothing was begun, and what is there is somebody's.
    ((status == 77)) || take_down || status=1
    # It has somebody's credentials.
    rm -f "$RUN/kubeconfig"
  else
    hack/node.sh stop "$RUN/node"
  fi
  case $status in
    0 | 77 | 130 | 143) rm -rf "$RUN" ;;
    *)
      rm -rf "$RUN/node/containerd" # the images, unpacked
      say "what it left, logs among it, is in $RUN"
      ;;
  esac
  ((status == 77)) || say "e2e: $( ((status == 0)) && echo passed || echo "failed (exit code $status)") in $((SECONDS / 60)) min $((SECONDS % 60)) s"
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
      -extfile <(echo "subjectAltName=DNS:postgres.store.svc") -out "$dir/server.crt"
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

# build_stories: sets STORIES.
build_stories() {
  cargo test --features failpoints --locked --test e2e --no-run >&2
  STORIES=$(cargo test --features failpoints --locked --test e2e --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"name":"e2e".*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
  [[ -x $STORIES ]] || die "cargo built no test e2e"
  [[ $("$STORIES" --list) == "$(stories | sed 's/|.*/: test/')" ]] ||
    die "the list of stories in tests/e2e.rs is not written as hack/e2e.sh reads it: a line each"
}

# stories: NAME|short, or nothing|what it does to the node, or nothing; as tests/e2e.rs lists
# them, because what is asked for wrongly is said before anything is built.
stories() { sed -nE '/ stories!\[/,/^ *\]/s/^ *[a-z_]+::([a-z_0-9]+)( short)?(: "(.*)")?,$/\1|\2|\4/p' tests/e2e.rs; }

usage() {
  say "error: $*"
  say "usage: hack/e2e.sh [--short] [NAME...], or --list; NAME is a part of one of these:"
  stories | sed 's/|.*//; s/^/  /' >&2
  exit 2
}

# choose ARGS...: all that is asked for is there, and something of it can be told.
choose() {
  local arg among=. found asked='' names=()
  for arg; do
    case $arg in
      --short) among='| short|' ;;
      --list) ;;
      -*) usage "$arg is not known" ;;
      *) names+=("$arg") ;;
    esac
  done
  for arg in "${names[@]}"; do
    found=$(stories | grep "$among" | awk -F '|' -v part="$arg" 'index($1, part)')
    [[ -n $found ]] || usage "no story$([[ $among == . ]] || echo " of the short form") has '$arg' in its name"
    asked+=$found$'\n'
  done
  [[ -n ${KUBECONFIG:-} && -n $asked && " $* " != *" --list "* ]] || return 0
  ! grep -q '|$' <<<"$asked" || return 0
  say "not told on a cluster that KUBECONFIG names, whose nodes are not ours:"
  awk -F '|' 'NF && !seen[$0]++ { print "  " $1 ": it " $3 }' <<<"$asked" >&2
  exit 77
}

# begin ARCHIVE OF MLSERVER: what the stories find, on a node or in a cluster.
begin() {
  RUN=$(mktemp -d "${TMPDIR:-/tmp}/palisade-e2e.XXXXXX")
  trap clean_up EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  mkdir -m 777 "$RUN/tmp"
  export PALISADE_E2E_DIR=$RUN PALISADE_E2E_PREFIX=$PREFIX PALISADE_E2E_MODELS=${1%.tar}.models PALISADE_E2E_HELM PALISADE_E2E_KUBECTL
  # What kubectl and helm keep is the run's.
  export KUBECACHEDIR=$RUN/tmp/kubectl HELM_CACHE_HOME=$RUN/tmp/helm/cache HELM_CONFIG_HOME=$RUN/tmp/helm/config HELM_DATA_HOME=$RUN/tmp/helm/data
}

on_a_node() {
  local palisade failpoints mlserver postgres
  export PALISADE_E2E_IMAGE=localhost/palisade:dev PALISADE_E2E_MLSERVER_IMAGE=localhost/mlserver:1.7.1
  export PALISADE_E2E_POSTGRES_IMAGE=localhost/postgres:15
  # Before anything is installed: its images are of these packages and wheels.
  if ! grep -q '^12' /etc/debian_version 2>/dev/null || [[ $(uname -m) != x86_64 ]]; then
    say "no stories can be told here: their images are made on Debian 12, x86_64"
    exit 77
  fi
  # The server of the stories is Debian's, with OpenSSL.
  unset PALISADE_PG_BIN
  hack/node.sh check
  PALISADE_PG_VERSION=15 hack/postgres.sh ensure
  PALISADE_E2E_HELM=$(hack/helm.sh)
  mlserver=$(hack/images.sh mlserver)
  postgres=$(hack/images.sh postgres)
  failpoints=$(hack/image.sh --failpoints)
  if [[ " $* " == *" --short "* ]]; then PALISADE_E2E_IMAGE=localhost/palisade:failpoints; else palisade=$(hack/image.sh); fi
  PALISADE_E2E_KUBECTL=$(hack/binaries.sh)/kubectl
  begin "$mlserver"
  certificates
  hack/node.sh start "$RUN/node" --parent $$ --remove >/dev/null
  import "$failpoints" ${palisade:+"$palisade"} "$mlserver" "$postgres"
  KUBECONFIG=$RUN/node/cluster/kubeconfig TMPDIR=$RUN/tmp aside hack/node.sh enter "$RUN/node" "$STORIES" "$@"
}

# ------------------------------------------------ a cluster that KUBECONFIG names

# want_image VARIABLE WHAT
want_image() {
  [[ -z ${!1:-} ]] || return 0
  say "the nodes of the cluster that KUBECONFIG names pull what they run: $1 must name $2, pushed to where they pull from"
  MISSING=1
}

# copy_kubeconfig: its current context alone, complete, in a file of the run. Of relative
# paths and of another's `use-context` nothing comes in between then.
copy_kubeconfig() {
  local error
  install -m 600 /dev/null "$RUN/kubeconfig"
  if ! (cd "$HERE" && "$PALISADE_E2E_KUBECTL" config view --raw --flatten --minify) >"$RUN/kubeconfig" 2>"$RUN/error" ||
    ! "$PALISADE_E2E_KUBECTL" --kubeconfig "$RUN/kubeconfig" version --request-timeout=20s >/dev/null 2>"$RUN/error"; then
    rm "$RUN/kubeconfig"
    error=$(tail -n 1 "$RUN/error")
    die "KUBECONFIG=$KUBECONFIG names no cluster that answers: $error"
  fi
  export KUBECONFIG=$RUN/kubeconfig
}

want_images() {
  MISSING=''
  want_image PALISADE_E2E_IMAGE "Palisade's image, as \`make image\` builds it"
  want_image PALISADE_E2E_MLSERVER_IMAGE "the model server's, as \`hack/images.sh mlserver\` builds it"
  want_image PALISADE_E2E_POSTGRES_IMAGE "an image of Postgres, as \`hack/images.sh postgres\` builds it"
  [[ -z $MISSING ]] || {
    say "each script prints the path of its archive; to push one: skopeo copy docker-archive:ARCHIVE docker://NAME"
    exit 77
  }
}

in_a_cluster() {
  local mlserver found
  PALISADE_E2E_HELM=$(hack/helm.sh)
  PALISADE_E2E_KUBECTL=$(type -P kubectl) || PALISADE_E2E_KUBECTL=$(hack/binaries.sh)/kubectl
  mlserver=$(hack/images.sh mlserver)
  PREFIX=palisade-e2e-$(random_token | cut -c1-6)-
  begin "$mlserver"
  copy_kubeconfig
  found=$("$PALISADE_E2E_KUBECTL" get crd,clusterroles,validatingadmissionpolicies -o name 2>"$RUN/error") ||
    die "whether Palisade is in that cluster already cannot be asked: $(tail -n 1 "$RUN/error")"
  found=$(grep -E 'modeldeployments\.palisade\.dev$|/([^/]*-)?palisade-(fence(-epoch-object)?|controller|worker)$' <<<"$found" | paste -sd ' ') || true
  if [[ -n $found ]]; then
    say "Palisade is in that cluster already, and the stories install, upgrade and uninstall it: $found"
    exit 77
  fi
  TMPDIR=$RUN/tmp aside "$STORIES" "$@"
}

# take_down: what the run has made in the cluster, whatever of it is there.
take_down() {
  local kubectl=$PALISADE_E2E_KUBECTL left='' namespace release object
  [[ -s $RUN/kubeconfig ]] || return 0
  say "taking down what was made in the cluster ..."
  {
    for namespace in $(own namespaces); do
      for release in $("$PALISADE_E2E_HELM" list --all --short --namespace "$namespace"); do
        "$PALISADE_E2E_HELM" uninstall "$release" --namespace "$namespace" --wait --timeout 120s || true
      done
    done
    # Nobody answers them any more.
    for namespace in $(own namespaces); do
      for object in $("$kubectl" get modeldeployments --namespace "$namespace" -o name); do
        "$kubectl" patch "$object" --namespace "$namespace" --type merge --patch '{"metadata":{"finalizers":null}}' || true
      done
    done
    for release in $(tests); do "$kubectl" delete clusterrolebindings,clusterroles "$release" --timeout=60s || true; done
    for object in crd validatingadmissionpolicybindings validatingadmissionpolicies clusterrolebindings clusterroles; do
      for release in $(own "$object"); do "$kubectl" delete "$object" "$release" --timeout=60s || true; done
    done
    for namespace in $(own namespaces); do "$kubectl" delete namespace "$namespace" --timeout=300s || true; done
    for object in namespaces crd validatingadmissionpolicybindings validatingadmissionpolicies clusterrolebindings clusterroles; do
      left+=$(own "$object") || left+=" perhaps $object"
    done
    left+=$(tests) || left+=" perhaps clusterroles of tests"
  } >"$RUN/take-down.log" 2>&1 </dev/null
  if [[ -n $left ]]; then
    say "not all of it went: $left; the log: $RUN/take-down.log"
    return 1
  fi
  if ! "$kubectl" get validatingadmissionpolicies -o 'jsonpath={.items[*].spec.paramKind.kind}' | grep -qw ConfigMap; then
    say "before Palisade is installed there again: restart the API server (docs/install.md, Uninstall, says why)"
  fi
}

# own KIND: names of what the run has made. What the chart makes is marked with the
# namespace of its release.
own() {
  "$PALISADE_E2E_KUBECTL" get "$1" -o 'jsonpath={range .items[*]}{.metadata.name} {.metadata.annotations.meta\.helm\.sh/release-namespace}{"\n"}{end}' |
    awk -v prefix="$PREFIX" 'index($1, prefix) == 1 || index($2, prefix) == 1 { print $1 }'
}

# tests: names of roles, and of their bindings, of a `helm test` that was stopped. Helm marks
# them with no release: who is bound tells whose they are.
tests() {
  "$PALISADE_E2E_KUBECTL" get clusterrolebindings \
    -o 'jsonpath={range .items[?(@.metadata.annotations.helm\.sh/hook=="test")]}{.metadata.name} {.subjects[0].namespace}{"\n"}{end}' |
    awk -v prefix="$PREFIX" 'index($2, prefix) == 1 { print $1 }'
}

main() {
  choose "$@"
  need cargo "the stories are a test of it"
  need openssl "it makes the certificates of Postgres"
  if [[ " $* " == *" --list "* ]]; then build_stories && exec "$STORIES" --list; fi
  [[ -z ${KUBECONFIG:-} ]] || want_images
  build_stories
  if [[ -n ${KUBECONFIG:-} ]]; then in_a_cluster "$@"; else on_a_node "$@"; fi
}

main "$@"
