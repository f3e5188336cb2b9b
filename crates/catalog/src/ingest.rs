//! Takes the listing of a restore point in: decode, sort, merge with the history, replace the table.
//!
//! In bounded memory: one unpacked frame, the sort's run ([`crate::sort::SORT_BYTES_MAX`]), one row group of the old table and one of the
//! new. Knows nothing of how the frames came here.

use crate::catalog::Catalog;
use crate::error::{CatalogError, SetAside};
use crate::frames::{Decoder, FrameTrouble, Item};
use crate::merge::{Counts, merge};
use crate::point::{Point, Walk};
use crate::sort::{Fact, PATH_BYTES_MAX, Sorter, joined_bytes};
use crate::table::read::Table;
use crate::table::rows::Rows;
use lull_guest_wire::listing::IndexSummary;
use std::io;
use std::sync::PoisonError;
use uuid::Uuid;

/// Most entries, and most pieces of folders, that are taken of one restore point; what comes after them stays unknown.
pub const ENTRIES_MAX: u64 = 50_000_000;
/// Most bytes that the paths of one restore point may have together; what comes after them stays unknown. It bounds the disk that a guest
/// of endless names can take while its listing is sorted.
pub const LISTING_PATH_BYTES_MAX: u64 = 8 << 30;
/// So many of them are taken of any listing: about ten million entries of a real tree.
pub const PATH_BYTES_OF_ANY: u64 = 1 << 30;
/// Beyond those, so many for each byte that the listing had when it came, compressed. Listings of real trees have 10 to 50; one that has
/// thousands was made to fill a disk.
pub const PATH_BYTES_PER_COMPRESSED: u64 = 256;

/// The restore point that a listing belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewPoint {
    /// The restore point.
    pub id: Uuid,
    /// Its number within the VM, from 1: grows, is never used again.
    pub number: u32,
    /// When its snapshot was taken, in microseconds since 1970 of the server's clock.
    pub taken_at_us: i64,
}

/// What an ingest did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IngestOutcome {
    /// The listing is in the table now.
    Ingested(Box<IngestReport>),
    /// It was before. Nothing was done, no frame was read.
    AlreadyThere,
}

/// What an ingest found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngestReport {
    /// The point as the table keeps it. Its walk says whether everything came in, and why not.
    pub point: Point,
    /// What became of the files.
    pub counts: Counts,
    /// Runs that did not fit into memory.
    pub runs: usize,
    /// Size of the new table, in bytes.
    pub table_bytes: u64,
    /// The old table, where it was damaged: the history begins with this point.
    pub set_aside: Option<SetAside>,
}

impl Catalog {
    /// Takes in what a walk of `vm` sent for `point`. The same point again changes nothing. After an error, or a kill at any
    /// moment, the table is as it was before, and the ingest can be repeated.
    ///
    /// A frame that is none ends the listing there: what came before it counts, everything else is unknown.
    ///
    /// # Errors
    /// When a point of a higher number was indexed before, the frames cannot be read, the table cannot be written, or there is no room for it.
    pub fn ingest(
        &self,
        vm: Uuid,
        point: &NewPoint,
        frames: &mut dyn Iterator<Item = io::Result<Vec<u8>>>,
        summary: &IndexSummary,
    ) -> Result<IngestOutcome, CatalogError> {
        let writer = self.writer(vm);
        let _writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
        let (old, set_aside) = self.sound_table(vm)?;
        let mut points = Vec::new();
        let mut newest = 0;
        if let Some(old) = &old {
            let header = old.header();
            if header.point(point.id).is_some() {
                return Ok(IngestOutcome::AlreadyThere);
            }
            if point.number <= header.number_highest {
                return Err(CatalogError::OutOfOrder { number: point.number, highest: header.number_highest });
            }
            newest = header.number_newest();
            points.clone_from(&header.points);
        }

        let mut new = self.new_table(vm)?;
        let mut walk = Walk::from_summary(summary);
        let mut sorter = Sorter::new(&self.vm_folder(vm), self.bounds.sort_bytes_max, self.room.clone());
        let taken = take_frames(frames, &mut sorter, self.bounds.path_bytes_of_any)?;
        walk.entries = taken.entries;
        if let Some(reason) = taken.stopped_because {
            walk.complete = false;
            walk.stopped_because.get_or_insert(reason);
        }
        let runs = sorter.runs();
        let counts = merge(&mut Rows::new(old.as_ref())?, sorter.finish()?, &mut new.writer, newest, point.number)?;
        let point = Point { id: point.id, number: point.number, taken_at_us: point.taken_at_us, walk };
        points.push(point.clone());
        new.replace(point.number, points)?;
        let table_bytes = self.table_bytes(vm)?;
        Ok(IngestOutcome::Ingested(Box::new(IngestReport { point, counts, runs, table_bytes, set_aside })))
    }

    /// The table of a VM after all its bytes were checked. A damaged one is set aside. Under the writer's lock.
    pub(crate) fn sound_table(&self, vm: Uuid) -> Result<(Option<Table>, Option<SetAside>), CatalogError> {
        let checked = self.table(vm).and_then(|table| {
            if let Some(table) = &table {
                for index in 0..table.header().groups.len() {
                    table.group(index)?;
                }
            }
            Ok(table)
        });
        match checked {
            Ok(table) => Ok((table, None)),
            Err(CatalogError::Damaged { reason, .. }) => Ok((None, Some(self.rename_aside(vm, reason)?))),
            Err(error) => Err(error),
        }
    }
}

/// What came in.
#[derive(Default)]
struct Taken {
    entries: u64,
    folders: u64,
    path_bytes: u64,
    path_bytes_max: u64,
    stopped_because: Option<String>,
}

impl Taken {
    /// Counts a fact about a path of so many bytes, unless it is too much.
    fn admits(&mut self, path_bytes: usize) -> bool {
        self.path_bytes += path_bytes as u64;
        let is_too_much = self.entries.max(self.folders) == ENTRIES_MAX
            || self.path_bytes > self.path_bytes_max.min(LISTING_PATH_BYTES_MAX);
        if is_too_much {
            self.stopped_because =
                Some(format!("more than the catalog takes of one listing: {} entries were taken", self.entries));
        }
        !is_too_much
    }
}

fn take_frames(
    frames: &mut dyn Iterator<Item = io::Result<Vec<u8>>>,
    sorter: &mut Sorter,
    path_bytes_of_any: u64,
) -> Result<Taken, CatalogError> {
    let mut decoder = Decoder::new().map_err(CatalogError::Listing)?;
    let mut taken = Taken { path_bytes_max: path_bytes_of_any, ..Taken::default() };
    // In the folder that is being read: a path was longer than any that is kept.
    let mut lacks_entries = false;
    for frame in frames {
        let frame = frame.map_err(CatalogError::Listing)?;
        taken.path_bytes_max += frame.len() as u64 * PATH_BYTES_PER_COMPRESSED;
        let outcome = decoder.decode(&frame, &mut |item| {
            if taken.stopped_because.is_some() {
                return Ok(());
            }
            match item {
                Item::Entry { folder, name, version } => {
                    let bytes = joined_bytes(folder, Some(name));
                    if bytes > PATH_BYTES_MAX {
                        lacks_entries = true;
                        return Ok(());
                    }
                    if !taken.admits(bytes) {
                        return Ok(());
                    }
                    taken.entries += 1;
                    sorter.push(folder, Some(name), Fact::Entry(version))
                }
                Item::Folder { path, ended, failed } => {
                    let failed = failed | std::mem::take(&mut lacks_entries);
                    if path.len() > PATH_BYTES_MAX || !taken.admits(path.len()) {
                        return Ok(());
                    }
                    taken.folders += 1;
                    sorter.push(path, None, Fact::Folder { ended, failed })
                }
            }
        });
        match outcome {
            Ok(()) => {}
            Err(FrameTrouble::Taker(error)) => return Err(error),
            Err(FrameTrouble::Bad(reason)) => {
                taken.stopped_because = Some(format!("the guest sent something else than a listing: {reason}"));
            }
        }
        if taken.stopped_because.is_some() {
            break;
        }
    }
    Ok(taken)
}
