//! One freezer at a time per guest: an exclusive `flock` on a folder that only root can open.
//!
//! A lock on a file that others may open, or an abstract socket, could be squatted by any local user. The folder lives as
//! long as somebody holds the lock; the last holder removes it while still holding, and who locked a removed folder tries
//! again. The lock belongs to the open file description, so a forked watchdog holds it as long as it lives. Knows nothing of freezing.
//! What [`crate::grace_periods`] noted in the folder is undone by whoever takes it over or removes it.

use crate::grace_periods;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Where the lock is, unless a test says otherwise.
pub const LOCK_FOLDER: &str = "/run/lull.lock";
/// Another holder can remove the folder under our hands; more often than this it is not chance.
const TRIES: u32 = 16;

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another freezer works on this guest.
    #[error("another freezer holds {}: another backup of this guest is under way; wait for its end or cancel it", .0.display())]
    Held(PathBuf),
    /// The folder is not what it must be.
    #[error("{} is not a folder that only root can open ({what}); remove it and find out who made it", folder.display())]
    Untrusted {
        /// The lock's folder.
        folder: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Something failed.
    #[error("cannot lock {}: {source}", folder.display())]
    Io {
        /// The lock's folder.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The held lock. Dropping it lets it go without removing the folder; see [`GuestLock::release`].
#[derive(Debug)]
pub struct GuestLock {
    fd: OwnedFd,
    folder: PathBuf,
}

impl GuestLock {
    /// Takes the lock without waiting.
    pub fn take(folder: &Path) -> Result<GuestLock, LockError> {
        let io = |source| LockError::Io { folder: folder.to_path_buf(), source };
        for _ in 0..TRIES {
            match std::fs::DirBuilder::new().mode(0o700).create(folder) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(io(e)),
            }
            let path = CString::new(folder.as_os_str().as_bytes()).map_err(|e| io(e.into()))?;
            let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
            // SAFETY: the path ends with a zero byte.
            let fd = match unsafe { libc::open(path.as_ptr(), flags) } {
                -1 => {
                    let e = io::Error::last_os_error();
                    match e.raw_os_error() {
                        Some(libc::ENOENT) => continue,
                        Some(libc::ENOTDIR | libc::ELOOP) => {
                            let what = "it is no folder".into();
                            return Err(LockError::Untrusted { folder: folder.to_path_buf(), what });
                        }
                        _ => return Err(io(e)),
                    }
                }
                // SAFETY: just opened, belongs to nobody else.
                fd => unsafe { OwnedFd::from_raw_fd(fd) },
            };
            let opened = std::fs::File::from(fd.try_clone().map_err(io)?).metadata().map_err(io)?;
            // SAFETY: no pointers.
            let own = unsafe { libc::geteuid() };
            if opened.uid() != own || opened.permissions().mode() & 0o077 != 0 {
                let what = format!("owner {}, mode {:o}", opened.uid(), opened.permissions().mode() & 0o7777);
                return Err(LockError::Untrusted { folder: folder.to_path_buf(), what });
            }
            // SAFETY: the descriptor is open.
            if unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
                let e = io::Error::last_os_error();
                return Err(match e.raw_os_error() {
                    Some(libc::EWOULDBLOCK) => LockError::Held(folder.to_path_buf()),
                    _ => io(e),
                });
            }
            let named = std::fs::symlink_metadata(folder);
            if named.is_ok_and(|named| (named.dev(), named.ino()) == (opened.dev(), opened.ino())) {
                // Of a holder that was killed.
                grace_periods::calm(folder).map_err(io)?;
                return Ok(GuestLock { fd, folder: folder.to_path_buf() });
            }
        }
        Err(io(io::Error::other("it was removed again and again while being locked")))
    }

    /// Removes the folder, then lets the lock go.
    pub fn release(self) -> io::Result<()> {
        self.remove_folder()
    }

    /// Removes the folder while the lock is held: for a process that ends right after.
    pub fn remove_folder(&self) -> io::Result<()> {
        grace_periods::calm(&self.folder)?;
        std::fs::remove_dir(&self.folder)
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// For keeping it open across the closing of everything else.
    pub fn raw(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let lock = folder.path().join("lull.lock");
        (folder, lock)
    }

    #[test]
    fn a_second_freezer_is_told_so_and_gets_the_lock_after_the_first() {
        let (_keep, folder) = scratch();
        let first = GuestLock::take(&folder).unwrap();
        assert!(matches!(GuestLock::take(&folder), Err(LockError::Held(_))));
        first.release().unwrap();
        assert!(!folder.exists());
        GuestLock::take(&folder).unwrap().release().unwrap();
        assert!(!folder.exists());
    }

    #[test]
    fn a_folder_that_others_can_open_is_not_trusted() {
        let (_keep, folder) = scratch();
        std::fs::create_dir(&folder).unwrap();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(GuestLock::take(&folder), Err(LockError::Untrusted { .. })));
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let (keep, folder) = scratch();
        std::os::unix::fs::symlink(keep.path(), &folder).unwrap();
        assert!(matches!(GuestLock::take(&folder), Err(LockError::Untrusted { .. })));
    }

    #[test]
    fn a_crashed_holder_leaves_a_folder_that_the_next_one_takes_over() {
        let (_keep, folder) = scratch();
        drop(GuestLock::take(&folder).unwrap());
        assert!(folder.exists());
        GuestLock::take(&folder).unwrap().release().unwrap();
    }
}
