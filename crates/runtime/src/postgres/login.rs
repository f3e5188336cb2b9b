//! Opens a cluster's Unix socket as the cluster's owner, so that `peer` authentication sees the owner.
//!
//! The kernel notes who connects at the moment of `connect()`. So only a thread of its own takes on the owner's ids, connects, and ends; everything
//! after that is done by root. Ids are per thread in the kernel: the raw calls change this thread alone (the C library's
//! wrappers would change the whole process). As short as possible, since a thread with the owner's ids can be killed by the owner.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::discover::socket_path;
use super::{Cluster, PgCause};

const STACK_BYTES: usize = 128 * 1024;

enum Failure {
    Become(io::Error),
    Connect(Errno),
}

/// Connects as the owner and makes sure that the postmaster found before is the one that listens.
pub(super) fn connect_as_owner(cluster: &Cluster, timeout: Duration) -> Result<UnixStream, PgCause> {
    let socket = socket_path(&cluster.socket_dir, cluster.port);
    let address = address_of(&socket).map_err(|errno| not_running(&socket, errno))?;
    let (uid, gid) = (Uid::from_raw(cluster.uid), Gid::from_raw(cluster.gid));
    let thread = std::thread::Builder::new()
        .name("postgres-login".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || become_owner(uid, gid).and_then(|()| open(&address, timeout).map_err(Failure::Connect)));
    let cannot =
        |error: io::Error| PgCause::CannotBecomeOwner { owner: cluster.owner.clone(), detail: error.to_string() };
    let joined = thread.map_err(cannot)?.join();
    let stream = match joined.unwrap_or_else(|_| Err(Failure::Become(io::Error::other("the login thread panicked")))) {
        Ok(stream) => stream,
        Err(Failure::Become(error)) => return Err(cannot(error)),
        // A full queue of waiting connections ends so, after the socket's timeout.
        Err(Failure::Connect(Errno::AGAIN)) => {
            return Err(PgCause::NoAnswer { step: "connecting".to_owned(), elapsed_ms: millis(timeout) });
        }
        Err(Failure::Connect(errno)) => return Err(not_running(&socket, errno)),
    };
    check_listener(cluster, &socket, &stream)?;
    Ok(stream)
}

/// Milliseconds of a duration, at most `u32::MAX`.
pub(super) fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// Takes on the owner's ids for the calling thread, for good. Groups first: they need root.
fn become_owner(uid: Uid, gid: Gid) -> Result<(), Failure> {
    if rustix::process::geteuid() == uid && rustix::process::getuid() == uid {
        return Ok(());
    }
    set_thread_groups(&[]).map_err(|errno| Failure::Become(errno.into()))?;
    set_thread_res_gid(gid, gid, gid).map_err(|errno| Failure::Become(errno.into()))?;
    set_thread_res_uid(uid, uid, uid).map_err(|errno| Failure::Become(errno.into()))
}

fn open(address: &SocketAddrUnix, timeout: Duration) -> Result<UnixStream, Errno> {
    let socket: OwnedFd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // On a Unix socket the send timeout also bounds connect().
    set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
    connect(&socket, address)?;
    Ok(UnixStream::from(socket))
}

fn address_of(socket: &str) -> Result<SocketAddrUnix, Errno> {
    match socket.strip_prefix('@') {
        Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes()),
        None => SocketAddrUnix::new(socket),
    }
}

/// The kernel kept who called `listen()`: the postmaster. Without this check a server that took over the socket would be taken for the one found.
fn check_listener(cluster: &Cluster, socket: &str, stream: &UnixStream) -> Result<(), PgCause> {
    let peer = socket_peercred(stream).map_err(|errno| not_running(socket, errno))?;
    let found_pid = u32::try_from(peer.pid.as_raw_nonzero().get()).unwrap_or(0);
    let found_uid = peer.uid.as_raw();
    if (found_pid, found_uid) == (cluster.pid, cluster.uid) {
        return Ok(());
    }
    Err(PgCause::NotThisCluster {
        socket: socket.to_owned(),
        found_pid,
        found_uid,
        expected_pid: cluster.pid,
        expected_uid: cluster.uid,
    })
}

fn not_running(socket: &str, errno: Errno) -> PgCause {
    PgCause::NotRunning { socket: socket.to_owned(), detail: io::Error::from(errno).to_string() }
}
