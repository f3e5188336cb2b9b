//! What a proxy's tasks stand on: ways into guests and to their hypervisors, the component that is put into guests, the networks of the
//! machine. There is one, [`Machine`]; a benchmark of whole fleets brings another, with guests in memory.
//!
//! Knows nothing of tasks.

use crate::access::GuestAccess;
use crate::carried::{self, Image, NotCarried};
use crate::guest_session::{Connector, SshConnector};
use crate::networks;
use crate::order::{BackupSpec, QemuSpec};
use crate::snapshotter::{QemuSnapshotter, Snapshotter};
use ipnet::IpNet;
use std::io;

/// See the module.
pub trait Ground: Send + Sync {
    /// Ways into one guest.
    fn connector(&self, access: GuestAccess) -> Box<dyn Connector>;
    /// One backup of one VM; nothing is opened yet.
    fn snapshotter(&self, qemu: QemuSpec, backup: BackupSpec, task: &str, epoch: u64) -> Box<dyn Snapshotter>;
    /// The runtime component.
    ///
    /// # Errors
    /// When this build carries none.
    fn image(&self) -> Result<Image, NotCarried>;
    /// The on-link prefixes of the machine's interfaces.
    ///
    /// # Errors
    /// When they cannot be listed.
    fn networks(&self) -> io::Result<Vec<IpNet>>;
}

/// This machine: SSH, QEMU, its own interfaces.
#[derive(Debug, Clone, Copy)]
pub struct Machine;

impl Ground for Machine {
    fn connector(&self, access: GuestAccess) -> Box<dyn Connector> {
        Box::new(SshConnector::new(access))
    }

    fn snapshotter(&self, qemu: QemuSpec, backup: BackupSpec, task: &str, epoch: u64) -> Box<dyn Snapshotter> {
        Box::new(QemuSnapshotter::new(qemu, backup, task, epoch))
    }

    fn image(&self) -> Result<Image, NotCarried> {
        carried::linux_x86_64()
    }

    fn networks(&self) -> io::Result<Vec<IpNet>> {
        networks::on_link()
    }
}
