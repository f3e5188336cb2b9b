#!/bin/bash
# pg-check.sh: does PostgreSQL in a guest run, and do pgbench's balances agree?
#
#   testbed/pg-check.sh NAME [--dir DIR] [--timeout S] [--amcheck]
#
# Waits until PostgreSQL takes queries (it may have to recover first), then compares the sums of the account, branch and
# teller balances with the sum of the history: every committed transaction changed all four alike. One query, so one
# snapshot: it holds under load too. --amcheck also has every heap and B-tree verified by pg_amcheck.
# Prints one line of JSON; exit 0 if all agree, 1 if not, if PostgreSQL did not come up, or if there was no transaction.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
name='' where=() timeout=300 amcheck=no
usage() { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
while [ $# -gt 0 ]; do
  case $1 in
    --dir) where=(--dir "$2"); shift 2 ;;
    --timeout) timeout=$2; shift 2 ;;
    --amcheck) amcheck=yes; shift ;;
    -*) usage ;;
    *) name=$1; shift ;;
  esac
done
[ -n "$name" ] || usage
"$here/guest/vm.sh" wait "$name" "${where[@]}" --timeout "$timeout" >/dev/null

# Runs in the guest; one connection for all of it.
guest_part=$(
  cat <<'END'
echo # a noisy profile may have left its last line open
cd /
psql_() { runuser -u postgres -- psql -X -A -t -F ' ' -d pgbench -c "$1"; }
start=$(date +%s%N)
while ! error=$(psql_ 'SELECT 1' 2>&1); do
  if [ $((($(date +%s%N) - start) / 1000000000)) -ge "$limit" ]; then echo "no-answer ${error##*$'\n'}"; exit 0; fi
  sleep 0.2
done
ready_ms=$((($(date +%s%N) - start) / 1000000))
sums=$(psql_ "SELECT (SELECT coalesce(sum(abalance), 0) FROM pgbench_accounts), (SELECT coalesce(sum(bbalance), 0) FROM pgbench_branches),
  (SELECT coalesce(sum(tbalance), 0) FROM pgbench_tellers), (SELECT coalesce(sum(delta), 0) FROM pgbench_history),
  (SELECT count(*) FROM pgbench_history)" 2>&1) || { echo "query-failed ${sums##*$'\n'}"; exit 0; }
verified=not-asked
if [ "$amcheck" = yes ]; then
  if report=$(runuser -u postgres -- pg_amcheck -d pgbench --heapallindexed 2>&1) && [ -z "$report" ]; then verified=ok; else verified=failed; printf '%s\n' "$report" >&2; fi
fi
echo "sums $sums $ready_ms $verified"
END
)
answer=$("$here/guest/vm.sh" ssh "$name" "${where[@]}" -- bash -s <<<"limit=$timeout amcheck=$amcheck
$guest_part" | tail -n 1) || true

json_text() { local t=${1//\\/\\\\}; t=${t//\"/\\\"}; printf '"%s"' "${t//[$'\t\r\n']/ }"; }
read -r kind a b t d n ready_ms verified <<<"$answer" || true
if [ "$kind" != sums ]; then
  printf '{"vm":%s,"ok":false,"error":%s}\n' "$(json_text "$name")" "$(json_text "${answer:-no answer from the guest}")"
  exit 1
fi
ok=false
[ "$a" = "$b" ] && [ "$a" = "$t" ] && [ "$a" = "$d" ] && [ "$n" -gt 0 ] && [ "$verified" != failed ] && ok=true
printf '{"vm":%s,"ok":%s,"transactions":%s,"accounts":%s,"branches":%s,"tellers":%s,"history":%s,"ready_ms":%s,"amcheck":"%s"}\n' \
  "$(json_text "$name")" "$ok" "$n" "$a" "$b" "$t" "$d" "$ready_ms" "$verified"
[ "$ok" = true ]
