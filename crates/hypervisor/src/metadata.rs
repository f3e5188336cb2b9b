//! `restore-point.json`: what lies beside a restore point's disks, so that a lost server database can be rebuilt.
//!
//! It is written last and by rename: a folder with it is a whole restore point, a folder without it is none. Version 1 knows
//! full backups; `parent` and `bitmap` are there for the increments to come. Knows nothing of hypervisors.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The file's name.
pub const FILE_NAME: &str = "restore-point.json";
/// The version this program writes and the newest it reads.
pub const VERSION: u32 = 1;

/// Whether a restore point stands alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Holds everything.
    Full,
    /// Holds what changed since its parent.
    Incremental,
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
    /// The restore point that an increment builds on.
    pub parent: Option<String>,
    /// Full or incremental.
    pub kind: Kind,
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
    /// What the caller wants to find again when it rebuilds its database, for instance the consistency level.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// Reads one restore point's metadata.
///
/// # Errors
/// If the file cannot be read, is not of this format, or is of a newer version.
pub fn read(restore_point_dir: &Path) -> io::Result<RestorePointMetadata> {
    let bytes = std::fs::read(restore_point_dir.join(FILE_NAME))?;
    parse(&bytes).map_err(|cause| io::Error::new(io::ErrorKind::InvalidData, cause))
}

fn parse(bytes: &[u8]) -> Result<RestorePointMetadata, String> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = serde_json::from_slice(bytes).map_err(|e| format!("not a restore point: {e}"))?;
    if version > VERSION {
        return Err(format!("written by a newer Lull (format {version}, known up to {VERSION})"));
    }
    serde_json::from_slice(bytes).map_err(|e| format!("not a restore point: {e}"))
}

/// All whole restore points of a repository, each with its folder, and the folders whose metadata cannot be read.
///
/// # Errors
/// If the repository itself cannot be listed.
#[allow(clippy::type_complexity)]
pub fn read_restore_points(
    repository_dir: &Path,
) -> io::Result<(Vec<(PathBuf, RestorePointMetadata)>, Vec<(PathBuf, io::Error)>)> {
    let (mut found, mut unreadable) = (Vec::new(), Vec::new());
    for vm in folders(repository_dir)? {
        for dir in folders(&vm)? {
            if !dir.join(FILE_NAME).exists() {
                continue;
            }
            match read(&dir) {
                Ok(metadata) => found.push((dir, metadata)),
                Err(error) => unreadable.push((dir, error)),
            }
        }
    }
    found.sort_by(|a, b| (&a.1.vm, a.1.created).cmp(&(&b.1.vm, b.1.created)));
    Ok((found, unreadable))
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

    /// A file as version 1 wrote it: it must stay readable.
    const VERSION_1: &str = r#"{
        "version": 1, "vm": "pg1", "uuid": null, "restore_point": "ab12", "parent": null, "kind": "full",
        "bitmap": "lull-ab12", "disks": [{"index": 0, "file": "disk0.qcow2", "format": "qcow2", "virtual_bytes": 1048576,
          "file_bytes": 196616, "name": "vd0", "qdev": "/machine/peripheral/vd0/virtio-backend", "node_name": "disk0",
          "source_file": "/vm/disk.qcow2", "source_format": "qcow2", "bitmap_persistent": true}],
        "skipped": [{"name": "cd0", "reason": "no medium"}], "created": "2026-01-02T03:04:05Z", "atomic": true,
        "task": "t1", "epoch": 3, "qemu_version": "10.0.2", "annotations": {"level": "crash"}}"#;

    #[test]
    fn version_1_stays_readable_and_a_newer_one_is_refused() {
        let metadata = parse(VERSION_1.as_bytes()).unwrap();
        assert_eq!(metadata.annotations["level"], "crash");
        let again = parse(&serde_json::to_vec(&metadata).unwrap()).unwrap();
        assert_eq!(metadata, again);
        let newer = VERSION_1.replace("\"version\": 1", "\"version\": 2");
        assert!(parse(newer.as_bytes()).unwrap_err().contains("newer Lull"));
        assert!(parse(b"{}").unwrap_err().contains("not a restore point"));
    }

    #[test]
    fn a_folder_counts_only_with_its_metadata() {
        let repository = tempfile::tempdir().unwrap();
        for (point, content) in [("whole", Some(VERSION_1)), ("partial", None), ("damaged", Some("{"))] {
            let dir = repository.path().join("pg1").join(point);
            std::fs::create_dir_all(&dir).unwrap();
            if let Some(content) = content {
                std::fs::write(dir.join(FILE_NAME), content).unwrap();
            }
        }
        let (found, unreadable) = read_restore_points(repository.path()).unwrap();
        assert_eq!(found.iter().map(|(d, _)| d.file_name().unwrap()).collect::<Vec<_>>(), ["whole"]);
        assert_eq!(unreadable.iter().map(|(d, _)| d.file_name().unwrap()).collect::<Vec<_>>(), ["damaged"]);
    }
}
