# shellcheck shell=bash
# postgres.sh: fills a guest's PostgreSQL with a pgbench database while the guest is built. To be sourced by build.sh.
#
# The cluster lies where Debian keeps it (/var/lib/postgresql/VERSION/main). Where Debian's own scripts made it, with its
# configuration below /etc/postgresql, it is taken as it is; else it is made here, configuration and all in one folder.
# Knows no variant.

postgres_account() { # ROOT: what postgresql-common's script would have done
  local root=$1
  chroot "$root" groupadd --system postgres
  chroot "$root" useradd --system -g postgres -d /var/lib/postgresql -s /bin/bash postgres
  mkdir -p "$root/var/log/postgresql"
  chroot "$root" chown -R postgres:postgres /var/lib/postgresql /var/log/postgresql
}

postgres_cluster() { # ROOT WORK: runs PostgreSQL in a chroot for some seconds
  local root=$1 work=$2 bin version data etc p
  bin=$(cd "$root" && echo usr/lib/postgresql/*/bin)
  version=$(basename "$(dirname "$bin")")
  data=/var/lib/postgresql/$version/main
  etc=/etc/postgresql/$version/main
  mkdir -p "$root/run/postgresql"
  chroot "$root" chown postgres:postgres /run/postgresql
  # LLVM was left out of the image, so no JIT; little WAL, so that a load cannot fill the disk.
  cat >"$root/tmp/fill.sh" <<END
set -e
cd /
export HOME=/var/lib/postgresql LC_ALL=C.UTF-8 PATH=/$bin:\$PATH
conf=$etc/postgresql.conf
if [ ! -f \$conf ]; then
  conf=$data/postgresql.conf
  initdb --data-checksums --auth-local=peer --auth-host=scram-sha-256 --no-sync -D $data
fi
printf '%s\n' "listen_addresses = '127.0.0.1'" 'jit = off' 'shared_buffers = 32MB' 'min_wal_size = 32MB' 'max_wal_size = 128MB' >>\$conf
pg_ctl -s -w -l /tmp/postgresql.log -D $data -o "-c config_file=\$conf -c listen_addresses='' -c fsync=off -c ssl=off" start ||
  { cat /tmp/postgresql.log; exit 1; }
createdb pgbench
pgbench -q -i -s 2 pgbench
psql -q -d pgbench -c 'CREATE EXTENSION amcheck'
pg_ctl -s -m fast -D $data stop
rm /tmp/postgresql.log
END
  chroot --userspec=postgres:postgres --groups=postgres "$root" /bin/bash /tmp/fill.sh >"$work/postgres.log" 2>&1 ||
    { cat "$work/postgres.log" >&2; die "PostgreSQL could not be prepared in the guest's root (its lines above say why)"; }
  rm -f "$root/tmp/fill.sh"
  mkdir -p "$root/usr/local/bin"
  for p in psql pgbench pg_amcheck; do ln -s "/$bin/$p" "$root/usr/local/bin/$p"; done
}
