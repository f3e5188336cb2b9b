#!/bin/bash
# install.sh: puts on this machine what Lull's build, demo and tests need. Debian 12; Ubuntu is expected to work.
#
#   testbed/install.sh [--for demo|fleet|test] [--check]
#
# Says what is missing and why before it installs anything, then installs with apt-get, without recommended packages.
# Works as root, or as a user who may sudo. Exit: 0 all there, 1 something is missing (--check) or could not be
# installed, 2 wrong usage, 3 not a machine it can serve.
# It knows packages only: no guests, no builds. It names no package mirror: every source it uses is derived from the
# package sources that this machine has already, and it leaves those as they are.
set -euo pipefail
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive

checkout=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
purpose=test check_only=no
while [ $# -gt 0 ]; do
  case $1 in
    --for) purpose=${2:-}; shift 2 || shift ;;
    --check) check_only=yes; shift ;;
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "install.sh: unknown argument '$1' (known: --for demo|fleet|test, --check)" >&2; exit 2 ;;
  esac
done
case $purpose in demo | fleet | test) ;; *) echo "install.sh: --for takes demo, fleet or test, not '$purpose'" >&2; exit 2 ;; esac

say() { printf '%s\n' "$*"; }
fail() { local code=$1; shift; printf 'install.sh: %s\n' "$*" >&2; exit "$code"; }

{ command -v apt-get && command -v dpkg-query; } >/dev/null ||
  fail 3 "this machine has no apt-get; Lull's testbed installs itself on Debian and Ubuntu only. Install by hand: QEMU (x86), e2fsprogs, an OpenSSH client, gcc, pkg-config, kmod, cpio, Rust."
[ "$(dpkg --print-architecture)" = amd64 ] || fail 3 "the testbed's guests are amd64; this machine is $(dpkg --print-architecture)"

# package groups: purpose | packages | why. "demo" is needed by every purpose, "fleet" by test too.
groups='demo|qemu-system-x86 qemu-utils|runs the guests, and makes and checks their disks
demo|e2fsprogs kmod cpio|builds a guest: its root file system, its kernel modules, its initrd
demo|openssh-client|logs in to the guest, and makes the key pair of the testbed
demo|gcc libc6-dev pkg-config|links Rust programs and compiles SQLite
demo|jq socat|reads the figures of a run, and asks QEMU itself what is left
demo|ca-certificates|lets cargo verify the registry it downloads from
fleet|iproute2 nftables procps|network namespaces for the sites of a fleet: bridges, routes, NAT and a packet filter inside them
test|mmdebstrap|builds the guest that boots systemd, with its maintainer scripts run
test|xfsprogs btrfs-progs|freeze tests on loop-mounted XFS and btrfs
test|mount busybox-static|mounts the loop devices of the freeze tests, and is all that their emulated hosts run
test|openssh-server zsh fish tcsh|an SSH server for tests on loopback (installed, not started, not enabled), and login shells that are not bash
test|shellcheck|lints the scripts
test|python3 python3-venv|independent peers in tests; DuckDB in an environment of its own
test|git|checks that look at the files of the checkout
test|npm|fetches the pinned PostgreSQL servers 10 to 18 for the application tests'

installed() {
  case $1 in # from elsewhere is as good
    npm | python3 | git | shellcheck) if command -v "$1" >/dev/null; then return 0; fi ;;
    python3-venv) if python3 -c 'import venv, ensurepip' 2>/dev/null; then return 0; fi ;;
  esac
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# shellcheck source=testbed/rust.sh
. "$checkout/testbed/rust.sh"
[ -n "$rust_wanted" ] || fail 1 "found no rust-version in $checkout/Cargo.toml"

missing=()
while IFS='|' read -r for packages why; do
  case $for:$purpose in demo:* | fleet:test | "$purpose:$purpose") ;; *) continue ;; esac
  absent=()
  for p in $packages; do installed "$p" || absent+=("$p"); done
  [ ${#absent[@]} -eq 0 ] && continue
  say "missing: ${absent[*]} ($why)"
  missing+=("${absent[@]}")
done <<<"$groups"
rust=()
if ! recent_cargo >/dev/null; then
  rust=(cargo-web rustc-web)
  [ "$purpose" != test ] || rust+=(rustfmt-web)
  say "missing: ${rust[*]} (builds Lull; no cargo of Rust $rust_wanted or later was found on PATH or in ~/.cargo/bin)"
elif [ "$purpose" = test ] && ! "$(recent_cargo)" fmt --version >/dev/null 2>&1; then
  if [ "$(recent_cargo)" = /usr/bin/cargo ]; then
    rust=(rustfmt-web)
    say "missing: ${rust[*]} (checks the form of Rust files)"
  else
    say "note: $(recent_cargo) has no rustfmt, which the suite fmt needs: rustup component add rustfmt"
  fi
fi

if [ ${#missing[@]} -eq 0 ] && [ ${#rust[@]} -eq 0 ]; then
  say "nothing is missing for $purpose (Rust: $(recent_cargo))"
  exit 0
fi
[ "$check_only" = no ] || exit 1

as_root=()
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || fail 1 "installing needs root, and there is no sudo. As root, run: apt-get install --no-install-recommends ${missing[*]} ${rust[*]}"
  as_root=(sudo)
fi
apt_get() { # apt-get's arguments; waits for another apt run rather than failing on its lock
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 apt-get -q -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@"
}

# QEMU's parts must come from one suite. Where qemu-utils is already there from backports, the emulator has to come
# from backports as well, also on a machine whose package sources no longer list that suite: then one run of apt gets an
# extra source, made from the machine's own Debian entry.
qemu_from=()
scratch=
held_back=no
cleanup() {
  [ -z "$scratch" ] || "${as_root[@]}" rm -rf "$scratch"
  [ "$held_back" = no ] || "${as_root[@]}" rm -f /usr/sbin/policy-rc.d
}
trap cleanup EXIT

qemu_is_backport() { dpkg-query -W -f '${Version}' qemu-utils 2>/dev/null | grep -q '~bpo'; }
prepare_backports() {
  local codename uri keyring
  codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
  # shellcheck disable=SC2016 # $(RELEASE) is apt's to expand
  if apt-get indextargets --format '$(RELEASE)' 'Created-By: Packages' | grep -qx "$codename-backports"; then
    qemu_from=(-t "$codename-backports")
    return
  fi
  # shellcheck disable=SC2016 # as above
  uri=$(apt-get indextargets --format '$(ORIGIN) $(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
    awk -v r="$codename" '$1 == "Debian" && $2 == r { print $3; exit }')
  [ -n "$uri" ] || fail 1 "qemu-utils is installed from backports, but no Debian entry for '$codename' is among this machine's package sources. Add one, or install qemu-system-x86 of version $(dpkg-query -W -f '${Version}' qemu-utils) by hand."
  keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  scratch=$(mktemp -d)
  mkdir -p "$scratch/parts" "$scratch/lists/partial"
  chmod -R a+rX "$scratch"
  find /etc/apt/sources.list.d -maxdepth 1 \( -name '*.list' -o -name '*.sources' \) -exec cp -t "$scratch/parts" {} +
  echo "deb [signed-by=$keyring] $uri $codename-backports main" >"$scratch/parts/backports.list"
  say "qemu-utils is installed from $codename-backports: taking the emulator from there too (for this run only; your package sources stay as they are)"
  qemu_from=(-t "$codename-backports" -o "Dir::Etc::SourceParts=$scratch/parts" -o "Dir::State::Lists=$scratch/lists")
  apt_get "${qemu_from[@]}" update
}

# Tests want sshd's program. A machine that had no SSH server must not get one that listens: Debian's scripts start what
# they install unless policy-rc.d forbids it (101), and would start it at the next boot unless it is disabled.
hold_back_sshd() {
  [ ! -e /usr/sbin/policy-rc.d ] || return 0
  held_back=yes
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee /usr/sbin/policy-rc.d >/dev/null
  "${as_root[@]}" chmod 755 /usr/sbin/policy-rc.d
}
disable_sshd() {
  ! command -v systemctl >/dev/null || "${as_root[@]}" systemctl disable --quiet ssh.service ssh.socket 2>/dev/null ||
    say "note: could not disable ssh.service and ssh.socket; 'systemctl disable ssh' keeps the SSH server from starting at boot"
}

install_packages() { # PACKAGE...: all at once; if that fails, names the ones that cannot be had
  apt_get install --yes --no-install-recommends "$@" && return 0
  local p refused=()
  for p in "$@"; do
    installed "$p" && continue
    apt-get install --simulate --no-install-recommends "$p" >/dev/null 2>&1 || refused+=("$p")
  done
  if [ ${#refused[@]} -gt 0 ]; then
    fail 1 "could not install: ${refused[*]}. The lines of apt-get above say why. Check that this machine's package sources list Debian's main, updates and security suites and can be reached, then run it again."
  fi
  fail 1 "apt-get failed (its lines above say why) while installing: $*. When it is repaired, run it again."
}

say "installing (apt-get, no recommended packages): ${missing[*]} ${rust[*]}"
apt_get update || fail 1 "apt-get update failed: this machine's package sources cannot be reached or verified (its lines above say which)"
qemu=() others=()
for p in "${missing[@]}"; do case $p in qemu-*) qemu+=("$p") ;; *) others+=("$p") ;; esac; done
if [ ${#qemu[@]} -gt 0 ]; then
  if qemu_is_backport; then
    prepare_backports
    apt_get "${qemu_from[@]}" install --yes --no-install-recommends qemu-system-x86 qemu-utils ||
      fail 1 "could not install qemu-system-x86 from backports (apt-get's lines above say why). Removing the backported qemu-utils lets both come from the stable suite."
  else
    others+=("${qemu[@]}")
  fi
fi
case " ${others[*]} " in
  *' openssh-server '*) hold_back_sshd; install_packages "${others[@]}"; disable_sshd ;;
  *) [ ${#others[@]} -eq 0 ] || install_packages "${others[@]}" ;;
esac
if [ ${#rust[@]} -gt 0 ]; then
  install_packages "${rust[@]}"
  recent_cargo >/dev/null || fail 1 "Debian's cargo-web is $(/usr/bin/cargo --version 2>/dev/null || echo absent), Lull needs Rust $rust_wanted. Check that the security suite is among this machine's package sources, or install Rust with rustup."
fi
say "installed; Rust: $(recent_cargo)"
