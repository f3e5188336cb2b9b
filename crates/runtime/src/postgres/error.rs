//! What a person reads when a cluster cannot be found, spoken to or brought to a checkpoint: which cluster, what failed, why, what to do.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Facts, OLDEST_MAJOR};

/// Names a cluster in a sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterName {
    /// Major version.
    pub major: u32,
    /// Port number.
    pub port: u16,
    /// Data directory.
    pub data_dir: String,
}

impl std::fmt::Display for ClusterName {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "PostgreSQL {} on port {} ({})", self.major, self.port, self.data_dir)
    }
}

/// Why [`quiesce`](super::quiesce) did not do all that was asked.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[error("{cluster}: {cause}")]
pub struct PgError {
    /// The cluster it is about.
    pub cluster: ClusterName,
    /// What failed, why, and what to do.
    pub cause: PgCause,
}

/// The cause in a [`PgError`]. Append only: the variants travel by position.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum PgCause {
    /// Nobody listens on the socket (any more).
    #[error(
        "no server answers on {socket} ({detail}): it was stopped after it was found. Start it, or leave this cluster out"
    )]
    NotRunning {
        /// The socket's path.
        socket: String,
        /// The system's error.
        detail: String,
    },
    /// We may not act as the owner.
    #[error("cannot log in as the cluster's owner {owner} ({detail}): run the runtime component as root or as {owner}")]
    CannotBecomeOwner {
        /// Name of the owner.
        owner: String,
        /// The system's error.
        detail: String,
    },
    /// Somebody else listens on the socket.
    #[error(
        "the server on {socket} is not the one that was found (process {found_pid} of user {found_uid}, expected {expected_pid} of {expected_uid}): the cluster was restarted meanwhile; run the task again"
    )]
    NotThisCluster {
        /// The socket's path.
        socket: String,
        /// Process id of the listener.
        found_pid: u32,
        /// User id of the listener.
        found_uid: u32,
        /// Process id at discovery.
        expected_pid: u32,
        /// User id at discovery.
        expected_uid: u32,
    },
    /// No answer in time, before the checkpoint.
    #[error(
        "no answer within {elapsed_ms} ms while {step}: the server is stopped or overloaded; look at its log, or raise the connect timeout"
    )]
    NoAnswer {
        /// What was going on.
        step: String,
        /// How long was waited, milliseconds.
        elapsed_ms: u32,
    },
    /// The server did not let the owner in. Tried once.
    #[error(
        "it refused the login of {owner} over its Unix socket: {detail}. Tried once, no password was sent, and it will not be tried again. Let the owner in with the line `local all {owner} peer` near the top of pg_hba.conf and reload the server"
    )]
    AuthenticationRefused {
        /// The role that was tried, the owner's name.
        owner: String,
        /// The method it asked for, or what the server said.
        detail: String,
    },
    /// The server is up but takes no session now.
    #[error("it takes no connections now: {detail} ({sqlstate}). Wait until it has started, or free a connection")]
    NotAccepting {
        /// The server's error code.
        sqlstate: String,
        /// The server's words.
        detail: String,
    },
    /// Neither database exists or admits connections.
    #[error(
        "it has neither a database postgres nor template1 that admits connections: {detail}. Create the database postgres"
    )]
    NoDatabase {
        /// The server's words about the second one.
        detail: String,
    },
    /// The owner's role may not do it.
    #[error("the role {owner} may not do this: {step}: {detail}. Make it a superuser (it owns the files anyway)")]
    NotPermitted {
        /// The role.
        owner: String,
        /// What was tried.
        step: String,
        /// The server's words.
        detail: String,
    },
    /// The checkpoint did not end in time; it was cancelled as far as it can be: the server goes on writing at its own pace.
    #[error("its CHECKPOINT was not done after {elapsed_ms} ms and was given up{}: storage is slow or very much is dirty. Raise the checkpoint timeout, or switch the checkpoint off (recovery of the restore point then takes longer)", unconfirmed(.cancel_confirmed))]
    CheckpointTooSlow {
        /// How long was waited, milliseconds.
        elapsed_ms: u32,
        /// The server said that our request ended.
        cancel_confirmed: bool,
        /// What the server had said about itself before.
        facts: Box<Facts>,
    },
    /// The server answered with an error.
    #[error("{step} failed: {detail} ({sqlstate}). The server's log says more")]
    Failed {
        /// What was tried.
        step: String,
        /// The server's error code.
        sqlstate: String,
        /// The server's words.
        detail: String,
    },
    /// The connection ended.
    #[error("the connection broke while {step}: {detail}. The server was stopped or crashed; its log says more")]
    ConnectionLost {
        /// What was going on.
        step: String,
        /// The system's error.
        detail: String,
    },
    /// The answer breaks the protocol or a bound.
    #[error("its answer while {step} makes no sense: {detail}. Is this a PostgreSQL server?")]
    BadAnswer {
        /// What was going on.
        step: String,
        /// What is wrong with it.
        detail: String,
    },
    /// After the checkpoint it could no longer be said where its files lie.
    #[error("after the checkpoint it could not be seen where its files lie: {detail}")]
    PlacesUnknown {
        /// What failed.
        detail: String,
    },
}

/// A PostgreSQL process that we cannot speak for. It may write; a level that counts applications must name it.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[error("PostgreSQL{} process {pid}{}: {because}", version_if_known(.major), data_dir_if_known(.data_dir))]
pub struct Unreachable {
    /// Process id.
    pub pid: u32,
    /// Working directory, which is the data directory of a server; only for people when the process has another root.
    pub data_dir: Option<String>,
    /// Major version, where known.
    pub major: Option<u32>,
    /// The reason.
    pub because: UnreachableBecause,
}

/// Why a cluster is [`Unreachable`]. Append only: the variants travel by position.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum UnreachableBecause {
    /// A container: another process or user namespace.
    #[error(
        "it runs in a container (another {namespace} namespace); back it up from inside, or with the container's own means"
    )]
    Container {
        /// `pid` or `user`.
        namespace: String,
    },
    /// Another root directory.
    #[error("it runs with another root directory (container or chroot): its paths are not this guest's")]
    OtherRoot,
    /// A mount namespace of its own hides its socket.
    #[error(
        "its service has a private view of {socket_dir}, so its socket cannot be reached; put the socket (unix_socket_directories) elsewhere, such as /run/postgresql"
    )]
    PrivateSocket {
        /// The socket's directory.
        socket_dir: String,
    },
    /// Older than supported, or not understood.
    #[error("its version {version} is not supported ({OLDEST_MAJOR} and later are)")]
    Version {
        /// As in `PG_VERSION`.
        version: String,
    },
    /// The process works in no data directory.
    #[error(
        "its working directory is no data directory ({detail}): a server that just starts or ends, or a helper program"
    )]
    NoDataDirectory {
        /// What failed.
        detail: String,
    },
    /// `postgres --single` and the like.
    #[error("it is a stand-alone backend (single-user mode); end it, or start the cluster as a server")]
    StandAlone,
    /// It has not yet written where it listens.
    #[error("it is still starting")]
    StillStarting,
    /// The data directory belongs to another process.
    #[error(
        "it is not the server of its data directory, process {postmaster_pid} is: a leftover backend of a server that died; end it"
    )]
    Orphan {
        /// The process in `postmaster.pid`.
        postmaster_pid: u32,
    },
    /// `postmaster.pid` is unreadable or damaged.
    #[error("its postmaster.pid cannot be used: {detail}")]
    PostmasterPid {
        /// What is wrong.
        detail: String,
    },
    /// No Unix socket.
    #[error(
        "it has no Unix socket; set unix_socket_directories, since only there its owner logs in without a password"
    )]
    NoSocket,
    /// The owner of process and data directory differ, or it is root.
    #[error(
        "it runs as user id {uid} but its data directory belongs to {data_dir_uid}; a server runs as its data directory's owner, and never as root"
    )]
    Owner {
        /// The process's effective user id.
        uid: u32,
        /// The data directory's owner.
        data_dir_uid: u32,
    },
    /// No name for the owner.
    #[error("its owner, user id {uid}, has no entry in /etc/passwd; add one, since the role's name comes from there")]
    OwnerWithoutName {
        /// The user id.
        uid: u32,
    },
    /// Where it writes cannot be said.
    #[error("it cannot be seen where its files lie: {detail}")]
    Places {
        /// What failed.
        detail: String,
    },
    /// It could not be looked at.
    #[error("it cannot be examined ({detail}); run the runtime component as root")]
    NotReadable {
        /// The system's error.
        detail: String,
    },
}

fn unconfirmed(cancel_confirmed: &bool) -> &'static str {
    if *cancel_confirmed { "" } else { " (the server did not confirm that)" }
}

fn version_if_known(major: &Option<u32>) -> String {
    major.map(|major| format!(" {major}")).unwrap_or_default()
}

fn data_dir_if_known(data_dir: &Option<String>) -> String {
    data_dir.as_ref().map(|dir| format!(" ({dir})")).unwrap_or_default()
}
