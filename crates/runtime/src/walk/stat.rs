//! What is known of one entry: by `statx`, and by `fstatat` where the kernel, or a filter in front of it, does not know `statx`.
//!
//! Knows nothing of what is done with it.

use crate::kernel::Errno;
use lull_guest_wire::listing::Kind;
use rustix::fs::{AtFlags, FileType, StatxFlags, statat, statx};
use std::ffi::CStr;
use std::os::fd::BorrowedFd;

/// What is asked for: what every file system has at hand.
const WANTED: StatxFlags = StatxFlags::TYPE
    .union(StatxFlags::MODE)
    .union(StatxFlags::UID)
    .union(StatxFlags::GID)
    .union(StatxFlags::SIZE)
    .union(StatxFlags::MTIME)
    .union(StatxFlags::CTIME);

/// What is known of one entry. Times in microseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// What it is.
    pub kind: Kind,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// When its content was changed last.
    pub mtime_us: i64,
    /// When anything of it was changed last.
    pub ctime_us: i64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Looks at an entry itself: follows no symbolic link, mounts nothing.
pub fn of(folder: BorrowedFd<'_>, name: &CStr) -> Result<Stat, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    match statx(folder, name, flags | AtFlags::STATX_DONT_SYNC, WANTED) {
        Ok(found) => {
            let mode = u32::from(found.stx_mode);
            Ok(Stat {
                kind: of_mode(mode)?,
                size_bytes: found.stx_size,
                mtime_us: us(found.stx_mtime.tv_sec, found.stx_mtime.tv_nsec.into()),
                ctime_us: us(found.stx_ctime.tv_sec, found.stx_ctime.tv_nsec.into()),
                mode: mode & 0o7777,
                uid: found.stx_uid,
                gid: found.stx_gid,
            })
        }
        Err(rustix::io::Errno::NOSYS) => by_fstatat(folder, name, flags),
        Err(e) => Err(e.raw_os_error()),
    }
}

fn by_fstatat(folder: BorrowedFd<'_>, name: &CStr, flags: AtFlags) -> Result<Stat, Errno> {
    let found = statat(folder, name, flags).map_err(rustix::io::Errno::raw_os_error)?;
    Ok(Stat {
        kind: of_mode(found.st_mode)?,
        size_bytes: found.st_size as u64,
        mtime_us: us(found.st_mtime, found.st_mtime_nsec as i64),
        ctime_us: us(found.st_ctime, found.st_ctime_nsec as i64),
        mode: found.st_mode & 0o7777,
        uid: found.st_uid,
        gid: found.st_gid,
    })
}

/// The kind in a raw mode. A damaged inode can be of none at all.
pub fn of_mode(mode: u32) -> Result<Kind, Errno> {
    match FileType::from_raw_mode(mode) {
        FileType::RegularFile => Ok(Kind::File),
        FileType::Directory => Ok(Kind::Folder),
        FileType::Symlink => Ok(Kind::Symlink),
        FileType::Fifo => Ok(Kind::Fifo),
        FileType::Socket => Ok(Kind::Socket),
        FileType::CharacterDevice => Ok(Kind::CharDevice),
        FileType::BlockDevice => Ok(Kind::BlockDevice),
        _ => Err(libc::EUCLEAN),
    }
}

/// A hostile file system may claim any year.
fn us(seconds: i64, nanoseconds: i64) -> i64 {
    seconds.saturating_mul(1_000_000).saturating_add(nanoseconds / 1_000)
}
