//! Where a backup's files lie, whether their folders are any good, and how files become durable or go away.
//!
//! ```text
//! REPOSITORY/<vm>[-<uuid's first 8>]/<restore point>/claim.partial         while it is being made; locked by its maker
//!                                                    disk0.qcow2.partial   until it is checked and durable
//!                                                    disk0.qcow2
//!                                                    restore-point.json    last: now it is a restore point
//! FLEECING/lull-<vm...>-<restore point>-<disk>.fleece.qcow2                until the disk is copied
//! ```
//! The lock on the claim tells a maker that lives from one that died. Slow storage holds up a thread of its own,
//! never the async runtime. Knows nothing of hypervisors.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::metadata;
use crate::names::{self, PREFIX};

/// Time for a folder to answer before anything starts, in ms.
const PROBE_MS: u64 = 15_000;
/// The claim's file name.
const CLAIM: &str = "claim.partial";
const FLEECE_SUFFIX: &str = ".fleece.qcow2";

/// Who makes a restore point; the content of the claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claim {
    pub vm: String,
    pub restore_point: String,
    pub task: String,
    pub epoch: u64,
}

/// The paths of one backup.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// Holds all restore points of the VM.
    pub vm_dir: PathBuf,
    /// Holds this one.
    pub point_dir: PathBuf,
    fleecing_dir: PathBuf,
    vm_folder: String,
    restore_point: String,
}

impl Layout {
    pub fn new(repository: &Path, fleecing: &Path, vm: &str, uuid: Option<&str>, restore_point: &str) -> Layout {
        let vm_folder = vm_folder(vm, uuid);
        let vm_dir = repository.join(&vm_folder);
        Layout {
            point_dir: vm_dir.join(restore_point),
            vm_dir,
            fleecing_dir: fleecing.to_owned(),
            vm_folder: plain(vm),
            restore_point: restore_point.to_owned(),
        }
    }

    pub fn disk_name(index: usize) -> String {
        format!("disk{index}.qcow2")
    }

    pub fn disk(&self, index: usize) -> PathBuf {
        self.point_dir.join(Layout::disk_name(index))
    }

    pub fn partial(&self, index: usize) -> PathBuf {
        self.point_dir.join(format!("{}.partial", Layout::disk_name(index)))
    }

    pub fn fleece(&self, index: usize) -> PathBuf {
        self.fleecing_dir.join(format!("{PREFIX}{}-{}-{index}{FLEECE_SUFFIX}", self.vm_folder, self.restore_point))
    }
}

/// A name that is safe as one path component.
fn plain(vm: &str) -> String {
    let plain: String =
        vm.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect();
    if plain.starts_with('.') { format!("_{plain}") } else { plain }
}

fn vm_folder(vm: &str, uuid: Option<&str>) -> String {
    match uuid.and_then(|u| u.get(..8)) {
        Some(start) => format!("{}-{start}", plain(vm)),
        None => plain(vm),
    }
}

/// Why a folder is no good, as the cause of an error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FolderFault {
    #[error("{} is not a folder that can be read ({cause})", dir.display())]
    Missing { dir: PathBuf, cause: String },
    #[error("{} cannot be written to ({cause})", dir.display())]
    NotWritable { dir: PathBuf, cause: String },
    #[error("{} did not answer within {waited_ms} ms", dir.display())]
    Silent { dir: PathBuf, waited_ms: u64 },
}

/// Writes a small file durably in `dir`, of which nothing stays; returns the free bytes.
pub(crate) async fn probe(dir: &Path) -> Result<u64, FolderFault> {
    let owned = dir.to_owned();
    match on_a_thread(PROBE_MS, move || probe_now(&owned)).await {
        Some(result) => result,
        None => Err(FolderFault::Silent { dir: dir.to_owned(), waited_ms: PROBE_MS }),
    }
}

fn probe_now(dir: &Path) -> Result<u64, FolderFault> {
    let missing = |cause: String| FolderFault::Missing { dir: dir.to_owned(), cause };
    let not_writable = |e: io::Error| FolderFault::NotWritable { dir: dir.to_owned(), cause: e.to_string() };
    if !fs::metadata(dir).map_err(|e| missing(e.to_string()))?.is_dir() {
        return Err(missing("it is a file".into()));
    }
    let mut file = passing_file(dir).map_err(not_writable)?;
    file.write_all(&[0; 4096]).and_then(|()| file.sync_all()).map_err(not_writable)?;
    free_bytes(dir).map_err(|e| missing(e.to_string()))
}

/// A file in `dir` that ends with its handle, whoever is killed meanwhile: without a name where the file system knows such files, else with one
/// that goes at once. Backups begin together, also on machines that share the folder: each has a name of its own.
fn passing_file(dir: &Path) -> io::Result<File> {
    let nameless = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    match rustix::fs::open(dir, nameless, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(file.into()),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {
            let path = dir.join(format!(".{PREFIX}probe-{:016x}", rand::random::<u64>()));
            let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
            fs::remove_file(&path)?;
            Ok(file)
        }
        Err(error) => Err(error.into()),
    }
}

/// Bytes that can still be written to the file system of `dir`.
pub(crate) fn free_bytes(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Runs blocking file work on a thread of its own; `None` when it takes longer. A thread and not the runtime's blocking pool:
/// the runtime waits for its pool when it ends, and a thread stuck on dead storage never returns.
pub(crate) async fn on_a_thread<T: Send + 'static>(
    within_ms: u64,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || drop(sender.send(work())));
    tokio::time::timeout(Duration::from_millis(within_ms), receiver).await.ok()?.ok()
}

/// Creates the restore point's folder and claims it. The claim holds while the returned file lives.
pub(crate) fn claim(layout: &Layout, claim: &Claim) -> io::Result<File> {
    fs::create_dir_all(&layout.vm_dir)?;
    fs::create_dir(&layout.point_dir)?;
    let mut file = OpenOptions::new().write(true).create_new(true).open(layout.point_dir.join(CLAIM))?;
    match file.try_lock() {
        // A file system without locks: the claim then looks abandoned to a sweep, which the hypervisor's single connection keeps away.
        Ok(()) | Err(TryLockError::Error(_)) => {}
        Err(TryLockError::WouldBlock) => return Err(io::Error::from(io::ErrorKind::ResourceBusy)),
    }
    file.write_all(&serde_json::to_vec(claim)?)?;
    Ok(file)
}

/// Makes a file's data and size durable.
pub(crate) fn sync_file(path: &Path) -> io::Result<()> {
    OpenOptions::new().read(true).write(true).open(path)?.sync_all()
}

/// Makes names in a folder durable.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Writes `restore-point.json` so that it is there whole or not at all, then lets go of the claim. `wanted` is asked at the last moment: on
/// storage that hung for long, whoever waited may have given up and undone the rest.
pub(crate) fn complete(layout: &Layout, json: &[u8], wanted: impl FnOnce() -> bool) -> io::Result<()> {
    let temporary = layout.point_dir.join(format!("{}.partial", metadata::FILE_NAME));
    let mut file = File::create(&temporary)?;
    file.write_all(json)?;
    file.sync_all()?;
    if !wanted() {
        return Err(io::Error::from(io::ErrorKind::TimedOut));
    }
    fs::rename(&temporary, layout.point_dir.join(metadata::FILE_NAME))?;
    sync_dir(&layout.point_dir)?;
    sync_dir(&layout.vm_dir)?;
    // From here on it is a restore point; a claim that stays is swept.
    let _ = fs::remove_file(layout.point_dir.join(CLAIM));
    Ok(())
}

/// What a sweep of files did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct SweptFiles {
    pub removed: Vec<String>,
    pub remaining: Vec<String>,
}

impl SweptFiles {
    fn note(&mut self, path: &Path, result: io::Result<()>) {
        match result {
            Ok(()) => self.removed.push(format!("file {}", path.display())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => self.remaining.push(format!("file {} ({e})", path.display())),
        }
    }
}

/// Which restore points a sweep of files covers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Which {
    /// This one only; its own maker, who holds its claim, asks.
    pub only: Option<String>,
    /// This one goes although it is finished: nobody knows of it.
    pub unrecorded: Option<String>,
}

/// Removes what this VM's unfinished backups left in the fleecing folder and in the repository. Restore points that are whole,
/// and those whose maker lives, stay.
pub(crate) fn sweep_files(repository: &Path, fleecing: &Path, vm: &str, which: &Which) -> SweptFiles {
    let mut swept = SweptFiles::default();
    let folder_name = plain(vm);
    let wanted = |id: &str| which.only.as_deref().is_none_or(|only| only == id);
    match metadata::folders(repository) {
        Ok(vm_dirs) => {
            for vm_dir in vm_dirs.iter().filter(|d| is_folder_of(d, &folder_name)) {
                sweep_vm_dir(vm_dir, vm, which, &mut swept);
            }
        }
        Err(e) => swept.remaining.push(format!("whatever lies in {} ({e})", repository.display())),
    }
    let in_use: Vec<String> =
        swept.remaining.iter().filter_map(|r| r.strip_prefix("restore point ")).map(str::to_owned).collect();
    match fs::read_dir(fleecing) {
        Ok(entries) => {
            for path in entries.flatten().map(|e| e.path()) {
                let Some((owner, id)) = path.file_name().and_then(|n| n.to_str()).and_then(fleece_owner) else {
                    continue;
                };
                let lives = in_use.iter().any(|r| r.starts_with(&format!("{id} ")));
                if owner == folder_name && wanted(id) && !lives {
                    swept.note(&path, fs::remove_file(&path));
                }
            }
        }
        Err(e) => swept.remaining.push(format!("whatever lies in {} ({e})", fleecing.display())),
    }
    swept
}

/// Whether a repository's folder can be this VM's: its plain name, alone or with a UUID's start.
fn is_folder_of(dir: &Path, plain_name: &str) -> bool {
    let Some(rest) = dir.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix(plain_name)) else {
        return false;
    };
    rest.is_empty() || (rest.len() == 9 && rest.starts_with('-') && rest[1..].bytes().all(|b| b.is_ascii_hexdigit()))
}

/// VM folder and restore point of a fleecing file's name.
fn fleece_owner(file: &str) -> Option<(&str, &str)> {
    let (rest, disk) = file.strip_prefix(PREFIX)?.strip_suffix(FLEECE_SUFFIX)?.rsplit_once('-')?;
    let (vm, id) = rest.rsplit_once('-')?;
    (disk.parse::<usize>().is_ok() && names::is_restore_point_id(id)).then_some((vm, id))
}

fn sweep_vm_dir(vm_dir: &Path, vm: &str, which: &Which, swept: &mut SweptFiles) {
    let points = match metadata::folders(vm_dir) {
        Ok(points) => points,
        Err(e) => return swept.remaining.push(format!("whatever lies in {} ({e})", vm_dir.display())),
    };
    for dir in points {
        let (claim_path, metadata_path) = (dir.join(CLAIM), dir.join(metadata::FILE_NAME));
        let id = dir.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let goes = which.unrecorded.as_deref() == Some(id) && metadata::read(&dir).is_ok_and(|point| point.vm == vm);
        let claim_file = match File::open(&claim_path) {
            Ok(file) => Some(file),
            Err(_) if goes => None,
            Err(_) => continue,
        };
        // An unreadable claim was cut short while it was written; then the folder's name says whose it is.
        let claimed = claim_file.as_ref().and_then(|file| serde_json::from_reader::<_, Claim>(file).ok());
        if which.only.as_ref().is_some_and(|only| only != id) || claimed.is_some_and(|c| c.vm != vm) {
            continue;
        }
        let locked = |file: &File| matches!(file.try_lock(), Err(TryLockError::WouldBlock));
        if which.only.is_none() && claim_file.as_ref().is_some_and(locked) {
            swept.remaining.push(format!("restore point {id} in {} (being made by a living program)", dir.display()));
            continue;
        }
        if metadata_path.exists() && !goes {
            swept.note(&claim_path, fs::remove_file(&claim_path));
            continue;
        }
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name();
            let ours = name.to_str().is_some_and(is_file_of_a_point);
            if ours && path != claim_path && path != metadata_path {
                swept.note(&path, fs::remove_file(&path));
            }
        }
        // Metadata and claim go last: as long as one is there, the next sweep finds the folder again.
        let gone = [&metadata_path, &claim_path].into_iter().try_for_each(|path| match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        });
        swept.note(&dir, gone.and_then(|()| fs::remove_dir(&dir)));
    }
    // Fails, rightly, when other restore points are in it.
    let _ = fs::remove_dir(vm_dir);
}

fn is_file_of_a_point(name: &str) -> bool {
    let stem = name.strip_suffix(".partial").unwrap_or(name);
    stem == metadata::FILE_NAME || metadata::is_disk_file(stem)
}

#[cfg(test)]
mod tests;
