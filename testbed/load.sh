#!/bin/bash
# load.sh: a pgbench write load inside a guest, bounded in time.
#
#   testbed/load.sh NAME [--dir DIR] [--seconds S] [--clients N]      (60 s, 2 clients)
#
# Stays in the foreground and ends with pgbench's own summary; start it in the background to work beside it. If it is
# killed, the guest's pgbench still ends when its time is up. Knows the testbed's guests (vm.sh), nothing of Lull.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
name='' where=() seconds=60 clients=2
while [ $# -gt 0 ]; do
  case $1 in
    --dir) where=(--dir "$2"); shift 2 ;;
    --seconds) seconds=$2; shift 2 ;;
    --clients) clients=$2; shift 2 ;;
    -*) sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    *) name=$1; shift ;;
  esac
done
[ -n "$name" ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
# -n: without it pgbench empties pgbench_history, and the balances could no longer be checked against it.
exec "$here/guest/vm.sh" ssh "$name" "${where[@]}" -- \
  "cd / && timeout $((seconds + 120)) runuser -u postgres -- pgbench -n -c $clients -T $seconds pgbench 2>&1"
