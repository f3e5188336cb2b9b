//! What can go wrong with a catalog, in words for people. Knows no remedy but the one it names.

use std::io;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Why the catalog could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The disk refused: permanent or not, nothing of the catalog was lost.
    #[error("the catalog could not {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// More would have been written than the disk has room for. Nothing of the catalog was lost; may be tried again once there is room.
    #[error(
        "the disk is full: {} MiB are free in {}, {} are needed, of which {} stay free for the server: make room on that disk",
        free_bytes >> 20, folder.display(), needed_bytes.saturating_add(*kept_bytes).div_ceil(1 << 20), kept_bytes >> 20
    )]
    Full {
        /// Where it would have been written.
        folder: PathBuf,
        /// Free there.
        free_bytes: u64,
        /// What the next piece may take.
        needed_bytes: u64,
        /// What must stay free.
        kept_bytes: u64,
    },
    /// A table that says something else than was written into it.
    #[error("the catalog table {} is damaged: {reason}", path.display())]
    Damaged {
        /// The table.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A table of a later version of Lull.
    #[error("the catalog table {} has format {found}, this version of Lull reads up to {known}: use the one that wrote it", path.display())]
    Format {
        /// The table.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The latest that we read.
        known: u32,
    },
    /// Points come in the order of their numbers.
    #[error(
        "restore point number {number} cannot be indexed: number {highest} was indexed before; it stays without an index"
    )]
    OutOfOrder {
        /// The number that came.
        number: u32,
        /// The highest that ever came.
        highest: u32,
    },
    /// The spooled listing could not be read. May be tried again.
    #[error("the listing of the restore point could not be read")]
    Listing(#[source] io::Error),
    /// Nothing is known of this VM.
    #[error("VM {0} has no catalog: none of its restore points was indexed")]
    NoTable(Uuid),
    /// Nothing is known of this restore point.
    #[error("restore point {point} of VM {vm} is not in the catalog: it was not indexed, or it expired")]
    NoPoint {
        /// The VM.
        vm: Uuid,
        /// The restore point.
        point: Uuid,
    },
    /// A pattern that cannot be searched for.
    #[error("the pattern cannot be searched for: {0}")]
    Pattern(String),
    /// A page token that is none of ours.
    #[error("the page token is not one that a search gave out: begin again without it")]
    Token,
    /// More hits in one page than are held in memory.
    #[error("a page of {asked} hits ordered by time is too large: at most {max}; ask for pages, or order by path")]
    Limit {
        /// What was asked for.
        asked: usize,
        /// What is allowed.
        max: usize,
    },
    /// The place where an export goes refused.
    #[error("the export could not be written")]
    Export(#[source] io::Error),
}

impl CatalogError {
    /// For `map_err`: what was tried, on which path.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CatalogError {
        move |source| CatalogError::Io { action, path: path.to_path_buf(), source }
    }

    pub(crate) fn damaged(path: &Path, reason: impl Into<String>) -> CatalogError {
        CatalogError::Damaged { path: path.to_path_buf(), reason: reason.into() }
    }
}

/// A damaged table that was taken out of the way; the VM's next restore point begins a new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// Whose table.
    pub vm: Uuid,
    /// Where it lies now.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}
