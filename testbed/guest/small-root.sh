# shellcheck shell=bash disable=SC2154 # lib.sh sets guest_dir
# small-root.sh: unpacks a small Debian root file system from packages, without systemd. To be sourced by build.sh.
#
#   small_root ROOT VARIANT WORK
#
# Packages are fetched with apt against an empty status and unpacked with dpkg-deb: no maintainer script runs, no mount is
# needed, and it takes seconds. What those scripts would have done for a login, sudo, su and PostgreSQL is done here.
# Knows nothing of disks and kernels.

small_packages='base-files base-passwd bash coreutils dash sed grep mawk gzip tar findutils login passwd util-linux mount
  procps libc-bin libpam-modules libpam-runtime openssh-server qemu-guest-agent iproute2 sudo busybox-static kmod hostname
  diffutils e2fsprogs'
full_packages='lvm2 dmsetup xfsprogs dosfstools fdisk'

small_root() {
  local root=$1 variant=$2 work=$3 packages folder
  packages=$small_packages
  [ "$variant" = tiny ] || packages+=' postgresql'
  [ "$variant" != full ] || packages+=" $full_packages"
  folder=$LULL_TESTBED/debs/$variant-$(printf '%s' "$packages" | sha256sum | cut -c 1-12)
  # shellcheck disable=SC2086 # a list of words
  fetch_packages "$folder" $packages
  unpack_packages "$root" "$folder"
  base_accounts "$root"
  base_configuration "$root"
  real_pam "$root"
  test_accounts "$root"
  ssh_server "$root"
  if [ "$variant" != tiny ]; then
    postgres_account "$root"
    postgres_cluster "$root" "$work"
  fi
  install -m 755 "$guest_dir/files/tinyinit" "$root/sbin/tinyinit"
}

unpack_packages() { # ROOT FOLDER
  local d
  for d in bin sbin lib lib32 lib64 libx32; do mkdir -p "$1/usr/$d"; ln -s "usr/$d" "$1/$d"; done # /usr is merged, as in any Debian 12
  # PostgreSQL's JIT drags in LLVM, a third of the whole image; it is left out, and jit is off in postgresql.conf.
  # shellcheck disable=SC2016 # the inner shell expands
  find "$2" -name '*.deb' -print0 | xargs -0 -P 2 -n 1 sh -c 'dpkg-deb --fsys-tarfile "$1" | tar -x --keep-directory-symlink -C "$0" \
    --exclude=./usr/share/doc --exclude=./usr/share/man --exclude=./usr/share/locale --exclude=./usr/share/info \
    --exclude=./usr/share/i18n --exclude="./usr/lib/*/gconv" --exclude="./usr/lib/*/libLLVM*" --exclude="./usr/lib/*/libz3*" \
    --exclude="./usr/lib/postgresql/*/lib/bitcode" --exclude="./usr/lib/llvm*"' "$1"
  [ -e "$1/bin/sh" ] || ln -s dash "$1/bin/sh"
  [ -e "$1/usr/bin/awk" ] || ln -s mawk "$1/usr/bin/awk"
}

base_accounts() { # ROOT
  local root=$1
  cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd"
  cp "$root/usr/share/base-passwd/group.master" "$root/etc/group"
  sed -i 's#^root:.*#root:x:0:0:root:/root:/bin/bash#; s#^\([^:]*\):\*:#\1:x:#' "$root/etc/passwd"
  awk -F: '{ print $1 ":*:19000:0:99999:7:::" }' "$root/etc/passwd" >"$root/etc/shadow"
  awk -F: '{ print $1 ":*::" }' "$root/etc/group" >"$root/etc/gshadow"
  chown 0:42 "$root/etc/shadow" "$root/etc/gshadow"
  chmod 640 "$root/etc/shadow" "$root/etc/gshadow"
}

base_configuration() { # ROOT
  local root=$1 d
  for d in proc sys dev run tmp root var/log var/tmp var/lib srv mnt; do mkdir -p "$root/$d"; done
  chmod 700 "$root/root"
  chmod 1777 "$root/tmp" "$root/var/tmp"
  rm -rf "$root/var/run" "$root/var/lock" # some package may ship them as folders
  ln -s /run "$root/var/run"
  ln -s /run/lock "$root/var/lock"
  device_nodes "$root"
  printf 'passwd: files\ngroup: files\nshadow: files\nhosts: files\n' >"$root/etc/nsswitch.conf"
  echo '127.0.0.1 localhost guest' >"$root/etc/hosts"
  echo guest >"$root/etc/hostname"
  cp "$root/usr/share/base-files/profile" "$root/etc/profile"
  cp "$root/etc/skel/.bashrc" "$root/etc/skel/.profile" "$root/root/"
  printf '/bin/sh\n/bin/bash\n' >"$root/etc/shells"
  : >"$root/etc/environment"
  : >"$root/etc/fstab"
  mkdir -p "$root/etc/default"
  : >"$root/etc/default/locale"
  ldconfig -r "$root"
}

real_pam() { # ROOT: what pam-auth-update makes of Debian's defaults: passwords are checked against /etc/shadow
  local pam=$1/etc/pam.d
  printf '%s\n' 'auth [success=1 default=ignore] pam_unix.so nullok' 'auth requisite pam_deny.so' 'auth required pam_permit.so' >"$pam/common-auth"
  printf '%s\n' 'account [success=1 new_authtok_reqd=done default=ignore] pam_unix.so' 'account requisite pam_deny.so' \
    'account required pam_permit.so' >"$pam/common-account"
  printf '%s\n' 'session [default=1] pam_permit.so' 'session requisite pam_deny.so' 'session required pam_permit.so' \
    'session required pam_unix.so' | tee "$pam/common-session" >"$pam/common-session-noninteractive"
  printf '%s\n' 'password [success=1 default=ignore] pam_unix.so obscure yescrypt' 'password requisite pam_deny.so' \
    'password required pam_permit.so' >"$pam/common-password"
}
