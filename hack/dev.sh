#!/usr/bin/env bash
# hack/dev.sh: all of Palisade on this machine, until Ctrl-C, which leaves nothing
# running. A throwaway Postgres and Kubernetes, the resource and its admission
# policies, a controller and two workers, each with credentials of its own that
# allow no more than it needs; then a sample model is served, and updated.
#
# DATABASE_URL   the Postgres to use, by a role that may create roles and a schema
# KUBECONFIG     the cluster to use, by a user who may create cluster roles
# ONCE=1         ends when version 2 of the sample is served, with exit code 0
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO"

COMPONENTS=(worker-1 worker-2 controller)
# The sample, as examples/modeldeployment.yaml has it.
EXAMPLE=examples/modeldeployment.yaml
PATCH='{"spec":{"model":{"version":2}}}'
# How long a rollout on fake nodes may take on a busy machine.
PATIENCE=180

declare -A PASSWORDS=()
# What of the user's is used, and what stays in it.
LEFT=()
WATCH='' LOGINS_MADE=''

step() { say "" && say "==> $*"; }

# stop_components DIR: asked first, all at once, because each drains: it finishes
# or hands over what it owns.
stop_components() {
  local name
  for name in "${COMPONENTS[@]}"; do
    if running "$1" "$name"; then kill -s TERM "$REPLY" 2>/dev/null || true; fi
  done
  for name in "${COMPONENTS[@]}"; do halt "$1" "$name" TERM 25; done
}

# stop_all DIR: everything that was started in it, users of a server before it.
stop_all() {
  stop_components "$1"
  [[ -z $LOGINS_MADE ]] || drop_logins
  hack/cluster.sh stop "$1/cluster"
  hack/postgres.sh stop "$1/postgres"
}

clean_up() {
  local status=$?
  trap '' INT TERM HUP
  stop_watch
  step "stopping"
  halt "$RUN" watchdog KILL 0
  stop_all "$RUN"
  ((${#LEFT[@]} == 0)) || say "$(printf 'left %s\n' "${LEFT[@]}")"
  case $status in
    # Done, or somebody wanted it to end.
    0 | 130 | 143) rm -rf "$RUN" ;;
    *) say "the logs are in $RUN" ;;
  esac
  exit "$status"
}

sql() {
  if command -v psql >/dev/null; then
    psql "$DATABASE_URL" -XqAt -v ON_ERROR_STOP=1 "$@"
  else
    hack/postgres.sh run psql "$DATABASE_URL" -XqAt -v ON_ERROR_STOP=1 "$@"
  fi
}

kubectl() { "$KUBECTL" "$@"; }

start_database() {
  if [[ -n ${DATABASE_URL:-} ]]; then
    say "using the Postgres that DATABASE_URL names"
    LEFT+=("in the database: the schema palisade and the roles palisade_*")
    return
  fi
  DATABASE_URL=$(hack/postgres.sh start "$RUN/postgres" --parent $$)
  export DATABASE_URL
  say "Postgres: $DATABASE_URL"
}

start_cluster() {
  if [[ -n ${KUBECONFIG:-} ]]; then
    KUBECTL=$(type -P kubectl) || KUBECTL=$(hack/binaries.sh)/kubectl
    say "using the cluster that KUBECONFIG names, context $(kubectl config current-context)"
    LEFT+=("in the cluster: what \`palisade crd --with-policy\` prints, and the sample, which serves")
    return
  fi
  KUBECTL=$(hack/binaries.sh)/kubectl
  KUBECONFIG=$(hack/cluster.sh start "$RUN/cluster" --parent $$)
  export KUBECONFIG
  say "Kubernetes: KUBECONFIG=$KUBECONFIG"
}

# A login role for each component, in the group that holds its rights.
make_logins() {
  PASSWORDS=([controller]=$(random_token) [worker]=$(random_token))
  LOGINS_MADE=1
  # By stdin: what stands on a command line can be read by every user.
  sql -f - <<SQL
DO \$\$
BEGIN
  IF to_regrole('palisade_dev_controller') IS NULL THEN CREATE ROLE palisade_dev_controller; END IF;
  IF to_regrole('palisade_dev_worker') IS NULL THEN CREATE ROLE palisade_dev_worker; END IF;
END \$\$;
ALTER ROLE palisade_dev_controller LOGIN PASSWORD '${PASSWORDS[controller]}';
ALTER ROLE palisade_dev_worker LOGIN PASSWORD '${PASSWORDS[worker]}';
GRANT palisade_controller TO palisade_dev_controller;
GRANT palisade_worker TO palisade_dev_worker;
SQL
}

# For a database of the user's; a throwaway would take them with it anyway.
drop_logins() {
  sql -c 'DROP ROLE IF EXISTS palisade_dev_controller, palisade_dev_worker' 2>/dev/null ||
    say "the roles palisade_dev_controller and palisade_dev_worker are left in the database"
}

# login_url ROLE: DATABASE_URL with that role's login.
login_url() {
  sed -E "s#^(postgres(ql)?://)([^@/]*@)?#\1palisade_dev_$1:${PASSWORDS[$1]}@#" <<<"$DATABASE_URL"
}

# make_kubeconfig ACCOUNT: one that is nobody but the service account.
make_kubeconfig() {
  local cluster token
  cluster=$(kubectl config view --minify --raw --flatten -o 'jsonpath={.clusters[0].cluster}')
  token=$(kubectl -n palisade-system create token "$1" --duration 24h)
  (umask 077 && cat >"$RUN/$1.kubeconfig") <<CONFIG
{"apiVersion": "v1", "kind": "Config", "current-context": "dev",
 "clusters": [{"name": "dev", "cluster": $cluster}],
 "users": [{"name": "$1", "user": {"token": "$token"}}],
 "contexts": [{"name": "dev", "context": {"cluster": "dev", "user": "$1"}}]}
CONFIG
}

install() {
  step "installing the schema, the resource and its policies"
  "$PALISADE" migrate
  "$PALISADE" crd --with-policy | kubectl apply --server-side --force-conflicts -f -
  kubectl wait --for=condition=Established --timeout=30s crd/modeldeployments.palisade.dev
  make_logins
  make_kubeconfig palisade-controller
  make_kubeconfig palisade-worker
}

# run_component NAME ROLE ARGS...
run_component() {
  local name=$1 role=$2
  shift 2
  DATABASE_URL=$(login_url "$role") KUBECONFIG=$RUN/palisade-$role.kubeconfig \
    spawn "$RUN" "$name" "$PALISADE" "$@"
  say "$name: PID $(cat "$RUN/$name.pid"), log $RUN/$name.log"
}

# all_run: says which component ended, if one did.
all_run() {
  local name
  for name in "${COMPONENTS[@]}"; do
    if ! running "$RUN" "$name"; then
      say "error: $name ended; the end of its log:"
      tail -n 15 "$RUN/$name.log" >&2
      return 1
    fi
  done
}

digest() { printf 'sha256:%s' "$(printf 'churn %s' "$1" | sha256sum | cut -d ' ' -f 1)"; }

# show_until_ready: shows the sample's changes until it is Ready.
show_until_ready() {
  local began=$SECONDS
  # Not by the function: its shell would be what is killed, and kubectl run on.
  "$KUBECTL" -n "$NAMESPACE" get mdep "$NAME" --watch &
  WATCH=$!
  # `wait` asks for the condition of the current generation, not of the last one.
  until kubectl -n "$NAMESPACE" wait --for=condition=Ready --timeout=3s mdep "$NAME" >"$RUN/wait.log" 2>&1; do
    all_run || return 1
    if ((SECONDS - began > PATIENCE)); then
      say "error: $NAME is not Ready after $PATIENCE s; what it reports:"
      kubectl -n "$NAMESPACE" get mdep "$NAME" -o yaml | sed -n '/^status:/,$p' >&2
      return 1
    fi
  done
  # The last change is on its way to the watch too.
  pause 0.3
  stop_watch
  say "Ready after $((SECONDS - began)) s"
}

stop_watch() {
  [[ -n $WATCH ]] || return 0
  kill "$WATCH" 2>/dev/null || true
  wait "$WATCH" 2>/dev/null || true
  WATCH=
}

serve_sample() {
  step "registering model churn, versions 1 and 2"
  local version got
  for version in 1 2; do
    # The request's fixed name: a second run on a database of the user's finds the
    # versions of the first instead of registering two more.
    got=$("$PALISADE" model register churn --source "s3://models/churn/$version" --digest "$(digest "$version")" \
      --request "c0ffee00-0000-4000-8000-00000000000$version")
    [[ $got == "$version" ]] || die "the database has another model named churn: its version $got is not the sample's $version"
  done
  "$PALISADE" model show churn
  step "serving version 1: kubectl apply -f $EXAMPLE"
  kubectl apply -f "$EXAMPLE"
  read -r NAMESPACE NAME < <(kubectl get -f "$EXAMPLE" -o 'jsonpath={.metadata.namespace} {.metadata.name}{"\n"}')
  show_until_ready
  step "rolling to version 2: kubectl -n $NAMESPACE patch mdep $NAME --type merge -p '$PATCH'"
  kubectl -n "$NAMESPACE" patch mdep "$NAME" --type merge -p "$PATCH"
  show_until_ready
}

# address NAME: where that component serves its probes and metrics, as it logged.
address() { sed -nE 's/.*listening for .*address=([0-9.:]+).*/\1/p' "$RUN/$1.log" | head -n 1; }

explain() {
  step "it runs; to look further, in another terminal:"
  cat >&2 <<TEXT
    export KUBECONFIG=$KUBECONFIG
    export DATABASE_URL=$DATABASE_URL
    $KUBECTL -n $NAMESPACE get mdep,deployments,services,pods
    $KUBECTL -n $NAMESPACE describe mdep $NAME
    $PALISADE history deployment/$NAMESPACE/$NAME
    tail -f $RUN/controller.log $RUN/worker-1.log $RUN/worker-2.log
    curl http://$(address worker-1)/metrics
    kill -STOP $(cat "$RUN/worker-1.pid")     # pauses worker-1; kill -CONT resumes it: the other one takes over
TEXT
}

main() {
  PALISADE=$(build_palisade)
  RUN=$(mktemp -d "${TMPDIR:-/tmp}/palisade-dev.XXXXXX")
  # Open, because Postgres, in a folder of it, runs as another user than root.
  chmod 755 "$RUN"
  trap clean_up EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  watch_parent "$RUN" $$ "$REPO/hack/dev.sh" --stop "$RUN"
  step "starting Postgres and Kubernetes"
  start_database
  start_cluster
  install
  step "starting a controller and two workers"
  run_component controller controller controller
  run_component worker-1 worker worker --name worker-1
  run_component worker-2 worker worker --name worker-2
  serve_sample
  [[ ${ONCE:-} != 1 ]] || return 0
  explain
  step "Ctrl-C stops everything"
  # From here on an interrupt is how it is meant to end.
  trap 'exit 0' INT TERM HUP
  while all_run; do pause 1; done
  return 1
}

# The watchdog's part, when this script was killed.
if [[ ${1:-} == --stop ]]; then
  stop_all "$2"
  rm -rf "$2"
else
  main
fi
