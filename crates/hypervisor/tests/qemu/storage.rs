//! Small file systems of a test's own: one that fills up, one that can be made to hang. Needs root.
//!
//! A hanging repository is a frozen one: writes to it wait, as on a dead NFS server. Nothing is frozen that the guard does not allow.

use std::path::{Path, PathBuf};

use crate::bed::{str, tool};
use crate::guard::assert_may_be_frozen;

/// A mounted file system, unmounted (and thawed) when dropped.
pub struct Mounted {
    pub dir: PathBuf,
    frozen: bool,
}

/// A tmpfs of that many MiB, mounted at `dir`.
pub fn small(dir: &Path, mib: u64) -> Mounted {
    tool("mount", &["-t", "tmpfs", "-o", &format!("size={mib}m"), "lull-test", str(dir)]);
    Mounted { dir: dir.to_owned(), frozen: false }
}

/// An ext4 in a file beside `dir`, mounted at `dir`; it can be frozen.
pub fn freezable(dir: &Path, mib: u64) -> Mounted {
    let image = dir.with_extension("img");
    tool("truncate", &["-s", &format!("{mib}M"), str(&image)]);
    tool("mkfs.ext4", &["-q", "-F", str(&image)]);
    tool("mount", &["-o", "loop", str(&image), str(dir)]);
    Mounted { dir: dir.to_owned(), frozen: false }
}

impl Mounted {
    pub fn freeze(&mut self) {
        assert_may_be_frozen(&self.dir);
        tool("fsfreeze", &["-f", str(&self.dir)]);
        self.frozen = true;
    }

    pub fn thaw(&mut self) {
        tool("fsfreeze", &["-u", str(&self.dir)]);
        self.frozen = false;
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.frozen {
            let _ = std::process::Command::new("fsfreeze").args(["-u", str(&self.dir)]).status();
        }
        // Lazily: the VM's process may still hold a file open when a test failed.
        let _ = std::process::Command::new("umount").args(["-l", str(&self.dir)]).status();
    }
}
