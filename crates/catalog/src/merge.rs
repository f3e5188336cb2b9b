//! A new restore point is a merge of its sorted listing with the history: what is unchanged is prolonged, what changed begins a new row,
//! what is gone ends.
//!
//! A file is gone only where the walk looked and did not see it: its folder, or one above it, was listed to the end and does not hold what
//! leads to it. Everything else is *unknown* and stays open: below an unreadable folder, after a walk that ended early, behind a mount
//! boundary, outside what the job indexes. No list of such places is needed: the listing itself tells where the walk has been.
//!
//! Knows two streams in the order of their paths, and where rows go.

use crate::error::CatalogError;
use crate::sort::{Fact, Sorted, shared_bytes};
use crate::table::rows::Rows;
use crate::table::write::TableWriter;
use crate::version::{Interval, Version};
use std::cmp::Ordering;

/// What became of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Versions that were seen again.
    pub unchanged: u64,
    /// Files of which another version was seen.
    pub changed: u64,
    /// Files that were not there in the restore point before.
    pub added: u64,
    /// Files that were there in the restore point before, and no more.
    pub gone: u64,
    /// Versions that may still be there: the walk did not look.
    pub unknown: u64,
    /// Rows that were written.
    pub rows: u64,
}

/// Merges `old` with the listing `new` of point `number` into `into`. `newest`: number of the newest point in `old`, 0 without one.
///
/// # Errors
/// When one of the three cannot be read or written.
pub fn merge(
    old: &mut Rows<'_>,
    new: Sorted,
    into: &mut TableWriter,
    newest: u32,
    number: u32,
) -> Result<Counts, CatalogError> {
    let mut new = ByPath::new(new)?;
    let mut looked = Looked::default();
    let mut counts = Counts::default();
    loop {
        let order = match (old.row(), new.path()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(row), Some(path)) => row.path.cmp(path),
        };
        if order == Ordering::Less {
            // The walk saw nothing by this name.
            if let Some(row) = old.row() {
                let mut interval = row.interval;
                if is_open(interval, newest) {
                    if looked.is_gone(row.path) {
                        counts.gone += 1;
                    } else {
                        interval.last = number;
                        counts.unknown += 1;
                    }
                }
                into.push(row.path, row.version, interval)?;
                counts.rows += 1;
            }
            old.advance()?;
            continue;
        }
        if let Some(is_listed) = new.folder() {
            looked.at_folder(&new.path, is_listed);
        }
        let (mut was_there, mut is_prolonged) = (false, false);
        while let Some(row) = old.row().filter(|row| order == Ordering::Equal && row.path == new.path) {
            let mut interval = row.interval;
            if is_open(interval, newest) {
                was_there = true;
                match new.entry {
                    Some(version) if version == *row.version => {
                        interval.last = number;
                        interval.seen = number;
                        is_prolonged = true;
                        counts.unchanged += 1;
                    }
                    Some(_) => {}
                    // A folder that was listed without being an entry of another: it is there, as what nobody said.
                    None => {
                        interval.last = number;
                        counts.unknown += 1;
                    }
                }
            }
            into.push(row.path, row.version, interval)?;
            counts.rows += 1;
            old.advance()?;
        }
        if let Some(version) = new.entry
            && !is_prolonged
        {
            into.push(&new.path, &version, Interval::at(number))?;
            counts.rows += 1;
            if was_there {
                counts.changed += 1;
            } else {
                counts.added += 1;
            }
        }
        new.advance()?;
    }
    Ok(counts)
}

/// Whether a version was there, or was not known to be gone, in the newest point.
fn is_open(interval: Interval, newest: u32) -> bool {
    newest > 0 && interval.last >= newest
}

/// A sorted listing, all facts of one path at a time.
struct ByPath {
    sorted: Sorted,
    path: Vec<u8>,
    entry: Option<Version>,
    ended: bool,
    failed: bool,
    is_folder: bool,
    is_over: bool,
    /// The first fact of the path after this one.
    ahead_path: Vec<u8>,
    ahead: Option<Fact>,
}

impl ByPath {
    fn new(mut sorted: Sorted) -> Result<ByPath, CatalogError> {
        let (ahead_path, ahead) = match sorted.next()? {
            Some((path, fact)) => (path.to_vec(), Some(fact)),
            None => (Vec::new(), None),
        };
        let mut by_path = ByPath {
            sorted,
            path: Vec::new(),
            entry: None,
            ended: false,
            failed: false,
            is_folder: false,
            is_over: false,
            ahead_path,
            ahead,
        };
        by_path.advance()?;
        Ok(by_path)
    }

    /// The path it stands at; none after the last.
    fn path(&self) -> Option<&[u8]> {
        (!self.is_over).then_some(self.path.as_slice())
    }

    /// For a folder: whether it was listed to its end. Nothing for what is none.
    fn folder(&self) -> Option<bool> {
        self.is_folder.then_some(self.ended && !self.failed)
    }

    fn advance(&mut self) -> Result<(), CatalogError> {
        (self.entry, self.ended, self.failed, self.is_folder) = (None, false, false, false);
        let Some(mut fact) = self.ahead.take() else {
            self.is_over = true;
            return Ok(());
        };
        std::mem::swap(&mut self.path, &mut self.ahead_path);
        loop {
            match fact {
                // A file that was listed twice, moved by its folder: what was seen last counts.
                Fact::Entry(version) => {
                    self.is_folder |= version.kind == crate::version::Kind::Folder;
                    self.entry = Some(version);
                }
                Fact::Folder { ended, failed } => {
                    self.is_folder = true;
                    self.ended |= ended;
                    self.failed |= failed;
                }
            }
            let Some((path, next)) = self.sorted.next()? else { return Ok(()) };
            if path != self.path {
                self.ahead_path.clear();
                self.ahead_path.extend_from_slice(path);
                self.ahead = Some(next);
                return Ok(());
            }
            fact = next;
        }
    }
}

/// Where the walk has been, as far as it matters for the paths to come.
///
/// Paths come in order, and every folder above one of them begins like it: so the folders to remember are beginnings of one path.
#[derive(Debug, Default)]
struct Looked {
    path: Vec<u8>,
    /// Length of each folder's path, growing, and whether it was listed to its end.
    folders: Vec<(usize, bool)>,
}

impl Looked {
    fn at_folder(&mut self, path: &[u8], is_listed: bool) {
        self.go(path);
        self.path.clear();
        self.path.extend_from_slice(path);
        self.folders.push((path.len(), is_listed));
    }

    /// Whether the walk would have seen `path`, and did not.
    fn is_gone(&mut self, path: &[u8]) -> bool {
        self.go(path);
        let mut below = path;
        while let Some(slash) = memchr::memrchr(b'/', below) {
            if below == b"/" {
                break;
            }
            let parent = &path[..slash.max(1)];
            if let Ok(at) = self.folders.binary_search_by_key(&parent.len(), |(length, _)| *length) {
                return self.folders[at].1;
            }
            // The folder was not seen either: is it gone?
            below = parent;
        }
        false
    }

    /// Forgets the folders that do not begin like `path`.
    fn go(&mut self, path: &[u8]) {
        let shared = shared_bytes(&self.path, path);
        while self.folders.last().is_some_and(|(length, _)| *length > shared) {
            self.folders.pop();
        }
        self.path.truncate(shared);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked(folders: &[(&str, bool)], path: &str) -> bool {
        let mut looked = Looked::default();
        for (folder, is_listed) in folders {
            looked.at_folder(folder.as_bytes(), *is_listed);
        }
        looked.is_gone(path.as_bytes())
    }

    #[test]
    fn gone_is_what_a_listed_folder_does_not_hold() {
        assert!(looked(&[("/", true)], "/a"));
        assert!(looked(&[("/", true), ("/a", true)], "/a/b"));
        assert!(looked(&[("/", true), ("/a", true), ("/a-b", false)], "/a/b"), "a name that begins alike is another");
        assert!(looked(&[("/", true)], "/a/b/c"), "the folder is gone with all below it");
        assert!(looked(&[("/etc", true)], "/etc/passwd"));
    }

    #[test]
    fn where_nobody_looked_nothing_is_gone() {
        assert!(!looked(&[], "/a"));
        assert!(!looked(&[], "/"));
        assert!(!looked(&[("/", false)], "/a"));
        assert!(!looked(&[("/", true), ("/a", false)], "/a/b"));
        assert!(!looked(&[("/", true), ("/a", false)], "/a/b/c/d"));
        assert!(!looked(&[("/etc", true)], "/var/log"));
        assert!(!looked(&[("/etc", true)], "/etcetera"));
    }
}
