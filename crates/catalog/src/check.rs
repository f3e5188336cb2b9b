//! Reads a whole table and holds it against everything that is true of one.
//!
//! Changes nothing: a damaged table is set aside by whoever stumbles over it while working.

use crate::catalog::Catalog;
use crate::error::CatalogError;
use crate::point::is_alive;
use crate::table::read::Table;
use crate::table::rows::{Row, Rows};
use crate::version::Interval;
use lull_guest_wire::listing::is_folder_path;
use uuid::Uuid;

/// Most problems that are named.
const PROBLEMS_MAX: usize = 20;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckReport {
    /// Restore points in the table.
    pub points: usize,
    /// Rows that were read.
    pub rows: u64,
    /// What is wrong, at most 20 of them; empty when nothing is.
    pub problems: Vec<String>,
}

impl Catalog {
    /// Checks the table of `vm`.
    ///
    /// # Errors
    /// When the VM has no table, or it cannot be read at all; damage is in the report.
    pub fn check(&self, vm: Uuid) -> Result<CheckReport, CatalogError> {
        let mut report = CheckReport::default();
        match self.known_table(vm).and_then(|table| rows(&table, &mut report)) {
            Err(CatalogError::Damaged { path, reason }) => {
                report.problems.push(format!("{}: {reason}", path.display()));
                Ok(report)
            }
            Err(error) => Err(error),
            Ok(()) => Ok(report),
        }
    }
}

fn rows(table: &Table, report: &mut CheckReport) -> Result<(), CatalogError> {
    let header = table.header();
    report.points = header.points.len();
    let mut last: (Vec<u8>, Interval) = (Vec::new(), Interval::at(0));
    let mut rows = Rows::new(Some(table))?;
    while let Some(row) = rows.row() {
        report.rows += 1;
        let Row { path, interval, .. } = row;
        let is_after = last.0.as_slice() < path || (last.0 == path && last.1.last < interval.first);
        let wrongs = [
            (!is_folder_path(path), "its path is no plain absolute one"),
            (!is_after, "it is out of order, or overlaps the version before it"),
            (interval.first > interval.seen || interval.seen > interval.last, "its interval contradicts itself"),
            (interval.last > header.number_highest, "it lies in a restore point that there never was"),
            (!is_alive(&header.points, interval), "it lies in no restore point"),
        ];
        for (_, wrong) in wrongs.iter().filter(|(is_wrong, _)| *is_wrong) {
            if report.problems.len() < PROBLEMS_MAX {
                report.problems.push(format!("row {} ({}): {wrong}", report.rows, path.escape_ascii()));
            }
        }
        if last.0 != path {
            last.0.clear();
            last.0.extend_from_slice(path);
        }
        last.1 = interval;
        rows.advance()?;
    }
    if report.rows != header.rows {
        report.problems.push(format!("{} rows, and {} in its header", report.rows, header.rows));
    }
    Ok(())
}
