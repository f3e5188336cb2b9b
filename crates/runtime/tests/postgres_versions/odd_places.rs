//! Servers that live in unusual ways: replaced programs, moved parts, service sandboxes, containers, single-user mode.

use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lull_runtime::postgres::{Device, PlaceRole, UnreachableBecause, quiesce};
use rustix::process::Signal;

use crate::server::{Make, OTHER_DISK, OWNER, OWNER_ID, Server, as_owner, folder_in, run, signal, st_dev};
use crate::{ANY, GENEROUS, all_found, found, unreachable_because};

/// A file system of the test's own, unmounted with the value.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs_over(dir: &Path) -> Self {
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=64m", "lull-pg"]).arg(dir));
        Self::owned(dir)
    }

    /// A new btrfs in the file `image`; the loop device goes with the mount.
    fn btrfs_over(dir: &Path, image: &Path) -> Self {
        std::fs::File::create(image).unwrap().set_len(256 << 20).unwrap();
        run(Command::new("mkfs.btrfs").arg("--quiet").arg(image));
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(dir));
        Self::owned(dir)
    }

    fn owned(dir: &Path) -> Self {
        chown(dir, Some(OWNER_ID), Some(OWNER_ID)).unwrap();
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)).unwrap();
        Self(dir.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run(Command::new("umount").arg("--lazy").arg(&self.0));
    }
}

/// `unshare FLAGS sh -c PREPARE`, and then the server as its owner in the place of the shell.
fn in_namespaces(server: &Server, flags: &[&str], prepare: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(flags).arg("sh").arg("-c");
    command.arg(format!("{prepare} exec setpriv --reuid={OWNER} --regid=65534 --clear-groups \"$0\" \"$@\""));
    command.arg(server.program()).args(server.arguments());
    command
}

fn device(path: &Path) -> Device {
    let (major, minor) = st_dev(path);
    Device { major, minor }
}

#[test]
fn a_server_whose_program_was_upgraded_away_is_found() {
    let mut server = Server::make(ANY, 5432, &Make::default());
    server.own_programs();
    server.start();
    std::fs::remove_file(server.program()).unwrap();
    quiesce(&found(&server), &GENEROUS).unwrap();
}

#[test]
fn clusters_of_the_oldest_and_the_newest_version_are_found_at_once() {
    let mut servers = [Server::make(10, 5432, &Make::default()), Server::make(18, 5432, &Make::default())];
    servers.iter_mut().for_each(Server::start);
    let versions =
        servers.iter().map(|server| quiesce(&found(server), &GENEROUS).unwrap().facts.server_version_num / 10_000);
    assert_eq!(versions.collect::<Vec<_>>(), [10, 18]);
}

#[test]
fn parts_that_are_mounted_or_linked_elsewhere_are_places_of_their_own() {
    let mut server = Server::make(ANY, 5432, &Make::default());
    let other_disk = folder_in(Path::new(OTHER_DISK));
    let move_to = |from: &Path, to: &Path| run(Command::new("cp").arg("-aT").arg(from).arg(to));
    let aside = server.dir.path().join("aside");

    // WAL on a file system mounted in the data directory, as installers like to do it.
    let wal = server.data.join("pg_wal");
    std::fs::rename(&wal, &aside).unwrap();
    std::fs::create_dir(&wal).unwrap();
    let _wal_mount = Mounted::tmpfs_over(&wal);
    move_to(&aside, &wal);
    std::fs::remove_dir_all(&aside).unwrap();
    // One database mounted, the commit log linked.
    let database = server.data.join("base/1");
    std::fs::rename(&database, &aside).unwrap();
    std::fs::create_dir(&database).unwrap();
    let _database_mount = Mounted::tmpfs_over(&database);
    move_to(&aside, &database);
    let (xact, linked) = (server.data.join("pg_xact"), other_disk.path().join("xact"));
    move_to(&xact, &linked);
    std::fs::remove_dir_all(&xact).unwrap();
    symlink(&linked, &xact).unwrap();

    server.start();
    let places = found(&server).places.into_iter().map(|place| (place.role, place.device)).collect::<Vec<_>>();
    let expect = vec![
        (PlaceRole::Data, device(&server.data)),
        (PlaceRole::Wal, device(&wal)),
        (PlaceRole::Part("pg_xact".into()), device(&linked)),
        (PlaceRole::Part("base/1".into()), device(&database)),
    ];
    assert_eq!(places, expect);
    assert_ne!(device(&wal), device(&server.data));
    server.stop();
}

/// There `st_dev` is a number of the subvolume's own, which no line of mountinfo has: a freeze would miss the superblock.
#[test]
fn on_btrfs_a_place_names_the_superblock_that_is_mounted() {
    let mut server = Server::make(ANY, 5432, &Make::default());
    let mount_point = server.dir.path().join("btrfs");
    std::fs::create_dir(&mount_point).unwrap();
    let mounted = Mounted::btrfs_over(&mount_point, &server.dir.path().join("image"));
    let subvolume = mount_point.join("subvolume");
    run(Command::new("btrfs").args(["--quiet", "subvolume", "create"]).arg(&subvolume));
    run(Command::new("cp").arg("-aT").arg(&server.data).arg(subvolume.join("data")));
    chown(&subvolume, Some(OWNER_ID), Some(OWNER_ID)).unwrap();
    server.data = subvolume.join("data");
    server.start();

    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mountinfo.lines().find(|line| line.contains(mount_point.to_str().unwrap())).unwrap();
    let place = &found(&server).places[0];
    assert_eq!(line.split(' ').nth(2), Some(place.device.to_string().as_str()));
    assert_ne!(place.device, device(&server.data), "the case is the one this is about");
    server.stop();
    drop(mounted);
}

#[test]
fn a_tablespace_made_after_the_discovery_is_in_the_answer() {
    let mut server = Server::make(ANY, 5432, &Make::default());
    let other_disk = folder_in(Path::new(OTHER_DISK));
    server.start();
    let cluster = found(&server);
    server.sql("postgres", &format!("CREATE TABLESPACE late LOCATION '{}'", other_disk.path().display()));
    let quiesced = quiesce(&cluster, &GENEROUS).unwrap();
    let late = quiesced.places.iter().find(|place| matches!(place.role, PlaceRole::Tablespace(_))).unwrap();
    assert_eq!((cluster.places.len(), late.device), (2, device(other_disk.path())));
}

#[test]
fn a_relative_socket_directory_lies_in_the_data_directory() {
    let mut server = Server::make(ANY, 5432, &Make::default());
    let mut command = as_owner(server.program(), server.dir.path());
    command.arg("-D").arg(&server.data).args(["-h", "", "-k", "."]);
    server.start_by(command);
    quiesce(&found(&server), &GENEROUS).unwrap();
}

#[test]
fn a_server_without_a_unix_socket_is_unreachable() {
    let mut server = Server::make(ANY, 5432, &Make::default());
    let mut command = as_owner(server.program(), server.dir.path());
    // Without a Unix socket the server insists on a TCP port.
    let port = free_port().to_string();
    command.arg("-D").arg(&server.data).args(["-h", "127.0.0.1", "-p", &port, "-k", ""]);
    server.start_by(command);
    assert_eq!(unreachable_because(server.pid()), UnreachableBecause::NoSocket);
}

#[test]
fn a_hardened_service_with_its_own_mount_namespace_is_reachable() {
    let mut server = Server::make(ANY, 5432, &Make::default());
    let private = folder_in(Path::new("/var/tmp"));
    let prepare = format!("mount -t tmpfs private {};", private.path().display());
    server.start_by(in_namespaces(&server, &["--mount", "--propagation=private"], &prepare));
    assert_ne!(namespace("self", "mnt"), namespace(&server.pid().to_string(), "mnt"));
    let cluster = found(&server);
    assert_eq!(cluster.places[0].device, device(&server.data));
    quiesce(&cluster, &GENEROUS).unwrap();
}

#[test]
fn a_service_with_a_private_socket_directory_is_unreachable() {
    let mut server = Server::make(ANY, 5432, &Make::default());
    let sockets = server.socket_dir();
    let prepare = format!("mount -t tmpfs -o mode=1777 private {};", sockets.display());
    server.start_by(in_namespaces(&server, &["--mount", "--propagation=private"], &prepare));
    let expect = UnreachableBecause::PrivateSocket { socket_dir: sockets.to_str().unwrap().to_owned() };
    assert_eq!(unreachable_because(server.pid()), expect);
}

#[test]
fn a_server_in_another_pid_namespace_is_in_a_container() {
    let mut server = Server::make(ANY, 5432, &Make::default());
    server.start_by(in_namespaces(&server, &["--pid", "--fork", "--kill-child"], ""));
    // unshare itself stays outside and waits; its child is the postmaster.
    let discovery = all_found();
    let data_dir = server.data.to_str();
    let one = discovery.unreachable.iter().find(|one| one.data_dir.as_deref() == data_dir);
    let one = one.unwrap_or_else(|| panic!("not unreachable: {discovery:#?}"));
    assert_eq!(one.because, UnreachableBecause::Container { namespace: "pid".to_owned() });
    assert_eq!(one.major, Some(ANY));
    signal(one.pid, Signal::INT);
    server.wait_until_dead();
}

#[test]
fn a_server_in_a_chroot_is_unreachable() {
    let mut server = Server::make(ANY, 5432, &Make::default());
    server.own_programs();
    let dir = server.dir.path().display();
    // A root of its own, with the programs, the libraries and the cluster at their usual paths.
    let prepare = format!(
        "set -e; new=$(mktemp -d {dir}/root.XXXX); mount -t tmpfs -o mode=755 root $new; \
         for part in /usr /lib /lib64 /bin /etc /dev /proc {dir}; do \
           if [ -e $part ]; then mkdir -p $new$part; mount --rbind $part $new$part; fi; done; exec chroot $new \
         setpriv --reuid={OWNER} --regid=65534 --clear-groups \"$0\" \"$@\";"
    );
    server.start_by(in_namespaces(&server, &["--mount", "--propagation=private"], &prepare));
    assert_eq!(unreachable_because(server.pid()), UnreachableBecause::OtherRoot);
}

#[test]
fn single_user_mode_is_named() {
    let server = Server::make(ANY, 5432, &Make::default());
    let mut command = as_owner(server.program(), server.dir.path());
    command.arg("--single").arg("-D").arg(&server.data).arg("template1");
    let mut backend = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    server.wait("its pid file", || {
        std::fs::read_to_string(server.data.join("postmaster.pid")).is_ok_and(|text| text.starts_with('-'))
    });
    assert_eq!(unreachable_because(backend.id()), UnreachableBecause::StandAlone);
    drop(backend.stdin.take());
    backend.wait().unwrap();
}

#[test]
fn a_backend_that_outlived_its_server_is_named() {
    let mut server = Server::make(ANY, 5432, &Make::default());
    server.start();
    let (postmaster, backend) = (server.pid(), server.child("checkpointer"));
    // Stopped, it cannot notice that the postmaster died.
    signal(backend, Signal::STOP);
    signal(postmaster, Signal::KILL);
    server.wait_until_dead();
    let because = unreachable_because(backend);
    signal(backend, Signal::KILL);
    assert_eq!(because, UnreachableBecause::Orphan { postmaster_pid: postmaster });
    // The others notice the postmaster's death each in its own time, and hold its shared memory until then.
    server.wait("the end of its last process", || !server.has_processes());
    // A new start also removes the shared memory that the killed one left.
    server.start();
    quiesce(&found(&server), &GENEROUS).unwrap();
}

fn namespace(process: &str, kind: &str) -> PathBuf {
    std::fs::read_link(format!("/proc/{process}/ns/{kind}")).unwrap()
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
