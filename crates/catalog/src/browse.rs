//! Looks into one folder of a VM, in one restore point or over all of them; and all versions of one path.
//!
//! Reads the row groups that hold something of that folder, and skips those that hold only what lies deeper. Knows nothing of patterns.

use crate::catalog::Catalog;
use crate::error::CatalogError;
use crate::point::{Point, Presence, presence};
use crate::table::paths::Paths;
use crate::table::read::{Table, Which};
use crate::version::{Interval, Version};
use std::ops::ControlFlow;
use uuid::Uuid;

/// One entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrowseEntry {
    /// Its name.
    pub name: Vec<u8>,
    /// Its versions, the newest first; in one restore point at most one. None: a folder of which only what lies below was indexed.
    pub versions: Vec<FileVersion>,
}

/// A version of a file with the restore points in which it existed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileVersion {
    /// What it was.
    pub version: Version,
    /// Where it existed, ordered by number.
    pub points: Vec<Presence>,
}

impl Catalog {
    /// Tells `entry` what lies directly in `folder` (absolute, `/` or without one at its end), in `point` or in any, ordered by path, until it
    /// breaks off. Says how many entries it told.
    ///
    /// # Errors
    /// When the VM or the point has no catalog, or the table cannot be read.
    pub fn browse(
        &self,
        vm: Uuid,
        point: Option<Uuid>,
        folder: &[u8],
        entry: &mut dyn FnMut(BrowseEntry) -> ControlFlow<()>,
    ) -> Result<u64, CatalogError> {
        let table = self.known_table(vm)?;
        let number = number_of(&table, vm, point)?;
        let mut begin = folder.to_vec();
        if begin.last() != Some(&b'/') {
            begin.push(b'/');
        }
        let mut look = Look {
            points: &table.header().points,
            end: after_slash(&begin),
            begin,
            skip_to: Vec::new(),
            told_names: Vec::new(),
            pending: None,
            told: 0,
            entry,
        };
        match look.through(&table, number)? {
            ControlFlow::Continue(()) | ControlFlow::Break(()) => Ok(look.told),
        }
    }

    /// All versions of one path, the newest first; none where nothing is known of it.
    ///
    /// # Errors
    /// When the VM has no catalog, or its table cannot be read.
    pub fn versions(&self, vm: Uuid, path: &[u8]) -> Result<Vec<FileVersion>, CatalogError> {
        let table = self.known_table(vm)?;
        let mut versions = Vec::new();
        let mut paths = Paths::default();
        for (index, group) in table.header().groups.iter().enumerate() {
            if path < group.path_first.as_slice() || group.path_last.as_slice() < path {
                continue;
            }
            let reader = table.group(index)?;
            reader.paths(&mut paths)?;
            let rows = first_from(&paths, 0, path)..first_from(&paths, 0, &[path, b"\0"].concat());
            if rows.is_empty() {
                continue;
            }
            let rows: Vec<usize> = rows.collect();
            let rows = reader.versions(Which::These(&rows))?.into_iter().zip(reader.intervals(Which::These(&rows))?);
            versions.extend(rows.map(|(version, interval)| FileVersion {
                version,
                points: presence(&table.header().points, interval),
            }));
        }
        versions.reverse();
        Ok(versions)
    }
}

/// The number of a point that has to be in the table.
pub(crate) fn number_of(table: &Table, vm: Uuid, point: Option<Uuid>) -> Result<Option<u32>, CatalogError> {
    let Some(id) = point else { return Ok(None) };
    let point = table.header().point(id).ok_or(CatalogError::NoPoint { vm, point: id })?;
    Ok(Some(point.number))
}

/// What comes right after everything that begins with `begin`, which ends with a `/`.
fn after_slash(begin: &[u8]) -> Vec<u8> {
    let mut end = begin.to_vec();
    if let Some(last) = end.last_mut() {
        *last = b'/' + 1;
    }
    end
}

/// The first row at `from` or after whose path is `path` or comes after it.
fn first_from(paths: &Paths, from: usize, path: &[u8]) -> usize {
    let (mut low, mut high) = (from, paths.len());
    while low < high {
        let middle = low + (high - low) / 2;
        if paths.get(middle) < path {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

struct Look<'l> {
    points: &'l [Point],
    /// Everything below the folder lies from `begin` to before `end`.
    begin: Vec<u8>,
    end: Vec<u8>,
    /// What comes before this lies deeper than one level.
    skip_to: Vec<u8>,
    /// Names told that the next name may begin with: the folder `a` comes before `a-b`, and that before what is in `a`.
    told_names: Vec<Vec<u8>>,
    pending: Option<BrowseEntry>,
    told: u64,
    entry: &'l mut dyn FnMut(BrowseEntry) -> ControlFlow<()>,
}

impl Look<'_> {
    fn through(&mut self, table: &Table, number: Option<u32>) -> Result<ControlFlow<()>, CatalogError> {
        let mut paths = Paths::default();
        for (index, group) in table.header().groups.iter().enumerate() {
            let lies_elsewhere = group.path_last < self.begin || group.path_first >= self.end;
            let is_other_time = number.is_some_and(|number| number < group.first_min || group.last_max < number);
            if lies_elsewhere || is_other_time || group.path_last < self.skip_to {
                continue;
            }
            let reader = table.group(index)?;
            reader.paths(&mut paths)?;
            let intervals = reader.intervals(Which::All)?;
            let mut versions = None;
            let mut row = first_from(&paths, 0, self.begin.as_slice().max(&self.skip_to));
            while row < paths.len() && paths.get(row) < self.end.as_slice() {
                let interval = intervals[row];
                if number.is_some_and(|number| !interval.contains(number)) {
                    row += 1;
                    continue;
                }
                let below = &paths.get(row)[self.begin.len()..];
                if let Some(slash) = memchr::memchr(b'/', below) {
                    self.skip_to = after_slash(&[self.begin.as_slice(), &below[..=slash]].concat());
                    if self.at_folder_without_row(&below[..slash]).is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                    row = first_from(&paths, row, &self.skip_to);
                    continue;
                }
                let versions = match &mut versions {
                    Some(versions) => versions,
                    none => none.insert(reader.versions(Which::All)?),
                };
                if self.at_row(below, versions[row], interval).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                row += 1;
            }
        }
        Ok(self.tell_pending())
    }

    fn at_row(&mut self, name: &[u8], version: Version, interval: Interval) -> ControlFlow<()> {
        let version = FileVersion { version, points: presence(self.points, interval) };
        match &mut self.pending {
            Some(pending) if pending.name == name => {
                pending.versions.insert(0, version);
                ControlFlow::Continue(())
            }
            _ => {
                self.tell_pending()?;
                self.remember(name);
                self.pending = Some(BrowseEntry { name: name.to_vec(), versions: vec![version] });
                ControlFlow::Continue(())
            }
        }
    }

    fn at_folder_without_row(&mut self, name: &[u8]) -> ControlFlow<()> {
        self.told_names.retain(|told| name.starts_with(told));
        if self.told_names.iter().any(|told| told == name) {
            return ControlFlow::Continue(());
        }
        self.tell_pending()?;
        self.remember(name);
        self.pending = Some(BrowseEntry { name: name.to_vec(), versions: Vec::new() });
        ControlFlow::Continue(())
    }

    fn remember(&mut self, name: &[u8]) {
        self.told_names.retain(|told| name.starts_with(told));
        self.told_names.push(name.to_vec());
    }

    fn tell_pending(&mut self) -> ControlFlow<()> {
        let Some(pending) = self.pending.take() else { return ControlFlow::Continue(()) };
        self.told += 1;
        (self.entry)(pending)
    }
}
