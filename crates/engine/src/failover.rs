//! What a failure means for the next attempt: the same proxy once more, the next proxy, or the end. Remembers
//! (proxy, VM) pairs that failed and credentials that were refused. Knows no proxy's address and no secret; whether
//! anything may still be owed to the guest is [`crate::session`]'s business.

use crate::ids::{CredentialId, ServerId, SessionId, VmId};
use crate::instant::after_ms;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A failed (proxy, VM) pair ranks last for 15 minutes.
pub const FAILURE_REMEMBERED_MS: u64 = 15 * 60 * 1_000;
/// A proxy connects to a guest at most twice: once, and once more.
pub const GUEST_CONNECTS_MAX: u32 = 2;
/// The server tries to reach a proxy at most this often, within [`PROXY_CONNECT_WITHIN_MS`].
pub const PROXY_CONNECTS_MAX: u32 = 10;
/// See [`PROXY_CONNECTS_MAX`].
pub const PROXY_CONNECT_WITHIN_MS: u64 = 60_000;

/// What kind of failure it was; it decides what may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureClass {
    /// A login or an elevation was refused.
    RefusedCredential,
    /// The guest's host key is not the pinned one.
    ChangedHostKey,
    /// No route, port closed, guest silent: before anything was done in the guest.
    GuestUnreachable,
    /// The server cannot reach the proxy.
    ProxyUnreachable,
    /// The proxy died or went silent with the task.
    ProxyLost,
    /// No server can serve the VM.
    NoProxy,
    /// Something in the guest: no executable directory, disk full, a runtime component that died.
    GuestSide,
    /// A pre-freeze or post-thaw script.
    Script,
    /// An application.
    Application,
    /// Freezing or thawing a file system.
    FileSystem,
    /// The hypervisor failed, or its connection did.
    Hypervisor,
    /// The VM is migrating, paused or in another backup; nothing was started.
    VmBusy,
    /// The repository is full, slow, gone, or the file in it is damaged.
    Repository,
    /// The caller of a hold, or the command that it ran meanwhile.
    Caller,
    /// A person cancelled.
    Cancelled,
    /// The backup server stopped while the task was open.
    ServerRestarted,
    /// The VM or another thing the task needs is no longer in the infrastructure.
    Gone,
    /// A bug of ours.
    Internal,
}

/// What follows a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NextMove {
    /// The same proxy tries once more.
    RetrySame,
    /// The next-best proxy takes the task, and this (proxy, VM) pair is remembered as failed.
    NextProxy,
    /// The task ends with this failure.
    Final,
}

/// What follows when `attempts` attempts (1 or more) of this kind failed on one proxy.
///
/// Refusals are final, since a second attempt could lock the account; a changed host key needs a person; what fails
/// in the guest, at the hypervisor or at the repository would fail from any proxy.
pub fn next_move(class: FailureClass, attempts: u32) -> NextMove {
    let retried_up_to = |attempts_max| {
        if attempts < attempts_max { NextMove::RetrySame } else { NextMove::NextProxy }
    };
    match class {
        FailureClass::GuestUnreachable => retried_up_to(GUEST_CONNECTS_MAX),
        FailureClass::ProxyUnreachable => retried_up_to(PROXY_CONNECTS_MAX),
        FailureClass::ProxyLost => NextMove::NextProxy,
        FailureClass::RefusedCredential
        | FailureClass::ChangedHostKey
        | FailureClass::NoProxy
        | FailureClass::GuestSide
        | FailureClass::Script
        | FailureClass::Application
        | FailureClass::FileSystem
        | FailureClass::Hypervisor
        | FailureClass::VmBusy
        | FailureClass::Repository
        | FailureClass::Caller
        | FailureClass::Cancelled
        | FailureClass::ServerRestarted
        | FailureClass::Gone
        | FailureClass::Internal => NextMove::Final,
    }
}

/// A proxy that failed with a VM a while ago.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RememberedFailure {
    /// The VM.
    pub vm: VmId,
    /// The proxy.
    pub server: ServerId,
    /// When.
    pub at: Timestamp,
    /// What kind of failure.
    pub class: FailureClass,
    /// The cause in words.
    pub cause: String,
}

impl RememberedFailure {
    /// The instant from which it no longer counts.
    pub fn forgotten_at(&self) -> Timestamp {
        after_ms(self.at, FAILURE_REMEMBERED_MS)
    }
}

/// The failed (proxy, VM) pairs, the last failure of each. In JSON a list.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(from = "Vec<RememberedFailure>", into = "Vec<RememberedFailure>")]
pub struct FailureMemory {
    pairs: BTreeMap<(VmId, ServerId), RememberedFailure>,
}

impl FailureMemory {
    /// Remembers a failure; an older one of the same pair is replaced, a newer one stays.
    pub fn remember(&mut self, failure: RememberedFailure) {
        let pair = (failure.vm, failure.server);
        match self.pairs.get(&pair) {
            Some(known) if known.at > failure.at => {}
            _ => {
                self.pairs.insert(pair, failure);
            }
        }
    }

    /// The pair succeeded: its failure no longer counts.
    pub fn forgive(&mut self, vm: VmId, server: ServerId) {
        self.pairs.remove(&(vm, server));
    }

    /// The failure of this pair, if it still counts at `now`.
    pub fn recent(&self, vm: VmId, server: ServerId, now: Timestamp) -> Option<&RememberedFailure> {
        if self.pairs.is_empty() {
            return None;
        }
        self.pairs.get(&(vm, server)).filter(|failure| now < failure.forgotten_at())
    }

    /// Whether any failure with this VM is remembered, also one that no longer counts.
    pub fn any_of(&self, vm: VmId) -> bool {
        let first = (vm, ServerId(uuid::Uuid::nil()));
        let last = (vm, ServerId(uuid::Uuid::max()));
        self.pairs.range(first..=last).next().is_some()
    }

    /// Drops what no longer counts at `now`.
    pub fn expire(&mut self, now: Timestamp) {
        self.pairs.retain(|_, failure| now < failure.forgotten_at());
    }

    /// All remembered failures, by VM and server.
    pub fn iter(&self) -> impl Iterator<Item = &RememberedFailure> {
        self.pairs.values()
    }
}

impl From<Vec<RememberedFailure>> for FailureMemory {
    fn from(failures: Vec<RememberedFailure>) -> Self {
        let mut memory = Self::default();
        for failure in failures {
            memory.remember(failure);
        }
        memory
    }
}

impl From<FailureMemory> for Vec<RememberedFailure> {
    fn from(memory: FailureMemory) -> Self {
        memory.pairs.into_values().collect()
    }
}

/// A credential that a guest refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refusal {
    /// The credential.
    pub credential: CredentialId,
    /// Its revision at that time; a changed credential may be tried again.
    pub revision: u32,
    /// The VM whose guest refused it.
    pub vm: VmId,
    /// That VM's name.
    pub vm_name: String,
    /// The session in which it happened; `None` for *Test now*.
    pub session: Option<SessionId>,
    /// When.
    pub at: Timestamp,
    /// The account that was refused, and whether at login or at elevation, in words.
    pub cause: String,
}

/// Every refusal that still stands.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Refusals {
    standing: Vec<Refusal>,
}

/// Why a credential must not be tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Resting {
    /// This VM refused it, and it has not been changed since.
    #[error(
        "{} refused this credential at {} ({}); it was tried once and will not be tried again until it is changed \
         or released", .refusal.vm_name, .refusal.at, .refusal.cause
    )]
    RefusedHere {
        /// The refusal.
        refusal: Box<Refusal>,
    },
    /// Another VM of the same session refused it.
    #[error(
        "the credential rests: {} refused it at {} ({}), and trying it on further VMs of this session could lock \
         the account", .refusal.vm_name, .refusal.at, .refusal.cause
    )]
    RefusedInThisSession {
        /// The refusal.
        refusal: Box<Refusal>,
    },
}

impl Refusals {
    /// Records a refusal.
    pub fn record(&mut self, refusal: Refusal) {
        self.standing.push(refusal);
    }

    /// Whether the credential may be tried on the VM now: `Err` says why not. A refusal stands for its VM until the
    /// credential gets a new revision or a person releases it, and for the job's other VMs until the session ends.
    /// *Test now* passes `None` as its session and is bound by refusals of the same VM.
    pub fn may_try(
        &self,
        credential: CredentialId,
        revision: u32,
        vm: VmId,
        session: Option<SessionId>,
    ) -> Result<(), Resting> {
        let of_this = || self.standing.iter().filter(|r| r.credential == credential && r.revision == revision);
        if let Some(refusal) = of_this().find(|r| r.vm == vm) {
            return Err(Resting::RefusedHere { refusal: Box::new(refusal.clone()) });
        }
        match of_this().find(|r| session.is_some() && r.session == session) {
            Some(refusal) => Err(Resting::RefusedInThisSession { refusal: Box::new(refusal.clone()) }),
            None => Ok(()),
        }
    }

    /// A person says that the credential may be tried again, on every VM.
    pub fn release(&mut self, credential: CredentialId) {
        self.standing.retain(|r| r.credential != credential);
    }

    /// Every refusal that stands.
    pub fn iter(&self) -> impl Iterator<Item = &Refusal> {
        self.standing.iter()
    }
}
