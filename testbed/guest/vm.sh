#!/bin/bash
# vm.sh: runs guests with QEMU, without libvirt and without root.
#
#   vm.sh start NAME --image IMG [--disk FILE]... [--port P | --net NET] [--dir DIR] [--mem MB] [--smp N] [--wait]
#   vm.sh wait NAME [--dir DIR] [--timeout S]       until a login works; prints the seconds (S: 300)
#   vm.sh ssh [USER@]NAME [--dir DIR] COMMAND...    as root unless told; COMMAND as in ssh
#   vm.sh stop NAME... | --all [--dir DIR]          pulls the plug; removes the sockets, keeps console and disks
#   vm.sh shutdown NAME [--dir DIR]                 lets the guest shut down in order, then as stop
#   vm.sh list [--dir DIR]                          name, port (or address) and pid of each that runs
#   vm.sh boot-restore IMG --name NAME [--disk FILE]... [--port P] [--dir DIR]
#                                                   boots a restore point as an isolated clone (no network but our SSH)
#
# DIR (default $LULL_TESTBED/run; boot-restore: $LULL_TESTBED/restored) gets, per guest: NAME.qmp and NAME.qga (sockets),
# NAME.port (SSH on 127.0.0.1), NAME.pid, NAME.console, NAME.log (QEMU's own words), NAME.qcow2 and NAME.diskN.qcow2
# (overlays: no image is ever written). Such a folder is what Lull calls a QEMU host: each NAME.qmp is a VM.
# NET is NETNS,TAP,IP4/LEN,GW4,IP6/LEN,GW6 (root only): QEMU runs in that network namespace, on a tap device that is there already;
# the guest has this name, these addresses and a host key of its own, and SSH goes to its IPv4 address from within the
# namespace: NAME.net instead of NAME.port. testbed/fleet.sh makes such networks.
# Disks are virtio: node-names disk0, disk1 ..., device ids vd0, vd1 ... An image's own *.disk1.qcow2 comes with it.
# Without an HPET: an idle guest then costs half as much (1.5 % of a core, emulated).
# KVM is used where a probe shows that it really runs our kernel, else emulation. LULL_ACCEL=tcg|kvm decides it by hand.
# Knows how to run a disk; knows nothing of what is on it.
set -euo pipefail
# shellcheck source=testbed/guest/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"

usage() { sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2; }

dir='' image='' name='' port='' net='' mem=384 smp=1 timeout=300 all=no then_wait=no
disks=() names=() command=()
action=${1:-}
[ $# -eq 0 ] || shift
while [ $# -gt 0 ]; do
  case $1 in
    --image) image=$2; shift 2 ;;
    --disk) disks+=("$2"); shift 2 ;;
    --port) port=$2; shift 2 ;;
    --net) net=$2; shift 2 ;;
    --dir) dir=$2; shift 2 ;;
    --mem) mem=$2; shift 2 ;;
    --smp) smp=$2; shift 2 ;;
    --name) names+=("$2"); shift 2 ;;
    --timeout) timeout=$2; shift 2 ;;
    --all) all=yes; shift ;;
    --wait) then_wait=yes; shift ;;
    --) shift; command=("$@"); break ;;
    -*) echo "vm.sh: unknown option '$1'" >&2; usage ;;
    *)
      if [ "$action" = ssh ] && [ ${#names[@]} -gt 0 ]; then command=("$@"); break; fi
      if [ "$action" = boot-restore ] && [ -z "$image" ]; then image=$1; else names+=("$1"); fi
      shift
      ;;
  esac
done
if [ -z "$dir" ]; then
  dir=$LULL_TESTBED/run
  [ "$action" != boot-restore ] || dir=$LULL_TESTBED/restored
fi
name=${names[0]:-}

one_name() {
  [ ${#names[@]} -eq 1 ] || usage
  [[ ${name##*@} =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || die "'$name' is no name for a guest: letters, digits, dot, dash, underscore"
}

# The process that NAME.pid names, if it is still that guest's QEMU: pids are used again, so its command line must show our socket.
pid_of() { # NAME
  local pid
  pid=$(cat "$dir/$1.pid" 2>/dev/null) && [ -n "$pid" ] &&
    { tr '\0' '\n' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -qxF -- "unix:$dir/$1.qmp,server=on,wait=off" && echo "$pid"
}

# Prints kvm or tcg. A device that exists may still hang on a stock kernel, so the probe boots ours as far as its initrd.
accelerator() {
  local kernel=$1 cache seen
  if [ -n "${LULL_ACCEL:-}" ]; then echo "$LULL_ACCEL"; return; fi
  if [ ! -r /dev/kvm ] || [ ! -w /dev/kvm ]; then echo tcg; return; fi
  cache=$LULL_TESTBED/accel.$(id -u)
  seen="$(cat /proc/sys/kernel/random/boot_id) $(qemu-system-x86_64 --version | head -n 1)"
  if [ -f "$cache" ] && [ "$(tail -n +2 "$cache")" = "$seen" ]; then head -n 1 "$cache"; return; fi
  local accel=tcg
  if timeout -k 1 10 qemu-system-x86_64 -M q35 -accel kvm -cpu host -m 128 -nodefaults -no-user-config -display none -no-reboot \
    -kernel "$kernel/vmlinuz" -initrd "$kernel/initrd.img" -append 'console=ttyS0 quiet panic=-1 kvmprobe' -serial stdio \
    </dev/null 2>/dev/null | grep -q KVM-PROBE-OK; then accel=kvm; fi
  printf '%s\n%s\n' "$accel" "$seen" >"$cache.$$"
  mv "$cache.$$" "$cache"
  echo "$accel"
}

has_guest() { [ -f "$dir/$name.port" ] || [ -f "$dir/$name.net" ] || die "no guest named $name in $dir"; }

overlay() { # BACKING OVERLAY
  local format
  [ -f "$1" ] || die "no such image: $1"
  format=$(qemu-img info -U "$1" | sed -n 's/^file format: //p' | head -n 1)
  qemu-img create -q -f qcow2 -F "$format" -b "$(readlink -f "$1")" "$2"
}

port_in_use() { # PORT: is anything listening there
  local hex
  hex=$(printf '%04X' "$1")
  cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | awk -v h=":$hex" 'substr($2, length($2) - 4) == h && $4 == "0A" { found = 1 } END { exit !found }'
}
free_port() {
  local p
  while p=$((20000 + RANDOM % 12000)) && port_in_use "$p"; do :; done
  echo "$p"
}

start() { # RESTRICT: on isolates the guest's network, but for our SSH
  local restrict=$1 kernel accel i try chosen
  one_name
  [ -n "$image" ] || usage
  need qemu-system-x86_64 qemu-img setsid
  mkdir -p "$dir"
  dir=$(readlink -f "$dir")
  [ $((${#dir} + ${#name} + 5)) -lt 108 ] || die "the path $dir/$name.qmp is too long for a socket (108 bytes); choose a shorter --dir"
  ! pid_of "$name" >/dev/null || die "$name runs already (pid $(cat "$dir/$name.pid"), folder $dir)"
  image=$(readlink -f "$image") || die "no such image: $image"
  kernel=$(readlink -f "$LULL_TESTBED/kernel/current") || kernel=
  [ -f "$kernel/vmlinuz" ] || die "no kernel below $LULL_TESTBED/kernel; testbed/guest/build.sh makes it"

  rm -f "$dir/$name".{qmp,qga,console,pid,log,port,net,qcow2} "$dir/$name".disk*.qcow2
  i=1
  while [ -f "${image%.qcow2}.disk$i.qcow2" ]; do disks+=("${image%.qcow2}.disk$i.qcow2"); i=$((i + 1)); done
  overlay "$image" "$dir/$name.qcow2"
  local drives=("$dir/$name.qcow2") args=()
  for ((i = 0; i < ${#disks[@]}; i++)); do
    overlay "${disks[i]}" "$dir/$name.disk$((i + 1)).qcow2"
    drives+=("$dir/$name.disk$((i + 1)).qcow2")
  done
  for ((i = 0; i < ${#drives[@]}; i++)); do
    args+=(-blockdev "driver=file,filename=${drives[i]},node-name=file$i,discard=unmap,aio=threads"
      -blockdev "driver=qcow2,file=file$i,node-name=disk$i,discard=unmap" -device "virtio-blk-pci,drive=disk$i,id=vd$i")
  done
  accel=$(accelerator "$kernel")
  case $accel in
    kvm) args+=(-accel kvm -cpu host) ;;
    tcg) args+=(-accel "tcg,thread=multi" -cpu max) ;;
    *) die "LULL_ACCEL is '$accel'; known: tcg, kvm" ;;
  esac

  local enter=() network words=''
  if [ -n "$net" ]; then
    local netns tap ip4 gw4 ip6 gw6 octets
    IFS=, read -r netns tap ip4 gw4 ip6 gw6 <<<"$net"
    [ -n "$gw6" ] || die "--net takes NETNS,TAP,IP4/LEN,GW4,IP6/LEN,GW6, not '$net'"
    enter=(nsenter "--net=/run/netns/$netns" --)
    # Each machine of a network has its own hardware address: here made of its IPv4 address.
    IFS=. read -ra octets <<<"${ip4%/*}"
    network=(-netdev "tap,id=n0,ifname=$tap,script=no,downscript=no"
      -device "virtio-net-pci,netdev=n0,romfile=,mac=$(printf '52:54:%02x:%02x:%02x:%02x' "${octets[@]}")")
    words=" guest.name=$name guest.ip4=$ip4 guest.gw4=$gw4 guest.ip6=$ip6 guest.gw6=$gw6"
  fi
  if [ -n "$port" ] && port_in_use "$port"; then die "port $port is taken; choose another --port, or none"; fi
  for try in 1 2 3 4 5; do
    chosen=${port:-$(free_port)}
    # shellcheck disable=SC2054 # QEMU's commas
    [ -n "$net" ] || network=(-netdev "user,id=n0,hostfwd=tcp:127.0.0.1:$chosen-:22,restrict=$restrict" -device virtio-net-pci,netdev=n0,romfile=)
    setsid "${enter[@]}" qemu-system-x86_64 -name "$name" -M q35,hpet=off -vga none -nodefaults -no-user-config -display none -smp "$smp" -m "$mem" "${args[@]}" \
      -kernel "$kernel/vmlinuz" -initrd "$kernel/initrd.img" \
      -append 'console=ttyS0 quiet root=/dev/vda mitigations=off nokaslr random.trust_cpu=on tsc=reliable no_timer_check net.ifnames=0'"$words" \
      -serial "file:$dir/$name.console" -device virtio-rng-pci -device virtio-serial-pci \
      "${network[@]}" \
      -chardev "socket,path=$dir/$name.qga,server=on,wait=off,id=qga0" -device virtserialport,chardev=qga0,name=org.qemu.guest_agent.0 \
      -qmp "unix:$dir/$name.qmp,server=on,wait=off" >"$dir/$name.log" 2>&1 </dev/null 8>&- 9>&- &
    echo $! >"$dir/$name.pid"
    if [ -n "$net" ]; then echo "$netns ${ip4%/*}" >"$dir/$name.net"; else echo "$chosen" >"$dir/$name.port"; fi
    for ((i = 0; i < 100; i++)); do
      sleep 0.1
      kill -0 "$(cat "$dir/$name.pid")" 2>/dev/null || break
      if [ -S "$dir/$name.qmp" ] && [ -S "$dir/$name.qga" ] && { [ -n "$net" ] || port_in_use "$chosen"; }; then break; fi
    done
    if pid_of "$name" >/dev/null; then
      if [ -n "$net" ]; then chosen=$ip4; else chosen=127.0.0.1:$chosen; fi
      say "$name: started with $accel, SSH on ${chosen%/*}, sockets in $dir"
      return 0
    fi
    [ -z "$port" ] && [ "$try" -lt 5 ] && grep -q 'host forwarding' "$dir/$name.log" && continue
    die "$name did not start: $(tail -n 3 "$dir/$name.log")"
  done
}

ssh_to() { # USER SECONDS-TO-CONNECT COMMAND...
  local user=$1 seconds=$2 netns ip4=127.0.0.1 enter=()
  shift 2
  if [ -f "$dir/$name.net" ]; then
    read -r netns ip4 <"$dir/$name.net"
    enter=(nsenter "--net=/run/netns/$netns" --)
  fi
  "${enter[@]}" ssh -F none -i "$key" -p "$(cat "$dir/$name.port" 2>/dev/null || echo 22)" -o IdentitiesOnly=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
    -o LogLevel=ERROR -o BatchMode=yes -o ConnectTimeout="$seconds" "$user@$ip4" "$@"
}

wait_for() {
  local started banner
  started=$(now_ms)
  has_guest
  while :; do
    pid_of "$name" >/dev/null || die "$name does not run. Its last words: $(tail -n 5 "$dir/$name.console" "$dir/$name.log" 2>/dev/null)"
    # QEMU accepts the connection at once, the guest's banner comes when its sshd is there.
    banner=
    if [ -f "$dir/$name.net" ]; then
      banner=SSH- # a refusal comes at once: sshd's own
    elif { exec 7<>"/dev/tcp/127.0.0.1/$(cat "$dir/$name.port")"; } 2>/dev/null; then
      read -r -t 3 -u 7 banner || true
      exec 7>&-
    fi
    if [[ $banner == SSH-* ]] && ssh_to root 10 true >/dev/null 2>&1 </dev/null; then break; fi
    [ $(($(now_ms) - started)) -lt $((timeout * 1000)) ] || die "$name: no login within $timeout s. Its last words: $(tail -n 5 "$dir/$name.console")"
    sleep 0.2
  done
  seconds_since "$started"
  echo
}

stop_one() { # NAME
  local pid i
  if pid=$(pid_of "$1"); then
    kill "$pid"
    for ((i = 0; i < 50; i++)); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    if pid=$(pid_of "$1"); then kill -9 "$pid"; fi
  fi
  rm -f "$dir/$1".{qmp,qga,pid,port,net}
}

guests() { local f; for f in "$dir"/*.pid; do [ ! -f "$f" ] || basename "$f" .pid; done; }

[ ! -d "$dir" ] || dir=$(readlink -f "$dir")
case $action in
  start) start off; [ "$then_wait" = no ] || wait_for ;;
  boot-restore) start on; [ "$then_wait" = no ] || wait_for ;;
  wait) one_name; wait_for ;;
  ssh)
    user=root
    case $name in *@*) user=${name%%@*} name=${name#*@} ;; esac
    has_guest
    ssh_to "$user" 30 "${command[@]}"
    ;;
  stop)
    if [ "$all" = yes ]; then mapfile -t names < <(guests); elif [ ${#names[@]} -eq 0 ]; then usage; fi
    for n in "${names[@]}"; do stop_one "$n"; done
    ;;
  shutdown)
    one_name
    ssh_to root 30 'if [ -x /sbin/tinyinit ]; then kill -USR2 1; else systemctl poweroff; fi' || true
    for ((i = 0; i < 600; i++)); do pid_of "$name" >/dev/null || break; sleep 0.1; done
    ! pid_of "$name" >/dev/null || die "$name did not shut down within 60 s; 'vm.sh stop' pulls the plug"
    stop_one "$name"
    ;;
  list) for n in $(guests); do if pid=$(pid_of "$n"); then printf '%s\t%s\t%s\n' "$n" "$(cat "$dir/$n.port" 2>/dev/null || cut -d ' ' -f 2 "$dir/$n.net")" "$pid"; fi; done ;;
  *) usage ;;
esac
