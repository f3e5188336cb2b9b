//! How much of its disk the catalog may take. Whoever opens it decides; here it is only asked, before each piece that is written.
//! Knows nothing of disks.

use crate::error::CatalogError;
use std::path::Path;
use std::sync::Arc;

/// Why a piece may not be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRoom {
    /// Free on the disk, in bytes.
    pub free_bytes: u64,
    /// Of which so many are kept for others.
    pub kept_bytes: u64,
}

type Ask = dyn Fn(&Path, u64) -> Result<(), NoRoom> + Send + Sync;

/// Asked before each run of a sort and each row group of a table, with the folder and more bytes than the piece can have.
#[derive(Clone)]
pub struct Room(Arc<Ask>);

impl Room {
    /// As this says.
    pub fn new(ask: impl Fn(&Path, u64) -> Result<(), NoRoom> + Send + Sync + 'static) -> Room {
        Room(Arc::new(ask))
    }

    /// As much as the disk has.
    pub fn whole_disk() -> Room {
        Room::new(|_, _| Ok(()))
    }

    pub(crate) fn ask(&self, folder: &Path, needed_bytes: u64) -> Result<(), CatalogError> {
        let NoRoom { free_bytes, kept_bytes } = match (self.0)(folder, needed_bytes) {
            Ok(()) => return Ok(()),
            Err(no_room) => no_room,
        };
        Err(CatalogError::Full { folder: folder.to_path_buf(), free_bytes, needed_bytes, kept_bytes })
    }
}
