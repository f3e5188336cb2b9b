//! Why a level is not better, as facts that print as words. Judges nothing.

use super::SuperblockId;
use serde::{Deserialize, Serialize};

/// Why a level is not better. `Display` continues a sentence: "crash, since *reason*".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Reason {
    /// There is nothing to judge.
    #[error("no snapshot was taken")]
    NoSnapshot,
    /// Data that is missing from the restore point.
    #[error("not all its disks are in the snapshot")]
    NotOnSnapshot,
    /// Disks of different instants, and writes between them.
    #[error("it was not at rest, and the snapshot's disks are not known to be of one instant")]
    TornSnapshot,
    /// An application needs all its disks at one instant.
    #[error("the snapshot's disks are not known to be of one instant")]
    NotAtomic,
    /// vfat, for example.
    #[error("{fs_type} cannot be frozen")]
    NotFreezable {
        /// Its type.
        fs_type: String,
    },
    /// By the settings.
    #[error("the settings exclude it from freezing")]
    Excluded,
    /// Nothing was tried.
    #[error("it was not frozen")]
    NotFrozen,
    /// Freezing returned an error.
    #[error("freezing it failed with error number {errno}")]
    FreezeFailed {
        /// The operating system's error number.
        errno: i32,
    },
    /// `EBUSY`: not ours to thaw, and nobody knows until when it holds.
    #[error("somebody else had frozen it")]
    FrozenByAnother,
    /// The answer was lost.
    #[error("it is not known whether the freeze took effect")]
    FreezeUnknown,
    /// It was not frozen any more when we thawed it, or the thaw failed.
    #[error("its thaw ended with error number {errno}, so it may not have been frozen to the end")]
    ThawFailed {
        /// The operating system's error number.
        errno: i32,
    },
    /// The answer was lost.
    #[error("its thaw was not confirmed, so it may not have been frozen to the end")]
    ThawUnknown,
    /// The window: no freeze was acknowledged.
    #[error("no freeze was acknowledged")]
    NeverFrozen,
    /// The window: the snapshot may have begun before the freeze.
    #[error("the snapshot was not sent after the freeze was acknowledged")]
    SnapshotTooEarly,
    /// The window: the snapshot may have ended after the thaw.
    #[error("the thaw was sent before the snapshot had returned")]
    SnapshotTooLate,
    /// The window: the guest did not confirm this freeze's thaw.
    #[error("the guest confirmed no thaw of this freeze")]
    ThawNotConfirmed,
    /// The window: lease or budget ran out in between.
    #[error("the guest was not frozen without a gap until the snapshot had returned")]
    Gap,
    /// An application could not be brought to rest.
    #[error("it could not be brought to rest: {cause}")]
    QuiesceFailed {
        /// Why.
        cause: String,
    },
    /// An application was not running.
    #[error("it was not running, so its state could not be established")]
    NotRunning,
    /// An application was left alone.
    #[error("it was not brought to rest")]
    NotQuiesced,
    /// Nothing says where an application's data lies.
    #[error("it is not known which file systems it writes to")]
    WhereaboutsUnknown,
    /// An application writes to a file system nobody saw.
    #[error("it writes to {superblock}, about which nothing is known")]
    UnknownFileSystem {
        /// Its superblock.
        superblock: SuperblockId,
    },
    /// An application is no better than the file system under it.
    #[error("the file system at {mount_point} it writes to: {reason}")]
    FileSystemBelow {
        /// Where it is mounted.
        mount_point: String,
        /// Why that one is not better.
        reason: Box<Reason>,
    },
    /// For the VM: which file system lowers it.
    #[error("the file system at {mount_point}: {reason}")]
    OfFileSystem {
        /// Where it is mounted.
        mount_point: String,
        /// Why that one is not better.
        reason: Box<Reason>,
    },
    /// For the VM: which application lowers it.
    #[error("{name}: {reason}")]
    OfApplication {
        /// The application's name.
        name: String,
        /// Why that one is not better.
        reason: Box<Reason>,
    },
    /// For the VM: no evidence of a root file system.
    #[error("nothing is known about the root file system")]
    RootUnknown,
    /// For the VM: a file system holds data of an application that nothing else is known of.
    #[error("the file system at {mount_point} holds data of {name}, about which nothing is known")]
    UnknownApplication {
        /// Where it is mounted.
        mount_point: String,
        /// The application's name.
        name: String,
    },
    /// For the VM: guest processing ended before the freeze, or was not wanted.
    #[error("nothing was frozen in the guest: {cause}")]
    LeftAlone {
        /// Why.
        cause: String,
    },
    /// For the VM: the search for applications did not end.
    #[error("applications were not looked for to the end")]
    NotSearched,
    /// For the VM: there is nothing to be application consistent.
    #[error("no application that could be brought to rest was found")]
    NoApplications,
}
