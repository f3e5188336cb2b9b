//! Whether a server can work on a VM at all, with the reason where it cannot. Ranks nothing.
//!
//! Reasons hold facts, not text: a choice among a thousand servers must not format a thousand sentences.

use super::{Request, WindowsGuestsFrom};
use crate::ids::HostId;
use crate::infrastructure::{ChannelKind, CredentialKind, ManagedServer, Platform, ServerState};
use crate::licence::Edition;
use crate::settings::ProxyPolicy;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Why a server cannot work on a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Rejection {
    /// Not a proxy.
    #[error("it does not have the role guest interaction proxy")]
    RoleDisabled,
    /// No heartbeat.
    #[error("it is offline{}", heard_until(*.since))]
    Offline {
        /// When it was last heard of; `None`: not since the backup server started.
        since: Option<Timestamp>,
    },
    /// Nothing is known of it.
    #[error("it has not connected yet: see whether its proxy runs and reaches the backup server")]
    NeverConnected,
    /// No new tasks.
    #[error("it is draining: it finishes its tasks and takes no new ones")]
    Draining,
    /// Out of use.
    #[error("an administrator disabled it")]
    Disabled,
    /// Too old or too new.
    #[error(
        "it runs release {version}, the backup server {server_version}, which is too far apart: upgrade {}",
        if *.newer { "the backup server" } else { "it" }
    )]
    Incompatible {
        /// Its release.
        version: String,
        /// The backup server's.
        server_version: String,
        /// It is the newer one.
        newer: bool,
    },
    /// Not trusted any more.
    #[error("it was revoked: to be used again it has to join anew, with a new token")]
    Revoked,
    /// No capacity at all.
    #[error("it has no task slots")]
    NoSlots,
    /// The job prefers others.
    #[error("the job prefers other servers")]
    NotPreferred,
    /// The backup server, while a preferred server can serve the VM.
    #[error("the job prefers other servers; the backup server takes over only if none of them can serve the VM")]
    OnlyFallback,
    /// The licence has no proxies.
    #[error(
        "the socket licence of edition {edition} has no guest interaction proxies: only the backup server may do it"
    )]
    NotLicensed {
        /// The licence's edition.
        edition: Edition,
    },
    /// Nothing says whether the guest is Windows or Linux.
    #[error("nothing says whether the guest runs Windows or Linux: set the VM's guest OS or give it a credential")]
    GuestOsUnknown,
    /// The default rule.
    #[error("a Linux proxy cannot access a Windows guest")]
    LinuxProxyWindowsGuest,
    /// None of its channels serves this OS family.
    #[error("it has no channel to {guest_os} guests")]
    NoChannel {
        /// The guest's OS family.
        guest_os: Platform,
    },
    /// Its channels need a credential.
    #[error("its channels to {guest_os} guests need a credential, and the VM has none")]
    NoCredential {
        /// The guest's OS family.
        guest_os: Platform,
    },
    /// Its channels need another kind of credential.
    #[error("{credential} does not fit its channels to {guest_os} guests")]
    CredentialDoesNotFit {
        /// The credential's kind.
        credential: CredentialKind,
        /// The guest's OS family.
        guest_os: Platform,
    },
    /// Its network channels would fit, but there is no address.
    #[error("the VM has no known address to connect to over {channel}")]
    NoAddress {
        /// The channel that would fit.
        channel: ChannelKind,
    },
    /// A network-less channel would fit, but not through this host.
    #[error("it does not reach the VM's hypervisor host, which {channel} needs")]
    HostNotReached {
        /// The channel that would fit.
        channel: ChannelKind,
    },
    /// It can reach the guest, but not where the snapshot is taken.
    #[error("it does not reach the VM's hypervisor host, where the snapshot is taken")]
    HypervisorNotReached {
        /// The host.
        host: HostId,
    },
    /// It had its turn in this task.
    #[error("it was tried in this task already")]
    AlreadyTried,
}

fn heard_until(heard: Option<Timestamp>) -> String {
    match heard {
        Some(at) => format!(" since {at:.0}"),
        None => ": it has not connected since the backup server started".into(),
    }
}

/// Whether the server can work on the VM: the channel it would use, or the first reason against it.
pub fn feasible(server: &ManagedServer, request: &Request) -> Result<ChannelKind, Rejection> {
    ready(server, request)?;
    preferred(server, request)?;
    licensed(server, request)?;
    way_to(server, request)
}

/// Whether the server can make a backup that leaves the guest alone, which takes a way to the hypervisor and none into the guest.
/// What a job prefers is about guests, so the backup server may in any case; for others the policy holds as the licence does.
pub fn feasible_without_guest(server: &ManagedServer, request: &Request) -> Result<(), Rejection> {
    ready(server, request)?;
    if !server.is_backup_server {
        preferred(server, request)?;
        licensed(server, request)?;
    }
    at_hypervisor(server, request)
}

/// Whether the server can stand in where none of the job's preferred servers can serve the VM. Only the backup
/// server may, and only where the job's policy says so.
pub fn feasible_as_fallback(server: &ManagedServer, request: &Request) -> Result<ChannelKind, Rejection> {
    ready(server, request)?;
    if !(server.is_backup_server && request.backup_server_may_stand_in()) {
        return Err(Rejection::NotPreferred);
    }
    licensed(server, request)?;
    way_to(server, request)
}

fn ready(server: &ManagedServer, request: &Request) -> Result<(), Rejection> {
    if !server.role_enabled {
        return Err(Rejection::RoleDisabled);
    }
    match &server.state {
        ServerState::Online => {}
        ServerState::Offline { since } => return Err(Rejection::Offline { since: *since }),
        ServerState::NeverConnected => return Err(Rejection::NeverConnected),
        ServerState::Draining => return Err(Rejection::Draining),
        ServerState::Disabled => return Err(Rejection::Disabled),
        ServerState::Incompatible { version, server_version, newer } => {
            let (version, server_version, newer) = (version.clone(), server_version.clone(), *newer);
            return Err(Rejection::Incompatible { version, server_version, newer });
        }
        ServerState::Revoked => return Err(Rejection::Revoked),
    }
    if server.slots == 0 {
        return Err(Rejection::NoSlots);
    }
    if request.tried.contains(&server.id) {
        return Err(Rejection::AlreadyTried);
    }
    Ok(())
}

fn preferred(server: &ManagedServer, request: &Request) -> Result<(), Rejection> {
    match request.policy_in_force() {
        ProxyPolicy::Prefer { servers, .. } if !servers.contains(&server.id) => Err(Rejection::NotPreferred),
        ProxyPolicy::Prefer { .. } | ProxyPolicy::Automatic => Ok(()),
    }
}

fn licensed(server: &ManagedServer, request: &Request) -> Result<(), Rejection> {
    match request.licence {
        crate::licence::Licence::Socket { edition }
            if !server.is_backup_server && !request.licence.admits_proxies() =>
        {
            Err(Rejection::NotLicensed { edition })
        }
        _ => Ok(()),
    }
}

/// The channel to the guest, where the server also reaches what else the task works at.
fn way_to(server: &ManagedServer, request: &Request) -> Result<ChannelKind, Rejection> {
    let channel = channel_to(server, request)?;
    if request.at_hypervisor {
        at_hypervisor(server, request)?;
    }
    Ok(channel)
}

fn at_hypervisor(server: &ManagedServer, request: &Request) -> Result<(), Rejection> {
    let host = request.vm.host;
    if server.hosts_reached.contains(&host) { Ok(()) } else { Err(Rejection::HypervisorNotReached { host }) }
}

/// The first of the server's channels that reaches the guest with the credential, whatever policy, licence and the
/// server's present state say.
fn channel_to(server: &ManagedServer, request: &Request) -> Result<ChannelKind, Rejection> {
    let vm = request.vm;
    let credential = request.credential;
    let guest_os = vm.guest_os_with(credential).ok_or(Rejection::GuestOsUnknown)?;
    if guest_os == Platform::Windows
        && server.platform == Platform::Linux
        && request.rules.windows_guests_from == WindowsGuestsFrom::WindowsProxies
    {
        return Err(Rejection::LinuxProxyWindowsGuest);
    }

    // Of several channels that fail, the one that came furthest gives the reason.
    let mut reason = Rejection::NoChannel { guest_os };
    let mut furthest = 0;
    let carried =
        ChannelKind::ALL.into_iter().filter(|channel| server.channels.contains(channel) && channel.serves(guest_os));
    for channel in carried {
        let (distance, obstacle) = if !channel.accepts(credential) {
            let obstacle = match credential {
                None => Rejection::NoCredential { guest_os },
                Some(credential) => Rejection::CredentialDoesNotFit { credential, guest_os },
            };
            (1, obstacle)
        } else if channel.is_network_less() && !server.network_less_hosts.contains(&vm.host) {
            (2, Rejection::HostNotReached { channel })
        } else if !channel.is_network_less() && !vm.has_endpoint() {
            (3, Rejection::NoAddress { channel })
        } else {
            return Ok(channel);
        };
        if distance > furthest {
            (furthest, reason) = (distance, obstacle);
        }
    }
    Err(reason)
}
