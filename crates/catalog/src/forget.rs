//! Retention: restore points go, and with them the rows that lie in no other.
//!
//! Knows nothing of why a point goes.

use crate::catalog::Catalog;
use crate::error::{CatalogError, SetAside};
use crate::point::{Point, is_alive};
use crate::table::rows::Rows;
use std::sync::PoisonError;
use uuid::Uuid;

/// What a retention did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ForgetReport {
    /// Points that were in the table, and are not any more.
    pub points: usize,
    /// Rows that went with them.
    pub rows: u64,
    /// The table, where it was damaged: nothing of it is left to forget.
    pub set_aside: Option<SetAside>,
}

impl Catalog {
    /// Forgets the restore points `ids` of `vm`. Points that are not in its table, or a VM without one, are no error.
    ///
    /// # Errors
    /// When the table cannot be read or written; it is then as it was.
    pub fn forget(&self, vm: Uuid, ids: &[Uuid]) -> Result<ForgetReport, CatalogError> {
        let writer = self.writer(vm);
        let _writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
        let (table, set_aside) = self.sound_table(vm)?;
        let Some(table) = table else { return Ok(ForgetReport { set_aside, ..ForgetReport::default() }) };
        let header = table.header();
        let (gone, living): (Vec<Point>, Vec<Point>) =
            header.points.iter().cloned().partition(|point| ids.contains(&point.id));
        if gone.is_empty() {
            return Ok(ForgetReport::default());
        }
        let mut new = self.new_table(vm)?;
        let mut rows = Rows::new(Some(&table))?;
        while let Some(row) = rows.row() {
            if is_alive(&living, row.interval) {
                new.writer.push(row.path, row.version, row.interval)?;
            }
            rows.advance()?;
        }
        let rows_before = header.rows;
        let written = new.replace(header.number_highest, living)?;
        Ok(ForgetReport { points: gone.len(), rows: rows_before - written.rows, set_aside: None })
    }
}
