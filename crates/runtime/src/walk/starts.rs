//! Where a walk begins, and what it may not enter.
//!
//! Only file systems on the disks of the VM's snapshot are walked: not virtual ones (proc, sysfs, tmpfs …), not network ones, and
//! none on a disk that is not in the snapshot, since a restore point holds none of their files. Every start stays on its own mount; to
//! cross mounts is to have more starts. What is mounted in two places is walked in one.
//!
//! Knows nothing of how a folder is read.

use super::open::Opener;
use super::outgoing::Stopped;
use super::packer::Packer;
use super::scope::Noise;
use super::stat::{self, Stat};
use super::tally::Tally;
use crate::guard::mount_of;
use crate::inventory::{self, Storage};
use crate::kernel;
use crate::mounts::Mount;
use lull_guest_wire::listing::{Entry, is_folder_path};
use lull_guest_wire::{IndexOrder, IndexScope, LIST_MAX, Superblock};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// One folder below which everything on its mount is walked.
#[derive(Debug)]
pub struct Start {
    /// Absolute.
    pub path: Vec<u8>,
    /// Opens what lies below.
    pub opener: Opener,
}

/// What was found for the beginning.
#[derive(Debug, Default)]
pub struct Found {
    /// Where to walk.
    pub starts: Vec<Start>,
    /// Paths that were asked for and cannot be walked, with the reason.
    failed: Vec<(Vec<u8>, String)>,
    /// Paths that were asked for and are no folders.
    single: Vec<(Vec<u8>, Stat)>,
    /// What each start covers, in the words of its file system.
    covered: Vec<(Superblock, PathBuf)>,
}

/// What is wrong with an order, if anything.
pub fn check(order: &IndexOrder) -> Result<(), String> {
    let IndexScope::Only(paths) = &order.scope else { return Ok(()) };
    if paths.is_empty() || paths.len() > LIST_MAX {
        return Err(format!("{} paths to list, allowed are 1 to {LIST_MAX}", paths.len()));
    }
    match paths.iter().map(|path| without_slash(path)).find(|path| !is_folder_path(path)) {
        Some(path) => Err(format!("\"{}\" is no absolute path", String::from_utf8_lossy(path).escape_debug())),
        None => Ok(()),
    }
}

fn without_slash(path: &[u8]) -> &[u8] {
    match path {
        [rest @ .., b'/'] if !rest.is_empty() => rest,
        path => path,
    }
}

/// Finds the starts of a walk.
pub fn find(order: &IndexOrder, storage: &Storage, noise: &Noise) -> Found {
    let mut paths: Vec<&[u8]> = match &order.scope {
        IndexScope::Everything | IndexScope::ExceptNoise => vec![b"/"],
        IndexScope::Only(paths) => paths.iter().map(|path| without_slash(path)).collect(),
    };
    // The higher one first: it covers the lower.
    paths.sort();
    let ground = Ground::of(storage);
    let mut found = Found::default();
    for path in &paths {
        found.asked_for(path, &ground);
    }
    if order.cross_mounts {
        let below = |mount: &Mount| paths.iter().any(|path| mount.mount_point.starts_with(as_path(path)));
        let mut mounts: Vec<&Mount> = ground.mounts.iter().filter(|mount| below(mount)).collect();
        // Where the same is mounted twice, the wider and shorter one is walked.
        mounts.sort_by_key(|mount| (mount.root.components().count(), mount.mount_point.components().count(), mount.id));
        for mount in mounts {
            if !noise.covers(mount.mount_point.as_os_str().as_bytes()) {
                found.mounted(mount, &ground);
            }
        }
    }
    found
}

/// The guest's mounts, as far as a walk goes.
struct Ground<'a> {
    mounts: &'a [Mount],
    on_disk: BTreeSet<Superblock>,
    outside: BTreeSet<Superblock>,
}

impl<'a> Ground<'a> {
    fn of(storage: &'a Storage) -> Ground<'a> {
        let on_disk = storage.candidates.iter().map(|(candidate, _)| candidate.mounted.superblock).collect();
        Ground { mounts: &storage.mounts, on_disk, outside: inventory::outside_the_snapshot(storage) }
    }

    fn mount_of(&self, folder: &OwnedFd) -> Option<&'a Mount> {
        let id = mount_of(folder)?;
        self.mounts.iter().find(|mount| mount.id == id)
    }

    /// Why nothing on this mount is walked.
    fn not_walked(&self, mount: &Mount) -> Option<String> {
        if !self.on_disk.contains(&mount.superblock) {
            return Some(format!("it lies on {}, which is on no disk of the guest", mount.fs_type));
        }
        let outside = self.outside.contains(&mount.superblock);
        outside.then(|| "it lies on a disk that is not in the VM's snapshot".into())
    }

    fn opener(&self, folder: OwnedFd, mount: &Mount) -> Result<Opener, Errno> {
        let points = || self.mounts.iter().map(|mount| mount.mount_point.as_os_str().as_bytes().to_vec()).collect();
        Opener::new(folder, points, mount.superblock.major == 0)
    }
}

impl Found {
    fn asked_for(&mut self, path: &[u8], ground: &Ground<'_>) {
        let folder = match open(path) {
            Ok(folder) => folder,
            Err(Errno::NOTDIR | Errno::LOOP) => return self.no_folder(path),
            Err(e) => return self.failed.push((path.to_vec(), kernel::describe(e.raw_os_error()))),
        };
        let Some(mount) = ground.mount_of(&folder) else {
            return self.failed.push((path.to_vec(), "where it is mounted could not be found out".into()));
        };
        match ground.not_walked(mount) {
            Some(why) => self.failed.push((path.to_vec(), why)),
            None => self.add(path, folder, mount, ground),
        }
    }

    fn no_folder(&mut self, path: &[u8]) {
        let Some(slash) = path.iter().rposition(|byte| *byte == b'/') else { return };
        let looked = open(&path[..slash.max(1)]).map_err(Errno::raw_os_error).and_then(|parent| {
            let name = CString::new(&path[slash + 1..]).map_err(|_| libc::EINVAL)?;
            stat::of(parent.as_fd(), &name)
        });
        match looked {
            Ok(stat) => self.single.push((path.to_vec(), stat)),
            Err(errno) => self.failed.push((path.to_vec(), kernel::describe(errno))),
        }
    }

    /// A mount below what was asked for.
    fn mounted(&mut self, mount: &Mount, ground: &Ground<'_>) {
        let path = mount.mount_point.as_os_str().as_bytes();
        if ground.not_walked(mount).is_some() || self.covers(mount.superblock, &mount.root) {
            return;
        }
        match open(path) {
            // Another mount may cover it.
            Ok(folder) if mount_of(&folder) == Some(mount.id) => self.add(path, folder, mount, ground),
            // Gone, covered, or a single file: no folder of ours.
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(e) => self.failed.push((path.to_vec(), kernel::describe(e.raw_os_error()))),
        }
    }

    fn covers(&self, superblock: Superblock, path: &Path) -> bool {
        self.covered.iter().any(|(covered, above)| *covered == superblock && path.starts_with(above))
    }

    fn add(&mut self, path: &[u8], folder: OwnedFd, mount: &Mount, ground: &Ground<'_>) {
        let below = as_path(path).strip_prefix(&mount.mount_point).unwrap_or(Path::new(""));
        let inside = mount.root.join(below);
        if self.covers(mount.superblock, &inside) {
            return;
        }
        match ground.opener(folder, mount) {
            Ok(opener) => {
                self.covered.push((mount.superblock, inside));
                self.starts.push(Start { path: path.to_vec(), opener });
            }
            Err(e) => self.failed.push((path.to_vec(), kernel::describe(e.raw_os_error()))),
        }
    }

    /// Lists what was asked for and needs no walk.
    pub fn tell(&self, packer: &mut Packer, tally: &mut Tally) -> Result<(), Stopped> {
        for (path, why) in &self.failed {
            tally.unreadable_folder(path, why);
            packer.end_folder(path, Some(why))?;
        }
        for (path, stat) in &self.single {
            let slash = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
            let (parent, name) = (&path[..slash.max(1)], &path[slash + 1..]);
            let Stat { kind, size_bytes, mtime_us, mode, uid, gid, .. } = *stat;
            let entry = Entry { name, kind, size_bytes, mtime_us, mode, uid, gid, changed_after_freeze: false };
            tally.entries += 1;
            packer.entry(parent, &entry)?;
            packer.end_folder(parent, Some("only some of its entries were asked for"))?;
        }
        Ok(())
    }
}

fn open(path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

fn as_path(path: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(path))
}
