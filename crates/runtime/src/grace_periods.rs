//! The kernel's grace periods, hurried for the length of a freeze.
//!
//! `FIFREEZE` waits three times until every processor has passed a quiet point: once for writers, once for page faults, once for the file
//! system itself. Each wait takes some ten milliseconds, and from the first one on the guest's writes stand still. Told to hurry
//! (`rcu_expedited`), the kernel needs well under a millisecond for each.
//!
//! The switch is the whole kernel's, so it must come back whoever dies: what it was is noted in the lock's folder before it is turned,
//! and whoever takes over or removes that folder turns it back. Knows nothing of freezing.

use std::io;
use std::path::{Path, PathBuf};

/// The kernel's switch: `0` is its own pace.
const SWITCH: &str = "/sys/kernel/rcu_expedited";
/// In the lock's folder: what the switch was.
const NOTE: &str = "rcu_expedited";

/// Hurries them, unless somebody else already did. What could not be done only costs time.
pub fn hurry(lock_folder: &Path) -> Result<(), String> {
    let failed = |e: io::Error| {
        format!("the kernel's grace periods could not be hurried ({SWITCH}: {e}); a freeze takes longer")
    };
    let before = match std::fs::read_to_string(SWITCH) {
        Ok(before) => before,
        // A kernel for one processor has no grace periods to wait for.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    if before.trim() != "0" {
        return Ok(());
    }
    std::fs::write(note(lock_folder), before).map_err(failed)?;
    std::fs::write(SWITCH, "1").map_err(|e| {
        let _ = std::fs::remove_file(note(lock_folder));
        failed(e)
    })
}

/// Gives them their own pace back, where a note says that they were hurried. The note goes last.
pub fn calm(lock_folder: &Path) -> io::Result<()> {
    let note = note(lock_folder);
    match std::fs::read(&note) {
        Ok(before) => {
            std::fs::write(SWITCH, before)?;
            std::fs::remove_file(&note)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

fn note(lock_folder: &Path) -> PathBuf {
    lock_folder.join(NOTE)
}
