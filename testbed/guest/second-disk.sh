#!/bin/bash
# second-disk.sh: runs inside the guest "full", once, while it is built: an ESP, and LVM with ext4 and XFS nested in it.
# Knows /dev/vdb only. What it makes is mounted at every boot by the guest's fstab, which it writes.
set -euo pipefail
for m in dm_mod xfs vfat; do modprobe "$m"; done
# The small guest has no udev: LVM makes its own device nodes.
printf 'devices { obtain_device_list_from_udev = 0 }\nactivation { udev_sync = 0 udev_rules = 0 monitoring = 0 }\n' >/etc/lvm/lvmlocal.conf

printf 'label: gpt\nsize=64M, type=uefi, name=ESP\ntype=lvm\n' | sfdisk --quiet /dev/vdb
mkfs.vfat -n ESP /dev/vdb1
pvcreate -q /dev/vdb2
vgcreate -q vg0 /dev/vdb2
lvcreate -q --zero n --wipesignatures n -L 256M -n srv vg0
lvcreate -q --zero n --wipesignatures n -L 384M -n data vg0
mkfs.ext4 -q /dev/vg0/srv
mkfs.xfs -q /dev/vg0/data

cat >/etc/fstab <<'END'
/dev/vg0/srv   /srv       ext4  defaults  0 0
/dev/vg0/data  /srv/data  xfs   defaults  0 0
/srv/data      /mnt/bind  none  bind      0 0
/dev/vdb1      /boot/efi  vfat  umask=077 0 0
END
mkdir -p /boot/efi /mnt/bind
mount /srv
mkdir /srv/data
mount -a
mkdir -p /boot/efi/EFI/BOOT
echo 'on ext4' >/srv/file
echo 'on xfs' >/srv/data/file
sync
findmnt
