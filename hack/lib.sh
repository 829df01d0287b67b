# shellcheck shell=bash
# What the scripts of this folder share: where things are cached, how progress
# is shown, and how a process is started so that it can always be stopped again.
# Sourced, never run.

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Outside the checkout, so that a fresh clone finds what an older one built.
export CACHE=${PALISADE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/palisade}
# The same for what cargo builds; without dependencies to compile, a fresh clone
# is ready in seconds.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$CACHE/target}

# stdout carries results (a URL, a path); everything said to people is stderr.
say() { printf '%s\n' "$*" >&2; }
die() {
  say "error: $*"
  exit 1
}

need() {
  command -v "$1" >/dev/null || die "$1 is not installed: $2"
}

random_token() { od -An -N 24 -tx1 /dev/urandom | tr -d ' \n'; }

# with_progress TEXT LOG COMMAND...: runs COMMAND with its output in LOG and says
# every ten seconds that it still runs, for how long, and its last line.
with_progress() {
  local text=$1 log=$2 pid began=$SECONDS status=0 said=$SECONDS traps
  shift 2
  say "$text ..."
  "$@" >"$log" 2>&1 </dev/null &
  pid=$!
  # Without this a Ctrl-C would end the script and leave the compiler running.
  traps=$(trap -p INT TERM)
  # shellcheck disable=SC2064 # the pid of now is meant
  trap "kill_tree $pid; exit 130" INT TERM
  while kill -0 "$pid" 2>/dev/null; do
    pause 0.2
    if ((SECONDS - said >= 10)); then
      said=$SECONDS
      say "$text ... $((SECONDS - began)) s: $(tail -n 1 "$log" | cut -c1-100)"
    fi
  done
  wait "$pid" || status=$?
  trap - INT TERM
  eval "$traps" # the caller's
  if ((status != 0)); then
    tail -n 30 "$log" >&2
    say "error: $text failed (exit code $status) after $((SECONDS - began)) s; its log: $log"
    return "$status"
  fi
  if ((SECONDS - began >= 10)); then say "$text: done in $((SECONDS - began)) s"; fi
}

# kill_tree PID: the process and what it started, children first.
kill_tree() {
  local child children=()
  read -ra children 2>/dev/null <"/proc/$1/task/$1/children" || true
  for child in "${children[@]}"; do kill_tree "$child"; done
  kill "$1" 2>/dev/null || true
}

# aside COMMAND...: in a process group of its own, while this script waits: bash answers a
# signal only when what runs before it has ended, but waiting it answers at once. `silence`
# ends what runs so. Not as `&` alone has it: what is run must be able to trap an interrupt.
ASIDE=''
aside() {
  local status=0
  set -m
  "$@" </dev/null &
  ASIDE=$!
  set +m
  wait "$ASIDE" || status=$?
  ASIDE=''
  return "$status"
}

# silence SECONDS: asks what runs aside to end, and kills what is left of it then.
silence() {
  local group=$ASIDE
  [[ -n $group ]] || return 0
  ASIDE=''
  kill -s TERM -- "-$group" 2>/dev/null || true
  # A frozen process keeps every signal but SIGKILL until it is thawed.
  kill -s CONT -- "-$group" 2>/dev/null || true
  # Not only the first of them, which may have left the others to themselves.
  within "$1" ended_all "$group" || say "what runs as group $group has not ended $1 s after it was asked to: killing it"
  kill -s KILL -- "-$group" 2>/dev/null || true
  # In uninterruptible sleep even this takes a while; forever would be too long.
  within 10 ended "$group" || say "error: PID $group does not end: it is left alone"
}

# within SECONDS COMMAND...: whether COMMAND succeeds by then.
within() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < deadline)) || return 1
    pause 0.1
  done
}

ended() {
  proc_start "$1"
  [[ -z $REPLY ]]
}

# ended_all GROUP: not asked by `kill -0`, for which who has ended counts until somebody asks how.
ended_all() {
  local stat fields
  for stat in /proc/[0-9]*/stat; do
    { read -r stat <"$stat"; } 2>/dev/null || continue
    read -ra fields <<<"${stat##*) }"
    [[ ${fields[2]} != "$1" || ${fields[0]} == [ZX] ]] || return 1
  done
}

# pause SECONDS: a sleep that starts no process, because the watchdogs of a test
# run poll all the time.
exec {PAUSE_FD}<> <(:)
pause() { read -rt "$1" -u "$PAUSE_FD" _ || true; }

# proc_start PID: sets REPLY to the process's start time in ticks since boot, or
# to nothing if it does not run. PID and start time together name a process for
# good: a PID alone may have been given to another one. Starts no process itself.
proc_start() {
  local stat fields
  REPLY=
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 0
  # The name, in parentheses, may hold anything: read behind the last one.
  read -ra fields <<<"${stat##*) }"
  case ${fields[0]} in Z | X) return 0 ;; esac
  REPLY=${fields[19]}
}

# spawn DIR NAME COMMAND...: a process of its own session (a Ctrl-C meant for the
# script does not reach it), its output in DIR/NAME.log, its PID in DIR/NAME.pid.
# The child writes these itself before it becomes COMMAND: there is no moment in
# which it runs and nobody could find it. Returns when they are written.
spawn() {
  local dir=$1 name=$2
  shift 2
  rm -f "$dir/$name.pid"
  (
    proc_start "$BASHPID"
    echo "$REPLY" >"$dir/$name.start"
    echo "$BASHPID" >"$dir/$name.pid"
    exec {PAUSE_FD}>&-
    exec setsid "$@" </dev/null >>"$dir/$name.log" 2>&1
  ) &
  # Or bash would report its end, in words that nobody can read.
  disown $!
  until [[ -s $dir/$name.pid ]]; do
    kill -0 $! 2>/dev/null || [[ -s $dir/$name.pid ]] || die "$name cannot be started: is $dir writable, and the disk not full?"
    pause 0.002
  done
}

# running DIR NAME: whether the process that spawn started still runs; its PID in REPLY.
running() {
  local pid start
  { read -r pid <"$1/$2.pid" && read -r start <"$1/$2.start"; } 2>/dev/null || return 1
  proc_start "$pid"
  [[ -n $REPLY && $REPLY == "$start" ]] || return 1
  REPLY=$pid
}

# halt DIR NAME SIGNAL SECONDS: sends SIGNAL, waits, and kills what is left then.
halt() {
  local dir=$1 name=$2 signal=$3 seconds=$4 pid deadline
  if running "$dir" "$name"; then
    pid=$REPLY
    kill -s "$signal" "$pid" 2>/dev/null || true
    # A frozen process keeps every signal but SIGKILL until it is thawed.
    kill -s CONT "$pid" 2>/dev/null || true
    deadline=$((SECONDS + seconds))
    while running "$dir" "$name"; do
      if ((SECONDS > deadline)); then
        kill -s KILL "$pid" 2>/dev/null || true
        # In uninterruptible sleep even this takes a while; forever would be a lie.
        if ((SECONDS > deadline + 10)); then die "$name (PID $pid) does not end"; fi
      fi
      pause 0.02
    done
  fi
  rm -f "$dir/$name.pid" "$dir/$name.start"
}

# watch_parent DIR PID COMMAND...: runs COMMAND as soon as PID is gone, however it
# went. This is what cleans up after a test run that was killed.
watch_parent() {
  local dir=$1 parent=$2
  shift 2
  proc_start "$parent"
  [[ -n $REPLY ]] || die "--parent $parent: no such process"
  spawn "$dir" watchdog bash "$REPO/hack/watchdog.sh" "$dir" "$parent" "$REPLY" "$@"
}

# watched DIR: fails if the watchdog has done its work. The process that it watches
# may have ended while servers were being started, after the watchdog looked for
# what there was to stop. Whoever starts servers asks this last.
watched() { running "$1" watchdog || die "the process given as --parent has ended"; }

# mark_removable DIR: notes that DIR is a throwaway with all that is in it.
mark_removable() {
  [[ ! -e $1 || -e $1/.throwaway || -z $(ls -A "$1") ]] ||
    die "$1 is not empty: --remove is for a folder that holds nothing else"
  mkdir -p "$1"
  touch "$1/.throwaway"
}

remove_marked() {
  if [[ -e $1/.throwaway ]]; then rm -rf "$1"; fi
}

# free_port: sets REPLY to a port of 127.0.0.1 on which nobody listens. Below the
# range that the kernel gives to outgoing connections. Somebody else may take it
# before it is used: whoever uses it tries again with another one.
free_port() {
  while :; do
    REPLY=$((RANDOM % 12000 + 20000))
    listening "$REPLY" || return 0
  done
}

# listening PORT [HOST]: whether somebody accepts connections there.
listening() { (exec 3<>"/dev/tcp/${2:-127.0.0.1}/$1") 2>/dev/null; }

# build_palisade: builds the program for a developer and prints its path. cargo shows
# its own progress on stderr; what is built already takes no time. With the feature of
# the tests: both builds lie at the same path, and one without it, made while tests run,
# would take their program from under them. What people get is a release build.
build_palisade() {
  need cargo "it builds palisade"
  (cd "$REPO" && cargo build --locked --bin palisade --features failpoints) >&2
  echo "$CARGO_TARGET_DIR/debug/palisade"
}

# once TARGET WHAT COMMAND...: unless TARGET is there, COMMAND makes it of what it puts
# into the new folder WORK beside it, and gives it its name last, so that nobody finds
# one that is not whole. One run at a time makes a WHAT, and the others wait for it.
# What it runs has the lock, too: who has it owns every WORK of that WHAT.
once() {
  local target=$1 what=$2 name=${2// /-} folder lock waited=0
  shift 2
  [[ ! -e $target ]] || return 0
  folder=$(dirname "$target")
  mkdir -p "$folder"
  exec {lock}>"$folder/.lock-$name"
  until flock -w 10 "$lock"; do
    waited=$((waited + 10))
    say "another run makes $what; waiting ... $waited s"
  done
  # Whoever held the lock may have made just this.
  if [[ ! -e $target ]]; then
    # After SIGKILL nobody has removed it.
    rm -rf "$folder/.work-$name".*
    WORK=$(mktemp -d "$folder/.work-$name.XXXXXX")
    trap 'rm -rf "$WORK"' EXIT
    chmod 755 "$WORK"
    "$@"
    rm -rf "$WORK"
    trap - EXIT
  fi
  exec {lock}>&-
}

# can_install: whether Debian's packages can be installed here.
can_install() { ((EUID == 0)) && command -v apt-get >/dev/null; }

# apt_install NAMES...: Debian's packages are installed, or we die. What is there
# already takes a second.
apt_install() {
  with_apt "installing $*" apt-get install -qy --no-install-recommends -o DPkg::Lock::Timeout=300 "$@"
}

# apt_unpack DIR NAMES...: the files of Debian's packages are in DIR, or we die. None
# is installed, and nobody has to be root if the lists of packages are there.
apt_unpack() { with_apt "unpacking Debian's ${*:2}" unpack_packages "$@"; }

unpack_packages() {
  local dir=$1 file
  shift
  # By an earlier list, perhaps.
  rm -rf "$dir/.packages"
  mkdir -p "$dir/.packages"
  # As root, apt would hand the download to a user who cannot write here.
  (cd "$dir/.packages" && apt-get download -q -o APT::Sandbox::User=root "$@") || return
  for file in "$dir"/.packages/*.deb; do dpkg-deb --extract "$file" "$dir" || return; done
  rm -rf "$dir/.packages"
}

# with_apt TEXT COMMAND...: one at a time, because apt fails on its own lock.
with_apt() {
  local text=$1 lock
  shift
  mkdir -p "$CACHE"
  exec {lock}>"$CACHE/apt.lock"
  flock "$lock"
  with_progress "$text" "$CACHE/apt.log" with_lists "$@" ||
    die "nothing came from Debian: is the network up? \`apt-get update\`, by root, must work"
  exec {lock}>&-
}

# with_lists COMMAND...: again after an update of the lists of packages: there may be
# none yet, or only some that are too old to be of use.
with_lists() {
  export DEBIAN_FRONTEND=noninteractive
  "$@" || { apt-get update -q && "$@"; }
}

# ensure_python LIST WHAT: sets REPLY to a Python environment with the packages of
# LIST, a folder of the cache that is named after what is in it.
ensure_python() {
  REPLY=$CACHE/tools/$(basename "$1" .txt)-$(sha256sum "$1" | cut -c1-16)
  pip_install "$2" "$REPLY" "$1"
}

# pip_install WHAT DIR LIST [ARGS of pip]: a Python environment DIR with the wheels
# that LIST names, each with its hash. Never installed system-wide.
pip_install() {
  local what=$1 dir=$2 list=$3 lock log=$CACHE/tools/log
  shift 3
  [[ ! -e $dir/complete ]] || return 0
  need python3 "$what: installed by its pip"
  mkdir -p "$CACHE/tools" "$(dirname "$dir")"
  exec {lock}>"$CACHE/tools/.lock"
  flock "$lock"
  # Whoever held the lock may have made just this.
  if [[ ! -e $dir/complete ]]; then
    rm -rf "$dir"
    # Debian has left this part of Python out of the package of Python.
    if can_install && ! python3 -c 'import ensurepip' 2>/dev/null; then apt_install python3-venv; fi
    with_progress "making a Python environment for $what" "$log" python3 -m venv "$dir"
    with_progress "installing $what" "$log" "$dir/bin/pip" install --no-deps \
      --only-binary :all: --require-hashes --requirement "$list" "$@"
    touch "$dir/complete"
  fi
  exec {lock}>&-
}
