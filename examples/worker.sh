#!/usr/bin/env bash
# A worker in plain SQL: owns one thing, works on it for a while, and writes the
# result under its fence.
#
#   DATABASE_URL=postgres://... examples/worker.sh MODEL VERSION
#
# It points an alias of a registered model at a version, as a job does that has just
# trained it. The SQL of the work is in worker.sql; here are the heartbeats, on
# connections of their own, and what to do when an answer is lost. Pause it while it
# works (kill -STOP -- -PID, its process group), start another one, let it go on.
#
# DATABASE_URL     a login in the role palisade_worker
# WORKER_ALIAS     the alias that is pointed at the version (candidate)
# WORKER_RESOURCE  what is owned meanwhile (retraining/MODEL)
# WORKER_TTL       seconds that we live without a heartbeat (10)
# WORKER_SECONDS   seconds of work before the write (5)
# PSQL             the psql to use (psql)
#
# Exit code: 0 done; 1 the lease was lost or the write refused; 2 wrong usage.
set -euo pipefail

if [[ $# -ne 2 || -z ${DATABASE_URL:-} ]]; then
  sed -n '2,/^set -e/{/^set -e/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
  [[ ${1:-} == --help ]] && exit 0 || exit 2
fi
MODEL=$1 VERSION=$2
TTL=${WORKER_TTL:-10}
RESOURCE=${WORKER_RESOURCE:-retraining/$MODEL}
# A fresh id and a secret for each process, never a host's name.
WORKER_ID=$(</proc/sys/kernel/random/uuid)
WORKER_KEY=$(od -An -N 32 -tx1 /dev/urandom | tr -d ' \n')
export WORKER_ID WORKER_KEY
TEMP=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$TEMP"' EXIT

# Takes its SQL from stdin; \getenv keeps the key off the command line.
SQL=("${PSQL:-psql}" "$DATABASE_URL" -XqAt -v ON_ERROR_STOP=1 -v resource="$RESOURCE")

# session STATEMENT [OPTION]...: one statement on a connection of its own.
session() { printf '%s\n' '\getenv id WORKER_ID' '\getenv key WORKER_KEY' "$1" | "${SQL[@]}" "${@:2}" 2>>"$TEMP/errors"; }

# now: milliseconds, by a clock that nobody sets and that counts while the machine sleeps.
now() { read -r REPLY _ </proc/uptime && REPLY=$((10#${REPLY/./}0)); }

BEAT_SQL="SELECT CASE WHEN result->'lost' <> '[]' THEN 'lease lost' ELSE coalesce(reason, outcome) END
  FROM palisade.heartbeat(:'id', :'key');"

# beat PID DEADLINE: extends the session every quarter of its TTL; ends PID, the work, when the session is lost, or when no
# answer came in time. Counted from before the heartbeat was sent, and a third early: so we stop before the database
# lets another one in.
beat() {
  local work=$1 deadline=$2 sent outcome
  while kill -0 "$work" 2>/dev/null; do
    sleep "$((TTL / 4)).$((TTL % 4 * 25))"
    now
    sent=$REPLY
    outcome=$(session "$BEAT_SQL" || true)
    now
    if [[ $outcome == applied ]] && ((REPLY < deadline)); then
      deadline=$((sent + TTL * 667))
    elif [[ -n $outcome && $outcome != applied ]] || ((REPLY >= deadline)); then
      echo "lost: ${outcome:-no answer in time}"
      kill "$work" 2>/dev/null || true
      return
    fi
  done
}

# settle TOKEN: the connection was lost, so nobody knows whether the write TOKEN/1 was done. Close its fence: it is
# `applied`, or `never` will be. (Sending the same line again would be as good, while the lease is ours.)
settle() {
  local outcome
  echo "unknown $1/1"
  until outcome=$(session "SELECT outcome FROM palisade.abandon(:'resource', :token, 1, :'key');" -v token="$1"); do
    sleep 0.5
  done
  echo "$outcome $1/1"
}

now
STARTED=$REPLY
outcome=$(session "SELECT coalesce(reason, outcome) FROM palisade.open_session(:'id', :'key', 'worker-$$', '$TTL seconds');")
[[ $outcome == applied ]] || { echo "lost: $outcome" && exit 1; }

# The work runs beside the heartbeats; while somebody else holds the resource, it is tried again. What it prints is
# kept in a file too: the token is needed if its connection is lost.
while :; do
  exec {out}> >(tee "$TEMP/said")
  TEE=$!
  "${SQL[@]}" -v model="$MODEL" -v alias="${WORKER_ALIAS:-candidate}" -v version="$VERSION" \
    -v work="${WORKER_SECONDS:-5}" -f "$(dirname "${BASH_SOURCE[0]}")/worker.sql" 2>>"$TEMP/errors" 1>&"$out" &
  WORK=$!
  beat "$WORK" $((STARTED + TTL * 667)) >&"$out" &
  BEAT=$!
  exec {out}>&-
  STATUS=0
  wait "$WORK" || STATUS=$?
  kill "$BEAT" 2>/dev/null || true
  wait "$BEAT" 2>/dev/null || true
  wait "$TEE" || true
  grep -q '^held' "$TEMP/said" || break
  sleep 1
  now
  sent=$REPLY
  if [[ $(session "$BEAT_SQL" || true) == applied ]]; then STARTED=$sent; fi # only an answer counts
done

TOKEN=$(sed -n 's/^acquired //p' "$TEMP/said")
case $STATUS in
  0) ;;
  143) exit 1 ;; # ended by the heartbeats
  *) # psql's connection was lost
    cat "$TEMP/errors" >&2
    [[ -n $TOKEN ]] || exit 1
    settle "$TOKEN" | tee -a "$TEMP/said"
    ;;
esac
session "SELECT outcome FROM palisade.close_session(:'id', :'key');" >/dev/null || true
grep -qE '^(applied|replayed)' "$TEMP/said"
