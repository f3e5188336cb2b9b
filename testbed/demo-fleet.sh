#!/bin/bash
# demo-fleet.sh: Lull's proxy tier on one machine. ./demo fleet runs it.
#
#   ./demo fleet            shows it, then stays up until Ctrl-C and removes everything it started
#   ./demo fleet --check    asks nothing, proves it, removes everything; the last line is one line of JSON. Exit 0: every proof held
#
# Installs what is missing (says what and why first), builds Lull, makes four sites in network namespaces (testbed/fleet.sh): a
# backup server, six machines that join as guest interaction proxies, twenty guests, each a real VM with a root file system of its
# own. One site lets nobody in: its proxy dials out. A job backs up every guest by automatic selection; half-way one proxy is
# killed. A second job prefers two servers and uses no other. At the end a table says which proxy served which guest, and why, and
# how even the load was. Needs root. It uses Lull as an operator would, by its commands; what it knows of guests it asks by its
# own login, not through Lull.
set -euo pipefail
export LC_ALL=C.UTF-8
checkout=$(dirname "$(dirname "$(readlink -f "$0")")")
cd "$checkout"

check=no
case ${1:-} in
  '') ;;
  --check) check=yes ;;
  -h | --help) sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 0 ;;
  *) echo "demo fleet: unknown argument '$1' (known: --check)" >&2; exit 2 ;;
esac
[ $# -le 1 ] || { echo "demo fleet: one argument at most" >&2; exit 2; }
[ "$(id -u)" = 0 ] || { echo "demo fleet: network namespaces need root; run it as root, or: sudo ./demo fleet" >&2; exit 2; }

# shellcheck source=testbed/demo-lib.sh
. testbed/demo-lib.sh

# --- what was started, and its end -----------------------------------------------------------------------------------
run=''
fleet() { testbed/fleet.sh "$1" --dir "$run/fleet" "${@:2}"; }
clean_up() {
  local code=$?
  trap - EXIT INT TERM
  if [ -n "$run" ]; then
    testbed/guest/vm.sh stop --all --dir "$run/clones" >/dev/null 2>&1 || true
    fleet down || true # server and proxies too: they run in its places
    if [ "$code" = 0 ] || [ "$code" = 130 ]; then
      rm -rf "$run"
    else
      say "Everything was stopped. Left for a look: the logs in $run (remove the folder when done)." >&2
      rm -rf "$run/repository" "$run/clones"
    fi
  fi
  last_line "$code"
  exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# --- 1. and 2. what it takes, and Lull ---------------------------------------------------------------------------------
install_and_build fleet

# All guests at once, and two backups of some of them: said here rather than found out half-way.
enough() { # WHAT HAS-MIB NEEDS-MIB
  [ "$2" -ge "$3" ] || { echo "demo fleet: this machine has $2 MiB of $1 free, and it takes $3" >&2; exit 1; }
}
enough memory "$(awk '/^MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)" 7000
enough "disk space in $checkout" "$(df --output=avail -m "$checkout" | tail -n 1)" 6000

# --- 3. the sites ----------------------------------------------------------------------------------------------------
heading "3. Four sites, twenty guests"
mkdir -p .demo
run=$checkout/.demo/$$
# A socket's path is at most 107 bytes long.
[ ${#run} -le 80 ] || run=/var/tmp/lull-demo-$$
mkdir -p "$run"/{state,repository,clones,fleet,proxies}
chmod 700 "$run"
timed guest_image testbed/guest/build.sh tiny >/dev/null
timed guests_boot fleet up
fleet status | tail -n 1
proxies=(p11 p12 p21 p22 p31 p41)
killed=p11 takes_over=p12
mapfile -t guests < <(fleet status --json | jq -r '.[] | select(.kind == "guest") | .name')
site_of() { case $1 in vm?0?) echo "site${1:2:1}" ;; p??) echo "site${1:1:1}" ;; esac; }

# --- 4. the backup server --------------------------------------------------------------------------------------------
heading "4. A backup server, and six proxies that join it"
export LULL_STATE_DIR=$run/state LULL_SERVER=http://127.0.0.1:7420
fleet exec server "$lull" server >"$run/server.out" 2>"$run/server.log" &
server_pid=$!
for _ in $(seq 300); do
  [ ! -s "$run/server.out" ] || break
  kill -0 "$server_pid" 2>/dev/null || { tail -n 20 "$run/server.log" >&2; echo "demo: the server ended" >&2; exit 1; }
  sleep 0.1
done
[ -s "$run/server.out" ] || { echo "demo: the server did not say where it listens within 30 s; see $run/server.log" >&2; exit 1; }
as_operator() { fleet exec server "$lull" "$@"; }
say "$(head -n 1 "$run/server.out")"

declare -A proxy_pid=()
start_proxy() { # PROXY
  LULL_STATE_DIR=$run/proxies/$1 fleet exec "$1" "$lull" proxy run --slots 2 >>"$run/proxies/$1.log" 2>&1 &
  proxy_pid[$1]=$!
}
say "each gets a token, joins from its own machine, and dials from then on:"
for p in "${proxies[@]}"; do
  server_address=10.80.0.1:7421
  [ "$p" != p31 ] || server_address='[fd80::1]:7421' # either protocol serves
  mkdir -p "$run/proxies/$p"
  as_operator --json proxy token --name "$p" | jq -r .token >"$run/proxies/$p.token"
  LULL_STATE_DIR=$run/proxies/$p fleet exec "$p" "$lull" proxy join "$server_address" --token-file "$run/proxies/$p.token" | head -n 1
  start_proxy "$p"
done
online() { as_operator --json proxy list | jq -e --argjson n "$1" '[.[] | select(.state == "online" and (.is_backup_server | not))] | length == $n' >/dev/null; }
wait_online() { # HOW-MANY
  for _ in $(seq 600); do ! online "$1" || return 0; sleep 0.1; done
  as_operator proxy list >&2
  echo "demo: not all proxies came online within 60 s; see the logs in $run/proxies" >&2
  return 1
}
wait_online 6
operator proxy list

heading "5. Hypervisor hosts, guests, a repository"
for n in 1 2 3 4; do operator_briefly host add "site$n" --qemu "$run/fleet/site$n"; done
operator_briefly credential add guest-root --user root --key "${LULL_TESTBED:-.testbed}/keys/id_test"
say "each guest gets its addresses and the credential: those of site3 by IPv6 alone, those of site4 by both"
while read -r guest ip4 ip6; do
  case $guest in vm3*) addresses=(--address "$ip6") ;; vm4*) addresses=(--address "$ip4" --address "$ip6") ;; *) addresses=(--address "$ip4") ;; esac
  as_operator vm set "$guest" "${addresses[@]}" --credential guest-root >/dev/null
done < <(fleet status --json | jq -r '.[] | select(.kind == "guest") | "\(.name) \(.ip4[0]) \(.ip6[0])"')
operator_briefly repository add local "$run/repository"

# --- 6. automatic selection, and a proxy that dies ---------------------------------------------------------------------
heading "6. One job over all guests; half-way $killed is killed"
# A copy lasts some ten seconds by this limit (holes count too): long enough that a proxy can die in the midst of one.
operator_briefly job create everything --vm "$(IFS=,; echo "${guests[*]}")" --repository local --copy-limit 192MiB
operator job preview everything
follow() { # SESSION: who got what, and how it ended; not each step of twenty guests
  printf '%s$ lull session follow %s%s (its lines about proxies and ends)\n' "$dim" "$1" "$plain"
  as_operator session follow "$1" | { grep -E '^[0-9:.]+  ((vm[0-9]+  )?(session|proxy:|task )|vm[0-9]+  .* failed)' || true; }
}
kill_half_way() { # kills the proxy once half of all guests have their snapshot and it has a task whose data is being copied
  local document
  for _ in $(seq 600); do
    document=$(as_operator --json session show "$session")
    if jq -e --arg p "$killed" '([.tasks[] | select(any(.steps[]; .step == "snapshot" and .state == "ok"))] | length >= 10)
      and any(.tasks[]; .proxy.chosen == $p and .state == "running" and any(.steps[]; .step == "copy" and .state == "running"))' <<<"$document" >/dev/null; then
      jq -r '[.tasks[] | select(any(.steps[]; .step == "snapshot" and .state == "ok"))] | length' <<<"$document" >"$run/done-at-kill"
      jq -r --arg p "$killed" '.tasks[] | select(.proxy.chosen == $p and .state == "running") | .vm' <<<"$document" | sort >"$run/held-at-kill"
      fleet crash "$killed"
      return
    fi
    jq -e '.tasks | all(.state == "finished")' <<<"$document" >/dev/null && return 1
    sleep 0.2
  done
  return 1
}
session=$(as_operator --json job run everything --detach | jq .id)
kill_half_way &
killer_pid=$!
job_ok=yes
timed job follow "$session" || job_ok=no
was_killed=yes
wait "$killer_pid" || was_killed=no
as_operator --json session show "$session" >"$run/session.json"
as_operator session show "$session" --why >"$run/why.txt"
of_session() { jq -r "$1" "$run/session.json"; }
say "$killed was killed when $(cat "$run/done-at-kill" 2>/dev/null || echo no) guests had their snapshot; it held $(paste -sd ' ' "$run/held-at-kill" 2>/dev/null)"
start_proxy "$killed"
say "$killed is started again, as after a reboot of its machine"
wait_online 6

# --- 7. preferred servers ----------------------------------------------------------------------------------------------
heading "7. A job that prefers two servers"
preferred=(p21 p31)
chosen_guests=(vm101 vm102 vm201 vm202 vm301 vm302)
operator_briefly job create chosen --vm "$(IFS=,; echo "${chosen_guests[*]}")" --repository local --prefer "$(IFS=,; echo "${preferred[*]}")" --fallback none
preferred_ok=yes
preferred_session=$(as_operator --json job run chosen --detach | jq .id)
timed preferred_job follow "$preferred_session" || preferred_ok=no
as_operator --json session show "$preferred_session" >"$run/preferred.json"

# --- 8. the table ------------------------------------------------------------------------------------------------------
heading "8. Which proxy served which guest, and why"
served() { # SESSION-FILE: guest, site, proxy, tier, result, level, freeze window, why; and who had it before
  jq -r '.tasks | sort_by(.vm)[] | [.vm, "site" + .vm[2:3], (.proxy.chosen // "nobody"), (.proxy.tier // "-"), (.result // .state), (.level // "-"),
    (if .freeze_window_us then "\(.freeze_window_us / 1000 | round) ms" else "-" end), (.proxy.summary // "")
    + ([.earlier_choices[]? | "; before: \(.explanation.chosen)"] | join(""))] | @tsv' "$1"
}
show_served() { { printf 'guest\tsite\tproxy\ttier\tresult\tlevel\tfrozen\twhy\n'; served "$1"; } | columns; }
say "automatic selection (session $session):"
show_served "$run/session.json"
say ""
say "preferred servers ${preferred[*]} (session $preferred_session):"
show_served "$run/preferred.json"
# shellcheck disable=SC2016 # jq's
# How even: at each choice, how many tasks more than the idlest server of its tier the chosen one had; and what each served.
unevenness='[.tasks[] | .proxy, (.earlier_choices[]?.explanation) | select(.chosen) | .tier as $tier
  | (.candidates[] | select(.chosen) | .running_tasks) - ([.candidates[] | select(.tier == $tier) | .running_tasks] | min)] | max'
shares() { jq -r '[.tasks[] | .proxy.chosen // "nobody"] | group_by(.) | map("\(.[0]) \(length)") | join(", ")' "$1"; }
uneven=$(of_session "$unevenness")
say ""
say "served: $(shares "$run/session.json"). At each choice the chosen proxy had at most $uneven more running tasks than the idlest of its tier."
say "preferred: $(shares "$run/preferred.json")"
operator proxy load

# --- 9. the proof ------------------------------------------------------------------------------------------------------
heading "9. The proof"
all() { jq -e "[.tasks[] | $2] | all" "$1" >/dev/null || { jq -r ".tasks[] | select($2 | not) | \"    \(.vm): \(.proxy.chosen), \(.result), \(.failure)\"" "$1"; return 1; }; }
spilled='(.proxy.summary // "" | test("had no free slot for so long"))' # as the rules have it, after 60 s; a slow machine sees it
own_site() { all "$run/session.json" "((.proxy.chosen // \"\")[0:2] == \"p\" + .vm[2:3] and .proxy.tier == 1) or $spilled"; }
moved() { # every guest that the killed proxy held was finished by another
  local vm
  [ -s "$run/held-at-kill" ] || return 1
  while read -r vm; do
    jq -e --arg vm "$vm" --arg to "$takes_over" '.tasks[] | select(.vm == $vm) | .proxy.chosen == $to and .result == "success"' "$run/session.json" >/dev/null || { echo "    $vm"; return 1; }
  done <"$run/held-at-kill"
}
explained() { # SESSION-FILE: each choice names a reason for every proxy and for the backup server
  all "$1" '((.proxy.candidates | length) == 7 and all(.proxy.candidates[]; .reason != "") and .proxy.summary != "")'
}
evenly() { # PROXY PROXY: served alike, where none of them died
  local one two
  one=$(of_session "[.tasks[] | select(.proxy.chosen == \"$1\")] | length") two=$(of_session "[.tasks[] | select(.proxy.chosen == \"$2\")] | length")
  case $((one - two)) in -1 | 0 | 1) ;; *) echo "    $1 served $one, $2 $two"; return 1 ;; esac
}
only_preferred() { all "$run/preferred.json" '(.proxy.chosen == "p21" or .proxy.chosen == "p31")'; }
receipts() { all "$1" '(.receipt | .guest_checked and .hypervisor_checked and .left_in_guest == [] and .left_in_hypervisor == [])'; }
point_of() { of_session ".tasks[] | select(.vm == \"$1\") | .restore_point // \"none\""; }
sound() { # one restore point of each site
  local vm
  for vm in vm103 vm203 vm303 vm403; do as_operator restore-point verify "$(point_of "$vm")" >/dev/null || { echo "    $vm"; return 1; }; done
}
# A write that reaches the disk shows that the guest is not frozen; then the look, in the same login.
write_then() { timeout 120 testbed/fleet.sh ssh --dir "$run/fleet" "$1" "echo written >/root/probe && sync && rm /root/probe && $2"; } # VM COMMAND
thawed_and_clean() { # four guests at a time
  local vm waited=() bad=0
  for vm in "${guests[@]}"; do
    [ ${#waited[@]} -lt 4 ] || { wait "${waited[0]}" || bad=1; waited=("${waited[@]:1}"); }
    { looked_everywhere write_then "$vm" || { echo "    in $vm"; exit 1; }; } &
    waited+=($!)
  done
  for vm in "${waited[@]}"; do wait "$vm" || bad=1; done
  return $bad
}
qemu_clean() { # each restore point's bitmap may be there
  local vm owed bad=0
  owed=$(as_operator --json restore-point list | jq -c '[.[] | .directory | "lull-" + split("/")[-1]]')
  for vm in "${guests[@]}"; do clean_qemu "$run/fleet/$(site_of "$vm")/$vm.qmp" "$owed" || { echo "    in $vm"; bad=1; }; done
  return $bad
}
not_reachable() { ! fleet exec server timeout 3 bash -c 'exec 3<>/dev/tcp/10.80.4.11/22' 2>/dev/null; }
boots_as() { # VM: the clone says who it is, and has nothing of ours
  local name
  name=$(testbed/guest/vm.sh ssh clone --dir "$run/clones" -- cat /etc/hostname) || return 1
  [ "$name" = "$1" ] || { echo "    it says it is $name"; return 1; }
  looked_everywhere testbed/guest/vm.sh ssh clone --dir "$run/clones" --
}
moved_guest=$(head -n 1 "$run/held-at-kill" 2>/dev/null || true)
moved_guest=${moved_guest:-vm101}

prove "every guest was backed up (${#guests[@]}, by session $session)" all "$run/session.json" '.result == "success"'
prove "the job says so too" test "$job_ok" = yes
prove "$killed was killed half-way, with tasks in its hands" test "$was_killed" = yes
prove "$takes_over finished what $killed held" moved
prove "every guest was served by a proxy of its own site, tier 1, but $(of_session "[.tasks[] | select($spilled)] | length") for whom none had a free slot for 60 s" own_site
prove "site4, which nobody can enter, was served by its own proxy" test "$(of_session '[.tasks[] | select(.vm[0:3] == "vm4" and .proxy.chosen == "p41")] | length')" = 5
prove "the server cannot reach that proxy" not_reachable
prove "at each choice the load within the tier was even, within one" test "$uneven" -le 1
prove "p21 and p22 served as many guests as each other, within one" evenly p21 p22
prove "the job with preferred servers succeeded" test "$preferred_ok" = yes
prove "it used those and no other" only_preferred
prove "each choice can be looked up, with the reason for and against every proxy" explained "$run/session.json"
prove "lull session show --why tells it" grep -q "same network" "$run/why.txt"
prove "every task has its receipt: nothing stayed behind" receipts "$run/session.json"
prove "restore points of each site are sound" sound
prove "no guest is frozen, and nothing of ours is left in any" thawed_and_clean
prove "nothing of ours is left in the hypervisors" qemu_clean
directory=$(as_operator --json restore-point list | jq -r --arg id "$(point_of "$moved_guest")" '.[] | select(.id == $id) | .directory')
timed clone_boot testbed/guest/vm.sh boot-restore "$directory/disk0.qcow2" --name clone --dir "$run/clones" --wait
prove "$moved_guest's restore point boots, as $moved_guest, with nothing of ours inside" boots_as "$moved_guest"
testbed/guest/vm.sh stop clone --dir "$run/clones"

if [ "$check" = no ]; then
  heading "$([ "$failed" = 0 ] && echo "Every proof held" || echo "$failed of ${#proofs[@]} proofs FAILED")"
  say ""
  say "Everything is still up. Try, in another terminal:"
  say "  cd $checkout; export LULL_STATE_DIR=$LULL_STATE_DIR"
  say "  in_fleet() { testbed/fleet.sh exec --dir $run/fleet \"\$@\"; }"
  say "  in_fleet server $lull session show $session --why      in_fleet server $lull proxy load"
  say "  testbed/fleet.sh status --dir $run/fleet      testbed/fleet.sh crash --dir $run/fleet p22"
  say "Ctrl-C stops and removes everything that was started."
  trap 'exit 0' INT TERM
  while kill -0 "$server_pid" 2>/dev/null; do sleep 1; done
  echo "demo: the server ended by itself; see $run/server.log" >&2
  exit 1
fi

# --- 10. the end -------------------------------------------------------------------------------------------------------
heading "10. Everything is removed"
for p in "${proxies[@]}"; do end_process "${proxy_pid[$p]}"; done
end_process "$server_pid"
timed down fleet down
nothing_runs() { # of this run: no namespace, no process that has its folder among its words or its open files
  local p found=''
  ! testbed/fleet.sh list | grep -F "$run" || return 1
  for p in /proc/[0-9]*; do
    case ${p#/proc/} in "$$" | "$BASHPID") continue ;; esac
    if { tr '\0' '\n' <"$p/cmdline"; } 2>/dev/null | grep -qF "$run" || find "$p/fd" -lname "$run/*" 2>/dev/null | grep -q .; then found+=" $p"; fi
  done
  [ -z "$found" ] || { echo "    found:$found"; return 1; }
}
prove "no namespace and no process of this run is left" nothing_runs

total=$(($(now_ms) - begun))
heading "$([ "$failed" = 0 ] && echo "Every proof held" || echo "$failed of ${#proofs[@]} proofs FAILED")"
say "$(seconds "$total") s in all: install $(seconds "${took[install]}"), downloads $(seconds "${took[fetch]}"), build $(seconds "${took[build]}"), guests $(seconds $((took[guest_image] + took[guests_boot]))), job $(seconds "${took[job]}"), job with preferred servers $(seconds "${took[preferred_job]}"), clone $(seconds "${took[clone_boot]}")"
summary=$(jq -cn --argjson ok "$([ "$failed" = 0 ] && echo true || echo false)" --argjson proofs "${#proofs[@]}" --argjson failed "$failed" \
  --argjson guests "${#guests[@]}" --argjson proxies "${#proxies[@]}" --argjson uneven "$uneven" --arg killed "$killed" \
  --argjson served "$(of_session '[.tasks[] | .proxy.chosen // "nobody"] | group_by(.) | map({(.[0]): length}) | add')" \
  --argjson moved "$(wc -l <"$run/held-at-kill" 2>/dev/null || echo 0)" --argjson frozen "$(of_session '[.tasks[].freeze_window_us // 0] | max / 1000 | round')" \
  --argjson install "${took[install]}" --argjson fetch "${took[fetch]}" --argjson build "${took[build]}" --argjson image "${took[guest_image]}" \
  --argjson boot "${took[guests_boot]}" --argjson job "${took[job]}" --argjson preferred "${took[preferred_job]}" --argjson clone "${took[clone_boot]}" --argjson total "$total" \
  '{ok: $ok, proofs: $proofs, failed: $failed, sites: 4, proxies: $proxies, guests: $guests, served: $served, killed: $killed, moved: $moved, uneven: $uneven,
    freeze_window_ms_max: $frozen,
    ms: {install: $install, cargo_fetch: $fetch, build: $build, guest_image: $image, guests_boot: $boot, job: $job, preferred_job: $preferred, clone_boot: $clone, total: $total}}')
[ "$failed" = 0 ]
