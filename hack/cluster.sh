#!/usr/bin/env bash
# A throwaway Kubernetes on 127.0.0.1: etcd, API server, controller manager,
# scheduler, and KWOK, whose fake nodes report every pod as running and ready.
#
#   hack/cluster.sh start DIR [--nodes N | --node ADDRESS] [--parent PID [--remove]]
#       prints the path of an admin kubeconfig, the only line on stdout
#   hack/cluster.sh stop DIR [--remove]
#       at once; safe to repeat
#
# N fake nodes (3), each with room for 1000 pods; with --node none, and no KWOK: the
# control plane listens at ADDRESS, for the real node of hack/node.sh. With --parent
# the cluster is stopped when process PID ends, however it ends; with --remove DIR, which must be
# new or empty, is removed then. A second start with the same DIR goes on with its
# data, on the same port if that is free. Files in DIR: kubeconfig, and for each of
# etcd, kube-apiserver, kube-controller-manager, kube-scheduler and kwok a NAME.pid
# and a NAME.log.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# In the order in which they are stopped: an API server whose etcd has gone holds
# on to its port for over a minute.
COMPONENTS=(kwok kube-scheduler kube-controller-manager kube-apiserver etcd)
# Where the API server listens, and what it is told besides.
HOST=127.0.0.1
# No endpoints for the service "kubernetes": they may not lie on loopback, and no
# fake pod asks for them.
APISERVER=(--endpoint-reconciler-type none --authorization-mode RBAC)
# Fake nodes never fail: while a test freezes the API server no heartbeat arrives,
# and their pods must not be evicted for it.
GRACE=24h

usage() {
  sed -n '2,/^set -e/{/^set -e/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2
  exit 2
}

# write_credentials: who may do what is decided by RBAC, and each component is
# itself, not an admin: policies that tell users apart see what they would see
# on a real cluster.
write_credentials() {
  mkdir -p pki
  [[ ! -e pki/tokens.csv ]] || return 0
  need openssl "it makes the key that signs service account tokens"
  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out pki/sa.key 2>pki/openssl.log ||
    die "openssl made no key: $(cat pki/openssl.log)"
  openssl pkey -in pki/sa.key -pubout -out pki/sa.pub
  {
    echo "$(random_token),admin,admin,system:masters"
    echo "$(random_token),kwok,kwok,system:masters"
    echo "$(random_token),system:kube-controller-manager,system:kube-controller-manager"
    echo "$(random_token),system:kube-scheduler,system:kube-scheduler"
    echo "$(random_token),system:node:node,system:node:node,system:nodes"
    echo "$(random_token),system:kube-proxy,system:kube-proxy"
    echo "$(random_token),coredns,coredns,system:masters"
  } >pki/tokens.new
  mv pki/tokens.new pki/tokens.csv
}

# write_kubeconfig FILE USER PORT
write_kubeconfig() {
  local token
  token=$(awk -F , -v user="$2" '$2 == user { print $1 }' pki/tokens.csv)
  cat >"$1.new" <<CONFIG
apiVersion: v1
kind: Config
clusters:
- name: palisade-test
  cluster:
    server: https://$HOST:$3
    certificate-authority-data: $(base64 -w 0 pki/apiserver/apiserver.crt)
users:
- name: "$2"
  user: {token: "$token"}
contexts:
- name: palisade-test
  context: {cluster: palisade-test, user: "$2"}
current-context: palisade-test
CONFIG
  # In one step: a client of the last run may be reading it.
  mv "$1.new" "$1"
}

start_etcd() {
  local began=$SECONDS
  # On a Unix socket there is no port to lose to somebody else, and no way to talk
  # to the etcd of another run. What a crash would lose is a throwaway.
  # In its working folder, because a socket's whole path has at most 107 bytes.
  rm -f etcd.sock
  spawn . etcd "$BIN/controlplane" etcd --data-dir etcd-data --unsafe-no-fsync \
    --listen-client-urls unix://etcd.sock --advertise-client-urls http://localhost:2379 \
    --listen-peer-urls unix://etcd-peer.sock --initial-advertise-peer-urls http://localhost:2380 \
    --initial-cluster default=http://localhost:2380 --log-level warn
  until [[ -S etcd.sock ]]; do
    running . etcd || die "etcd ended: $(tail -n 3 etcd.log)"
    ((SECONDS - began < 30)) || die "etcd is not ready after 30 s; its log: $PWD/etcd.log"
    pause 0.02
  done
}

# start_apiserver PORT: one try. 0: it is ready; 1: the port was taken.
start_apiserver() {
  local port=$1 began=$SECONDS before
  before=$(stat -c %s kube-apiserver.log 2>/dev/null || echo 0)
  spawn . kube-apiserver "$BIN/controlplane" kube-apiserver --etcd-servers unix://etcd.sock \
    --bind-address "$HOST" --advertise-address "$HOST" --secure-port "$port" --cert-dir pki/apiserver \
    --service-cluster-ip-range 10.96.0.0/16 --token-auth-file pki/tokens.csv "${APISERVER[@]}" \
    --service-account-issuer https://kubernetes.default.svc \
    --service-account-key-file pki/sa.pub --service-account-signing-key-file pki/sa.key
  until listening "$port" "$HOST" && [[ -s pki/apiserver/apiserver.crt ]] && write_kubeconfig kubeconfig admin "$port" &&
    "${KUBECTL[@]}" --request-timeout 2s get --raw /readyz >/dev/null 2>readyz.log; do
    if ! running . kube-apiserver; then
      if tail -c "+$((before + 1))" kube-apiserver.log | grep -q 'address already in use'; then return 1; fi
      die "kube-apiserver ended: $(tail -n 3 kube-apiserver.log)"
    fi
    ((SECONDS - began < 90)) || die "kube-apiserver is not ready after 90 s: $(cat readyz.log); its log: $PWD/kube-apiserver.log"
    pause 0.05
  done
}

start_controllers() {
  local port=$1 name
  for name in kube-controller-manager kube-scheduler; do
    write_kubeconfig "pki/$name.kubeconfig" "system:$name" "$port"
  done
  write_kubeconfig pki/kwok.kubeconfig kwok "$port"
  # Each controller as its own service account, as real clusters have it.
  spawn . kube-controller-manager "$BIN/controlplane" kube-controller-manager \
    --kubeconfig pki/kube-controller-manager.kubeconfig --use-service-account-credentials \
    --service-account-private-key-file pki/sa.key --root-ca-file pki/apiserver/apiserver.crt \
    --leader-elect=false --secure-port 0 --node-monitor-grace-period "$GRACE" \
    --kube-api-qps 200 --kube-api-burst 400
  spawn . kube-scheduler "$BIN/controlplane" kube-scheduler \
    --kubeconfig pki/kube-scheduler.kubeconfig --leader-elect=false --secure-port 0 \
    --kube-api-qps 200 --kube-api-burst 400
  [[ $HOST == 127.0.0.1 ]] || return 0
  spawn . kwok "$BIN/kwok" --kubeconfig pki/kwok.kubeconfig --config "$BIN/stages.yaml" \
    --manage-all-nodes --node-lease-duration-seconds 0
}

# reachable_at ADDRESS: for pods and a kubelet that are real.
reachable_at() {
  HOST=$1
  GRACE=20s
  # A node's kubelet sees its own pods' secrets only. Its name is in no DNS.
  APISERVER=(--authorization-mode "Node,RBAC" --allow-privileged --kubelet-preferred-address-types InternalIP)
}

write_nodes() {
  local i
  for ((i = 1; i <= $1; i++)); do
    cat <<NODE
---
apiVersion: v1
kind: Node
metadata:
  name: fake-$i
  labels: {kubernetes.io/hostname: fake-$i, kubernetes.io/os: linux, type: kwok}
status:
  allocatable: {cpu: 1k, memory: 1Ti, pods: 1k, ephemeral-storage: 1Ti}
  capacity: {cpu: 1k, memory: 1Ti, pods: 1k, ephemeral-storage: 1Ti}
NODE
  done
}

# wait_usable NODES: until a pod can be made and will run.
wait_usable() {
  local nodes=$1 began=$SECONDS name
  if ((nodes > 0)); then
    write_nodes "$nodes" | "${KUBECTL[@]}" apply -f - >nodes.log 2>&1 || die "no fake nodes: $(cat nodes.log)"
    "${KUBECTL[@]}" wait --for=condition=Ready --timeout=60s nodes -l type=kwok >nodes.log 2>&1 ||
      die "the fake nodes are not ready: $(cat nodes.log); the log of kwok: $PWD/kwok.log"
  fi
  # Without it every pod of namespace default is refused.
  until "${KUBECTL[@]}" -n default get serviceaccount default >/dev/null 2>&1; do
    for name in "${COMPONENTS[@]}"; do
      [[ -e $name.start ]] || continue
      running . "$name" || die "$name ended: $(tail -n 3 "$name.log")"
    done
    ((SECONDS - began < 60)) || die "no service account after 60 s; a log: $PWD/kube-controller-manager.log"
    pause 0.1
  done
}

start() {
  local dir=$1 nodes=$2 parent=$3 remove=$4 try
  BIN=$("$REPO/hack/binaries.sh")
  if running "$dir" kube-apiserver; then die "a cluster runs in $dir already (PID $REPLY)"; fi
  stop "$dir" # what an earlier run that was killed may have left
  [[ -z $remove ]] || mark_removable "$dir"
  mkdir -p "$dir"
  cd "$dir"
  dir=$(pwd -P)
  # Credentials lie here, the kubeconfig among them.
  umask 077
  KUBECTL=("$BIN/kubectl" --kubeconfig "$dir/kubeconfig")
  trap 'stop "$dir"' EXIT
  trap 'exit 130' INT TERM HUP
  # Before the servers: from here on nothing can be left behind.
  # shellcheck disable=SC2086 # no word at all, if it is empty
  [[ -z $parent ]] || watch_parent "$dir" "$parent" "$REPO/hack/cluster.sh" stop "$dir" $remove
  write_credentials
  start_etcd
  # A restart keeps the port if it can: clients hold it in their kubeconfig.
  REPLY=$(cat port 2>/dev/null || true)
  [[ -n $REPLY ]] || free_port
  for ((try = 1; try <= 10; try++)); do
    echo "$REPLY" >port
    if start_apiserver "$REPLY"; then break; fi
    ((try < 10)) || die "found no free port"
    free_port
  done
  start_controllers "$(cat port)"
  wait_usable "$nodes"
  [[ -z $parent ]] || watched "$dir"
  trap - EXIT INT TERM HUP
  echo "$dir/kubeconfig"
}

stop() {
  local dir=$1 name
  [[ -d $dir ]] || return 0
  halt "$dir" watchdog KILL 0
  # Killed, not asked: nothing here is worth a clean end.
  for name in "${COMPONENTS[@]}"; do halt "$dir" "$name" KILL 5; done
}

main() {
  local verb=${1:-} dir=${2:-} nodes=3 parent='' remove=''
  [[ ($verb == start || $verb == stop) && -n $dir ]] || usage
  shift 2
  while (($#)); do
    case $1 in
      --nodes) nodes=${2:?--nodes needs a number} && shift 2 ;;
      --node) nodes=0 && reachable_at "${2:?--node needs an address}" && shift 2 ;;
      --parent) parent=${2:?--parent needs a PID} && shift 2 ;;
      --remove) remove=$1 && shift ;;
      *) usage ;;
    esac
  done
  [[ $nodes =~ ^[0-9]+$ ]] || usage
  if [[ $verb == start ]]; then
    start "$dir" "$nodes" "$parent" "$remove"
  else
    stop "$dir"
    [[ -z $remove ]] || remove_marked "$dir"
  fi
}

main "$@"
