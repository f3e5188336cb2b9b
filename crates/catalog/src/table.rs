//! The history table of one VM: a Parquet file, written once from begin to end, never changed.
//!
//! [`header`] says what lies in the file beside its rows, [`write`] makes one, [`read`] and [`rows`] read one, [`delta`] unpacks its paths. Knows rows
//! and their order, not where they come from. docs/catalog-format.md tells the format to strangers.

pub mod delta;
pub mod header;
pub mod paths;
pub mod read;
pub mod rows;
pub mod write;

/// The format that is written.
pub const FORMAT: u32 = 1;
/// Key of the header in the file's metadata.
pub const HEADER_KEY: &str = "lull.catalog";
/// Key of the header's CRC-32, eight hexadecimal digits.
pub const HEADER_CRC_KEY: &str = "lull.catalog.crc32";

/// Most rows of one row group.
pub const GROUP_ROWS_MAX: usize = 64 << 10;
/// A row group ends once its paths are this long together, in bytes.
pub const GROUP_PATH_BYTES_MAX: usize = 16 << 20;

/// The columns, in the order of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// Absolute path, as bytes.
    Path,
    /// Code of `version::KINDS`.
    Kind,
    /// Size in bytes.
    SizeBytes,
    /// Last change of the content.
    MtimeUs,
    /// Permission bits.
    Mode,
    /// Owner.
    Uid,
    /// Group.
    Gid,
    /// Changed between freeze and walk.
    ChangedAfterFreeze,
    /// Number of the first point.
    First,
    /// Number of the last point.
    Last,
    /// Number of the last point whose walk saw it.
    Seen,
}

/// The table's schema in Parquet's own notation.
pub const SCHEMA: &str = "message history {
  required binary path;
  required int32 kind (INTEGER(8, false));
  required int64 size_bytes (INTEGER(64, false));
  required int64 mtime_us (TIMESTAMP(MICROS, true));
  required int32 mode (INTEGER(32, false));
  required int32 uid (INTEGER(32, false));
  required int32 gid (INTEGER(32, false));
  required boolean changed_after_freeze;
  required int32 first (INTEGER(32, false));
  required int32 last (INTEGER(32, false));
  required int32 seen (INTEGER(32, false));
}";
