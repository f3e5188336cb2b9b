//! PostgreSQL in the guest: which clusters run, where everything they write lies, and a `CHECKPOINT` just before the freeze.
//!
//! Two calls: [`discover`] reads `/proc` and the data directories, [`quiesce`] logs in once as the cluster's owner.
//! Read in this order: `processes` (who is a postmaster) → `sandbox` (may we speak to it at all) → `places` (where its files lie) →
//! `login` → `session` → `facts` → `quiesce`; `stopped` for those that do not run.
//!
//! It knows nothing of freezing, leases, snapshots or consistency levels: it delivers facts and reasons, others decide. It never
//! holds a session across a freeze, sends no password, and starts no program.
//!
//! Everything that is read here is written by somebody who may not be trusted with root (a cluster's owner, a server's answers): files are
//! opened without following a last symlink and never a FIFO, every length and list is bounded.

mod discover;
mod error;
mod facts;
mod login;
mod owner;
mod places;
mod postmaster_pid;
mod processes;
mod quiesce;
mod sandbox;
pub mod session;
mod small_file;
mod stopped;
mod view;

use serde::{Deserialize, Serialize};

pub use discover::discover;
pub use error::{ClusterName, PgCause, PgError, Unreachable, UnreachableBecause};
pub use facts::{Facts, Lsn};
pub use quiesce::quiesce;

/// The oldest major version that is supported.
pub const OLDEST_MAJOR: u32 = 10;
/// At most this many clusters are looked at in one guest; more are counted in [`Discovery::incomplete`].
pub const CLUSTERS_MAX: usize = 64;
/// At most this many clusters that do not run are told of.
pub const STOPPED_MAX: usize = 64;
/// At most this many places per cluster; a cluster with more is unreachable, since its level could not be known.
pub const PLACES_MAX: usize = 512;

/// What [`discover`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discovery {
    /// Clusters that [`quiesce`] can be tried on, by data directory.
    pub clusters: Vec<Cluster>,
    /// PostgreSQL processes that are no cluster we can speak for, each with the reason.
    pub unreachable: Vec<Unreachable>,
    /// Clusters that ought to run and do not.
    pub stopped: Vec<Stopped>,
    /// Clusters that nobody starts, one sentence each.
    pub left_alone: Vec<String>,
    /// Why there may be more clusters than listed (one sentence each); empty when the search was complete.
    pub incomplete: Vec<String>,
}

/// One running cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Process id of the postmaster.
    pub pid: u32,
    /// Major version from the file `PG_VERSION`.
    pub major: u32,
    /// Absolute path of the data directory, as the postmaster sees it, without symlinks.
    pub data_dir: String,
    /// Port number; part of the socket's name.
    pub port: u16,
    /// Absolute path of the directory of its first Unix socket, or `@name` for the abstract name space.
    pub socket_dir: String,
    /// User id that runs the cluster and owns its data directory.
    pub uid: u32,
    /// Group id that runs the cluster.
    pub gid: u32,
    /// Name of `uid` in /etc/passwd: the role we log in as.
    pub owner: String,
    /// What the postmaster last wrote about itself.
    pub state: PostmasterState,
    /// Start of the postmaster, seconds since 1970 by the guest's clock.
    pub started_unix_s: i64,
    /// Where everything lies that the cluster writes and recovery needs: first the data directory, then WAL, tablespaces and
    /// other parts that lie elsewhere.
    pub places: Vec<Place>,
}

/// A cluster that ought to run and does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// What its `PG_VERSION` says.
    pub version: String,
    /// Absolute path of the data directory, without symlinks.
    pub data_dir: String,
    /// Where its files lie; empty where that could not be found out.
    pub places: Vec<Place>,
}

/// The last line of `postmaster.pid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PostmasterState {
    /// Starting up or in recovery; no connections yet.
    Starting,
    /// Shutting down.
    Stopping,
    /// Accepts connections: a primary or a hot standby.
    Ready,
    /// A standby that follows but accepts no connections (`hot_standby = off`).
    Standby,
}

/// One directory that a cluster writes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// What it holds.
    pub role: PlaceRole,
    /// Absolute path as the postmaster sees it, without symlinks.
    pub path: String,
    /// The superblock it lies on.
    pub device: Device,
}

/// What a [`Place`] holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PlaceRole {
    /// The data directory itself.
    Data,
    /// The write-ahead log.
    Wal,
    /// The tablespace with this object id.
    Tablespace(u32),
    /// Another part of the data directory or of a tablespace that is a symlink or a mount of its own; its path below the data directory.
    Part(String),
}

/// A superblock's device number as `/proc/PID/mountinfo` gives it. On most file systems this is `st_dev`; on btrfs `st_dev` names
/// the subvolume instead, and only mountinfo's number finds the mount that a freeze acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl std::fmt::Display for Device {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}:{}", self.major, self.minor)
    }
}

/// How far [`quiesce`] goes and how long it may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuiesceOptions {
    /// Issue `CHECKPOINT` (a restartpoint on a standby). It shortens recovery and costs IO.
    pub checkpoint: bool,
    /// How long the checkpoint may take, milliseconds.
    pub checkpoint_timeout_ms: u32,
    /// How long connecting with the login may take, and again each short query, milliseconds.
    pub connect_timeout_ms: u32,
}

/// A cluster on which everything asked for was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quiesced {
    /// What the server said about itself, after the checkpoint.
    pub facts: Facts,
    /// How long the checkpoint took, milliseconds; `None` when none was asked for.
    pub checkpoint_ms: Option<u32>,
    /// How long the whole call took, milliseconds.
    pub elapsed_ms: u32,
    /// Where everything lies, read again after the checkpoint: a tablespace may have been made since the discovery.
    pub places: Vec<Place>,
    /// Each a sentence why the level `application` would not be the truth for this cluster, whatever is frozen. Empty when nothing speaks against it.
    pub against_application: Vec<String>,
}
