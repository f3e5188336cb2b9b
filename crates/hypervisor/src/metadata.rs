//! `restore-point.json`: what lies beside a restore point's disks, so that a lost server database can be rebuilt.
//!
//! It is written last and by rename: a folder with it is a whole restore point, a folder without it is none. Version 1 knew
//! only full backups; version 2 adds what a chain needs (the parent, each file's length) and what a server's database holds
//! (level, origin). An incremental's disks lie over its parent's, `../<parent>/disk0.qcow2`, so that a chain boots as it lies.
//! Reading is bounded and believes nothing: others may have written there. Knows nothing of hypervisors.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::names::{DISKS_MAX, is_restore_point_id};
use crate::qcow2::open_regular;

/// The file's name.
pub const FILE_NAME: &str = "restore-point.json";
/// The version this program writes and the newest it reads.
pub const VERSION: u32 = 2;
/// Longest description that is read, in bytes. One with 100 disks takes some 60 KB.
pub(crate) const BYTES_MAX: u64 = 1 << 20;

/// Whether a restore point stands alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Holds everything.
    Full,
    /// Holds what changed since its parent.
    Incremental,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Full => "full",
            Kind::Incremental => "incremental",
        })
    }
}

/// What the server that ordered a restore point knows it by.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The restore point's id there; its folder has the short one.
    pub restore_point_id: String,
    /// The VM's id there.
    pub vm_id: String,
    /// The VM's name there.
    pub vm_name: String,
    /// The job's name, if it was a job.
    pub job: Option<String>,
    /// The session.
    pub session: i64,
}

/// One disk of a restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFile {
    /// Position among the restore point's disks.
    pub index: usize,
    /// The image beside this file, for instance `disk0.qcow2`.
    pub file: String,
    /// Format of `file`.
    pub format: String,
    /// Size the guest sees.
    pub virtual_bytes: u64,
    /// Size of `file` on disk when it was finished.
    pub file_bytes: u64,
    /// Length of `file` when it was finished: it never changes again. Unknown in version 1.
    #[serde(default)]
    pub length_bytes: Option<u64>,
    /// How an administrator knows the disk, for instance `vd0`.
    pub name: String,
    /// The guest device's path in QEMU.
    pub qdev: String,
    /// The disk's node in QEMU; the bitmap hangs there.
    pub node_name: String,
    /// The VM's own image, its path at that time.
    pub source_file: String,
    /// Format of `source_file`.
    pub source_format: String,
    /// Whether the bitmap outlives the VM's process (only qcow2 images can keep it).
    pub bitmap_persistent: bool,
}

/// A drive that is not part of the restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedDrive {
    /// How an administrator knows it.
    pub name: String,
    /// Why it was left out.
    pub reason: String,
}

/// Everything the repository knows about one restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePointMetadata {
    /// Of this format: [`VERSION`].
    pub version: u32,
    /// The VM's name at its host.
    pub vm: String,
    /// The VM's UUID, if it has one.
    pub uuid: Option<String>,
    /// The restore point's id.
    pub restore_point: String,
    /// The restore point that an increment builds on: the folder beside this one with that name.
    pub parent: Option<String>,
    /// Full or incremental.
    pub kind: Kind,
    /// Why it is full.
    #[serde(default)]
    pub full_because: Option<String>,
    /// The dirty bitmap that records what changed since: the next increment starts from it.
    pub bitmap: String,
    /// The disks, by index.
    pub disks: Vec<DiskFile>,
    /// What was left out, and why.
    pub skipped: Vec<SkippedDrive>,
    /// When the snapshot was taken, by the clock of the machine that took it.
    pub created: Timestamp,
    /// Whether all disks show one instant.
    pub atomic: bool,
    /// The task that made it.
    pub task: String,
    /// That task's lease token.
    pub epoch: u64,
    /// The hypervisor's version.
    pub qemu_version: String,
    /// The consistency level as it was proved: `application`, `file-system`, `crash` or `none`. Unknown in version 1.
    #[serde(default)]
    pub level: Option<String>,
    /// Why the level is not better.
    #[serde(default)]
    pub level_reasons: Vec<String>,
    /// What the server knew it by. Unknown in version 1.
    #[serde(default)]
    pub origin: Option<Origin>,
    /// What else the caller wants to find again.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// Reads one restore point's metadata.
///
/// # Errors
/// If the file cannot be read, is not of this format, is of a newer version ([`io::ErrorKind::Unsupported`]), or says what cannot be.
pub fn read(restore_point_dir: &Path) -> io::Result<RestorePointMetadata> {
    let mut bytes = Vec::new();
    open_regular(&restore_point_dir.join(FILE_NAME))?.take(BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(invalid(format!("longer than {BYTES_MAX} bytes")));
    }
    let metadata = parse(&bytes)?;
    possible(&metadata).map(|()| metadata).map_err(invalid)
}

fn invalid(cause: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, cause)
}

fn parse(bytes: &[u8]) -> io::Result<RestorePointMetadata> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let stranger = |error: serde_json::Error| invalid(format!("not a restore point: {error}"));
    let Versioned { version } = serde_json::from_slice(bytes).map_err(stranger)?;
    if version > VERSION {
        let cause = format!("written by a newer Lull (format {version}, known up to {VERSION})");
        return Err(io::Error::new(io::ErrorKind::Unsupported, cause));
    }
    serde_json::from_slice(bytes).map_err(stranger)
}

/// Whether a description can be one of ours. What it names becomes part of paths.
fn possible(metadata: &RestorePointMetadata) -> Result<(), String> {
    let ids = metadata.parent.iter().chain([&metadata.restore_point]);
    if let Some(id) = ids.into_iter().find(|id| !is_restore_point_id(id)) {
        return Err(format!("{id:?} cannot name a restore point"));
    }
    if metadata.parent.is_some() != (metadata.kind == Kind::Incremental) {
        return Err(format!("{} with a parent of {:?}", metadata.kind, metadata.parent));
    }
    if metadata.disks.is_empty() || metadata.disks.len() > DISKS_MAX {
        return Err(format!("{} disks", metadata.disks.len()));
    }
    for (n, disk) in metadata.disks.iter().enumerate() {
        if !is_disk_file(&disk.file) || metadata.disks[..n].iter().any(|d| d.file == disk.file) {
            return Err(format!("{:?} cannot be the file of disk {n}", disk.file));
        }
    }
    Ok(())
}

/// Whether a file name is that of a restore point's disk.
pub(crate) fn is_disk_file(name: &str) -> bool {
    let number = name.strip_prefix("disk").and_then(|s| s.strip_suffix(".qcow2"));
    number.is_some_and(|n| n.parse::<usize>().is_ok_and(|n| n < DISKS_MAX && format!("disk{n}.qcow2") == name))
}

/// The folders in a folder, sorted.
pub(crate) fn folders(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files as earlier versions wrote them: they must stay readable.
    const VERSION_1: &str = include_str!("../tests/data/restore-point-1.json");
    const VERSION_2: &str = include_str!("../tests/data/restore-point-2.json");

    fn read_text(text: &str) -> io::Result<RestorePointMetadata> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE_NAME), text).unwrap();
        read(dir.path())
    }

    #[test]
    fn every_version_stays_readable_and_a_newer_one_is_refused() {
        let first = read_text(VERSION_1).unwrap();
        assert_eq!(first.annotations["level"], "crash");
        assert_eq!((first.parent, first.origin, first.disks[0].length_bytes), (None, None, None));
        let second = read_text(VERSION_2).unwrap();
        assert_eq!(
            (second.parent.as_deref(), second.kind, second.level.as_deref()),
            (Some("ab12"), Kind::Incremental, Some("file-system"))
        );
        assert_eq!(second.origin.as_ref().unwrap().session, 7);
        let again = parse(&serde_json::to_vec(&second).unwrap()).unwrap();
        assert_eq!(second, again);
        let newer = VERSION_2.replace("\"version\": 2", "\"version\": 3");
        assert!(read_text(&newer).unwrap_err().to_string().contains("newer Lull"));
        assert!(read_text("{}").unwrap_err().to_string().contains("not a restore point"));
    }

    #[test]
    fn a_description_that_cannot_be_ours_is_refused() {
        for (from, to) in [
            ("\"disk0.qcow2\"", "\"../../etc/passwd\""),
            ("\"disk0.qcow2\"", "\"disk00.qcow2\""),
            ("\"ab12\"", "\"..\""),
            ("\"cd34\"", "\"a/b\""),
            ("\"incremental\"", "\"full\""),
        ] {
            assert!(VERSION_2.contains(from));
            assert!(read_text(&VERSION_2.replace(from, to)).is_err(), "{to}");
        }
        assert!(read_text(&format!("{VERSION_2}{}", " ".repeat(1 << 20))).unwrap_err().to_string().contains("longer"));
    }
}
