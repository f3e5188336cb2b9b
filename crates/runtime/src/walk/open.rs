//! Opens a folder below a start: never through a symbolic link, never on another mount, however long its path is.
//!
//! `openat2` (Linux 5.6) promises both in one call. Where there is none, or a filter in front of it, every part of the path is opened by
//! itself, and the mount points that were known at the beginning are kept away from. Knows nothing of what is read.

use rustix::fs::{Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Longest path that is given to the kernel at once, in bytes; it takes 4 095.
const AT_ONCE_BYTES_MAX: usize = 4_000;

/// How folders below one start are opened.
#[derive(Debug)]
pub struct Opener {
    start: OwnedFd,
    flags: OFlags,
    how: How,
}

#[derive(Debug)]
enum How {
    AtOnce,
    PartByPart {
        /// Absolute.
        mount_points: BTreeSet<Vec<u8>>,
        /// The device that everything lies on; none where one file system has several.
        device: Option<u64>,
    },
}

impl Opener {
    /// Below `start`. `mount_points` are those to keep away from, absolute; `many_devices`: the file system shows more than one device
    /// number (btrfs).
    pub fn new(
        start: OwnedFd,
        mount_points: impl FnOnce() -> BTreeSet<Vec<u8>>,
        many_devices: bool,
    ) -> Result<Opener, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Only its owner may read a folder without leaving a trace; root always may.
        let quiet = openat(&start, c".", flags | OFlags::NOATIME, Mode::empty()).is_ok();
        let flags = if quiet { flags | OFlags::NOATIME } else { flags };
        let how = match openat2(&start, c".", flags, Mode::empty(), RESOLVE) {
            Ok(_) => How::AtOnce,
            Err(Errno::NOSYS | Errno::PERM) => {
                let device = if many_devices { None } else { Some(fstat(&start)?.st_dev) };
                How::PartByPart { mount_points: mount_points(), device }
            }
            Err(e) => return Err(e),
        };
        Ok(Opener { start, flags, how })
    }

    /// Opens the folder at `path`, which is absolute; from `below` on it is below the start. `from`: the folder that holds it, and its
    /// name there. `EXDEV`: it is on another mount.
    pub fn open(&self, path: &[u8], below: usize, from: Option<(&OwnedFd, &[u8])>) -> Result<OwnedFd, Errno> {
        let (from, relative) = from.unwrap_or((&self.start, &path[below..]));
        if relative.is_empty() {
            return openat(&self.start, c".", self.flags, Mode::empty());
        }
        match &self.how {
            How::AtOnce => {
                let open =
                    |folder: BorrowedFd<'_>, part: &[u8], flags| openat2(folder, part, flags, Mode::empty(), RESOLVE);
                through(from, relative, AT_ONCE_BYTES_MAX, self.flags, open)
            }
            How::PartByPart { mount_points, .. } if mount_points.contains(path) => Err(Errno::XDEV),
            How::PartByPart { device, .. } => {
                let open = |folder: BorrowedFd<'_>, part: &[u8], flags| openat(folder, part, flags, Mode::empty());
                let opened = through(from, relative, 0, self.flags, open)?;
                match device {
                    Some(device) if fstat(&opened)?.st_dev != *device => Err(Errno::XDEV),
                    _ => Ok(opened),
                }
            }
        }
    }
}

/// Opens piece by piece, each as long as it may be but at least one part.
fn through(
    start: &OwnedFd,
    mut path: &[u8],
    bytes_max: usize,
    flags: OFlags,
    open: impl Fn(BorrowedFd<'_>, &[u8], OFlags) -> Result<OwnedFd, Errno>,
) -> Result<OwnedFd, Errno> {
    let on_the_way = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut folder: Option<OwnedFd> = None;
    loop {
        let from = folder.as_ref().unwrap_or(start).as_fd();
        let Some(end) = piece_end(path, bytes_max) else { return open(from, path, flags) };
        folder = Some(open(from, &path[..end], on_the_way)?);
        path = &path[end + 1..];
    }
}

const RESOLVE: ResolveFlags = ResolveFlags::NO_SYMLINKS.union(ResolveFlags::NO_XDEV);

/// Where to cut a path that is longer than `bytes_max`: at the last slash that is not behind that, else at the first.
fn piece_end(path: &[u8], bytes_max: usize) -> Option<usize> {
    if path.len() <= bytes_max {
        return None;
    }
    let is_slash = |byte: &u8| *byte == b'/';
    path[..bytes_max].iter().rposition(is_slash).or_else(|| path.iter().position(is_slash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_cut_between_its_parts() {
        assert_eq!(piece_end(b"a/b", 4_000), None);
        assert_eq!(piece_end(b"a/b/c", 0), Some(1));
        assert_eq!(piece_end(b"abc", 0), None);
        assert_eq!(piece_end(b"ab/cd/ef", 6), Some(5));
        assert_eq!(piece_end(b"abcdef/gh", 3), Some(6));
    }
}
