# shellcheck shell=bash
# rust.sh: finds a cargo that is recent enough for Lull. To be sourced; sets rust_wanted.
#
#   recent_cargo   prints the path of the first cargo that serves: on PATH, in ~/.cargo/bin, or Debian's; or fails
#   use_rust       puts that cargo's folder first on PATH; or fails and says what to do
#
# Installs nothing: install.sh does.
rust_checkout=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
rust_wanted=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$rust_checkout/Cargo.toml" | head -n 1)

cargo_is_recent() { # PROGRAM
  local have
  have=$("$1" --version 2>/dev/null | cut -d ' ' -f 2) && [ -n "$have" ] &&
    [ "$(printf '%s\n%s\n' "$rust_wanted" "$have" | sort -V | head -n 1)" = "$rust_wanted" ]
}

recent_cargo() {
  local c
  for c in "$(command -v cargo || true)" "${CARGO_HOME:-${HOME:-/root}/.cargo}/bin/cargo" /usr/bin/cargo; do
    if [ -n "$c" ] && [ -x "$c" ] && cargo_is_recent "$c"; then echo "$c"; return 0; fi
  done
  return 1
}

use_rust() {
  local cargo
  if ! cargo=$(recent_cargo); then
    echo "no cargo of Rust $rust_wanted or later on PATH, in ~/.cargo/bin or in /usr/bin. Run testbed/install.sh, or install Rust with rustup." >&2
    return 1
  fi
  PATH=$(dirname "$cargo"):$PATH
}
