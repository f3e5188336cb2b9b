# shellcheck shell=bash disable=SC2034,SC2154 # who sources this uses what is set here, and has set check
# demo-lib.sh: what the demos share: how they speak, prove, build Lull and look for what was left. To be sourced by ./demo and
# testbed/demo-fleet.sh, in the checkout, with check=yes where the last line is to be JSON.
# Knows no scenario.

bold='' dim='' green='' red='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'; fi
stage='' # what it is at, for whoever reads only the last line
heading() {
  stage=$*
  printf '\n%s== %s%s\n' "$bold" "$*" "$plain"
}
say() { printf '%s\n' "$*"; }
columns() { # lines of words parted by tabs, as a table
  awk -F '\t' '{ for (i = 1; i <= NF; i++) { cell[NR, i] = $i; if (length($i) > width[i]) width[i] = length($i) } fields[NR] = NF }
    END { for (n = 1; n <= NR; n++) { line = ""; for (i = 1; i < fields[n]; i++) line = line sprintf("%-" width[i] + 2 "s", cell[n, i]); print line cell[n, i] } }'
}
now_ms() { local t=${EPOCHREALTIME/[.,]/}; echo $((t / 1000)); }
seconds() { printf '%d.%d' $(($1 / 1000)) $(($1 % 1000 / 100)); }
begun=$(now_ms)
declare -A took=() # what → milliseconds, for the last line
timed() { # WHAT COMMAND...: ends as the command does
  local what=$1 from code
  from=$(now_ms)
  shift
  "$@" # no "||" here: it would take errexit from the command
  code=$?
  took[$what]=$(($(now_ms) - from))
  return "$code"
}
lull='' # the program; install_and_build sets it
as_operator() { "$lull" "$@"; } # lull's arguments
operator() { # the same; shows the command, then what it prints
  printf '%s$ lull %s%s\n' "$dim" "$*" "$plain"
  as_operator "$@"
}
operator_briefly() { # shows the command alone
  printf '%s$ lull %s%s\n' "$dim" "$*" "$plain"
  as_operator "$@" >/dev/null
}

proofs=() failed=0
prove() { # WHAT COMMAND...: the command's exit code is the proof
  local what=$1
  shift
  if "$@"; then
    printf '%s  proved  %s%s\n' "$green" "$what" "$plain"
  else
    printf '%s  FAILED  %s%s\n' "$red" "$what" "$plain"
    failed=$((failed + 1))
  fi
  proofs+=("$what")
}
end_process() { # PID: asks, waits, insists
  local i
  kill "$1" 2>/dev/null || return 0
  for ((i = 0; i < 200; i++)); do kill -0 "$1" 2>/dev/null || return 0; sleep 0.1; done
  kill -9 "$1" 2>/dev/null || true
}
summary=''
last_line() { # EXIT-CODE: also where it did not come to the proofs; by printf, since jq may be what is missing
  if [ "$check" = yes ] && [ -z "$summary" ]; then
    summary="{\"ok\":false,\"error\":\"ended with exit code $1 at: $stage\"}"
  fi
  [ -z "$summary" ] || printf '%s\n' "$summary"
}

install_and_build() { # PURPOSE, as install.sh takes it. With LULL_BINARY that program is shown, and none is built
  local cargo
  heading "1. What it takes"
  timed install testbed/install.sh --for "$1"
  PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/sbin:/sbin
  # A cargo that is too old may come first on PATH; install.sh names the one that serves.
  cargo=$(testbed/install.sh --for "$1" --check | sed -n "s/^nothing is missing for $1 (Rust: \\(.*\\))\$/\\1/p")
  [ -n "$cargo" ] || { echo "demo: no cargo that is recent enough, although it was installed" >&2; exit 1; }
  PATH=$(dirname "$cargo"):$PATH
  if [ -n "${LULL_BINARY:-}" ]; then
    took[fetch]=0 took[build]=0
    lull=$LULL_BINARY
    heading "2. Lull as it was built elsewhere: $("$lull" --version)"
    return
  fi
  heading "2. Building Lull"
  timed fetch "$cargo" fetch --locked --quiet
  timed build "$cargo" build --locked --quiet --package lull
  lull=${CARGO_TARGET_DIR:-target}/debug/lull
  say "built in $(seconds "${took[build]}") s (downloads $(seconds "${took[fetch]}") s): $("$lull" --version)"
}

# Looks for anything with our name: files on every local file system, processes (also by their deleted executables), what
# any process holds open (a file lock is held through an open file, deleted or not), mounts, sockets. By its own login;
# Lull has no part in it. The last word says that the look came to its end: silence alone proves nothing.
# shellcheck disable=SC2016 # runs in the guest
look='
{ find / -xdev -name "*lull*" 2>/dev/null
  find /run /dev/shm /tmp /var/tmp -name "*lull*" 2>/dev/null
  for p in /proc/[0-9]*; do
    case "$(cat $p/comm 2>/dev/null) $(readlink $p/exe 2>/dev/null)" in *lull*) echo "process ${p#/proc/}" ;; esac
    for open in $p/fd/*; do case "$(readlink "$open" 2>/dev/null)" in *lull*) echo "open in process ${p#/proc/}: $(readlink "$open")" ;; esac; done
  done
  grep lull /proc/self/mountinfo /proc/net/unix
} | sort -u && echo looked-everywhere'
# Proofs run as a condition, where bash heeds no errexit: each step that may fail says so itself.
looked_everywhere() { # COMMAND...: logs in to a guest and runs there what it gets as its last argument
  local found
  found=$("$@" "$look") || { echo "    the guest could not be asked"; return 1; }
  [ "${found##*$'\n'}" = looked-everywhere ] || { printf '    the look broke off: %s\n' "$found"; return 1; }
  [ "$found" = looked-everywhere ] || { printf '    found: %s\n' "${found%$'\n'*}"; return 1; }
}
# Asks QEMU itself, over its own socket: nodes, jobs and filters named by us. OWED are bitmaps that may be there.
clean_qemu() { # SOCKET OWED-AS-JSON-LIST
  local answers found
  answers=$(printf '%s\n' '{"execute":"qmp_capabilities"}' '{"execute":"query-named-block-nodes"}' '{"execute":"query-jobs"}' '{"execute":"query-block-exports"}' |
    socat -t 3 - "UNIX-CONNECT:$1")
  [ "$(grep -c '"return"' <<<"$answers")" = 4 ] || { echo "    QEMU did not answer"; return 1; }
  found=$(jq -rs --argjson owed "$2" '[.[] | select(.return) | .return | arrays | .[]
    | (."node-name"? // empty), (.id? // empty), (."dirty-bitmaps"? // [] | .[] | .name // empty)]
    | map(select(test("lull") and (. as $name | $owed | index($name) | not))) | unique | .[]' <<<"$answers") || { echo "    QEMU's answer could not be read"; return 1; }
  [ -z "$found" ] || { printf '    found: %s\n' "$found"; return 1; }
}
