# shellcheck shell=bash disable=SC2034 # who sources this uses what is set here
# lib.sh: what the guest scripts share: where things lie, who we are, how time is told. To be sourced.
# Knows the layout of the testbed's folder; knows nothing of any particular guest.
export LC_ALL=C.UTF-8

guest_dir=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
checkout=$(readlink -f "$guest_dir/../..")
# Everything that is built, downloaded or run lies below this folder, which git ignores. Several checkouts may share one.
LULL_TESTBED=${LULL_TESTBED:-$checkout/.testbed}
export LULL_TESTBED

say() { printf '%s\n' "$*" >&2; }
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

need() { # PROGRAM...: all of them, or an error that names them
  local p absent=()
  for p in "$@"; do
    command -v "$p" >/dev/null || [ -x "/usr/sbin/$p" ] || [ -x "/sbin/$p" ] || absent+=("$p")
  done
  [ ${#absent[@]} -eq 0 ] || die "missing: ${absent[*]}. Run testbed/install.sh first."
}

PATH=$PATH:/usr/sbin:/sbin # Debian's users have neither on their PATH

now_ms() { local t=${EPOCHREALTIME/[.,]/}; echo $((t / 1000)); }
seconds_since() { # MS: "12.3"
  local d=$(($(now_ms) - $1))
  printf '%d.%d' $((d / 1000)) $((d % 1000 / 100))
}

# Runs a command that fetches packages; where it fails, once more with fresh package lists: they may be absent or stale.
with_fresh_lists() { # COMMAND...
  "$@" && return 0
  say "refreshing the package lists and trying once more: $1 failed"
  apt-get -qq -o DPkg::Lock::Timeout=300 update || die "apt-get update failed: this machine's package sources cannot be reached or verified (its lines above say which)"
  "$@"
}

# The key that opens every guest of this testbed; made here, never in the repository.
key=$LULL_TESTBED/keys/id_test
