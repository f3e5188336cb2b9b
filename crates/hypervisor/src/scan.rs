//! Reading a whole repository: which restore points are there, which of them are whole, and what else lies there.
//!
//! For a server that lost its database, and for a repository that came from elsewhere. Bounded, follows no links, opens nothing but
//! regular files and believes nothing it reads: a repository is a folder that others can write to. Checks descriptions, headers and
//! lengths, not the images' tables (that is [`crate::verify`]). Changes nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::chain::{self, BrokenLink, ChainPoint, Seen};
use crate::metadata;

/// Most folders that are looked into, in all; a repository with more is read as far as that.
pub const FOLDERS_MAX: usize = 1_000_000;
/// Most bytes of descriptions that are read and kept, in all.
pub const DESCRIPTIONS_BYTES_MAX: u64 = 256 << 20;
/// Most things that are not ours that are named.
pub const STRANGERS_MAX: usize = 1_000;

/// A restore point as a scan found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScannedPoint {
    /// Where it lies and what it says of itself.
    pub point: ChainPoint,
    /// Where its chain is broken; `None`: as far as descriptions, headers and lengths tell, it can be restored.
    pub broken: Option<BrokenLink>,
}

/// Something in a repository that is no restore point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranger {
    /// Where it lies.
    pub path: PathBuf,
    /// Why it is none.
    pub why: String,
}

/// What lies in a repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScanReport {
    /// The restore points, by VM's folder and then by age.
    pub points: Vec<ScannedPoint>,
    /// What else is there, at most [`STRANGERS_MAX`] of it.
    pub strangers: Vec<Stranger>,
    /// Strangers that are not named.
    pub more_strangers: usize,
    /// There are more than [`FOLDERS_MAX`] folders or [`DESCRIPTIONS_BYTES_MAX`]: the rest was not looked at.
    pub cut_short: bool,
}

/// Scans a repository. Blocking.
///
/// # Errors
/// If the repository itself cannot be listed. What cannot be read further down is a stranger.
pub fn scan(repository_dir: &Path) -> io::Result<ScanReport> {
    scan_up_to(repository_dir, Left { folders: FOLDERS_MAX, bytes: DESCRIPTIONS_BYTES_MAX })
}

/// How much may still be looked at.
struct Left {
    folders: usize,
    bytes: u64,
}

fn scan_up_to(repository_dir: &Path, mut left: Left) -> io::Result<ScanReport> {
    let mut report = ScanReport::default();
    for vm_dir in report.folders(repository_dir, &mut left)? {
        match report.folders(&vm_dir, &mut left) {
            Ok(dirs) => report.scan_vm(dirs, &mut left),
            Err(e) => report.stranger(vm_dir, format!("it cannot be listed ({e})")),
        }
    }
    Ok(report)
}

impl ScanReport {
    /// The folders in a folder, sorted; whatever else is in it is a stranger.
    fn folders(&mut self, dir: &Path, left: &mut Left) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                self.stranger(entry.path(), "it is no folder".into());
            } else if left.folders == 0 {
                self.cut_short = true;
                break;
            } else {
                left.folders -= 1;
                found.push(entry.path());
            }
        }
        found.sort();
        Ok(found)
    }

    fn scan_vm(&mut self, dirs: Vec<PathBuf>, left: &mut Left) {
        let mut points: Vec<(ChainPoint, Option<String>)> = Vec::new();
        for dir in dirs {
            let bytes = fs::symlink_metadata(dir.join(metadata::FILE_NAME)).map_or(0, |m| m.len());
            // One that is too long is refused, and costs nothing.
            let bytes = if bytes > metadata::BYTES_MAX { 0 } else { bytes };
            if bytes > left.bytes {
                self.cut_short = true;
                break;
            }
            left.bytes -= bytes;
            match metadata::read(&dir) {
                Ok(metadata) if dir.file_name().and_then(|n| n.to_str()) != Some(metadata.restore_point.as_str()) => {
                    self.stranger(dir, format!("its description is that of restore point {}", metadata.restore_point));
                }
                Ok(metadata) => {
                    let fault = chain::own_fault(&dir, &metadata);
                    points.push((ChainPoint { dir, metadata }, fault));
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    self.stranger(dir, format!("it has no {}: unfinished, or not ours", metadata::FILE_NAME));
                }
                Err(e) => self.stranger(dir, format!("its {} cannot be read ({e})", metadata::FILE_NAME)),
            }
        }
        points.sort_by_key(|(point, _)| point.metadata.created);
        let seen = points.iter().map(|(p, fault)| Seen { metadata: &p.metadata, own_fault: fault.clone() });
        let verdicts = chain::judge(&seen.collect::<Vec<_>>());
        let scanned = points.into_iter().zip(verdicts).map(|((point, _), broken)| ScannedPoint { point, broken });
        self.points.extend(scanned);
    }

    fn stranger(&mut self, path: PathBuf, why: String) {
        if self.strangers.len() < STRANGERS_MAX {
            self.strangers.push(Stranger { path, why });
        } else {
            self.more_strangers += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::tests::{point, write};

    fn names(report: &ScanReport) -> Vec<(&str, Option<&str>)> {
        let found = report.points.iter().map(|p| {
            let at = p.broken.as_ref().map(|b| b.restore_point.as_str());
            (p.point.metadata.restore_point.as_str(), at)
        });
        found.collect()
    }

    #[test]
    fn whole_points_broken_chains_and_strangers_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("vm1-0f0e0d0c"), dir.path().join("vm2"));
        for (vm, id, parent) in
            [(&one, "a", ""), (&one, "b", "a"), (&two, "c", ""), (&two, "d", "c"), (&two, "e", "d"), (&two, "f", "")]
        {
            write(vm, &point(id, parent));
        }
        fs::remove_file(two.join("d/disk0.qcow2")).unwrap();
        fs::create_dir_all(dir.path().join("lost+found")).unwrap();
        fs::create_dir_all(one.join("unfinished")).unwrap();
        fs::create_dir_all(one.join("damaged")).unwrap();
        fs::write(one.join("damaged/restore-point.json"), "{").unwrap();
        fs::rename(two.join("f"), two.join("copy")).unwrap();
        fs::write(dir.path().join("readme"), "").unwrap();
        let report = scan(dir.path()).unwrap();
        assert_eq!(names(&report), [("a", None), ("b", None), ("c", None), ("d", Some("d")), ("e", Some("d"))]);
        let mut strangers: Vec<_> =
            report.strangers.iter().map(|s| s.path.file_name().unwrap().to_str().unwrap()).collect();
        strangers.sort_unstable();
        assert_eq!(strangers, ["copy", "damaged", "readme", "unfinished"]);
        assert!(scan(&dir.path().join("none")).is_err());
    }

    #[test]
    fn hostile_content_is_harmless() {
        let dir = tempfile::tempdir().unwrap();
        let vm = dir.path().join("vm");
        for id in ["pipe", "link", "huge", "loop", "cycle1", "cycle2", "elsewhere"] {
            write(&vm, &point(id, ""));
        }
        let json = |id: &str| vm.join(id).join("restore-point.json");
        for id in ["pipe", "link", "huge"] {
            fs::remove_file(json(id)).unwrap();
        }
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(rustix::fs::CWD, json("pipe"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        std::os::unix::fs::symlink(json("loop"), json("link")).unwrap();
        fs::File::create(json("huge")).unwrap().set_len(1 << 40).unwrap();
        std::os::unix::fs::symlink(&vm, vm.join("loop/again")).unwrap();
        std::os::unix::fs::symlink(&vm, dir.path().join("vm2")).unwrap();
        write(&vm, &point("cycle1", "cycle2"));
        write(&vm, &point("cycle2", "cycle1"));
        let text = fs::read_to_string(json("elsewhere")).unwrap();
        fs::write(json("elsewhere"), text.replace("disk0.qcow2", "../../../etc/passwd")).unwrap();
        let report = scan(dir.path()).unwrap();
        let mut found = names(&report);
        found.sort_unstable();
        assert_eq!(found.iter().map(|f| f.0).collect::<Vec<_>>(), ["cycle1", "cycle2", "loop"]);
        assert_eq!(found.iter().filter(|f| f.1.is_none()).count(), 1);
        assert_eq!(report.strangers.len(), 5);
    }

    #[test]
    fn a_scan_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        for id in ["a", "b", "c"] {
            write(&dir.path().join("vm"), &point(id, ""));
        }
        let bytes = fs::metadata(dir.path().join("vm/a/restore-point.json")).unwrap().len();
        for (folders, bytes) in [(2, u64::MAX), (100, bytes + 5)] {
            let report = scan_up_to(dir.path(), Left { folders, bytes }).unwrap();
            assert_eq!((report.cut_short, report.points.len()), (true, 1), "{folders} folders, {bytes} bytes");
        }
        let mut report = ScanReport::default();
        (0..STRANGERS_MAX + 3).for_each(|_| report.stranger(PathBuf::new(), String::new()));
        assert_eq!((report.strangers.len(), report.more_strangers), (STRANGERS_MAX, 3));
    }
}
