#!/bin/bash
# fleet.sh: four sites with guests and proxies' machines on one computer, in network namespaces. Needs root.
#
#   fleet.sh up --dir DIR [--guests N] [--parallel P] [--mem MB]   networks, then the guests, P at a time (20, 4, 160 MB)
#   fleet.sh down --dir DIR               ends whatever runs in them, guests first, and removes them; nothing there: fine
#   fleet.sh status --dir DIR [--json]    places and guests, with addresses, processes and memory
#   fleet.sh exec --dir DIR PLACE COMMAND...     runs COMMAND in a place: server, wan, site1..site4, p11 ...
#   fleet.sh ssh --dir DIR GUEST COMMAND...      as the guest's root, from its site, by the testbed's key
#   fleet.sh boot --dir DIR GUEST...      boots guests that are down
#   fleet.sh stop --dir DIR GUEST...      pulls their plugs
#   fleet.sh crash --dir DIR PLACE        whatever runs there is killed
#   fleet.sh cut --dir DIR PLACE|GUEST    its line swallows everything, both ways, and nobody is told; heal mends it
#   fleet.sh list                         the fleets on this machine, with their folders
#
#   server ──┐                  proxies' machines   guests (vm.sh, image "tiny")
#   site1 ───┤ wan              p11 p12             vm101..vm105   10.80.1.0/24, fd80:0:0:1::/64
#   site2 ───┤ 10.80.0.0/24     p21 p22, two NICs   vm201..vm205   10.80.2.0/24 (odd) and 10.80.20.0/24 (even)
#   site3 ───┤ fd80::/64        p31                 vm301..vm305   10.80.3.0/24
#   site4 ───┘                  p41                 vm401..vm405   10.80.4.0/24, behind NAT: nobody gets in
#
# Each place is a namespace; a site is a router with a bridge (site2: two) on which its guests and proxies stand. Nothing leads
# out of the fleet. DIR/siteN is that site's hypervisor host (a folder of QMP sockets), as `lull host add --qemu` takes it.
# A namespace's name holds the hash of DIR: fleets in different folders do not meet, and `down` finds what a crash left.
# Knows networks and guests; knows nothing of Lull.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=testbed/guest/lib.sh
. "$here/guest/lib.sh"
vm=$here/guest/vm.sh

usage() { sed -n '2,15s/^# \{0,1\}//p' "$0" >&2; exit 2; }
dir='' guests=20 parallel=4 mem=160 json=no words=()
action=${1:-}
[ $# -eq 0 ] || shift
while [ $# -gt 0 ]; do
  case $1 in
    --dir) dir=${2:-}; shift 2 || usage ;;
    --guests) guests=${2:-}; shift 2 || usage ;;
    --parallel) parallel=${2:-}; shift 2 || usage ;;
    --mem) mem=${2:-}; shift 2 || usage ;;
    --json) json=yes; shift ;;
    -*) echo "fleet.sh: unknown option '$1'" >&2; usage ;;
    *) words=("$@"); break ;; # what follows may have options of its own
  esac
done

prefix='' # of the namespaces' names; needs DIR, which need not be there any more
find_prefix() {
  [ -n "$dir" ] || { echo "fleet.sh: --dir is missing" >&2; usage; }
  dir=$(readlink -m "$dir")
  prefix=lull-fleet-$(printf %s "$dir" | sha256sum | cut -c 1-8)
}
space() { echo "$prefix-$1"; } # PLACE
spaces() { local f; for f in /run/netns/"$prefix"-*; do [ ! -e "$f" ] || basename "$f"; done; }
in_space() { # PLACE COMMAND...: our own process, not a child of ip's
  local place=$1
  shift
  nsenter "--net=/run/netns/$(space "$place")" -- "$@"
}
of() { ip -n "$(space "$1")" "${@:2}"; } # PLACE ip's arguments

# --- the plan: what stands where ---

sites='site1 site2 site3 site4'
proxies='p11 p12 p21 p22 p31 p41'
site_of() { # PROXY|GUEST
  case $1 in p[1-4][0-9]) echo "site${1:1:1}" ;; vm[1-4][0-9][0-9]) echo "site${1:2:1}" ;; *) die "'$1' is no proxy and no guest of this fleet" ;; esac
}
all_guests() { local n s; for n in 1 2 3 4 5; do for s in 1 2 3 4; do echo "vm${s}0$n"; done; done; } # one of each site in turn
# Site and number of its network: site2 has a second one, numbered 20.
network_of() { # GUEST
  local site=${1:2:1} n=${1:4:1}
  if [ "$site" = 2 ] && [ $((n % 2)) = 0 ]; then echo 20; else echo "$site"; fi
}
ip4_of() { echo "10.80.$(network_of "$1").$((100 + ${1:4:1}))"; } # GUEST
ip6_of() { echo "fd80:0:0:$(network_of "$1")::$((100 + ${1:4:1}))"; } # GUEST

# --- networks ---

place() { # PLACE: a namespace that forwards nothing yet
  ip netns add "$(space "$1")"
  of "$1" link set lo up
}
lan() { # PLACE BRIDGE: without a learning phase, and past the packet filter of the namespace
  of "$1" link add "$2" type bridge forward_delay 0
  of "$1" link set "$2" up
  if in_space "$1" test -e /proc/sys/net/bridge/bridge-nf-call-iptables; then
    in_space "$1" sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0
  fi
}
address() { # PLACE DEVICE NETWORK HOST
  of "$1" addr add "10.80.$3.$4/24" dev "$2"
  of "$1" addr add "fd80:0:0:$3::$4/64" dev "$2" nodad
}
cable() { # PLACE DEVICE, PLACE BRIDGE PORT: from a device there to a port here
  ip link add "$2" netns "$(space "$1")" type veth peer name "$5" netns "$(space "$3")"
  of "$3" link set "$5" master "$4" up
  of "$1" link set "$2" up
}
forwards() { in_space "$1" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1; } # PLACE
gateway() { # PLACE NETWORK HOST
  of "$1" route add default via "10.80.$2.$3"
  of "$1" -6 route add default via "fd80:0:0:$2::$3"
}
lead() { # PLACE NETWORK HOST-IN-WAN: the way to a network through its router
  of "$1" route add "10.80.$2.0/24" via "10.80.0.$3"
  of "$1" -6 route add "fd80:0:0:$2::/64" via "fd80::$3"
}

networks() {
  local site n p g other
  place wan
  lan wan br0
  of wan link set br0 alias "$dir" # whose fleet it is: fleet.sh list
  place server
  cable server eth0 wan br0 server
  address server eth0 0 1
  for site in $sites; do
    n=${site#site}
    place "$site"
    forwards "$site"
    lan "$site" br0
    address "$site" br0 "$n" 1
    cable "$site" up0 wan br0 "$site"
    address "$site" up0 0 $((10 + n))
  done
  lan site2 br1
  address site2 br1 20 1
  # The routed sites know each other, and the server knows them. Nobody has a way to site4, whose router hides it too.
  for other in server $sites; do
    for n in 1 2 3; do
      [ "$other" = "site$n" ] || lead "$other" "$n" $((10 + n))
    done
    [ "$other" = site2 ] || lead "$other" 20 12
  done
  in_space site4 nft -f - <<'END'
table inet edge {
  chain input { type filter hook input priority filter; iifname "up0" ct state new meta l4proto tcp drop; }
  chain forward { type filter hook forward priority filter; iifname "up0" ct state new drop; }
  chain leave { type nat hook postrouting priority srcnat; oifname "up0" masquerade; }
}
END
  for p in $proxies; do
    site=$(site_of "$p") n=${site#site}
    place "$p"
    cable "$p" eth0 "$site" br0 "$p"
    address "$p" eth0 "$n" "1${p:2:1}"
    gateway "$p" "$n" 1
    [ "$site" = site2 ] || continue
    cable "$p" eth1 site2 br1 "$p-1"
    address "$p" eth1 20 "1${p:2:1}"
  done
  for g in $(all_guests); do
    site=$(site_of "$g")
    of "$site" tuntap add dev "$g" mode tap
    if [ "$(network_of "$g")" = 20 ]; then of "$site" link set "$g" master br1 up; else of "$site" link set "$g" master br0 up; fi
  done
}

# --- guests ---

booting='' # the process that starts guests
boot() { # GUEST...: some at a time; each is there when a login works
  local image g n
  image=$("$here/guest/build.sh" tiny | tail -n 1)
  for g in "$@"; do
    n=$(network_of "$g")
    printf '%s\0' "$g" --image "$image" --dir "$dir/$(site_of "$g")" --mem "$mem" --wait \
      --net "$(space "$(site_of "$g")"),$g,$(ip4_of "$g")/24,10.80.$n.1,$(ip6_of "$g")/64,fd80:0:0:$n::1"
  done | setpriv --pdeathsig TERM xargs -0 -P "$parallel" -n 10 "$vm" start >/dev/null & # begins no other when we are killed
  booting=$!
  wait "$booting"
  booting=''
}

# --- what the commands do ---

up() {
  local started
  need ip bridge nft nsenter setpriv sysctl jq qemu-system-x86_64
  [ "$(id -u)" = 0 ] || die "namespaces need root"
  [ -z "$(spaces)" ] || die "a fleet is up in $dir, or was left there; 'fleet.sh down --dir $dir' removes it"
  [[ $guests =~ ^(1?[0-9]|20)$ ]] || die "--guests takes 0 to 20, not '$guests'"
  for site in $sites; do mkdir -p "$dir/$site"; done
  trap 'say "fleet.sh: removing what was begun"; down' EXIT
  trap 'exit 130' INT TERM
  started=$(now_ms)
  networks
  say "networks: $(seconds_since "$started") s ($(spaces | wc -l) namespaces, $prefix-*)"
  started=$(now_ms)
  # shellcheck disable=SC2046 # words
  [ "$guests" = 0 ] || boot $(all_guests | head -n "$guests")
  say "guests: $guests in $(seconds_since "$started") s, $parallel at a time"
  trap - EXIT INT TERM
}

pids() { local s; for s in $(spaces); do ip netns pids "$s"; done; }
down() { # whatever is in our namespaces is ours
  local s p i
  [ -z "$booting" ] || kill "$booting" 2>/dev/null || true
  for p in $(pids); do kill "$p" 2>/dev/null || true; done
  for ((i = 0; i < 100; i++)); do [ -n "$(pids)" ] || break; sleep 0.1; done
  for p in $(pids); do kill -9 "$p" 2>/dev/null || true; done
  for s in $(spaces); do ip netns del "$s"; done
  for s in $sites; do rm -f "$dir/$s"/*.{qmp,qga,pid,net,qcow2}; done
}

status_lines() { # KIND NAME SITE IP4 IP6 PID MEMORY-IN-KIB
  local p g pid site
  for p in server $sites $proxies; do
    site=${p/p[1-4]?/site${p:1:1}}
    printf 'place\t%s\t%s\t%s\t%s\t\t\n' "$p" "$site" \
      "$(of "$p" -j -4 addr show | jq -r '[.[] | select(.ifname != "lo") | .addr_info[] | "\(.local)/\(.prefixlen)"] | join(" ")')" \
      "$(of "$p" -j -6 addr show scope global | jq -r '[.[] | .addr_info[] | select(.local) | "\(.local)/\(.prefixlen)"] | join(" ")')"
  done
  for g in $(all_guests | sort); do
    site=$(site_of "$g")
    pid=$("$vm" list --dir "$dir/$site" | awk -v g="$g" '$1 == g { print $3 }')
    printf 'guest\t%s\t%s\t%s\t%s\t%s\t%s\n' "$g" "$site" "$(ip4_of "$g")" "$(ip6_of "$g")" "$pid" \
      "$([ -z "$pid" ] || awk '/^VmRSS/ { print $2 }' "/proc/$pid/status")"
  done
}
status() {
  [ -n "$(spaces)" ] || die "no fleet is up in $dir"
  if [ "$json" = yes ]; then
    status_lines | jq -Rn '[inputs | split("\t") | {kind: .[0], name: .[1], site: .[2], ip4: (.[3] | split(" ")), ip6: (.[4] | split(" ")),
      pid: (.[5] | tonumber? // null), rss_kib: (.[6] | tonumber? // null)}]'
  else
    status_lines | awk -F '\t' '{ printf "%-6s %-7s %-6s %-41s %-40s %s\n", $1, $2, $3, $4, $5, ($1 == "place" ? "" : $6 == "" ? "down" : "pid " $6 ", " int($7 / 1024) " MiB") }
      $7 { n++; sum += $7 } END { printf "%d guests up, %d MiB\n", n, sum / 1024 }'
  fi
}

port() { # PLACE|GUEST STATE: of each bridge port that leads to it. 0 swallows every frame while the link stays up, 3 forwards
  local at=wan p
  case $1 in server | site[1-4]) ;; *) at=$(site_of "$1") ;; esac
  for p in "$1" "$1-1"; do
    ! of "$at" link show "$p" >/dev/null 2>&1 || bridge -n "$(space "$at")" link set dev "$p" state "$2"
  done
}

has_place() { # PLACE
  [ -e "/run/netns/$(space "$1")" ] || die "no place named '$1' in $dir; there are: $(spaces | sed "s/^$prefix-//" | tr '\n' ' ')"
}

list() {
  local f name
  for f in /run/netns/lull-fleet-*-wan; do
    [ -e "$f" ] || continue
    name=$(basename "$f")
    printf '%s\t%s\n' "${name%-wan}" "$(ip -n "$name" -j link show br0 2>/dev/null | jq -r '.[0].ifalias // "?"')"
  done
}

case $action in
  list) list; exit 0 ;;
  up | down | status | exec | ssh | boot | stop | crash | cut | heal) find_prefix ;;
  *) usage ;;
esac
case $action in
  exec | ssh) [ ${#words[@]} -ge 2 ] || usage ;;
  boot | stop) [ ${#words[@]} -ge 1 ] || usage ;;
  crash | cut | heal) [ ${#words[@]} -eq 1 ] || usage ;;
  *) [ ${#words[@]} -eq 0 ] || usage ;;
esac
case $action in
  exec)
    has_place "${words[0]}"
    exec nsenter "--net=/run/netns/$(space "${words[0]}")" -- "${words[@]:1}"
    ;;
  ssh) exec "$vm" ssh "${words[0]}" --dir "$dir/$(site_of "${words[0]}")" -- "${words[@]:1}" ;;
  boot) boot "${words[@]}" ;;
  stop) for g in "${words[@]}"; do "$vm" stop "$g" --dir "$dir/$(site_of "$g")"; done ;;
  crash)
    has_place "${words[0]}"
    for p in $(ip netns pids "$(space "${words[0]}")"); do kill -9 "$p" 2>/dev/null || true; done
    ;;
  cut) port "${words[0]}" 0 ;;
  heal) port "${words[0]}" 3 ;;
  *) "$action" ;;
esac
