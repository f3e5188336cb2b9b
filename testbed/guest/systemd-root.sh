# shellcheck shell=bash disable=SC2154 # lib.sh sets guest_dir
# systemd-root.sh: a Debian root file system with systemd, made by mmdebstrap, maintainer scripts run. To be sourced by build.sh.
#
#   systemd_root ROOT WORK
#
# Beside systemd, udev, PAM, journald (kept on disk) and logind it has what makes real servers awkward: a long login
# banner, and a profile that prints on standard output and standard error, also when no terminal is there.
# Knows nothing of disks and kernels.

systemd_packages='systemd systemd-sysv libpam-systemd dbus udev openssh-server sudo qemu-guest-agent postgresql
  iproute2 kmod procps e2fsprogs util-linux-extra less nano'

machine_sources() { # FILE: gets the machine's own package sources, the distribution's alone, as apt lines; fails if there are none
  local id
  id=$(sed -n 's/^ID=//p' /etc/os-release)
  # shellcheck disable=SC2016 # apt expands these
  apt-get indextargets --format '$(ORIGIN) $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
    awk -v id="$id" 'tolower($1) == id && $3 !~ /backports/ && !seen[$0]++ { print "deb", $2, $3, $4 }' >"$1"
  [ -s "$1" ]
}

systemd_root() { # ROOT WORK
  local root=$1 work=$2 folder codename started
  need mmdebstrap
  codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
  with_fresh_lists machine_sources "$work/sources.list" || die "this machine's package sources hold no entry of its own distribution"
  folder=$LULL_TESTBED/debs/systemd-$(printf '%s' "$systemd_packages" | sha256sum | cut -c 1-12)
  # shellcheck disable=SC2086 # a list of words
  fetch_packages "$folder" '?and(?essential, ?architecture(native))' apt $systemd_packages
  started=$(now_ms)
  mmdebstrap --quiet --mode=root --variant=minbase --include="$(tr -s ' \n' ',' <<<"$systemd_packages" | sed 's/,$//')" \
    --aptopt='APT::Install-Recommends "false"' --skip=essential/unlink,cleanup/apt \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' --dpkgopt='path-exclude=/usr/lib/*/libLLVM*' --dpkgopt='path-exclude=/usr/lib/*/libz3*' \
    --dpkgopt='path-exclude=/usr/lib/postgresql/*/lib/bitcode/*' --dpkgopt='path-exclude=/usr/lib/llvm*' \
    --setup-hook="mkdir -p \"\$1/var/cache/apt/archives\" && cp '$folder'/*.deb \"\$1/var/cache/apt/archives/\"" \
    "$codename" "$root" "$work/sources.list" >"$work/mmdebstrap.log" 2>&1 ||
    { tail -n 30 "$work/mmdebstrap.log" >&2; die "mmdebstrap failed (its lines above say why)"; }
  rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
  say "systemd root made in $(seconds_since "$started") s"
  device_nodes "$root"
  systemd_configuration "$root"
  test_accounts "$root"
  ssh_server "$root"
  noise "$root"
  postgres_cluster "$root" "$work"
}

systemd_configuration() { # ROOT
  local root=$1
  echo '/dev/vda / ext4 noatime 0 0' >"$root/etc/fstab"
  echo guest >"$root/etc/hostname"
  echo '127.0.0.1 localhost guest' >"$root/etc/hosts"
  mkdir -p "$root/var/log/journal"
  printf '[Match]\nName=eth0\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\nLinkLocalAddressing=no\n' >"$root/etc/systemd/network/eth0.network"
  chroot "$root" systemd-machine-id-setup >/dev/null 2>&1
  chroot "$root" systemctl enable systemd-networkd >/dev/null 2>&1
  chroot "$root" systemctl disable systemd-networkd-wait-online >/dev/null 2>&1
  # Nothing that wakes up by itself: a test's guest must be quiet. No console logins: there is no one.
  chroot "$root" systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer e2scrub_all.timer \
    e2scrub_reap.service getty@tty1.service serial-getty@ttyS0.service systemd-networkd-wait-online.service >/dev/null 2>&1
}

noise() { # ROOT
  local root=$1 i
  {
    echo '############################################################'
    for i in 1 2 3 4 5 6; do echo "#  $i. Authorised use only. All activity may be monitored.   #"; done
    echo '############################################################'
  } >"$root/etc/issue.net"
  echo 'Banner /etc/issue.net' >>"$root/etc/ssh/sshd_config.d/testbed.conf"
  cp "$root/etc/bash.bashrc" "$root/etc/bash.bashrc.stock"
  {
    echo "echo '*** this server is managed by nobody in particular ***'"
    echo "printf 'no newline at the end of this one: '"
    echo "echo 'tput: No value for \$TERM and no -T specified' >&2"
    cat "$root/etc/bash.bashrc.stock"
  } >"$root/etc/bash.bashrc"
  rm "$root/etc/bash.bashrc.stock"
  echo "echo 'welcome from profile.d'" >"$root/etc/profile.d/noise.sh"
}
