#!/bin/bash
# build.sh: builds a guest's disk image, or finds the one that is built already.
#
#   testbed/guest/build.sh VARIANT [OUT]
#
#   tiny     small Debian: sshd, guest agent; no systemd, no database
#   pg       tiny, and PostgreSQL with a pgbench database
#   full     pg, and a second disk with an ESP (vfat), LVM with ext4 and XFS nested in it, and a bind mount
#   systemd  Debian with systemd, udev, PAM, journald, logind, PostgreSQL, a login banner and a noisy shell profile
#
# Prints the image's path as its last line; OUT becomes a symbolic link to it. Images lie below $LULL_TESTBED/images
# (default: .testbed in the checkout), named after the hash of all that made them: a changed script builds anew, and an
# image in use is never written again. A second disk lies beside the image as *.disk1.qcow2; vm.sh attaches it.
# Needs root (or sudo): files of the guest have owners. Downloads are cached; their time is printed apart.
set -euo pipefail
# shellcheck source=testbed/guest/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
# shellcheck source=testbed/guest/accounts.sh
. "$guest_dir/accounts.sh"
# shellcheck source=testbed/guest/packages.sh
. "$guest_dir/packages.sh"
# shellcheck source=testbed/guest/small-root.sh
. "$guest_dir/small-root.sh"
# shellcheck source=testbed/guest/systemd-root.sh
. "$guest_dir/systemd-root.sh"
# shellcheck source=testbed/guest/postgres.sh
. "$guest_dir/postgres.sh"

variant=${1:-} out=${2:-}
case $variant in tiny | pg | full | systemd) ;; *) sed -n '2,15s/^# \{0,1\}//p' "$0" >&2; exit 2 ;; esac

if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || die "building a guest needs root, and there is no sudo here"
  exec sudo LULL_TESTBED="$LULL_TESTBED" LULL_TESTBED_OWNER="$(id -u):$(id -g)" "$0" "$@"
fi
need apt-get dpkg-deb mkfs.ext4 qemu-img ssh-keygen depmod modprobe flock

mkdir -p "$LULL_TESTBED"/{keys,images,debs}
exec 8>"$LULL_TESTBED/keys/.lock"
flock 8
[ -f "$key" ] || ssh-keygen -q -t ed25519 -N '' -C testbed -f "$key"
flock -u 8
# One build of a variant at a time; whoever waited finds the image built.
exec 9>"$LULL_TESTBED/images/.$variant.lock"
flock 9

kernel=$("$guest_dir/kernel.sh" 9>&-)
# All that makes this variant; the others' scripts are not among it.
makers=(build.sh lib.sh kernel.sh packages.sh accounts.sh)
case $variant in
  tiny) makers+=(small-root.sh files/tinyinit) ;;
  pg) makers+=(postgres.sh small-root.sh files/tinyinit) ;;
  full) makers+=(postgres.sh small-root.sh files/tinyinit second-disk.sh) ;;
  systemd) makers+=(postgres.sh systemd-root.sh) ;;
esac
hash=$({ cd "$guest_dir"; cat "${makers[@]}" "$key.pub"; basename "$kernel"; } | sha256sum | cut -c 1-12)
image=$LULL_TESTBED/images/$variant-$hash.qcow2

finish() {
  if [ -n "${LULL_TESTBED_OWNER:-}" ]; then # what sudo made belongs to who called it
    chown "$LULL_TESTBED_OWNER" "$LULL_TESTBED"
    chown -R "$LULL_TESTBED_OWNER" "$LULL_TESTBED"/{keys,images,debs,kernel}
  fi
  if [ -n "$out" ]; then mkdir -p "$(dirname "$out")"; ln -sfn "$image" "$out"; fi
  echo "$image"
  exit 0
}
[ ! -f "$image" ] || finish

work=$(mktemp -d "$LULL_TESTBED/images/build.XXXXXX")
trap '"$guest_dir/vm.sh" stop --all --dir "$work"; rm -rf "$work"' EXIT
root=$work/root

guest_modules() { # ROOT: the modules a guest may need, from the kernel all guests boot
  local release m file
  release=$(cat "$kernel/release")
  for m in virtio_pci virtio_blk virtio_net virtio_console virtio_rng xfs btrfs vfat nls_cp437 nls_ascii dm_mod dm_snapshot loop overlay fuse autofs4 configfs; do
    modprobe -d "$kernel/modules" -S "$release" --show-depends "$m" 2>/dev/null | awk '$1 == "insmod" { print $2 }' || true
  done | awk '!seen[$0]++' | while read -r file; do
    install -D -m 644 "$file" "$1/lib/modules/$release/${file#*/lib/modules/"$release"/}"
  done
  cp "$kernel/modules/lib/modules/$release"/modules.{order,builtin,builtin.modinfo} "$1/lib/modules/$release/"
  depmod -b "$1" "$release"
}

second_disk() { # the guest itself partitions, formats and mounts its second disk: it has the device mapper, we may not
  local started
  started=$(now_ms)
  qemu-img create -q -f qcow2 "$work/blank.qcow2" 1G
  "$guest_dir/vm.sh" start setup --image "$work/disk.qcow2" --disk "$work/blank.qcow2" --dir "$work" --wait >/dev/null 9>&-
  "$guest_dir/vm.sh" ssh setup --dir "$work" -- bash -s <"$guest_dir/second-disk.sh" >"$work/second-disk.log" 2>&1 ||
    { cat "$work/second-disk.log" >&2; "$guest_dir/vm.sh" stop setup --dir "$work"; die "the second disk could not be laid out (the guest's lines above say why)"; }
  "$guest_dir/vm.sh" shutdown setup --dir "$work"
  qemu-img convert -O qcow2 "$work/setup.qcow2" "$work/disk-set-up.qcow2"
  qemu-img convert -O qcow2 "$work/setup.disk1.qcow2" "$work/disk1.qcow2"
  mv "$work/disk-set-up.qcow2" "$work/disk.qcow2"
  say "second disk laid out by the guest in $(seconds_since "$started") s"
}

say "guest $variant: building $(basename "$image")"
case $variant in
  systemd) systemd_root "$root" "$work" ;;
  *) small_root "$root" "$variant" "$work" ;;
esac
started=$(now_ms)
guest_modules "$root"
truncate -s 2G "$work/disk.raw"
mkfs.ext4 -q -F -L root -E lazy_itable_init=0,lazy_journal_init=0 -d "$root" "$work/disk.raw"
qemu-img convert -O qcow2 "$work/disk.raw" "$work/disk.qcow2"
say "disk made in $(seconds_since "$started") s: root $(du -sm "$root" | cut -f 1) MB, image $(du -m "$work/disk.qcow2" | cut -f 1) MB"
[ "$variant" != full ] || second_disk
[ ! -f "$work/disk1.qcow2" ] || install -m 444 "$work/disk1.qcow2" "${image%.qcow2}.disk1.qcow2"
chmod 444 "$work/disk.qcow2"
mv "$work/disk.qcow2" "$image"
# What older scripts made, once no test of today can still start from it.
find "$LULL_TESTBED/images" -maxdepth 1 -name "$variant-*.qcow2" ! -name "$variant-$hash.*" -mtime +0 -delete
finish
