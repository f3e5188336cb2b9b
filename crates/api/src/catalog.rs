//! The file catalog, as the REST interface shows it. Long answers come as JSON lines, one [`CatalogLine`] each.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// One line of an answer. The last one is always `end` or `failed`; an answer without it broke off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CatalogLine {
    /// A version of a file that a search found.
    Hit(FileHit),
    /// An entry of a folder.
    Entry(FolderEntry),
    /// That was all.
    End(CatalogEnd),
    /// It could not be told to its end.
    Failed(crate::Problem),
}

/// A version of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileHit {
    /// The VM's name.
    pub vm: String,
    /// The VM's id.
    pub vm_id: Uuid,
    /// The absolute path; what is no UTF-8 in it stands there as U+FFFD.
    pub path: String,
    /// The path's bytes as hexadecimal digits, only where it is no UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// What it was, and where.
    #[serde(flatten)]
    pub version: FileVersion,
}

/// An entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FolderEntry {
    /// Its name.
    pub name: String,
    /// The name's bytes as hexadecimal digits, only where it is no UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_hex: Option<String>,
    /// Its versions, the newest first; none for a folder of which only what lies below was indexed.
    pub versions: Vec<FileVersion>,
}

/// What a file was, and in which restore points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileVersion {
    /// `file`, `folder`, `symlink`, `fifo`, `socket`, `char-device` or `block-device`.
    pub kind: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// When its content was changed last, by the guest's clock.
    pub modified_at: String,
    /// Permission bits, as a number.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// It was changed after the freeze: the restore point may hold an earlier version.
    pub changed_after_freeze: bool,
    /// The restore points in which it existed, oldest first.
    pub restore_points: Vec<FileAt>,
}

/// A restore point in which a version existed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileAt {
    /// The restore point.
    pub id: Uuid,
    /// When it was taken.
    pub taken_at: String,
    /// False where its walk did not look there: an earlier one saw this version, and nothing says otherwise.
    pub known: bool,
}

/// How an answer ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CatalogEnd {
    /// Hits or entries that were told.
    pub told: u64,
    /// Where the next page begins: `page` of the next request. Nothing where this was the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_page: Option<String>,
    /// What the answer lacks: tables that are damaged or cannot be read; the restore point that was asked for, where it has no index
    /// or its listing is not complete.
    #[serde(default)]
    pub missing: Vec<String>,
    /// Where no restore point was asked for: those of which the catalog does not know everything, by VM. They have no index, or a
    /// listing that is not complete.
    #[serde(default)]
    pub unknown: Vec<String>,
    /// Restore points whose files are not in the catalog yet.
    #[serde(default)]
    pub pending: Vec<Uuid>,
}

/// What the catalog knows of one VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CatalogTable {
    /// The VM's name.
    pub vm: String,
    /// The VM's id.
    pub vm_id: Uuid,
    /// Its indexed restore points, oldest first.
    pub restore_points: Vec<IndexedPoint>,
    /// Bytes of its table on disk.
    pub bytes: u64,
    /// Restore points whose files are not in the catalog yet, and why not where that is known.
    pub pending: Vec<PendingPoint>,
    /// Why the table cannot be read; tables that were set aside because they were damaged; restore points whose listings were given up.
    pub problems: Vec<String>,
}

/// An indexed restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IndexedPoint {
    /// The restore point.
    pub id: Uuid,
    /// When it was taken.
    pub taken_at: String,
    /// Files, folders and everything else that was listed.
    pub entries: u64,
    /// Everything that was asked for was listed.
    pub complete: bool,
    /// Why not, where not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_because: Option<String>,
    /// Folders and entries that could not be read.
    pub unreadable: u64,
    /// Some of them, with the errors.
    #[serde(default)]
    pub examples: Vec<String>,
}

/// A restore point whose files are not in the catalog yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PendingPoint {
    /// The restore point.
    pub id: Uuid,
    /// Why not, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}
