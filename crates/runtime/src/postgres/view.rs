//! The file system as one process sees it: paths looked up below its root directory, devices taken from its mount table.
//!
//! Knows nothing of PostgreSQL. Only looks (`lstat`, `readlink`, `O_PATH`): opening for reading could block or have effects.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use thiserror::Error;

use super::{Device, small_file};
use crate::mounts::{self, Mount};

const MOUNTINFO_BYTES_MAX: u64 = 16 * 1024 * 1024;
const FDINFO_BYTES_MAX: u64 = 4096;
/// As the kernel's own limit (MAXSYMLINKS).
const SYMLINKS_MAX: u32 = 40;
/// More names in one directory than this are refused.
const NAMES_MAX: usize = 16_384;

/// One process's view.
pub(super) struct ProcessView {
    root: PathBuf,
    mounts: Vec<Mount>,
}

/// A directory that was looked up.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Directory {
    /// Absolute in the process's view, without symlinks.
    pub(super) path: PathBuf,
    pub(super) device: Device,
}

/// Why a directory could not be looked up.
#[derive(Debug, Error)]
pub(super) enum ViewError {
    #[error("{at}: {source}", at = .at.display())]
    Io { at: PathBuf, source: io::Error },
    #[error("{path} is not a directory", path = .0.display())]
    NotADirectory(PathBuf),
    #[error("more than {SYMLINKS_MAX} symlinks in a row")]
    TooManyLinks,
    #[error("mount {0} is not in the process's mount table")]
    UnknownMount(u64),
}

impl ProcessView {
    /// The view of process `pid`, below `proc_root`.
    ///
    /// Errors: its mount table cannot be read or parsed.
    pub(super) fn of(proc_root: &Path, pid: u32) -> io::Result<Self> {
        let dir = proc_root.join(pid.to_string());
        let text = small_file::read(&dir.join("mountinfo"), MOUNTINFO_BYTES_MAX)?;
        let (mounts, malformed) = mounts::parse(&text);
        if malformed > 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Self { root: dir.join("root"), mounts })
    }

    /// All mount points, in the order of the mount table.
    pub(super) fn mount_points(&self) -> impl Iterator<Item = &Path> {
        self.mounts.iter().map(|mount| mount.mount_point.as_path())
    }

    /// Whether the last component of `path` is a symlink.
    pub(super) fn is_symlink(&self, path: &Path) -> bool {
        self.read_link(path).is_ok()
    }

    /// The names in a directory; those that are not UTF-8 are left out (none of PostgreSQL's own are).
    ///
    /// Errors: reading fails, or there are more than 16 384.
    pub(super) fn names_in(&self, dir: &Path) -> io::Result<Vec<String>> {
        let real = self.resolve(dir).map_err(io::Error::other)?;
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.below_root(&real))? {
            if names.len() == NAMES_MAX {
                return Err(io::Error::other(format!("more than {NAMES_MAX} entries")));
            }
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    /// Looks a directory up: its path without symlinks and its superblock.
    pub(super) fn directory(&self, path: &Path) -> Result<Directory, ViewError> {
        let path = self.resolve(path)?;
        let at_path = |source: io::Error| ViewError::Io { at: path.clone(), source };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle =
            rustix::fs::open(self.below_root(&path), flags, Mode::empty()).map_err(|error| at_path(error.into()))?;
        let stat = rustix::fs::fstat(&handle).map_err(|error| at_path(error.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Err(ViewError::NotADirectory(path));
        }
        let id = mount_id(handle.as_raw_fd()).map_err(at_path)?;
        let mount = self.mounts.iter().find(|mount| mount.id == id).ok_or(ViewError::UnknownMount(id))?;
        let device = Device { major: mount.superblock.major, minor: mount.superblock.minor };
        Ok(Directory { path, device })
    }

    /// Follows every symlink inside the process's root. The kernel would take an absolute link from *our* root.
    fn resolve(&self, path: &Path) -> Result<PathBuf, ViewError> {
        let mut real = PathBuf::from("/");
        // Components still to walk, the next one last.
        let mut rest: Vec<OsString> = reversed(path);
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == ".." {
                real.pop();
                continue;
            }
            let next = real.join(&name);
            match self.read_link(&next) {
                Ok(target) => {
                    links += 1;
                    if links > SYMLINKS_MAX {
                        return Err(ViewError::TooManyLinks);
                    }
                    if target.is_absolute() {
                        real = PathBuf::from("/");
                    }
                    rest.extend(reversed(&target));
                }
                // readlink says EINVAL for anything that is no symlink.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => real = next,
                Err(source) => return Err(ViewError::Io { at: next, source }),
            }
        }
        Ok(real)
    }

    fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        std::fs::read_link(self.below_root(path))
    }

    fn below_root(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }
}

fn reversed(path: &Path) -> Vec<OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    let mut names: Vec<_> = names.collect();
    names.reverse();
    names
}

/// `st_dev` would name a subvolume on btrfs; the mount id (kernel 3.15 and later) leads to the superblock everywhere.
fn mount_id(handle: i32) -> io::Result<u64> {
    let text = small_file::read(Path::new(&format!("/proc/self/fdinfo/{handle}")), FDINFO_BYTES_MAX)?;
    let text = String::from_utf8_lossy(&text);
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")).and_then(|id| id.trim().parse().ok());
    id.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn view_below(root: &Path) -> ProcessView {
        ProcessView { root: root.to_owned(), mounts: Vec::new() }
    }

    #[test]
    fn absolute_links_stay_inside_the_process_root() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        std::fs::create_dir_all(root.join("disk2/wal")).unwrap();
        std::fs::create_dir_all(root.join("data")).unwrap();
        symlink("/mnt/wal", root.join("data/pg_wal")).unwrap();
        symlink("disk2", root.join("mnt")).unwrap();
        symlink("../../../data", root.join("disk2/up")).unwrap();
        let view = view_below(root);
        assert_eq!(view.resolve(Path::new("/data/pg_wal")).unwrap(), Path::new("/disk2/wal"));
        assert_eq!(view.resolve(Path::new("/disk2/up/./pg_wal")).unwrap(), Path::new("/disk2/wal"));
    }

    #[test]
    fn links_in_a_ring_and_dangling_ones_are_errors() {
        let temp = tempfile::tempdir().unwrap();
        symlink("ring", temp.path().join("ring")).unwrap();
        symlink("/nowhere", temp.path().join("dangling")).unwrap();
        let view = view_below(temp.path());
        assert!(matches!(view.resolve(Path::new("/ring")), Err(ViewError::TooManyLinks)));
        assert!(matches!(view.resolve(Path::new("/dangling")), Err(ViewError::Io { .. })));
    }

    #[test]
    fn a_directory_lies_on_the_superblock_of_its_mount() {
        let pid = std::process::id();
        let view = ProcessView::of(Path::new("/proc"), pid).unwrap();
        let on_proc = view.directory(Path::new("/proc/self/fd")).unwrap();
        let stat = rustix::fs::stat("/proc").unwrap();
        let expect = Device { major: rustix::fs::major(stat.st_dev), minor: rustix::fs::minor(stat.st_dev) };
        assert_eq!(on_proc.device, expect);
        assert!(matches!(view.directory(Path::new("/proc/version")), Err(ViewError::NotADirectory(_))));
    }

    #[test]
    fn a_mount_table_that_cannot_be_understood_is_an_error() {
        let proc_root = tempfile::tempdir().unwrap();
        std::fs::create_dir(proc_root.path().join("7")).unwrap();
        let view_of = |table: &str| {
            std::fs::write(proc_root.path().join("7/mountinfo"), table).unwrap();
            ProcessView::of(proc_root.path(), 7)
        };
        let table = "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
            40 22 0:35 /sub /mnt/a\\040b\\134c rw shared:1 master:2 - btrfs /dev/vdb rw\n";
        let view = view_of(table).unwrap();
        assert_eq!(view.mount_points().collect::<Vec<_>>(), [Path::new("/"), Path::new("/mnt/a b\\c")]);
        let error = view_of(&format!("{table}22 1 nonsense / / rw\n")).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
