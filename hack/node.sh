#!/usr/bin/env bash
# A Kubernetes with one real node: the control plane of hack/cluster.sh, kubelet,
# kube-proxy, containerd, and CoreDNS, whose pods really run.
#
#   hack/node.sh start DIR [--parent PID [--remove]]
#       prints the path of an admin kubeconfig, the only line on stdout
#   hack/node.sh enter DIR COMMAND...
#       runs COMMAND where the node is: only there are its addresses reachable
#   hack/node.sh kubelet DIR
#       starts the kubelet anew; inside only, after somebody stopped it
#   hack/node.sh stop DIR [--remove]
#       at once; safe to repeat
#   hack/node.sh check [DIR]
#       whether a node can run here, in DIR (a new folder of TMPDIR); installs Debian's packages for it. If this machine
#       cannot, exit code 77, and the reason; that they cannot be had now is an error
#
# All of it has a network, mounts and processes of its own, below a cgroup of its
# own: no bridge, iptables rule, mount or setting of the host is touched, runs beside
# each other do not meet, and when the first process of these namespaces is killed,
# the kernel ends all the others, containers among them, and takes down the network.
# Files in DIR: cluster/ (hack/cluster.sh), containerd/, kubelet/, and for each of
# containerd, kubelet, kube-proxy and coredns a NAME.pid (as seen inside) and a NAME.log.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# The node's address, which is its bridge's. Nobody outside sees these networks.
ADDRESS=10.244.0.1
PODS=10.244.0.0/24
DNS_SERVICE=10.96.0.10
CGROUPS=/sys/fs/cgroup
PACKAGES=(containerd runc containernetworking-plugins iptables conntrack iproute2)

usage() {
  sed -n '2,/^set -e/{/^set -e/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2
  exit 2
}

# impossible WHY: the exit code by which test runners know a test that cannot run.
impossible() {
  say "no node can run here: $*"
  exit 77
}

missing() {
  local program
  for program in containerd ctr runc iptables conntrack ip /usr/lib/cni/bridge; do
    command -v "$program" >/dev/null || echo "$program"
  done
}

# overlays FOLDER: whether containerd can put images together there.
overlays() {
  local dir status=0
  # Under ||, where nothing ends a function by itself.
  dir=$(mktemp -d "$1/palisade-overlay.XXXXXX") || return
  mkdir "$dir"/{lower,upper,work,merged}
  unshare --mount mount -t overlay overlay -o "lowerdir=$dir/lower,upperdir=$dir/upper,workdir=$dir/work" "$dir/merged" 2>/dev/null || status=1
  rm -rf "$dir"
  return "$status"
}

# check DIR: it need not be there yet.
check() {
  local folder=$1
  until [[ -d $folder ]]; do folder=$(dirname "$folder"); done
  [[ $(uname -s) == Linux ]] || impossible "it needs Linux"
  ((EUID == 0)) || impossible "it needs root, for containers and a network of their own"
  [[ -w $CGROUPS && (-d $CGROUPS/freezer || -e $CGROUPS/cgroup.controllers) ]] ||
    impossible "$CGROUPS cannot be written, or has no freezer: it needs the machine's cgroups"
  unshare --net --mount --pid --fork true 2>/dev/null || impossible "unshare makes no network, mount and process namespaces"
  overlays "$folder" || impossible "$folder holds no layers of images: it is an overlay itself, as in a container; choose another folder (make e2e: by TMPDIR)"
  if [[ -n $(missing) ]]; then
    can_install || impossible "$(missing | paste -sd ' ') not found: install containerd, runc, the CNI plugins (into /usr/lib/cni), iptables, conntrack and iproute2"
    apt_install "${PACKAGES[@]}"
    [[ -z $(missing) ]] || die "the packages ${PACKAGES[*]} are there, but not $(missing | paste -sd ' ')"
  fi
  unshare --net iptables -t nat -L >/dev/null 2>&1 || impossible "iptables does not work in a network namespace: the kernel lacks NAT"
}

# cgroup_folders NAME: the run's cgroup in each hierarchy: many in version 1, one in 2.
cgroup_folders() {
  local folder
  if [[ -e $CGROUPS/cgroup.controllers ]]; then
    echo "$CGROUPS/$1"
    return
  fi
  for folder in "$CGROUPS"/*/; do
    [[ ! -e $folder/cgroup.procs ]] || echo "$folder$1"
  done
}

# inside DIR COMMAND...
inside() {
  local dir=$1 init
  shift
  running "$dir" namespaces || die "no node runs in $dir"
  init=$(cat "/proc/$REPLY/task/$REPLY/children")
  nsenter --target "${init%% *}" --net --mount --pid -- "$@"
}

# init DIR: the first process of the namespaces. It makes them a place to live in,
# and then only takes note of the end of processes whose parents are gone.
init() {
  local dir=$1 setting
  # What containers and networks leave in fixed places stays here.
  mkdir -p /var/lib/cni "$dir/log"
  mount -t tmpfs tmpfs /run
  mount -t tmpfs tmpfs /var/lib/cni
  mount --bind "$dir/log" /var/log
  # kubelet sets these for the whole machine, unless it finds them set.
  for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    [[ -e /proc/sys/${setting%=*} ]] || continue
    echo "${setting#*=}" >"/run/${setting//\//.}"
    mount --bind "/run/${setting//\//.}" "/proc/sys/${setting%=*}"
  done
  ip link set lo up
  ip link add pods type bridge
  ip address add "$ADDRESS/24" dev pods
  ip link set pods up
  ip route add default dev pods
  echo 1 >/proc/sys/net/ipv4/ip_forward
  touch "$dir/init.done"
  while :; do pause 3600; done
}

write_containerd_config() {
  mkdir -p containerd cni
  cat >containerd/config.toml <<CONFIG
version = 2
root = "$PWD/containerd/root"
state = "/run/palisade-containerd"
[grpc]
  address = "$PWD/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "localhost/pause:1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$PWD/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
CONFIG
  cat >cni/10-pods.conflist <<CONFIG
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "pods", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$PODS"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
CONFIG
}

# kubeconfig_for USER: the admin's, with another token.
kubeconfig_for() {
  local token
  token=$(awk -F , -v user="$1" '$2 == user { print $1 }' cluster/pki/tokens.csv)
  sed -E "s/token: .*/token: \"$token\"}/" cluster/kubeconfig >"$2.new"
  mv "$2.new" "$2"
}

write_kubelet_config() {
  cat >kubelet.yaml <<CONFIG
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
# Who reaches this port is in this network: the pods of the tests.
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupRoot: /$(cat cgroup)
containerRuntimeEndpoint: unix://$PWD/containerd.sock
failSwapOn: false
failCgroupV1: false
evictionHard: {nodefs.available: "1%", imagefs.available: "1%", memory.available: "100Mi"}
imageGCHighThresholdPercent: 100
clusterDomain: cluster.local
clusterDNS: [$DNS_SERVICE]
resolvConf: /dev/null
nodeStatusUpdateFrequency: 4s
nodeLeaseDurationSeconds: 12
volumePluginDir: $PWD/kubelet/plugins
CONFIG
  cat >kube-proxy.yaml <<CONFIG
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clusterCIDR: $PODS
hostnameOverride: node
clientConnection: {kubeconfig: $PWD/kube-proxy.kubeconfig}
# Of the whole machine: left alone.
conntrack: {maxPerCore: 0, tcpCloseWaitTimeout: 0s, tcpEstablishedTimeout: 0s}
CONFIG
  cat >Corefile <<CONFIG
.:53 {
  errors
  ready
  kubernetes cluster.local {
    kubeconfig $PWD/coredns.kubeconfig
  }
}
CONFIG
}

start_kubelet() {
  spawn . kubelet "$NODE/node" kubelet --config kubelet.yaml --kubeconfig kubelet.kubeconfig \
    --hostname-override node --node-ip "$ADDRESS" --root-dir "$PWD/kubelet" --cert-dir "$PWD/kubelet/pki"
}

# DNS is a process of the host behind a Service, as a node-local cache is.
write_dns_service() {
  cat <<OBJECTS
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  clusterIP: $DNS_SERVICE
  ports:
  - {name: dns, port: 53, protocol: UDP}
  - {name: dns-tcp, port: 53, protocol: TCP}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kube-dns, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}
addressType: IPv4
endpoints: [{addresses: [$ADDRESS]}]
ports:
- {name: dns, port: 53, protocol: UDP}
- {name: dns-tcp, port: 53, protocol: TCP}
OBJECTS
}

# wait_for NAME WHAT COMMAND...: until COMMAND succeeds, while the process NAME runs.
wait_for() {
  local name=$1 what=$2 began=$SECONDS
  shift 2
  until "$@" >"$name.wait" 2>&1; do
    running . "$name" || die "$name ended: $(tail -n 3 "$name.log")"
    ((SECONDS - began < 90)) || die "$what took more than 90 s: $(cat "$name.wait"); its log: $PWD/$name.log"
    pause 0.1
  done
}

# answers PORT PATH: whether an HTTP server of the node says OK.
answers() (
  exec {connection}<>"/dev/tcp/$ADDRESS/$1"
  printf 'GET %s HTTP/1.0\r\n\r\n' "$2" >&"$connection"
  read -r status <&"$connection"
  [[ $status == *" 200 "* ]]
)

# start_inside DIR: control plane and node, in the namespaces.
start_inside() {
  local name PAUSE=$2
  cd "$1"
  umask 077
  BIN=$("$REPO/hack/binaries.sh")
  NODE=$("$REPO/hack/binaries.sh" --node)
  "$REPO/hack/cluster.sh" start cluster --node "$ADDRESS" >/dev/null
  local kubectl=("$BIN/kubectl" --kubeconfig cluster/kubeconfig)
  kubeconfig_for system:node:node kubelet.kubeconfig
  kubeconfig_for system:kube-proxy kube-proxy.kubeconfig
  kubeconfig_for coredns coredns.kubeconfig
  write_containerd_config
  write_kubelet_config
  # The files of images are not credentials: their users must reach them.
  umask 022
  spawn . containerd containerd --config containerd/config.toml
  spawn . kube-proxy "$NODE/node" kube-proxy --config kube-proxy.yaml
  spawn . coredns "$NODE/coredns" -conf Corefile
  write_dns_service | "${kubectl[@]}" apply -f - >dns.log 2>&1 || die "no Service for DNS: $(cat dns.log)"
  wait_for containerd "starting containerd" ctr --address "$PWD/containerd.sock" version
  ctr --address "$PWD/containerd.sock" --namespace k8s.io image import "$PAUSE" >import.log 2>&1 || die "$(cat import.log)"
  start_kubelet
  wait_for kubelet "the node" "${kubectl[@]}" wait --for=condition=Ready --timeout=5s node/node
  wait_for coredns "DNS" answers 8181 /ready
}

start() {
  local dir=$1 parent=$2 remove=$3 began=$SECONDS folder pause
  check "$dir"
  # All that takes long is done out here, where progress and Ctrl-C are ours.
  "$REPO/hack/binaries.sh" >/dev/null
  pause=$("$REPO/hack/images.sh" pause)
  if running "$dir" namespaces; then die "a node runs in $dir already"; fi
  stop "$dir"
  [[ -z $remove ]] || mark_removable "$dir"
  mkdir -p "$dir"
  dir=$(cd "$dir" && pwd -P)
  rm -f "$dir/init.done"
  # A name that is still known when an error has left this function.
  DIR=$dir
  trap 'stop "$DIR"' EXIT
  trap 'exit 130' INT TERM HUP
  # shellcheck disable=SC2086 # no word at all, if it is empty
  [[ -z $parent ]] || watch_parent "$dir" "$parent" "$REPO/hack/node.sh" stop "$dir" $remove
  echo "palisade-$(random_token | cut -c1-8)" >"$dir/cgroup"
  cgroup_folders "$(cat "$dir/cgroup")" | while read -r folder; do mkdir "$folder"; done
  spawn "$dir" namespaces unshare --net --mount --pid --fork --kill-child --mount-proc \
    bash "$REPO/hack/node.sh" init "$dir"
  until [[ -e $dir/init.done ]]; do
    running "$dir" namespaces || die "no namespaces for the node: $(tail -n 3 "$dir/namespaces.log")"
    ((SECONDS - began < 60)) || die "no namespaces for the node after 60 s; the log: $dir/namespaces.log"
    pause 0.02
  done
  inside "$dir" bash "$REPO/hack/node.sh" start-inside "$dir" "$pause"
  [[ -z $parent ]] || watched "$dir"
  trap - EXIT INT TERM HUP
  say "the node is ready after $((SECONDS - began)) s"
  echo "$dir/cluster/kubeconfig"
}

stop() {
  local dir=$1 folder state init
  [[ -d $dir ]] || return 0
  halt "$dir" watchdog KILL 0
  if [[ -s $dir/cgroup ]]; then
    # What is frozen cannot be killed.
    cgroup_folders "$(cat "$dir/cgroup")" | while read -r folder; do
      find "$folder" -name freezer.state 2>/dev/null | while read -r state; do { echo THAWED >"$state"; } 2>/dev/null || true; done
      find "$folder" -name cgroup.freeze 2>/dev/null | while read -r state; do { echo 0 >"$state"; } 2>/dev/null || true; done
    done
  fi
  if running "$dir" namespaces; then
    init=$(cat "/proc/$REPLY/task/$REPLY/children")
    [[ -z $init ]] || kill -s KILL "${init%% *}" 2>/dev/null || true
  fi
  # unshare ends when the first process has, and that ends when all others have.
  halt "$dir" namespaces CONT 30
  if [[ -s $dir/cgroup ]]; then
    cgroup_folders "$(cat "$dir/cgroup")" | while read -r folder; do remove_cgroup "$folder"; done
    rm -f "$dir/cgroup"
  fi
  rm -f "$dir"/{containerd,kubelet,kube-proxy,coredns}.{pid,start}
}

# remove_cgroup FOLDER: it is empty, but the kernel may still be counting.
remove_cgroup() {
  local deadline=$((SECONDS + 10))
  until [[ ! -d $1 ]] || find "$1" -depth -type d -exec rmdir {} + 2>/dev/null; do
    ((SECONDS < deadline)) || die "the cgroup $1 cannot be removed: something runs in it"
    pause 0.1
  done
}

main() {
  local verb=${1:-} dir=${2:-} parent='' remove=''
  [[ $verb == check || -n $dir ]] || usage
  shift $(($# < 2 ? $# : 2))
  case $verb in
    check) check "${dir:-${TMPDIR:-/tmp}}" ;;
    init) init "$dir" ;;
    start-inside) start_inside "$dir" "$@" ;;
    enter) inside "$dir" "$@" ;;
    kubelet)
      cd "$dir"
      NODE=$("$REPO/hack/binaries.sh" --node)
      start_kubelet
      ;;
    start | stop)
      while (($#)); do
        case $1 in
          --parent) parent=${2:?--parent needs a PID} && shift 2 ;;
          --remove) remove=$1 && shift ;;
          *) usage ;;
        esac
      done
      if [[ $verb == start ]]; then
        start "$dir" "$parent" "$remove"
      else
        stop "$dir"
        [[ -z $remove ]] || remove_marked "$dir"
      fi
      ;;
    *) usage ;;
  esac
}

main "$@"
