# shellcheck shell=bash
# packages.sh: fetches a guest's packages, and makes an unpacked root fit to run programs in. To be sourced by build.sh.
# Knows apt; knows no variant.

download_packages() { # FOLDER PACKAGE...: resolved as if nothing were installed
  local folder=$1
  shift
  apt-get -qq -o Dir::State::status=/dev/null -o Dir::Cache::archives="$folder" -o APT::Install-Recommends=false \
    -o APT::Sandbox::User=root -o Debug::NoLocking=1 --download-only -y install "$@" >/dev/null
}

fetch_packages() { # FOLDER PACKAGE...: the packages and all they depend on, once
  local folder=$1 started
  shift
  [ ! -f "$folder/.done" ] || { say "packages: cached"; return 0; }
  rm -rf "$folder"
  mkdir -p "$folder/partial"
  started=$(now_ms)
  with_fresh_lists download_packages "$folder" "$@" || die "could not download the guest's packages (apt-get's lines above say why)"
  touch "$folder/.done"
  say "packages: downloads $(seconds_since "$started") s ($(find "$folder" -name '*.deb' | wc -l) packages, $(du -sm "$folder" | cut -f 1) MB)"
}

device_nodes() { # ROOT: what programs want that run in the root before it boots
  local root=$1
  [ -c "$root/dev/null" ] || mknod -m 666 "$root/dev/null" c 1 3
  [ -c "$root/dev/urandom" ] || mknod -m 666 "$root/dev/urandom" c 1 9
  mkdir -p "$root/dev/shm"
  chmod 1777 "$root/dev/shm"
}
