#!/bin/bash
# selftest.sh: is the testbed what the other tests take it for?
#
#   testbed/selftest.sh pg|full|systemd|fleet|relay...
#
# Boots each variant and tries every account with right and wrong secrets, sudo and su, the guest agent's freeze and
# thaw, PostgreSQL under load, and a crash-consistent clone. "fleet": sites in network namespaces, what reaches what, and
# what is left of them (root). "relay": the slow and broken lines. Prints one line per check. Exit 1 if any failed.
# Knows the testbed alone: it tests no part of Lull.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=testbed/guest/lib.sh
. "$here/guest/lib.sh"
vm=$here/guest/vm.sh
need python3 qemu-img ssh
dir=$LULL_TESTBED/selftest.$$
name=''
mkdir -p "$dir"
cleanup() {
  "$vm" stop --all --dir "$dir" 2>/dev/null || true
  for f in "$dir"/fleet*; do [ ! -d "$f" ] || "$here/fleet.sh" down --dir "$f"; done
  rm -rf "$dir"
}
trap cleanup EXIT

failed=0
check() { # WHAT EXPECTED ACTUAL
  if [ "$2" = "$3" ]; then printf '  ok      %s\n' "$1"; else
    printf '  FAILED  %s: expected "%s", got "%s"\n' "$1" "$2" "$3"
    failed=$((failed + 1))
  fi
}

# The empty line first: a noisy profile may leave its last line open.
by_key() { # USER COMMAND
  "$vm" ssh "$1@$name" --dir "$dir" -- "echo; $2" 2>/dev/null || true
}
# shellcheck disable=SC2016 # the script expands it
printf '#!/bin/sh\nprintf "%%s\\n" "$SECRET"\n' >"$dir/askpass"
chmod 700 "$dir/askpass"
by_password() { # USER PASSWORD COMMAND
  SECRET=$2 SSH_ASKPASS=$dir/askpass SSH_ASKPASS_REQUIRE=force ssh -F none -p "$(cat "$dir/$name.port")" -o PubkeyAuthentication=no \
    -o PreferredAuthentications=password -o NumberOfPasswordPrompts=1 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
    "$1@127.0.0.1" "echo; $3" 2>/dev/null </dev/null | tail -n 1 | grep . || echo refused
}
last_line() { tail -n 1 | grep . || echo nothing; }

network() { # what the clone's isolation is compared with
  check "the guest reaches this machine" reached "$(by_key root "timeout 5 bash -c '</dev/tcp/10.0.2.2/$(cat "$dir/$name.port")' 2>/dev/null && echo reached || echo isolated" | last_line)"
}

logins() {
  local user
  for user in root admin ops plain; do check "$user logs in with the key" "$user" "$(by_key "$user" 'id -un' | last_line)"; done
  for user in admin plain; do
    check "$user logs in with its password" "$user" "$(by_password "$user" lull-test 'id -un')"
    check "$user with a wrong password" refused "$(by_password "$user" wrong 'id -un')"
  done
  check "ops has no password" refused "$(by_password ops lull-test 'id -un')"
  check "root may not log in with a password" refused "$(by_password root lull-root 'id -un')"
}

elevation() {
  check "admin: sudo with the right password" 0 "$(by_password admin lull-test 'echo lull-test | sudo -k -S -p "" id -u 2>/dev/null' )"
  check "admin: sudo with a wrong password" no "$(by_password admin lull-test 'echo wrong | sudo -k -S -p "" id -u 2>/dev/null || echo no')"
  check "admin: sudo without a password" no "$(by_password admin lull-test 'sudo -k -n id -u 2>/dev/null || echo no')"
  check "ops: sudo asks nothing" 0 "$(by_key ops 'sudo -n id -u' | last_line)"
  check "plain: sudo is refused" no "$(by_password plain lull-test 'echo lull-test | sudo -k -S -p "" id -u 2>/dev/null || echo no')"
  check "plain: su with root's password" 0 "$(by_password plain lull-test 'echo lull-root | su root -c "id -u" 2>/dev/null')"
  check "plain: su with a wrong password" no "$(by_password plain lull-test 'echo wrong | su root -c "id -u" 2>/dev/null || echo no')"
}

agent() { # the freeze reaches the root: a file made meanwhile appears only after the thaw
  local answers waiting
  answers=$(python3 "$here/qga.py" "$dir/$name.qga" guest-ping -- guest-fsfreeze-freeze -- guest-fsfreeze-status | tr '\n' ' ')
  [[ $answers =~ ^"{} "([0-9]+)" \"frozen\" "$ ]] || check "the guest agent freezes" '{} N "frozen"' "$answers"
  check "the guest agent's freeze covers the file systems of the variant" "$1" "${BASH_REMATCH[1]:-none}"
  "$vm" ssh "$name" --dir "$dir" -- 'touch /root/while-frozen && echo && echo made' >"$dir/touch.out" 2>/dev/null &
  waiting=$!
  sleep 3
  check "a file made while frozen hangs" 0 "$(grep -c made "$dir/touch.out")"
  check "the guest agent thaws" "$1" "$(python3 "$here/qga.py" "$dir/$name.qga" guest-fsfreeze-thaw)"
  wait "$waiting" || true
  check "the file is made after the thaw" 1 "$(grep -c made "$dir/touch.out")"
}

database() {
  local clone=$dir/clone.qcow2 boot_s
  "$here/load.sh" "$name" --dir "$dir" --seconds 5 >/dev/null
  "$here/pg-check.sh" "$name" --dir "$dir" >"$dir/check" || true
  check "pgbench's balances agree under load" 'true' "$(sed 's/.*"ok":\([a-z]*\).*/\1/' "$dir/check")"
  # Falsified balances must be found: one teller's balance is changed.
  by_key root 'cd /; runuser -u postgres -- psql -q -d pgbench -c "UPDATE pgbench_tellers SET tbalance = tbalance + 1 WHERE tid = 1"' >/dev/null
  "$here/pg-check.sh" "$name" --dir "$dir" >"$dir/check" || true
  check "a falsified balance is found" 'false' "$(sed 's/.*"ok":\([a-z]*\).*/\1/' "$dir/check")"
  by_key root 'cd /; runuser -u postgres -- psql -q -d pgbench -c "UPDATE pgbench_tellers SET tbalance = tbalance - 1 WHERE tid = 1"' >/dev/null
  "$here/load.sh" "$name" --dir "$dir" --seconds 30 >/dev/null 2>&1 &
  sleep 4
  "$vm" stop "$name" --dir "$dir" # the plug, under load
  wait || true
  local extra=() f i=1
  qemu-img convert -O qcow2 "$dir/$name.qcow2" "$clone"
  for f in "$dir/$name".disk*.qcow2; do
    [ ! -f "$f" ] || { qemu-img convert -O qcow2 "$f" "${clone%.qcow2}-d$i.qcow2"; extra+=(--disk "${clone%.qcow2}-d$i.qcow2"); i=$((i + 1)); }
  done
  local before
  before=$(sha256sum "$clone")
  "$vm" boot-restore "$clone" --name "clone-$name" --dir "$dir" "${extra[@]}" 
  boot_s=$("$vm" wait "clone-$name" --dir "$dir") || { check "the clone boots" yes no; return; }
  echo "  clone, boot to login: $boot_s s"
  "$here/pg-check.sh" "clone-$name" --dir "$dir" >"$dir/check" || true
  check "a clone of the crashed disk recovers" 'true' "$(sed 's/.*"ok":\([a-z]*\).*/\1/' "$dir/check")"
  # 10.0.2.2 is this machine's loopback as guests see it; the clone's own SSH port listens there.
  local reach
  reach="timeout 5 bash -c '</dev/tcp/10.0.2.2/$(cat "$dir/clone-$name.port")' 2>/dev/null && echo reached || echo isolated"
  name=clone-$name
  check "the clone is isolated" isolated "$(by_key root "$reach" | last_line)"
  name=${name#clone-}
  check "the clone's disk was not written" "$before" "$(sha256sum "$clone")"
  "$vm" stop "clone-$name" --dir "$dir"
}

only_its_own() { # pids are used again: a stale file must not cost a stranger its life
  sleep 300 &
  local stranger=$!
  echo "$stranger" >"$dir/gone.pid"
  "$vm" stop gone --dir "$dir"
  check "stop spares a process that is not the guest's" alive "$(kill -0 "$stranger" 2>/dev/null && echo alive)"
  kill "$stranger"
  check "a taken port is refused" refused "$("$vm" start second --image "$image" --dir "$dir" --port "$(cat "$dir/$name.port")" >/dev/null 2>&1 || echo refused)"
  check "a name is used once" refused "$("$vm" start "$name" --image "$image" --dir "$dir" >/dev/null 2>&1 || echo refused)"
}

full_mounts() {
  local m
  for m in '/ ext4' '/boot/efi vfat' '/srv ext4' '/srv/data xfs' '/mnt/bind xfs'; do
    check "mounted: $m" "${m#* }" "$(by_key root "findmnt -n -o FSTYPE --mountpoint ${m% *}" | last_line)"
  done
  check "the bind mount shows the nested file system" "$(by_key root 'stat -c %d /srv/data')" "$(by_key root 'stat -c %d /mnt/bind')"
}

systemd_traits() {
  check "systemd is the init" systemd "$(by_key root 'cat /proc/1/comm' | last_line)"
  check "nothing failed to start" 0 "$(by_key root 'systemctl --failed --no-legend | wc -l' | last_line)"
  check "logind sees the session" yes "$(by_key root 'loginctl --no-legend list-sessions | grep -q root && echo yes' | last_line)"
  check "the journal is kept" yes "$(by_key root 'journalctl -q -n 1 -o cat | grep -q . && echo yes' | last_line)"
  check "the shell's profile is noisy" yes "$(by_key root true | grep -q . && echo yes)"
}

# Whose banner comes from there, or the reason why none came.
banner() { # FLEET PLACE ADDRESS
  local seen
  seen=$("$here/fleet.sh" exec --dir "$1" "$2" timeout 3 bash -c "exec 3<>/dev/tcp/$3/22 && head -c 4 <&3" 2>&1 || true)
  case $seen in *SSH-*) echo SSH- ;; *unreachable* | *'No route'*) echo unreachable ;; *refused*) echo refused ;; *) echo silence ;; esac
}
ours() { # FOLDER: QEMU processes whose disks lie there
  local p n=0
  for p in /proc/[0-9]*/cmdline; do
    if { tr '\0' '\n' <"$p"; } 2>/dev/null | grep -q "^driver=file,filename=$1/"; then n=$((n + 1)); fi
  done
  echo "$n"
}
fleet() {
  local a=$dir/fleet-a b=$dir/fleet-b f=$here/fleet.sh g up i seen
  "$f" up --dir "$a" --guests 6
  check "six guests are up" 6 "$("$f" status --dir "$a" --json | jq '[.[] | select(.kind == "guest" and .pid)] | length')"
  check "each has its own name and host key" "vm101 vm102 vm201 vm202 vm301 vm401 6" "$(
    # shellcheck disable=SC2016 # the guest expands
    for g in vm101 vm102 vm201 vm202 vm301 vm401; do "$f" ssh --dir "$a" "$g" 'echo "$(hostname) $(cut -d " " -f 2 /etc/ssh/ssh_host_ed25519_key.pub)"'; done |
      awk '{ names = names $1 " "; keys[$2] } END { print names length(keys) }')"
  check "a proxy reaches a guest of its site" SSH- "$(banner "$a" p11 10.80.1.101)"
  check "by IPv6 too" SSH- "$(banner "$a" p11 fd80:0:0:1::101)"
  check "a site with two networks: both" "SSH- SSH-" "$(banner "$a" p22 10.80.2.101) $(banner "$a" p22 fd80:0:0:20::102)"
  check "a proxy of another site reaches it through its router" SSH- "$(banner "$a" p31 10.80.20.102)"
  check "so does the server" SSH- "$(banner "$a" server 10.80.3.101)"
  check "the site behind NAT reaches the others" SSH- "$(banner "$a" p41 10.80.1.101)"
  check "and its own" SSH- "$(banner "$a" p41 10.80.4.101)"
  check "nobody knows a way into it" "unreachable unreachable" "$(banner "$a" server 10.80.4.101) $(banner "$a" p11 fd80:0:0:4::101)"
  "$f" exec --dir "$a" server ip route add 10.80.4.0/24 via 10.80.0.14
  check "and its router lets none in" silence "$(banner "$a" server 10.80.4.101)"
  check "nothing leads out of a fleet" 0 "$("$f" exec --dir "$a" server ip route show default | wc -l)"
  check "and this machine has no line into it" 0 "$(ip -o addr show | grep -c ' 10\.80\.')"
  for g in vm101 p22 site3; do "$f" cut --dir "$a" "$g"; done
  check "a cut line swallows: guest, proxy with two networks, site" "silence silence silence silence" \
    "$(banner "$a" p11 10.80.1.101) $(banner "$a" p22 10.80.2.101) $(banner "$a" p22 10.80.20.102) $(banner "$a" server 10.80.3.101)"
  check "and nothing else" "SSH- SSH-" "$(banner "$a" p21 10.80.20.102) $(banner "$a" p31 10.80.3.101)"
  for g in vm101 p22 site3; do "$f" heal --dir "$a" "$g"; done
  check "a mended one works" "SSH- SSH- SSH-" "$(banner "$a" p11 10.80.1.101) $(banner "$a" p22 10.80.20.102) $(banner "$a" server 10.80.3.101)"
  "$f" stop --dir "$a" vm101
  check "a guest that is off does not answer" unreachable "$(banner "$a" p11 10.80.1.101 | sed 's/silence/unreachable/')"
  "$f" boot --dir "$a" vm101
  check "and answers when it was booted again" SSH- "$(banner "$a" p11 10.80.1.101)"
  check "a fleet is made once" refused "$("$f" up --dir "$a" --guests 0 >/dev/null 2>&1 || echo refused)"

  "$f" up --dir "$b" --guests 4 >/dev/null 2>&1 &
  up=$!
  for ((i = 0; i < 300; i++)); do [ "$(ours "$b")" -lt 2 ] || break; sleep 0.1; done
  kill -9 "$up"
  wait "$up" 2>/dev/null || true
  sleep 300 & # a process of nobody's
  up=$!
  check "two fleets stand side by side" "1 1" "$("$f" list | grep -cxF "$(namespaces "$a")	$a") $("$f" list | grep -cxF "$(namespaces "$b")	$b")"
  "$f" down --dir "$b"
  check "what a killed 'up' left is taken down" "0 0" "$(ours "$b") $("$f" list | grep -c "	$b\$")"
  check "the other one is untouched" "SSH- 6" "$(banner "$a" p11 10.80.1.101) $(ours "$a")"
  seen=$(namespaces "$a")
  "$f" exec --dir "$a" p11 sleep 300 &
  "$f" down --dir "$a"
  wait $! 2>/dev/null || true
  check "nothing is left of it: processes, namespaces, sockets" "0 0 0" "$(ours "$a") $(find /run/netns -name "$seen-*" 2>/dev/null | wc -l) $(find "$a" -type s | wc -l)"
  check "it ended nobody else's process" alive "$(kill -0 "$up" && echo alive)"
  kill "$up"
  check "down again is fine" fine "$("$f" down --dir "$a" && echo fine)"
}
namespaces() { echo "lull-fleet-$(printf %s "$(readlink -m "$1")" | sha256sum | cut -c 1-8)"; } # FOLDER

[ $# -gt 0 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
for variant in "$@"; do
  case $variant in
    fleet) echo fleet; fleet; continue ;;
    relay) echo relay; "$here/relay_selftest.py" || failed=$((failed + 1)); continue ;;
  esac
  echo "guest $variant"
  image=$("$here/guest/build.sh" "$variant")
  name=$variant
  "$vm" start "$name" --image "$image" --dir "$dir"
  boot_s=$("$vm" wait "$name" --dir "$dir") || { check "the guest boots" yes no; continue; }
  echo "  boot to login: $boot_s s"
  network
  case $variant in
    pg) only_its_own; logins; elevation; agent 1 ;;
    full) full_mounts; agent 3 ;; # its accounts are those of pg; three of its file systems can be frozen
    systemd) logins; elevation; systemd_traits; agent 1 ;;
  esac
  database
  "$vm" stop "$name" --dir "$dir"
done
if [ "$failed" -gt 0 ]; then echo "$failed checks failed"; exit 1; fi
