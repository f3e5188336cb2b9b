#!/bin/bash
# kernel.sh: fetches the distribution's kernel for virtual machines and makes the initrd that starts any of our guests.
# Prints the folder: vmlinuz, initrd.img, modules/ (the whole module tree), release (its version).
# Knows nothing of root file systems; which modules a guest carries is build.sh's business.
set -euo pipefail
# shellcheck source=testbed/guest/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
need apt-get dpkg-deb depmod modprobe cpio gzip

stamp=$(cat "$guest_dir/kernel.sh" "$guest_dir/files/initrd-init" | sha256sum | cut -c 1-12)
mkdir -p "$LULL_TESTBED/kernel"
exec 9>"$LULL_TESTBED/kernel/.lock"
flock 9
current=$LULL_TESTBED/kernel/current
# Checkouts that share the folder may have made theirs with other scripts: each finds its own.
for made in "$LULL_TESTBED"/kernel/*-"$stamp"; do
  if [ -f "$made/vmlinuz" ]; then ln -sfn "$(basename "$made")" "$current"; readlink -f "$made"; exit 0; fi
done

kernel_package() { # Debian's name, then Ubuntu's
  local meta
  for meta in linux-image-cloud-amd64 linux-image-virtual; do
    package=$(apt-cache depends "$meta" 2>/dev/null | awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ { print $2; exit }')
    [ -z "$package" ] || return 0
  done
  return 1
}
package=
with_fresh_lists kernel_package || die "found neither linux-image-cloud-amd64 nor linux-image-virtual; check that the main suite is among this machine's package sources"
release=${package#linux-image-}
work=$(mktemp -d "$LULL_TESTBED/kernel/build.XXXXXX")
trap 'rm -rf "$work"' EXIT

started=$(now_ms)
mkdir "$work/debs"
packages=("$package" busybox-static)
apt-cache show "linux-modules-$release" >/dev/null 2>&1 && packages+=("linux-modules-$release")
download() { (cd "$work/debs" && apt-get -qq -o APT::Sandbox::User=root download "$@"); }
with_fresh_lists download "${packages[@]}" ||
  die "could not download ${packages[*]} (apt-get's lines above say why)"
say "kernel $release: downloads $(seconds_since "$started") s"

started=$(now_ms)
for deb in "$work"/debs/*.deb; do dpkg-deb -x "$deb" "$work/root"; done
tree=$work/root
[ -d "$tree/lib/modules/$release" ] || tree=$work/root/usr
mkdir -p "$work/out/modules/lib"
mv "$tree/lib/modules" "$work/out/modules/lib/modules"
cp "$work/root/boot/vmlinuz-$release" "$work/out/vmlinuz"
depmod -b "$work/out/modules" "$release"

initrd=$work/initrd
mkdir -p "$initrd"/{bin,dev,proc,sys,root,m}
busybox=$(find "$work/root" -path '*bin/busybox' -type f | head -n 1)
[ -n "$busybox" ] || die "the package busybox-static holds no busybox"
install -m 755 "$busybox" "$initrd/bin/busybox"
install -m 755 "$guest_dir/files/initrd-init" "$initrd/init"
for module in virtio_pci virtio_blk virtio_net virtio_console virtio_rng virtio_scsi sd_mod ext4; do
  modprobe -d "$work/out/modules" -S "$release" --show-depends "$module" 2>/dev/null | awk '$1 == "insmod" { print $2 }' || true
done | awk '!seen[$0]++' | while read -r file; do
  name=$(basename "$file")
  case $name in # busybox's insmod reads only plain modules
    *.zst) name=${name%.zst}; zstd -q -d "$file" -o "$initrd/m/$name" ;;
    *.xz) name=${name%.xz}; xz -d -c "$file" >"$initrd/m/$name" ;;
    *) cp "$file" "$initrd/m/" ;;
  esac
  echo "$name"
done >"$initrd/order"
[ -s "$initrd/order" ] || die "kernel $release brought none of the modules that a guest needs"
(cd "$initrd" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/out/initrd.img"
echo "$release" >"$work/out/release"

final=$LULL_TESTBED/kernel/$release-$stamp
rm -rf "$final"
mv "$work/out" "$final"
ln -sfn "$(basename "$final")" "$current"
say "kernel $release: unpacked, initrd made in $(seconds_since "$started") s"
readlink -f "$final"
