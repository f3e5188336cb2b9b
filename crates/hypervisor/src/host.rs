//! A QEMU host: a folder of sockets. Each `VM.qmp` is a VM.
//!
//! Knows how to find and open a VM; knows nothing of backups.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{ErrorClass, HypervisorError, Step};
use crate::facts::{self, VmFacts};
use crate::qmp::{QmpClient, QmpLimits};
use crate::residue;

/// A folder with one `VM.qmp` socket per VM.
#[derive(Debug, Clone)]
pub struct QemuHost {
    dir: PathBuf,
    limits: QmpLimits,
}

impl QemuHost {
    /// A host whose sockets lie in `dir`. Nothing is opened yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        QemuHost::with_limits(dir, QmpLimits::default())
    }

    /// As [`QemuHost::new`], with other time limits.
    pub fn with_limits(dir: impl Into<PathBuf>, limits: QmpLimits) -> Self {
        QemuHost { dir: dir.into(), limits }
    }

    /// The folder of sockets.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The names of all VMs whose socket exists, sorted. A VM that is off may still have its socket.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn vms(&self) -> io::Result<Vec<String>> {
        let mut vms = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            if let Some(vm) = entry?.file_name().to_str().and_then(|n| n.strip_suffix(".qmp")) {
                vms.push(vm.to_owned());
            }
        }
        vms.sort();
        Ok(vms)
    }

    /// Where the guest agent of a VM would listen.
    pub fn guest_agent(&self, vm: &str) -> PathBuf {
        self.dir.join(format!("{vm}.qga"))
    }

    /// Connects to a VM's control socket. QEMU serves one client at a time: nobody else can connect until the
    /// returned value and everything prepared from it are dropped.
    ///
    /// # Errors
    /// [`ErrorClass::Refused`] if there is no such VM (it names those there are), [`ErrorClass::Busy`] if somebody else is connected,
    /// [`ErrorClass::Gone`] if nobody answers.
    pub async fn open(&self, vm: &str) -> Result<QemuVm, HypervisorError> {
        // The name becomes part of paths.
        let socket = self.dir.join(format!("{vm}.qmp"));
        if vm.is_empty() || vm.contains(['/', '\0']) || !socket.exists() {
            let known = self.vms().map_or_else(|e| format!("the folder cannot be read ({e})"), |v| v.join(", "));
            let cause = format!("there is no socket {}", socket.display());
            let remedy = format!("VMs of this host: {known}");
            return Err(HypervisorError::new(Step::Connect, vm, ErrorClass::Refused, cause, remedy));
        }
        let client =
            QmpClient::connect(&socket, self.limits).await.map_err(|e| HypervisorError::qmp(Step::Connect, vm, &e))?;
        Ok(QemuVm { name: vm.to_owned(), socket, limits: self.limits, client: Arc::new(client) })
    }
}

/// A VM with an open control connection.
#[derive(Clone)]
pub struct QemuVm {
    pub(crate) name: String,
    pub(crate) socket: PathBuf,
    pub(crate) limits: QmpLimits,
    pub(crate) client: Arc<QmpClient>,
}

impl QemuVm {
    /// The VM's name at its host.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The connection itself.
    pub fn client(&self) -> &QmpClient {
        &self.client
    }

    /// What the VM is, and what keeps it from being backed up now.
    ///
    /// # Errors
    /// If QEMU does not answer.
    pub async fn facts(&self) -> Result<VmFacts, HypervisorError> {
        facts::read(&self.client, &self.name).await.map_err(|e| HypervisorError::qmp(Step::Facts, &self.name, &e))
    }

    /// A fresh look at what of ours is in the VM's process: jobs, nodes, swapped drives, stop markers, and bitmaps that are not
    /// in `bitmaps_owed`. Empty after a task that left nothing behind.
    ///
    /// # Errors
    /// If QEMU does not answer.
    pub async fn residue(&self, bitmaps_owed: &[String]) -> Result<Vec<String>, HypervisorError> {
        let residue =
            residue::read(&self.client, None).await.map_err(|e| HypervisorError::qmp(Step::Sweep, &self.name, &e))?;
        Ok(residue.describe(bitmaps_owed))
    }

    /// Closes this connection and opens a new one.
    pub(crate) async fn reopened(&self) -> Result<QemuVm, crate::qmp::QmpError> {
        self.client.close().await;
        let client = QmpClient::connect(&self.socket, self.limits).await?;
        Ok(QemuVm { client: Arc::new(client), ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_unknown_vm_is_answered_with_the_known_ones() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["b.qmp", "a.qmp", "a.qga", "readme"] {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        let host = QemuHost::new(dir.path());
        assert_eq!(host.vms().unwrap(), ["a", "b"]);
        for vm in ["c", "", "../a"] {
            let error = host.open(vm).await.map(|_| ()).unwrap_err();
            assert_eq!(error.class, ErrorClass::Refused);
            assert!(error.to_string().contains("VMs of this host: a, b"), "{error}");
        }
        // The socket file is there, but nobody listens: the VM is off.
        assert_eq!(host.open("a").await.map(|_| ()).unwrap_err().class, ErrorClass::Gone);
    }
}
