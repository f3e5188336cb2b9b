//! Makes a table: rows in their order in, a Parquet file with its header out.
//!
//! Holds one row group in memory. Knows nothing of where the file lies or how it gets its name.

use super::header::{Group, Header};
use super::paths::Paths;
use super::read::place;
use super::{FORMAT, GROUP_PATH_BYTES_MAX, GROUP_ROWS_MAX, HEADER_CRC_KEY, HEADER_KEY, SCHEMA};
use crate::error::CatalogError;
use crate::point::Point;
use crate::room::Room;
use crate::version::{Interval, Version, kind_code};
use bytes::Bytes;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// Level of zstd: beyond it a table shrinks by little and takes long.
const ZSTD_LEVEL: i32 = 3;
/// Pages are as large as their row group: a table is read by row groups. In bytes, before compression.
const PAGE_BYTES_MAX: usize = 64 << 20;
/// No row takes more beside its path, whatever it holds, in bytes.
const ROW_BYTES_MAX: u64 = 96;
/// No row group takes more in the file's own metadata, beside what the header says of it, in bytes.
const GROUP_METADATA_BYTES_MAX: u64 = 16 << 10;

/// Writes one table.
pub struct TableWriter {
    path: PathBuf,
    room: Room,
    parquet: SerializedFileWriter<Summing>,
    rows: Rows,
    group_rows_max: usize,
    header: Header,
}

/// The rows of one row group.
#[derive(Default)]
struct Rows {
    paths: Paths,
    kind: Vec<i32>,
    size_bytes: Vec<i64>,
    mtime_us: Vec<i64>,
    mode: Vec<i32>,
    uid: Vec<i32>,
    gid: Vec<i32>,
    changed_after_freeze: Vec<bool>,
    first: Vec<i32>,
    last: Vec<i32>,
    seen: Vec<i32>,
}

impl TableWriter {
    /// Begins a table in the empty `file`, which is called `path` in errors, with row groups of at most `group_rows_max` rows, each of
    /// which is only written where there is `room`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn new(
        file: File,
        path: &Path,
        vm: Uuid,
        group_rows_max: usize,
        room: Room,
    ) -> Result<TableWriter, CatalogError> {
        let trouble = |error| write_error(path, error);
        let schema = Arc::new(parse_message_type(SCHEMA).map_err(trouble)?);
        let properties = Arc::new(properties().map_err(trouble)?);
        let sink = Summing { file, crc: crc32fast::Hasher::new() };
        let parquet = SerializedFileWriter::new(sink, schema, properties).map_err(trouble)?;
        let header = Header { format: FORMAT, vm, number_highest: 0, rows: 0, points: Vec::new(), groups: Vec::new() };
        let group_rows_max = group_rows_max.clamp(1, GROUP_ROWS_MAX);
        Ok(TableWriter { path: path.to_path_buf(), room, parquet, rows: Rows::default(), group_rows_max, header })
    }

    /// Adds a row. Rows come ordered by path, then by `first`.
    ///
    /// # Errors
    /// When the file cannot be written, or there is no room for it.
    pub fn push(&mut self, path: &[u8], version: &Version, interval: Interval) -> Result<(), CatalogError> {
        let rows = &mut self.rows;
        let full = rows.paths.len() == self.group_rows_max || rows.paths.bytes() + path.len() > GROUP_PATH_BYTES_MAX;
        if full && !rows.paths.is_empty() {
            self.end_group()?;
        }
        let rows = &mut self.rows;
        rows.paths.push(path);
        rows.kind.push(kind_code(version.kind));
        // Parquet's unsigned numbers travel as signed ones of the same bits.
        rows.size_bytes.push(version.size_bytes as i64);
        rows.mtime_us.push(version.mtime_us);
        rows.mode.push(version.mode as i32);
        rows.uid.push(version.uid as i32);
        rows.gid.push(version.gid as i32);
        rows.changed_after_freeze.push(version.changed_after_freeze);
        rows.first.push(interval.first as i32);
        rows.last.push(interval.last as i32);
        rows.seen.push(interval.seen as i32);
        Ok(())
    }

    fn end_group(&mut self) -> Result<(), CatalogError> {
        let paths = &self.rows.paths;
        self.ask_room(paths.bytes() as u64 + paths.len() as u64 * ROW_BYTES_MAX)?;
        let offset = self.begin_sum()?;
        let path = &self.path;
        let smallest = |numbers: &[i32]| numbers.iter().map(|n| *n as u32).min().unwrap_or(0);
        let greatest = |numbers: &[i32]| numbers.iter().map(|n| *n as u32).max().unwrap_or(0);
        let rows = &mut self.rows;
        let count = rows.paths.len();
        let (path_first, path_last) = (rows.paths.get(0).to_vec(), rows.paths.last().to_vec());
        let (first_min, last_max) = (smallest(&rows.first), greatest(&rows.last));
        let mut group = self.parquet.next_row_group().map_err(|error| write_error(path, error))?;
        rows.write(&mut group).map_err(|error| write_error(path, error))?;
        let written = group.close().map_err(|error| write_error(path, error))?;
        self.parquet.flush().map_err(CatalogError::io("write", path))?;
        let crc32 = self.parquet.inner().crc.clone().finalize();
        let bytes = self.parquet.bytes_written() as u64 - offset;
        self.header.rows += count as u64;
        self.header.groups.push(Group {
            rows: count as u32,
            offset,
            bytes,
            crc32,
            columns: written.columns().iter().map(place).collect(),
            path_first,
            path_last,
            first_min,
            last_max,
        });
        Ok(())
    }

    fn ask_room(&self, bytes: u64) -> Result<(), CatalogError> {
        self.room.ask(self.path.parent().unwrap_or(&self.path), bytes)
    }

    /// Where the next byte goes, and all bytes before it out of the sum.
    fn begin_sum(&mut self) -> Result<u64, CatalogError> {
        self.parquet.flush().map_err(CatalogError::io("write", &self.path))?;
        // Nothing is written here: the sum lies beside the bytes.
        self.parquet.inner_mut().crc.reset();
        Ok(self.parquet.bytes_written() as u64)
    }

    /// Writes what is left and the header. The file is complete then, though not yet synced.
    ///
    /// # Errors
    /// When the file cannot be written, or there is no room for it.
    pub fn finish(mut self, number_highest: u32, points: Vec<Point>) -> Result<(File, Header), CatalogError> {
        if !self.rows.paths.is_empty() {
            self.end_group()?;
        }
        self.header.number_highest = number_highest;
        self.header.points = points;
        let json = serde_json::to_string(&self.header).map_err(|error| CatalogError::Io {
            action: "write",
            path: self.path.clone(),
            source: error.into(),
        })?;
        self.ask_room(json.len() as u64 + (self.header.groups.len() as u64 + 1) * GROUP_METADATA_BYTES_MAX)?;
        let crc = format!("{:08x}", crc32fast::hash(json.as_bytes()));
        self.parquet.append_key_value_metadata(KeyValue::new(HEADER_KEY.to_string(), json));
        self.parquet.append_key_value_metadata(KeyValue::new(HEADER_CRC_KEY.to_string(), crc));
        let path = self.path;
        let sink = self.parquet.into_inner().map_err(|error| write_error(&path, error))?;
        Ok((sink.file, self.header))
    }
}

impl Rows {
    /// Writes all columns and forgets them.
    fn write<W: Write + Send>(&mut self, group: &mut SerializedRowGroupWriter<'_, W>) -> Result<(), ParquetError> {
        let ranges: Vec<_> = (0..self.paths.len()).map(|index| self.paths.range(index)).collect();
        let bytes = Bytes::from(self.paths.take_bytes());
        let paths: Vec<ByteArray> = ranges.into_iter().map(|range| ByteArray::from(bytes.slice(range))).collect();
        self.paths.clear();
        column::<ByteArrayType, W>(group, &paths)?;
        drop(paths);
        columns::<Int32Type, W>(group, &mut [&mut self.kind])?;
        columns::<Int64Type, W>(group, &mut [&mut self.size_bytes, &mut self.mtime_us])?;
        columns::<Int32Type, W>(group, &mut [&mut self.mode, &mut self.uid, &mut self.gid])?;
        columns::<BoolType, W>(group, &mut [&mut self.changed_after_freeze])?;
        columns::<Int32Type, W>(group, &mut [&mut self.first, &mut self.last, &mut self.seen])
    }
}

fn columns<T: DataType, W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    all: &mut [&mut Vec<T::T>],
) -> Result<(), ParquetError> {
    for values in all {
        column::<T, W>(group, values)?;
        values.clear();
    }
    Ok(())
}

fn column<T: DataType, W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    values: &[T::T],
) -> Result<(), ParquetError> {
    let mut column = group
        .next_column()?
        .ok_or_else(|| ParquetError::General("the schema has fewer columns than a row".to_string()))?;
    column.typed::<T>().write_batch(values, None, None)?;
    column.close()
}

fn properties() -> Result<WriterProperties, ParquetError> {
    let path = ColumnPath::from("path");
    let mtime = ColumnPath::from("mtime_us");
    Ok(WriterProperties::builder()
        .set_created_by(format!("Lull {}", env!("CARGO_PKG_VERSION")))
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL)?))
        .set_data_page_size_limit(PAGE_BYTES_MAX)
        .set_data_page_row_count_limit(GROUP_ROWS_MAX)
        .set_write_batch_size(8_192)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_offset_index_disabled(true)
        .set_column_dictionary_enabled(path.clone(), false)
        .set_column_encoding(path, Encoding::DELTA_BYTE_ARRAY)
        .set_column_dictionary_enabled(mtime.clone(), false)
        .set_column_encoding(mtime, Encoding::PLAIN)
        .build())
}

fn write_error(path: &Path, error: ParquetError) -> CatalogError {
    // The crate wraps the system's error; unwrapped it says "no space left" and not "external".
    let source = match error {
        ParquetError::External(inner) => match inner.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(inner) => io::Error::other(inner),
        },
        other => io::Error::other(other),
    };
    CatalogError::Io { action: "write", path: path.to_path_buf(), source }
}

/// A file that sums what is written into it.
struct Summing {
    file: File,
    crc: crc32fast::Hasher,
}

impl Write for Summing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.crc.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
