//! Reads a table, a row group and a column at a time: a search needs few of them.
//!
//! The bytes of a row group are checked against their checksum before anything is made of them, so whatever changed on the disk is
//! found by whoever reads it first. Knows nothing of what is looked for.

use super::header::{Group, Header};
use super::paths::Paths;
use super::{Column, FORMAT, GROUP_PATH_BYTES_MAX, GROUP_ROWS_MAX, HEADER_CRC_KEY, HEADER_KEY, SCHEMA, delta};
use crate::error::CatalogError;
use crate::sort::PATH_BYTES_MAX;
use crate::version::{Interval, Version, kind_of_code};
use bytes::{Buf, Bytes};
use parquet::basic::{Compression, Encoding};
use parquet::column::page::{Page, PageReader};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use parquet::data_type::DataType;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::schema::parser::parse_message_type;
use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// A row group has at most this many compressed bytes: more than its rows can make.
const GROUP_BYTES_MAX: u64 = 256 << 20;

/// An open table. It stays readable when it is replaced meanwhile.
pub struct Table {
    path: PathBuf,
    file: File,
    metadata: ParquetMetaData,
    header: Header,
}

impl Table {
    /// Opens the table of `vm` at `path`; nothing where there is none.
    ///
    /// # Errors
    /// When it cannot be read, is damaged, or of a later format.
    pub fn open(path: &Path, vm: Uuid) -> Result<Option<Table>, CatalogError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(CatalogError::io("open", path)(error)),
        };
        let damaged = |reason: &str| CatalogError::damaged(path, reason);
        let metadata =
            ParquetMetaDataReader::new().parse_and_finish(&file).map_err(|error| parquet_error(path, &error))?;
        let value = |key: &str| {
            let pairs = metadata.file_metadata().key_value_metadata()?;
            pairs.iter().find(|pair| pair.key == key)?.value.as_deref()
        };
        let (Some(json), Some(crc)) = (value(HEADER_KEY), value(HEADER_CRC_KEY)) else {
            return Err(damaged("it has no header of a catalog table"));
        };
        if format!("{:08x}", crc32fast::hash(json.as_bytes())) != crc {
            return Err(damaged("its header does not fit its checksum"));
        }
        #[derive(serde::Deserialize)]
        struct Format {
            format: u32,
        }
        let format: Format = serde_json::from_str(json).map_err(|_| damaged("its header names no format"))?;
        if format.format > FORMAT {
            return Err(CatalogError::Format { path: path.to_path_buf(), found: format.format, known: FORMAT });
        }
        let header: Header =
            serde_json::from_str(json).map_err(|error| damaged(&format!("its header cannot be read: {error}")))?;
        fits(&metadata, &header, vm).map_err(|reason| damaged(&reason))?;
        Ok(Some(Table { path: path.to_path_buf(), file, metadata, header }))
    }

    /// What lies in it beside its rows.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Reads the bytes of one row group and checks them.
    ///
    /// # Errors
    /// When they cannot be read, or are not those that were written.
    pub fn group(&self, index: usize) -> Result<GroupReader<'_>, CatalogError> {
        let group = &self.header.groups[index];
        let mut bytes = vec![0; group.bytes as usize];
        self.file.read_exact_at(&mut bytes, group.offset).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => CatalogError::damaged(&self.path, "it ends inside a row group"),
            _ => CatalogError::io("read", &self.path)(error),
        })?;
        if crc32fast::hash(&bytes) != group.crc32 {
            let reason = format!("row group {index} does not fit its checksum");
            return Err(CatalogError::damaged(&self.path, reason));
        }
        let bytes = Arc::new(GroupBytes { offset: group.offset, bytes: bytes.into() });
        Ok(GroupReader { table: self, index, bytes })
    }
}

/// Which rows of a row group are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which<'a> {
    /// All of them.
    All,
    /// These, in ascending order.
    These(&'a [usize]),
}

impl Which<'_> {
    /// Runs of rows that follow each other, of a group with so many.
    fn runs(self, rows: usize) -> Vec<Range<usize>> {
        match self {
            Which::All => std::iter::once(0..rows).collect(),
            Which::These(these) => {
                these.chunk_by(|row, next| row + 1 == *next).map(|run| run[0]..run[run.len() - 1] + 1).collect()
            }
        }
    }
}

/// The bytes of one row group.
pub struct GroupReader<'t> {
    table: &'t Table,
    index: usize,
    bytes: Arc<GroupBytes>,
}

impl GroupReader<'_> {
    /// What the header says of it.
    pub fn header(&self) -> &Group {
        &self.table.header.groups[self.index]
    }

    /// Reads all paths into `paths`.
    ///
    /// # Errors
    /// When they are not what a table holds.
    pub fn paths(&self, paths: &mut Paths) -> Result<(), CatalogError> {
        paths.clear();
        let rows = self.header().rows as usize;
        let bytes_max = GROUP_PATH_BYTES_MAX + PATH_BYTES_MAX;
        let mut pages = self.pages(Column::Path).map_err(|error| self.trouble(&error))?;
        while paths.len() < rows {
            let page = pages.get_next_page().map_err(|error| self.trouble(&error))?;
            let Some(Page::DataPage { buf, num_values, encoding: Encoding::DELTA_BYTE_ARRAY, .. }) = page else {
                return Err(self.damaged("its paths are not packed as a catalog's are"));
            };
            if paths.len() + num_values as usize > rows {
                return Err(self.damaged("it has more paths than rows"));
            }
            delta::unpack(&buf, num_values as usize, bytes_max, paths).map_err(|reason| self.damaged(reason))?;
        }
        Ok(())
    }

    /// Reads these rows of a column of 32-bit numbers.
    ///
    /// # Errors
    /// When it is not what a table holds.
    pub fn numbers(&self, column: Column, rows: Which<'_>) -> Result<Vec<i32>, CatalogError> {
        match self.column(column)? {
            ColumnReader::Int32ColumnReader(reader) => self.values(reader, rows),
            _ => Err(self.damaged("a column is of another type")),
        }
    }

    /// Reads these rows of a column of 64-bit numbers.
    ///
    /// # Errors
    /// When it is not what a table holds.
    pub fn long_numbers(&self, column: Column, rows: Which<'_>) -> Result<Vec<i64>, CatalogError> {
        match self.column(column)? {
            ColumnReader::Int64ColumnReader(reader) => self.values(reader, rows),
            _ => Err(self.damaged("a column is of another type")),
        }
    }

    /// Reads these rows of a column of truth values.
    ///
    /// # Errors
    /// When it is not what a table holds.
    pub fn truths(&self, column: Column, rows: Which<'_>) -> Result<Vec<bool>, CatalogError> {
        match self.column(column)? {
            ColumnReader::BoolColumnReader(reader) => self.values(reader, rows),
            _ => Err(self.damaged("a column is of another type")),
        }
    }

    /// Reads these intervals, in the order of the rows.
    ///
    /// # Errors
    /// When they are not what a table holds.
    pub fn intervals(&self, rows: Which<'_>) -> Result<Vec<Interval>, CatalogError> {
        let numbers = |column| self.numbers(column, rows);
        let (first, last, seen) = (numbers(Column::First)?, numbers(Column::Last)?, numbers(Column::Seen)?);
        let rows = first.into_iter().zip(last).zip(seen);
        Ok(rows
            .map(|((first, last), seen)| Interval { first: first as u32, last: last as u32, seen: seen as u32 })
            .collect())
    }

    /// Reads these versions, in the order of the rows.
    ///
    /// # Errors
    /// When they are not what a table holds.
    pub fn versions(&self, rows: Which<'_>) -> Result<Vec<Version>, CatalogError> {
        let numbers = |column| self.numbers(column, rows);
        let kinds = numbers(Column::Kind)?;
        let (sizes, mtimes) = (self.long_numbers(Column::SizeBytes, rows)?, self.long_numbers(Column::MtimeUs, rows)?);
        let (modes, uids, gids) = (numbers(Column::Mode)?, numbers(Column::Uid)?, numbers(Column::Gid)?);
        let changed = self.truths(Column::ChangedAfterFreeze, rows)?;
        let row = |index: usize| {
            Ok(Version {
                kind: kind_of_code(kinds[index]).ok_or_else(|| self.damaged("a kind that there is not"))?,
                size_bytes: sizes[index] as u64,
                mtime_us: mtimes[index],
                mode: modes[index] as u32,
                uid: uids[index] as u32,
                gid: gids[index] as u32,
                changed_after_freeze: changed[index],
            })
        };
        (0..kinds.len()).map(row).collect()
    }

    fn values<T: DataType>(&self, mut reader: ColumnReaderImpl<T>, rows: Which<'_>) -> Result<Vec<T::T>, CatalogError> {
        let few = self.damaged("a column has fewer values than there are rows");
        let mut values = Vec::new();
        let mut at = 0;
        for run in rows.runs(self.header().rows as usize) {
            while at < run.start {
                match reader.skip_records(run.start - at).map_err(|error| self.trouble(&error))? {
                    0 => return Err(few),
                    skipped => at += skipped,
                }
            }
            while at < run.end {
                match reader.read_records(run.end - at, None, None, &mut values) {
                    Ok((0, _, _)) => return Err(few),
                    Ok((read, _, _)) => at += read,
                    Err(error) => return Err(self.trouble(&error)),
                }
            }
        }
        Ok(values)
    }

    fn column(&self, column: Column) -> Result<ColumnReader, CatalogError> {
        let pages = self.pages(column).map_err(|error| self.trouble(&error))?;
        Ok(get_column_reader(self.chunk(column).column_descr_ptr(), Box::new(pages)))
    }

    fn pages(&self, column: Column) -> Result<SerializedPageReader<GroupBytes>, ParquetError> {
        SerializedPageReader::new(self.bytes.clone(), self.chunk(column), self.header().rows as usize, None)
    }

    fn chunk(&self, column: Column) -> &ColumnChunkMetaData {
        self.table.metadata.row_group(self.index).column(column as usize)
    }

    fn trouble(&self, error: &ParquetError) -> CatalogError {
        parquet_error(&self.table.path, error)
    }

    fn damaged(&self, reason: &str) -> CatalogError {
        CatalogError::damaged(&self.table.path, format!("row group {}: {reason}", self.index))
    }
}

/// Whether the file's own metadata and the header tell of the same table, so that neither leads a reader astray.
fn fits(metadata: &ParquetMetaData, header: &Header, vm: Uuid) -> Result<(), String> {
    if header.vm != vm {
        return Err(format!("it is the table of VM {}", header.vm));
    }
    let wanted = parse_message_type(SCHEMA).map_err(|error| error.to_string())?;
    if metadata.file_metadata().schema() != &wanted {
        return Err("its columns are not those of a catalog table".to_string());
    }
    if metadata.num_row_groups() != header.groups.len() {
        return Err("its header and its metadata name different row groups".to_string());
    }
    if !header.points.is_sorted_by(|a, b| a.number < b.number) || header.number_newest() > header.number_highest {
        return Err("its restore points are not in order".to_string());
    }
    for (index, group) in header.groups.iter().enumerate() {
        let parquet = metadata.row_group(index);
        if group.rows as usize > GROUP_ROWS_MAX || group.bytes > GROUP_BYTES_MAX {
            return Err(format!("row group {index} is larger than one can be"));
        }
        let is_same = |(chunk, told): (&ColumnChunkMetaData, &[u64; 3])| {
            let is_zstd = matches!(chunk.compression(), Compression::ZSTD(_));
            place(chunk) == *told && chunk.num_values() == i64::from(group.rows) && is_zstd
        };
        let is_whole = parquet.num_columns() == group.columns.len() && parquet.num_rows() == i64::from(group.rows);
        if !is_whole || !parquet.columns().iter().zip(&group.columns).all(is_same) {
            return Err(format!("its header and its metadata disagree about row group {index}"));
        }
    }
    Ok(())
}

/// Where a column lies, as [`Group::columns`] tells it.
pub(crate) fn place(chunk: &ColumnChunkMetaData) -> [u64; 3] {
    let dictionary = chunk.dictionary_page_offset().unwrap_or_default();
    [dictionary as u64, chunk.data_page_offset() as u64, chunk.compressed_size() as u64]
}

fn parquet_error(path: &Path, error: &ParquetError) -> CatalogError {
    if let ParquetError::External(inner) = error
        && let Some(error) = inner.downcast_ref::<std::io::Error>()
        && error.kind() != ErrorKind::UnexpectedEof
        && error.raw_os_error().is_some()
    {
        let source = std::io::Error::from_raw_os_error(error.raw_os_error().unwrap_or_default());
        return CatalogError::io("read", path)(source);
    }
    CatalogError::damaged(path, error.to_string())
}

/// The bytes of one row group, at their place in the file.
struct GroupBytes {
    offset: u64,
    bytes: Bytes,
}

impl GroupBytes {
    fn from(&self, start: u64) -> Result<Bytes, ParquetError> {
        let begin = start.checked_sub(self.offset).and_then(|begin| usize::try_from(begin).ok());
        match begin {
            Some(begin) if begin <= self.bytes.len() => Ok(self.bytes.slice(begin..)),
            _ => Err(ParquetError::EOF("a page outside its row group".to_string())),
        }
    }
}

impl Length for GroupBytes {
    fn len(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

impl ChunkReader for GroupBytes {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(self.from(start)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let bytes = self.from(start)?;
        if length > bytes.len() {
            return Err(ParquetError::EOF("a page that does not end in its row group".to_string()));
        }
        Ok(bytes.slice(..length))
    }
}
