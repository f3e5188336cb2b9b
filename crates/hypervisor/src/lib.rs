//! Snapshots and backups of virtual machines: QEMU over QMP.
//!
//! Reading order: [`names`] (what we call things inside a hypervisor, so that a sweep knows them again), [`qmp`] (the
//! wire), [`facts`] (what a VM is and whether it may be backed up now), [`order`] and [`backup`] (prepare), [`increment`] (full or
//! incremental, and why), [`snapshot`] (the only step inside the freeze window), [`copy`], [`finish`], [`sweep`] (undo, also after a
//! crash), [`guest_agent`] (only asked for addresses), [`metadata`] and [`chain`] (what lies in the repository), [`scan`], [`verify`], [`remove`].
//!
//! The rule that shapes all of it: **no repository sits in the guest's write path.** Guest writes are held up only by a local
//! fleecing image, and a fleecing image that fails breaks the snapshot, never the guest.
//!
//! Knows nothing of guests, of freezing, of jobs or of the server's store.

pub mod backup;
pub mod chain;
pub mod copy;
pub mod error;
pub mod facts;
mod files;
pub mod finish;
pub mod guest_agent;
pub mod host;
mod image;
pub mod increment;
pub mod metadata;
pub mod names;
pub mod order;
mod qcow2;
pub mod qmp;
pub mod remove;
mod residue;
pub mod scan;
pub mod snapshot;
pub mod sweep;
pub mod verify;

pub use backup::PreparedBackup;
pub use copy::{CopyDone, CopyProgress};
pub use error::{ErrorClass, HypervisorError, Step};
pub use facts::{Busy, Disk, SkipReason, VmFacts};
pub use finish::RestorePointFiles;
pub use host::{QemuHost, QemuVm};
pub use increment::FullBecause;
pub use metadata::{Kind, Origin, RestorePointMetadata};
pub use names::bitmap_name;
pub use order::{BackupOrder, Base};
pub use qmp::{QmpClient, QmpError, QmpLimits};
pub use scan::{ScanReport, scan};
pub use snapshot::SnapshotTaken;
pub use sweep::{SweepOrder, SweepReport, sweep};
pub use verify::{VerifyReport, verify};
