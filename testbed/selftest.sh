#!/bin/bash
# selftest.sh: is a guest of the testbed what the other tests take it for?
#
#   testbed/selftest.sh pg|full|systemd...
#
# Boots each variant and tries every account with right and wrong secrets, sudo and su, the guest agent's freeze and
# thaw, PostgreSQL under load, and a crash-consistent clone. Prints one line per check. Exit 1 if any failed.
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
cleanup() { "$vm" stop --all --dir "$dir" 2>/dev/null || true; rm -rf "$dir"; }
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

[ $# -gt 0 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
for variant in "$@"; do
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
