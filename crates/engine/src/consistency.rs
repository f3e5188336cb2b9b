//! What a restore point is worth: the consistency level that follows from evidence, and why it is not better.
//! Knows no guest and no hypervisor, only what they said.
//!
//! A fact counts only where it is proved: an unknown is taken for the worse. So no level is better than the truth, and
//! taking evidence away never raises one. `None` as a level means *not even crash consistent*: the data is not in the
//! restore point, or not of one instant.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

mod assess;
mod reason;

pub use assess::assess;
pub use reason::Reason;

/// How much a restore point can be relied on, lowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConsistencyLevel {
    /// As after a power cut: one instant, but in the middle of writes.
    Crash,
    /// File systems were at rest.
    FileSystem,
    /// File systems and the applications on them were at rest.
    Application,
}

impl fmt::Display for ConsistencyLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Crash => "crash",
            Self::FileSystem => "file-system",
            Self::Application => "application",
        })
    }
}

/// A superblock's device number; in JSON and in print `major:minor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct SuperblockId {
    /// The major number.
    pub major: u32,
    /// The minor number.
    pub minor: u32,
}

impl fmt::Display for SuperblockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for SuperblockId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once(':').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        match parsed {
            Some((major, minor)) => Ok(Self { major, minor }),
            None => Err(format!("\"{text}\" is not a device number: it must look like 8:1")),
        }
    }
}

impl From<SuperblockId> for String {
    fn from(id: SuperblockId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for SuperblockId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// How a call on a file system ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum CallResult {
    /// It returned 0.
    Ok,
    /// It returned an error.
    Failed {
        /// The operating system's error number.
        errno: i32,
    },
    /// Its answer was lost, or it was never made.
    Unknown,
}

/// What was done to bring a file system to rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum FreezeResult {
    /// Nothing was tried: excluded, unfreezable, or an earlier one failed.
    NotAttempted,
    /// It was tried.
    Attempted {
        /// How the freeze ended.
        freeze: CallResult,
        /// How the thaw ended. Anything but `Ok` means that it may not have been frozen to the end.
        thaw: CallResult,
    },
}

/// What a file system holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Role {
    /// The guest's root.
    Root {
        /// Applications that write to it too, by name.
        #[serde(default)]
        applications: Vec<String>,
    },
    /// Data of applications.
    ApplicationData {
        /// Their names.
        applications: Vec<String>,
    },
    /// Neither: it does not count for the VM's level, and is named.
    Other,
}

/// What is known about one file system, by superblock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSystemEvidence {
    /// Where it is mounted.
    pub mount_points: Vec<String>,
    /// Its superblock.
    pub superblock: SuperblockId,
    /// Its type, for example `ext4`.
    pub fs_type: String,
    /// What it holds.
    pub role: Role,
    /// Whether it could be written to during the snapshot.
    pub writable: bool,
    /// Whether its type can be frozen at all.
    pub freezable: bool,
    /// Whether the settings exclude it from freezing.
    pub excluded: bool,
    /// What was done.
    pub frozen: FreezeResult,
    /// Whether all disks it lies on are in the snapshot.
    pub on_snapshot: bool,
}

/// How bringing an application to rest ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum QuiesceResult {
    /// What its kind needs was done and recorded.
    Quiesced,
    /// It was not running, so there was nothing to quiesce and nothing to ask.
    NotRunning,
    /// It could not be brought to rest.
    Failed {
        /// Why, in words.
        cause: String,
    },
    /// The settings leave it alone, or it was not reached.
    NotAttempted,
}

/// What is known about one application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplicationEvidence {
    /// Its name, for example `PostgreSQL 15 main`.
    pub name: String,
    /// Every superblock it writes to.
    pub superblocks: Vec<SuperblockId>,
    /// How bringing it to rest ended.
    pub quiesce: QuiesceResult,
}

/// Whether the snapshot was inside the freeze window: causal, no clocks are compared.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WindowEvidence {
    /// The freeze that was acknowledged.
    pub frozen_id: Option<u64>,
    /// The acknowledgement came before the snapshot was sent.
    pub acknowledged_before_snapshot: bool,
    /// The snapshot had returned before the thaw was sent.
    pub snapshot_returned_before_thaw: bool,
    /// The freeze whose thaw was confirmed.
    pub thawed_id: Option<u64>,
    /// The guest confirmed that it was frozen without a gap from freeze to thaw.
    pub no_gap: bool,
}

/// What is known about the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SnapshotEvidence {
    /// It was taken.
    pub taken: bool,
    /// All its disks are of one instant.
    pub atomic: bool,
}

/// All that is known about a restore point.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Evidence {
    /// Every file system of the guest that lies on disks.
    pub file_systems: Vec<FileSystemEvidence>,
    /// Every application that was found.
    pub applications: Vec<ApplicationEvidence>,
    /// Applications were looked for to the end.
    pub applications_searched: bool,
    /// The freeze window.
    pub window: WindowEvidence,
    /// The snapshot.
    pub snapshot: SnapshotEvidence,
    /// Why the guest was left alone from some step before the freeze on, where it was. Where it was not even looked into,
    /// the snapshot of the VM's disks is all there is to judge.
    pub left_alone: Option<String>,
}

/// What one file system in the restore point is worth. At most `file-system`: application consistency belongs to
/// applications.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSystemVerdict {
    /// Its superblock.
    pub superblock: SuperblockId,
    /// Where it is mounted.
    pub mount_points: Vec<String>,
    /// Its level.
    pub level: Option<ConsistencyLevel>,
    /// Whether it counts for the VM's level.
    pub counts: bool,
    /// Why it is not better; `None` at the best level.
    pub reason: Option<Reason>,
}

/// What one application in the restore point is worth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplicationVerdict {
    /// Its name.
    pub name: String,
    /// Its level.
    pub level: Option<ConsistencyLevel>,
    /// Why it is not better; `None` at the best level.
    pub reason: Option<Reason>,
}

/// What a restore point is worth. `Display` renders it for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assessment {
    /// The VM's level: the lowest of its applications and of the file systems that count.
    pub level: Option<ConsistencyLevel>,
    /// Why it is not better, most important first; empty at `application`.
    pub reasons: Vec<Reason>,
    /// Every file system, also those that do not count.
    pub file_systems: Vec<FileSystemVerdict>,
    /// Every application.
    pub applications: Vec<ApplicationVerdict>,
}

impl fmt::Display for Assessment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(level_name(self.level))?;
        for (index, reason) in self.reasons.iter().enumerate() {
            write!(f, "{}{reason}", if index == 0 { ": " } else { "; " })?;
        }
        for app in &self.applications {
            write!(f, "\n  {}: {}", app.name, level_name(app.level))?;
            because(f, app.reason.as_ref())?;
        }
        for fs in &self.file_systems {
            write!(f, "\n  {} ({}): {}", fs.mount_points.join(", "), fs.superblock, level_name(fs.level))?;
            if !fs.counts {
                f.write_str(", does not count")?;
            }
            because(f, fs.reason.as_ref())?;
        }
        Ok(())
    }
}

/// A level's name; `none` where there is not even crash consistency.
pub fn level_name(level: Option<ConsistencyLevel>) -> &'static str {
    match level {
        None => "none",
        Some(ConsistencyLevel::Crash) => "crash",
        Some(ConsistencyLevel::FileSystem) => "file-system",
        Some(ConsistencyLevel::Application) => "application",
    }
}

fn because(f: &mut fmt::Formatter<'_>, reason: Option<&Reason>) -> fmt::Result {
    match reason {
        Some(reason) => write!(f, ", since {reason}"),
        None => Ok(()),
    }
}
