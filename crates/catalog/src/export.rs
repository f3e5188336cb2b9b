//! Writes a VM's history, or one restore point of it, as CSV or as JSON lines, row by row.
//!
//! A path that is no UTF-8 is in neither: it stands there with U+FFFD in the place of what is none, and exactly, as hexadecimal digits, beside it.

use crate::browse::number_of;
use crate::catalog::Catalog;
use crate::error::CatalogError;
use crate::point::presence;
use crate::table::header::hexadecimal_digits;
use crate::table::rows::Rows;
use crate::version::kind_name;
use serde::Serialize;
use std::borrow::Cow;
use std::io::{self, Write};
use uuid::Uuid;

/// How an export is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// RFC 4180 with a line of names, lines ended by CR LF.
    Csv,
    /// One JSON object a line.
    JsonLines,
}

/// One row of an export.
#[derive(Serialize)]
struct ExportRow<'r> {
    path: Cow<'r, str>,
    /// Only where the path is no UTF-8.
    path_hex: Option<String>,
    kind: &'static str,
    size_bytes: u64,
    mtime_us: i64,
    mode: u32,
    uid: u32,
    gid: u32,
    changed_after_freeze: bool,
    first_point: Uuid,
    last_point: Uuid,
    points: usize,
    /// Of them, those whose walk did not look there.
    unknown_points: usize,
}

const CSV_HEAD: &str = "path,path_hex,kind,size_bytes,mtime_us,mode,uid,gid,changed_after_freeze,first_point,last_point,points,unknown_points\r\n";

impl Catalog {
    /// Writes all rows of `vm`, or those that existed in `point`, to `to`. Says how many they were.
    ///
    /// # Errors
    /// When the VM or the point has no catalog, the table cannot be read, or `to` cannot be written.
    pub fn export(
        &self,
        vm: Uuid,
        point: Option<Uuid>,
        format: ExportFormat,
        to: &mut dyn Write,
    ) -> Result<u64, CatalogError> {
        let table = self.known_table(vm)?;
        let number = number_of(&table, vm, point)?;
        if format == ExportFormat::Csv {
            to.write_all(CSV_HEAD.as_bytes()).map_err(CatalogError::Export)?;
        }
        let mut rows = Rows::new(Some(&table))?;
        let mut written = 0;
        while let Some(row) = rows.row() {
            let points = presence(&table.header().points, row.interval);
            if number.is_none_or(|number| row.interval.contains(number))
                && let (Some(first), Some(last)) = (points.first(), points.last())
            {
                let path = String::from_utf8_lossy(row.path);
                let export = ExportRow {
                    path_hex: matches!(path, Cow::Owned(_)).then(|| hexadecimal_digits(row.path)),
                    path,
                    kind: kind_name(row.version.kind),
                    size_bytes: row.version.size_bytes,
                    mtime_us: row.version.mtime_us,
                    mode: row.version.mode,
                    uid: row.version.uid,
                    gid: row.version.gid,
                    changed_after_freeze: row.version.changed_after_freeze,
                    first_point: first.id,
                    last_point: last.id,
                    points: points.len(),
                    unknown_points: points.iter().filter(|point| !point.known).count(),
                };
                match format {
                    ExportFormat::Csv => write_csv(&export, to),
                    ExportFormat::JsonLines => write_json(&export, to),
                }
                .map_err(CatalogError::Export)?;
                written += 1;
            }
            rows.advance()?;
        }
        to.flush().map_err(CatalogError::Export)?;
        Ok(written)
    }
}

fn write_json(row: &ExportRow<'_>, to: &mut dyn Write) -> io::Result<()> {
    let mut line = serde_json::to_vec(row)?;
    line.push(b'\n');
    to.write_all(&line)
}

fn write_csv(row: &ExportRow<'_>, to: &mut dyn Write) -> io::Result<()> {
    write!(
        to,
        "{},{},{},{},{},{},{},{},{},{},{},{},{}\r\n",
        quoted(&row.path),
        row.path_hex.as_deref().unwrap_or_default(),
        row.kind,
        row.size_bytes,
        row.mtime_us,
        row.mode,
        row.uid,
        row.gid,
        row.changed_after_freeze,
        row.first_point,
        row.last_point,
        row.points,
        row.unknown_points,
    )
}

fn quoted(text: &str) -> Cow<'_, str> {
    if text.contains(['"', ',', '\r', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\"")).into()
    } else {
        text.into()
    }
}
