//! What a caller orders: one backup of one VM. Validated here, purely; whether the folders are any good is seen in
//! [`crate::backup`].

use std::path::PathBuf;

use crate::metadata::Origin;
use crate::names::{RESTORE_POINT_CHARS_MAX, is_restore_point_id};

/// What a backup is to build on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// Nothing: it is full, and why.
    Full {
        /// In words for people, a sentence's end.
        because: String,
    },
    /// This restore point, if it and the VM allow it.
    Parent {
        /// Its short id.
        restore_point: String,
        /// Its folder.
        dir: PathBuf,
    },
}

/// One backup of one VM.
#[derive(Debug, Clone)]
pub struct BackupOrder {
    /// Short id of the restore point: 1 to 16 ASCII letters and digits. It becomes part of every name of ours in the
    /// hypervisor and the name of the restore point's folder.
    pub restore_point: String,
    /// The task this belongs to; recorded in the restore point.
    pub task: String,
    /// The task's lease token; recorded in the restore point.
    pub epoch: u64,
    /// What it builds on.
    pub base: Base,
    /// What the server knows it by; recorded in the restore point.
    pub origin: Option<Origin>,
    /// The folder that holds all restore points. QEMU's user must be able to write there.
    pub repository_dir: PathBuf,
    /// A folder on a local, fast file system of the hypervisor host. QEMU's user must be able to write there.
    pub fleecing_dir: PathBuf,
    /// Free space that must be there before anything starts, in bytes. `None`: a twentieth of the disks' size, at most 32 GiB.
    pub min_free_fleecing_bytes: Option<u64>,
    /// Upper bound of the copy over all disks together, in bytes per second.
    pub speed_bytes_per_s: Option<u64>,
    /// How long a guest write may wait for the fleecing image before the snapshot (never the guest) breaks, in s, at least 1.
    pub cbw_timeout_s: u32,
    /// How long the copy may make no progress before it is given up, in s, at least 1.
    pub stall_timeout_s: u32,
    /// How long the hypervisor may take for the snapshot itself, in ms. The caller's freeze budget is the real limit.
    pub snapshot_timeout_ms: u64,
}

/// The default of [`BackupOrder::min_free_fleecing_bytes`] never asks for more than this.
const DEFAULT_MIN_FREE_BYTES_MAX: u64 = 32 << 30;

impl BackupOrder {
    /// An order of a full backup, with the default limits.
    pub fn new(
        restore_point: impl Into<String>,
        task: impl Into<String>,
        repository_dir: impl Into<PathBuf>,
        fleecing_dir: impl Into<PathBuf>,
    ) -> Self {
        BackupOrder {
            restore_point: restore_point.into(),
            task: task.into(),
            epoch: 0,
            base: Base::Full { because: "it was ordered so".into() },
            origin: None,
            repository_dir: repository_dir.into(),
            fleecing_dir: fleecing_dir.into(),
            min_free_fleecing_bytes: None,
            speed_bytes_per_s: None,
            cbw_timeout_s: 5,
            stall_timeout_s: 120,
            snapshot_timeout_ms: 10_000,
        }
    }

    /// What is wrong with the order itself, as (cause, remedy).
    pub(crate) fn fault(&self) -> Option<(String, String)> {
        if !is_restore_point_id(&self.restore_point) {
            return Some((
                format!("\"{}\" cannot name a restore point", self.restore_point),
                format!("use 1 to {RESTORE_POINT_CHARS_MAX} letters and digits"),
            ));
        }
        if let Base::Parent { restore_point, .. } = &self.base
            && (!is_restore_point_id(restore_point) || *restore_point == self.restore_point)
        {
            let cause = format!("restore point {} cannot build on \"{restore_point}\"", self.restore_point);
            return Some((cause, "name another parent, or none".into()));
        }
        if self.cbw_timeout_s == 0 || self.stall_timeout_s == 0 {
            // To QEMU, 0 means to wait forever: a hung fleecing image would hang the guest.
            return Some(("a time limit of 0 would let the VM wait forever".into(), "set it to 1 s or more".into()));
        }
        if self.speed_bytes_per_s == Some(0) {
            return Some(("a speed of 0 never ends".into(), "leave the speed out for no limit".into()));
        }
        None
    }

    /// The free space the fleecing folder must have for disks of `total_bytes`.
    pub(crate) fn fleecing_bytes_needed(&self, total_bytes: u64) -> u64 {
        self.min_free_fleecing_bytes.unwrap_or((total_bytes / 20).min(DEFAULT_MIN_FREE_BYTES_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(id: &str) -> BackupOrder {
        BackupOrder::new(id, "t", "/r", "/f")
    }

    #[test]
    fn a_bad_order_is_named() {
        assert_eq!(order("ab12").fault(), None);
        for id in ["", "a-b", "12345678901234567", "ä"] {
            assert!(order(id).fault().is_some(), "{id}");
        }
        assert!(BackupOrder { cbw_timeout_s: 0, ..order("a") }.fault().is_some());
        for parent in ["..", "a"] {
            let base = Base::Parent { restore_point: parent.into(), dir: "/r/vm/x".into() };
            assert!(BackupOrder { base, ..order("a") }.fault().is_some());
        }
        assert!(BackupOrder { speed_bytes_per_s: Some(0), ..order("a") }.fault().is_some());
    }

    #[test]
    fn the_default_need_is_a_share_of_the_disks_with_a_cap() {
        assert_eq!(order("a").fleecing_bytes_needed(20 << 30), 1 << 30);
        assert_eq!(order("a").fleecing_bytes_needed(u64::MAX), DEFAULT_MIN_FREE_BYTES_MAX);
        assert_eq!(BackupOrder { min_free_fleecing_bytes: Some(7), ..order("a") }.fleecing_bytes_needed(1 << 40), 7);
    }
}
