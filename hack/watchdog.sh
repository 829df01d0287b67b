#!/usr/bin/env bash
# watchdog.sh DIR PID START COMMAND...: waits until the process PID, started at
# START, is gone, or until DIR is, and runs COMMAND. Started by watch_parent.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

dir=$1 pid=$2 start=$3
shift 3
proc_start "$pid"
while [[ $REPLY == "$start" && -e $dir ]]; do
  pause 0.3
  proc_start "$pid"
done
# COMMAND stops whatever it finds in DIR, and must not stop itself on the way.
rm -f "$dir/watchdog.pid" "$dir/watchdog.start"
exec "$@"
