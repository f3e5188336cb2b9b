//! All rows of a table in their order, one row group in memory at a time.

use super::paths::Paths;
use super::read::{Table, Which};
use crate::error::CatalogError;
use crate::version::{Interval, Version};

/// Stands at a row.
pub struct Rows<'t> {
    table: Option<&'t Table>,
    groups_read: usize,
    paths: Paths,
    versions: Vec<Version>,
    intervals: Vec<Interval>,
    at: usize,
}

/// One row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'r> {
    /// Its path.
    pub path: &'r [u8],
    /// What was there.
    pub version: &'r Version,
    /// In which points.
    pub interval: Interval,
}

impl<'t> Rows<'t> {
    /// All rows of `table`, or none.
    ///
    /// # Errors
    /// When the first row group cannot be read.
    pub fn new(table: Option<&'t Table>) -> Result<Rows<'t>, CatalogError> {
        let (versions, intervals) = (Vec::new(), Vec::new());
        let mut rows = Rows { table, groups_read: 0, paths: Paths::default(), versions, intervals, at: 0 };
        rows.load()?;
        Ok(rows)
    }

    /// The row that it stands at; none after the last.
    pub fn row(&self) -> Option<Row<'_>> {
        let version = self.versions.get(self.at)?;
        Some(Row { path: self.paths.get(self.at), version, interval: self.intervals[self.at] })
    }

    /// On to the next row.
    ///
    /// # Errors
    /// When the next row group cannot be read.
    pub fn advance(&mut self) -> Result<(), CatalogError> {
        self.at += 1;
        if self.at >= self.versions.len() { self.load() } else { Ok(()) }
    }

    fn load(&mut self) -> Result<(), CatalogError> {
        self.at = 0;
        self.versions.clear();
        let Some(table) = self.table else { return Ok(()) };
        while self.versions.is_empty() && self.groups_read < table.header().groups.len() {
            let group = table.group(self.groups_read)?;
            self.groups_read += 1;
            group.paths(&mut self.paths)?;
            self.versions = group.versions(Which::All)?;
            self.intervals = group.intervals(Which::All)?;
        }
        Ok(())
    }
}
