//! How much room a file system has.

use std::path::Path;

/// Free space of the file system that holds the path, in bytes; nothing where it cannot be found out.
pub fn free_bytes(path: impl AsRef<Path>) -> Option<u64> {
    let found = rustix::fs::statvfs(path.as_ref()).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}
