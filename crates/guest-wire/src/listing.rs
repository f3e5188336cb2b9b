//! What a walk of the guest's file systems found: folders with their entries, in pieces that fit one frame.
//!
//! Says how much one piece may hold. Knows nothing of compression, of how a guest is walked, or of what becomes of the entries.

use serde::{Deserialize, Serialize};

/// Longest compressed piece (one zstd frame around one [`Listing`]), in bytes.
pub const LISTING_COMPRESSED_BYTES_MAX: usize = 256 * 1024;
/// Longest [`Listing`] in postcard, in bytes.
pub const LISTING_UNPACKED_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most examples in an [`IndexSummary`].
pub const LISTING_EXAMPLES_MAX: usize = 20;

/// One piece of a walk. Pieces, folders and entries come in no order, but the pieces of one folder come one after another.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Listing {
    /// Folders, whole or in part.
    pub folders: Vec<FolderListing>,
}

/// What lies directly in one folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderListing {
    /// Absolute path, `/` or without one at the end.
    pub path: Vec<u8>,
    /// Why the folder, or an entry of it, could not be read. What is not listed is then unknown, not gone.
    pub error: Option<String>,
    /// Another piece of the same folder follows.
    pub more: bool,
    /// What was found in it.
    pub entries: Vec<Entry>,
}

/// One entry of a folder, itself and not what it points to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name: no `/`, no NUL, neither `.` nor `..`; not necessarily UTF-8.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Its size in bytes, as `stat` tells it.
    pub size_bytes: u64,
    /// When its content was last changed, in microseconds since 1970 of the guest's clock.
    pub mtime_us: i64,
    /// Permission bits, with set-user, set-group and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Its ctime lies after the freeze: in the restore point it may be another version, or missing.
    pub changed_after_freeze: bool,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// How a walk went.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IndexSummary {
    /// When it began, in microseconds since 1970 of the guest's clock.
    pub began_us: i64,
    /// When it ended, likewise.
    pub ended_us: i64,
    /// Folders that were listed.
    pub folders: u64,
    /// Entries that were listed.
    pub entries: u64,
    /// Folders that could not be read.
    pub unreadable_folders: u64,
    /// Entries of which nothing but the name could be read.
    pub unreadable_entries: u64,
    /// Entries that went while the walk looked at them.
    pub vanished: u64,
    /// Everything that was asked for was walked.
    pub complete: bool,
    /// Why the walk ended before that.
    pub stopped_because: Option<String>,
    /// Some unreadable paths with their errors, at most [`LISTING_EXAMPLES_MAX`].
    pub examples: Vec<String>,
}
