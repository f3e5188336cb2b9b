//! The backup infrastructure as facts: managed servers, hypervisor hosts, VMs, credentials, and which guest channel
//! fits which guest and credential. Decides nothing about who gets a task, and knows no secrets.

use crate::ids::{CredentialId, HostId, ServerId, VmId};
use crate::instant::elapsed_ms;
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr};

/// A proxy that was not heard of for longer than this is offline. Heartbeats come every 2 s.
pub const SILENT_AFTER_MS: u64 = 10_000;

/// The family of an operating system, of a managed server or of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Platform {
    /// Microsoft Windows.
    Windows,
    /// Linux.
    Linux,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Windows => "Windows",
            Self::Linux => "Linux",
        })
    }
}

/// How a proxy reaches a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChannelKind {
    /// SSH over the network.
    Ssh,
    /// WinRM over the network.
    #[serde(rename = "winrm")]
    WinRm,
    /// The QEMU guest agent: network-less, through the hypervisor host.
    GuestAgent,
    /// PowerShell Direct: network-less, through the Hyper-V host.
    #[serde(rename = "powershell-direct")]
    PowerShellDirect,
}

impl ChannelKind {
    /// Every channel, in the order in which a proxy tries them: over the network first.
    pub const ALL: [Self; 4] = [Self::Ssh, Self::WinRm, Self::GuestAgent, Self::PowerShellDirect];

    /// Whether the channel goes through the hypervisor host instead of the guest's network.
    pub fn is_network_less(self) -> bool {
        matches!(self, Self::GuestAgent | Self::PowerShellDirect)
    }

    /// Whether the channel can work with a guest of this OS family.
    pub fn serves(self, guest_os: Platform) -> bool {
        match self {
            Self::Ssh => guest_os == Platform::Linux,
            Self::WinRm | Self::PowerShellDirect => guest_os == Platform::Windows,
            Self::GuestAgent => true,
        }
    }

    /// Whether the channel can log in with this credential. `None` is *no credential*, which only the guest agent
    /// can do with: it already runs as the system in the guest.
    pub fn accepts(self, credential: Option<CredentialKind>) -> bool {
        match self {
            Self::Ssh => matches!(credential, Some(CredentialKind::SshPassword | CredentialKind::SshKey)),
            Self::WinRm | Self::PowerShellDirect => credential == Some(CredentialKind::WindowsPassword),
            Self::GuestAgent => true,
        }
    }
}

impl fmt::Display for ChannelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ssh => "SSH",
            Self::WinRm => "WinRM",
            Self::GuestAgent => "QEMU guest agent",
            Self::PowerShellDirect => "PowerShell Direct",
        })
    }
}

/// What kind of secret a credential is. The secret itself never comes here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CredentialKind {
    /// Account and password for SSH.
    SshPassword,
    /// Account and private key for SSH.
    SshKey,
    /// Windows account and password.
    WindowsPassword,
}

impl CredentialKind {
    /// The OS family of the guests that this kind of credential is for.
    pub fn guest_os(self) -> Platform {
        match self {
            Self::SshPassword | Self::SshKey => Platform::Linux,
            Self::WindowsPassword => Platform::Windows,
        }
    }
}

impl fmt::Display for CredentialKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SshPassword => "an SSH password",
            Self::SshKey => "an SSH key",
            Self::WindowsPassword => "a Windows password",
        })
    }
}

/// A stored guest credential without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// Its id.
    pub id: CredentialId,
    /// The name the administrator gave it.
    pub name: String,
    /// What kind of secret it is.
    pub kind: CredentialKind,
    /// Counts the changes of its secret or account, from 1. A refusal holds for one revision.
    pub revision: u32,
}

/// What kind of hypervisor a host runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostKind {
    /// A folder of QEMU sockets.
    Qemu,
    /// libvirt.
    Libvirt,
    /// Microsoft Hyper-V.
    HyperV,
}

/// A hypervisor host that was added to the backup infrastructure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HypervisorHost {
    /// Its id.
    pub id: HostId,
    /// The name the administrator gave it.
    pub name: String,
    /// What runs on it.
    pub kind: HostKind,
}

/// Whether a managed server can take tasks now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum ServerState {
    /// Its heartbeat arrives.
    Online,
    /// Its heartbeat is missing.
    Offline {
        /// When it was last heard of; `None`: not since the backup server started.
        since: Option<Timestamp>,
    },
    /// It was added and never connected: nothing is known of its networks, channels and slots.
    NeverConnected,
    /// It finishes its tasks and takes no new ones.
    Draining,
    /// An administrator took it out of use.
    Disabled,
    /// It is connected, and its release is too far from the backup server's.
    Incompatible {
        /// Its release, as it says.
        version: String,
        /// The backup server's.
        server_version: String,
        /// It is the newer one: then the backup server is to be upgraded.
        newer: bool,
    },
    /// An administrator took its trust away.
    Revoked,
}

impl ServerState {
    /// Online or offline, from the last heartbeat ([`SILENT_AFTER_MS`]).
    pub fn from_heartbeat(last_heartbeat: Timestamp, now: Timestamp) -> Self {
        if elapsed_ms(last_heartbeat, now) > SILENT_AFTER_MS {
            Self::Offline { since: Some(last_heartbeat) }
        } else {
            Self::Online
        }
    }
}

/// A Windows or Linux server that was added to the backup infrastructure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ManagedServer {
    /// Its id; the last criterion of the ranking.
    pub id: ServerId,
    /// The name the administrator gave it.
    pub name: String,
    /// What it runs.
    pub platform: Platform,
    /// Whether it is the backup server itself.
    pub is_backup_server: bool,
    /// Whether it has the role *guest interaction proxy*.
    pub role_enabled: bool,
    /// Whether it can take tasks now.
    pub state: ServerState,
    /// The on-link subnets of its interfaces, as the server reports them.
    pub networks: Vec<IpNet>,
    /// The guest channels it carries.
    pub channels: Vec<ChannelKind>,
    /// The hypervisor hosts through which it can open network-less channels.
    pub network_less_hosts: Vec<HostId>,
    /// The hypervisor hosts at which it can have snapshots taken.
    #[serde(default)]
    pub hosts_reached: Vec<HostId>,
    /// How many tasks it may run at once.
    pub slots: u32,
    /// How many tasks it runs now.
    pub running_tasks: u32,
}

impl ManagedServer {
    /// Whether it has the VM's network: an address of the VM lies in one of its on-link subnets.
    pub fn shares_network_with(&self, vm: &Vm) -> bool {
        vm.network_addresses().any(|address| self.networks.iter().any(|net| covers(net, address)))
    }

    /// Task slots without a task.
    pub fn free_slots(&self) -> u32 {
        self.slots.saturating_sub(self.running_tasks)
    }
}

/// Whether a subnet holds the address. A prefix of length 0 is a default route, not an on-link subnet.
pub fn covers(net: &IpNet, address: IpAddr) -> bool {
    net.prefix_len() > 0 && net.contains(&address)
}

/// A virtual machine on one of the hosts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Vm {
    /// Its id.
    pub id: VmId,
    /// Its name on the host.
    pub name: String,
    /// The host it runs on.
    pub host: HostId,
    /// The OS family of its guest, where known.
    pub guest_os: Option<Platform>,
    /// The guest's addresses, as the administrator or the hypervisor says.
    pub addresses: Vec<IpAddr>,
    /// Where to connect instead of an address and the channel's usual port: `HOST:PORT`, for forwarded ports.
    /// It never counts as a network.
    pub connect: Option<String>,
    /// The guest credential set on the VM itself.
    pub credential: Option<CredentialId>,
}

impl Vm {
    /// The addresses that say something about the network: neither loopback nor link-local, unspecified or
    /// multicast. An IPv4 address mapped into IPv6 counts as IPv4.
    pub fn network_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().map(IpAddr::to_canonical).filter(|address| counts_as_network(*address))
    }

    /// Whether there is an address to which a network channel can connect; loopback is one, in a demo.
    pub fn has_endpoint(&self) -> bool {
        self.connect.is_some() || !self.addresses.is_empty()
    }

    /// The guest's OS family: as known, or else the one its credential is for.
    pub fn guest_os_with(&self, credential: Option<CredentialKind>) -> Option<Platform> {
        self.guest_os.or_else(|| credential.map(CredentialKind::guest_os))
    }
}

fn counts_as_network(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(link_local || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}
