# shellcheck shell=bash disable=SC2154 # lib.sh sets key
# accounts.sh: the accounts and the SSH server that every guest has. To be sourced by build.sh.
#
#   root    the testbed's key; password lull-root serves su
#   admin   password lull-test (and the key); sudo asks for the password
#   ops     the key only; sudo asks nothing
#   plain   password lull-test (and the key); no sudo, su with root's password
#
# These passwords guard guests that are reachable from this machine's loopback only.

test_accounts() { # ROOT
  local root=$1 user home
  for user in admin ops plain; do
    chroot "$root" useradd -m -s /bin/bash "$user"
    home=$root/home/$user
    install -d -m 700 "$home/.ssh"
    cp "$key.pub" "$home/.ssh/authorized_keys"
    chroot "$root" chown -R "$user:$user" "/home/$user"
  done
  install -d -m 700 "$root/root/.ssh"
  cp "$key.pub" "$root/root/.ssh/authorized_keys"
  printf '%s\n' root:lull-root admin:lull-test plain:lull-test | chroot "$root" /usr/sbin/chpasswd -c SHA512
  chroot "$root" usermod -aG sudo admin
  install -m 440 /dev/null "$root/etc/sudoers.d/ops"
  echo 'ops ALL=(ALL:ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/ops"
}

ssh_server() { # ROOT: Debian's own configuration, and what a test needs beside it
  local root=$1
  [ -f "$root/etc/ssh/sshd_config" ] || cp "$root/usr/share/openssh/sshd_config" "$root/etc/ssh/sshd_config"
  chroot "$root" getent passwd sshd >/dev/null || chroot "$root" useradd --system -g nogroup -d /run/sshd -s /usr/sbin/nologin sshd
  rm -f "$root"/etc/ssh/ssh_host_*
  ssh-keygen -q -t ed25519 -N '' -C guest -f "$root/etc/ssh/ssh_host_ed25519_key"
  mkdir -p "$root/etc/ssh/sshd_config.d"
  # VERBOSE: the guest's log counts the logins that were tried. Many tests at once log in: MaxStartups.
  printf '%s\n' 'HostKey /etc/ssh/ssh_host_ed25519_key' 'UseDNS no' 'PasswordAuthentication yes' \
    'PermitRootLogin prohibit-password' 'LogLevel VERBOSE' 'MaxStartups 100:30:200' >"$root/etc/ssh/sshd_config.d/testbed.conf"
}
