//! Managed servers: machines of the backup infrastructure, and what it takes to make one of a machine.
//!
//! A login goes with one request and is kept nowhere.

use crate::Problem;
use crate::infrastructure::Elevation;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// A managed server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ManagedServer {
    /// Id.
    pub id: Uuid,
    /// Unique name.
    pub name: String,
    /// `linux` or `windows`.
    pub kind: String,
    /// The backup server itself.
    pub is_backup_server: bool,
    /// State of its guest interaction proxy: `online`, `offline`, `draining`, `disabled`, `revoked` or `incompatible`.
    pub state: String,
    /// The licence lets its proxy be used.
    pub licensed: bool,
    /// Why its proxy gets no tasks, where something is wrong.
    pub problem: Option<String>,
    /// Version of Lull that its proxy runs.
    pub version: String,
    /// Its proxy runs another version than the backup server.
    pub upgrade: bool,
    /// On-link prefixes.
    pub networks: Vec<String>,
    /// Guest channels.
    pub channels: Vec<String>,
    /// Task slots.
    pub slots: u32,
    /// Names of the hypervisor hosts that it reaches.
    pub hosts: Vec<String>,
    /// Lull installed its proxy; nothing: it joined by hand, or is the backup server.
    pub machine: Option<Machine>,
}

/// A machine on which Lull installed a proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Machine {
    /// Its name or address.
    pub host: String,
    /// Port of its SSH server.
    pub port: u16,
    /// `SHA256:…` of the host key that a person accepted.
    pub host_key: String,
    /// `HOST:PORT` of the backup server, as it is reached from there.
    pub server_address: String,
    /// Task slots that were asked for; 0: as many as there are processors.
    pub slots: u32,
    /// systemd runs the proxy.
    pub service: bool,
    /// Without systemd: the command to run there.
    pub run_instead: Option<String>,
}

/// A machine whose host key is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AskHostKey {
    /// Its name or address.
    pub host: String,
    /// Port of its SSH server.
    #[serde(default = "ssh_port")]
    pub port: u16,
}

/// A host key that a machine showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ShownHostKey {
    /// `ssh-ed25519`, …
    pub algorithm: String,
    /// `SHA256:…`
    pub fingerprint: String,
}

/// A login for one request. It is kept nowhere.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// Account.
    pub user: String,
    /// Its password, or
    #[serde(default)]
    pub password: Option<String>,
    /// a private key (PEM or OpenSSH), with
    #[serde(default)]
    pub private_key: Option<String>,
    /// its passphrase.
    #[serde(default)]
    pub passphrase: Option<String>,
    /// How the account becomes root.
    #[serde(default)]
    pub elevation: Elevation,
    /// Password that the elevation asks for: for sudo default the account's, for su root's.
    #[serde(default)]
    pub elevation_password: Option<String>,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("user", &self.user).field("elevation", &self.elevation).finish_non_exhaustive()
    }
}

/// A machine to look at, or to make a managed server of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewManagedServer {
    /// `linux`; `windows` is refused so far.
    #[serde(default = "linux")]
    pub kind: String,
    /// Unique name; default: the machine's address.
    #[serde(default)]
    pub name: Option<String>,
    /// Its name or address.
    pub host: String,
    /// Port of its SSH server.
    #[serde(default = "ssh_port")]
    pub port: u16,
    /// `SHA256:…` of its host key, which a person accepted.
    pub host_key: String,
    /// How to log in there, this once.
    pub login: Login,
    /// `HOST` or `HOST:PORT` of the backup server, as it is reached from there; default: the address that it uses on the way there.
    #[serde(default)]
    pub server_address: Option<String>,
    /// Task slots; 0: as many as it has processors.
    #[serde(default)]
    pub slots: u32,
}

/// Work on a managed server that there is: what is not given is as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServerWork {
    /// Its name or address.
    #[serde(default)]
    pub host: Option<String>,
    /// Port of its SSH server.
    #[serde(default)]
    pub port: Option<u16>,
    /// `SHA256:…` of its host key, where a person accepts another.
    #[serde(default)]
    pub host_key: Option<String>,
    /// How to log in there, this once.
    pub login: Login,
    /// `HOST` or `HOST:PORT` of the backup server, as it is reached from there.
    #[serde(default)]
    pub server_address: Option<String>,
    /// Task slots; 0: as many as it has processors.
    #[serde(default)]
    pub slots: Option<u32>,
}

/// What a look at a machine found, and what an installation would change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MachineCheck {
    /// What the machine calls itself.
    pub hostname: String,
    /// `HOST:PORT` of the backup server that it would use.
    pub server_address: String,
    /// One for each thing that was looked at.
    pub findings: Vec<MachineFinding>,
    /// What an installation changes there, one line each.
    pub changes: Vec<String>,
    /// No finding is an error.
    pub passed: bool,
}

/// One thing that was looked at on a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MachineFinding {
    /// What was looked at.
    pub check: String,
    /// `ok`, `warning` or `error`.
    pub level: String,
    /// What was found.
    pub what: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

/// A line of the answer while work on a machine goes on. `done` or `failed` is the last one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ManagedLine {
    /// A step began or ended.
    Step {
        /// `connect`, `program`, `join`, `service`, `online`, `drain`, `undo`, …
        step: String,
        /// `started`, `ok`, `warning` or `failed`.
        outcome: String,
        /// One line for people.
        detail: String,
    },
    /// All is done: the managed server, or nothing where it was removed.
    Done {
        /// The managed server.
        server: Option<Box<ManagedServer>>,
    },
    /// It failed.
    Failed(Problem),
}

fn ssh_port() -> u16 {
    22
}

fn linux() -> String {
    "linux".into()
}
