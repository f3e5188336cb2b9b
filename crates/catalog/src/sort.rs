//! Brings a listing into the order of its paths, in bounded memory: what does not fit is sorted in runs, the runs lie in one unnamed
//! file beside the table, and are merged as they are read.
//!
//! Knows what a walk says of a path, not what becomes of it. Of equal paths the one that came first comes first.

use crate::error::CatalogError;
use crate::room::Room;
use crate::version::{Version, kind_code, kind_of_code};
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// The memory bound of the sort, in bytes: paths and records of one run. While the runs are merged, each costs [`RUN_BUFFER_BYTES`].
pub const SORT_BYTES_MAX: usize = 48 << 20;
/// What each run may read ahead, in bytes.
pub const RUN_BUFFER_BYTES: usize = 64 << 10;
/// Longest path that is kept, in bytes. (Linux bounds a path in a system call to 4 096, but not the depth of a tree.)
pub const PATH_BYTES_MAX: usize = 32 << 10;
/// Name of the run file while it has one, before it is removed right after it was made.
pub(crate) const RUNS_FILE: &str = "runs.tmp";

/// What a walk says of one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fact {
    /// There is this.
    Entry(Version),
    /// A piece of it, a folder, was listed.
    Folder {
        /// No other piece follows.
        ended: bool,
        /// Something in it could not be read.
        failed: bool,
    },
}

struct Record {
    at: u32,
    bytes: u32,
    fact: Fact,
}

/// Takes facts in any order.
pub struct Sorter {
    folder: PathBuf,
    room: Room,
    bytes_max: usize,
    paths: Vec<u8>,
    records: Vec<Record>,
    runs: Vec<Range<u64>>,
    spilled: Option<File>,
}

/// Gives them back in the order of their paths.
pub struct Sorted {
    paths: Vec<u8>,
    records: std::vec::IntoIter<Record>,
    runs: BinaryHeap<Run>,
    /// The run that was read last stands at the item that was given out.
    begun: bool,
    file: PathBuf,
}

impl Sorter {
    /// A sorter that spills into `folder`, as far as there is `room`, what exceeds `bytes_max` of memory (at most 1 GiB).
    pub fn new(folder: &Path, bytes_max: usize, room: Room) -> Sorter {
        Sorter {
            folder: folder.to_path_buf(),
            room,
            bytes_max: bytes_max.min(1 << 30),
            paths: Vec::new(),
            records: Vec::new(),
            runs: Vec::new(),
            spilled: None,
        }
    }

    /// Takes a fact about `folder` itself (no `name`) or about the entry `name` of it. The path is at most [`PATH_BYTES_MAX`] long.
    ///
    /// # Errors
    /// When a run cannot be written, or there is no room for it.
    pub fn push(&mut self, folder: &[u8], name: Option<&[u8]>, fact: Fact) -> Result<(), CatalogError> {
        let bytes = joined_bytes(folder, name);
        debug_assert!(bytes <= PATH_BYTES_MAX);
        if self.used_bytes() + bytes + size_of::<Record>() > self.bytes_max && !self.records.is_empty() {
            self.spill()?;
        }
        let at = self.paths.len() as u32;
        self.paths.extend_from_slice(folder);
        if let Some(name) = name {
            if folder != b"/" {
                self.paths.push(b'/');
            }
            self.paths.extend_from_slice(name);
        }
        self.records.push(Record { at, bytes: bytes as u32, fact });
        Ok(())
    }

    /// Runs that were written so far.
    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    fn used_bytes(&self) -> usize {
        self.paths.len() + self.records.len() * size_of::<Record>()
    }

    fn sort(&mut self) {
        let paths = &self.paths;
        // `at` grows with arrival, so equal paths keep their order.
        self.records.sort_unstable_by(|a, b| path_of(paths, a).cmp(path_of(paths, b)).then(a.at.cmp(&b.at)));
    }

    fn spill(&mut self) -> Result<(), CatalogError> {
        // On disk a run is smaller: paths share their beginnings, and no number is longer than in memory.
        self.room.ask(&self.folder, self.used_bytes() as u64)?;
        self.sort();
        let path = self.folder.join(RUNS_FILE);
        if self.spilled.is_none() {
            let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
            let file = file.map_err(CatalogError::io("write", &path))?;
            // From here on it goes with the process, whatever ends that.
            std::fs::remove_file(&path).map_err(CatalogError::io("remove", &path))?;
            self.spilled = Some(file);
        }
        let file = self.spilled.as_ref().unwrap_or_else(|| unreachable!("made above"));
        let begin = self.runs.last().map_or(0, |run| run.end);
        let end = write_run(file, begin, &self.paths, &self.records).map_err(CatalogError::io("write", &path))?;
        self.runs.push(begin..end);
        self.paths.clear();
        self.records.clear();
        Ok(())
    }

    /// Ends the taking.
    ///
    /// # Errors
    /// When a run cannot be written or read.
    pub fn finish(mut self) -> Result<Sorted, CatalogError> {
        let file = self.folder.join(RUNS_FILE);
        if self.runs.is_empty() {
            self.sort();
            let (paths, records) = (self.paths, self.records.into_iter());
            return Ok(Sorted { paths, records, runs: BinaryHeap::new(), begun: false, file });
        }
        if !self.records.is_empty() {
            self.spill()?;
        }
        // The memory of the runs goes back before that of their merge is taken.
        self.paths = Vec::new();
        self.records = Vec::new();
        let spilled = Rc::new(self.spilled.unwrap_or_else(|| unreachable!("there are runs")));
        let mut runs = BinaryHeap::with_capacity(self.runs.len());
        for (number, range) in self.runs.into_iter().enumerate() {
            let section = Section { file: spilled.clone(), range };
            let reader = BufReader::with_capacity(RUN_BUFFER_BYTES, section);
            let fact = Fact::Folder { ended: false, failed: false };
            let mut run = Run { number, reader, record: Vec::new(), path: Vec::new(), fact };
            if run.advance().map_err(CatalogError::io("read", &file))? {
                runs.push(run);
            }
        }
        Ok(Sorted { paths: Vec::new(), records: Vec::new().into_iter(), runs, begun: false, file })
    }
}

/// Length of the path that [`Sorter::push`] makes of `folder` and `name`.
pub fn joined_bytes(folder: &[u8], name: Option<&[u8]>) -> usize {
    folder.len() + name.map_or(0, |name| name.len() + usize::from(folder != b"/"))
}

fn path_of<'a>(paths: &'a [u8], record: &Record) -> &'a [u8] {
    &paths[record.at as usize..][..record.bytes as usize]
}

impl Sorted {
    /// The next path with one fact about it.
    ///
    /// # Errors
    /// When a run cannot be read.
    #[allow(clippy::should_implement_trait, reason = "it lends, and may fail")]
    pub fn next(&mut self) -> Result<Option<(&[u8], Fact)>, CatalogError> {
        if self.runs.is_empty() {
            let paths = &self.paths;
            return Ok(self.records.next().map(|record| (path_of(paths, &record), record.fact)));
        }
        if self.begun
            && let Some(mut run) = self.runs.peek_mut()
            && !run.advance().map_err(CatalogError::io("read", &self.file))?
        {
            PeekMut::pop(run);
        }
        self.begun = true;
        Ok(self.runs.peek().map(|run| (run.path.as_slice(), run.fact)))
    }
}

/// A part of the run file. Reads do not move a shared position.
struct Section {
    file: Rc<File>,
    range: Range<u64>,
}

impl Read for Section {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.range.end - self.range.start).unwrap_or(usize::MAX);
        let wanted = into.len().min(left);
        let read = self.file.read_at(&mut into[..wanted], self.range.start)?;
        self.range.start += read as u64;
        Ok(read)
    }
}

/// One run, standing at an item.
struct Run {
    number: usize,
    reader: BufReader<Section>,
    record: Vec<u8>,
    path: Vec<u8>,
    fact: Fact,
}

impl Run {
    fn advance(&mut self) -> io::Result<bool> {
        let mut length = [0; 2];
        match self.reader.read(&mut length[..1])? {
            0 => return Ok(false),
            _ => self.reader.read_exact(&mut length[1..])?,
        }
        self.record.resize(u16::from_le_bytes(length) as usize, 0);
        self.reader.read_exact(&mut self.record)?;
        let mut rest = self.record.as_slice();
        let shared = varint(&mut rest)? as usize;
        let suffix = varint(&mut rest)? as usize;
        self.path.truncate(shared);
        self.path.extend_from_slice(rest.get(..suffix).ok_or_else(short)?);
        self.fact = read_fact(&rest[suffix..])?;
        Ok(true)
    }
}

impl Ord for Run {
    // The heap gives out its greatest: the smallest path, of equal ones that of the earliest run.
    fn cmp(&self, other: &Run) -> Ordering {
        other.path.cmp(&self.path).then(other.number.cmp(&self.number))
    }
}

impl PartialOrd for Run {
    fn partial_cmp(&self, other: &Run) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Run {
    fn eq(&self, other: &Run) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Run {}

const FOLDER_TAG: u8 = 0x80;
const CHANGED_TAG: u8 = 0x40;

/// Appends sorted records at `begin`: each its length (u16), then the bytes shared with the path before, the rest of the path, the fact.
fn write_run(file: &File, begin: u64, paths: &[u8], records: &[Record]) -> io::Result<u64> {
    struct At<'a>(&'a File, u64);
    impl Write for At<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let written = self.0.write_at(bytes, self.1)?;
            self.1 += written as u64;
            Ok(written)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut writer = BufWriter::with_capacity(RUN_BUFFER_BYTES, At(file, begin));
    let mut last: &[u8] = &[];
    let mut record = Vec::new();
    for one in records {
        let path = path_of(paths, one);
        let shared = shared_bytes(last, path);
        record.clear();
        put_varint(&mut record, shared as u64);
        put_varint(&mut record, (path.len() - shared) as u64);
        record.extend_from_slice(&path[shared..]);
        put_fact(&mut record, &one.fact);
        // PATH_BYTES_MAX keeps it far below.
        let length = u16::try_from(record.len()).map_err(io::Error::other)?;
        writer.write_all(&length.to_le_bytes())?;
        writer.write_all(&record)?;
        last = path;
    }
    let at = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(at.1)
}

/// How many bytes two paths share at their beginning.
pub(crate) fn shared_bytes(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

fn put_fact(record: &mut Vec<u8>, fact: &Fact) {
    match fact {
        Fact::Folder { ended, failed } => record.push(FOLDER_TAG | u8::from(*ended) | u8::from(*failed) << 1),
        Fact::Entry(version) => {
            let changed = if version.changed_after_freeze { CHANGED_TAG } else { 0 };
            record.push(kind_code(version.kind) as u8 | changed);
            put_varint(record, version.size_bytes);
            put_varint(record, version.mtime_us as u64);
            put_varint(record, u64::from(version.mode));
            put_varint(record, u64::from(version.uid));
            put_varint(record, u64::from(version.gid));
        }
    }
}

fn read_fact(mut rest: &[u8]) -> io::Result<Fact> {
    let (tag, after) = rest.split_first().ok_or_else(short)?;
    rest = after;
    if tag & FOLDER_TAG != 0 {
        return Ok(Fact::Folder { ended: tag & 1 != 0, failed: tag & 2 != 0 });
    }
    Ok(Fact::Entry(Version {
        kind: kind_of_code(i32::from(tag & !CHANGED_TAG)).ok_or_else(short)?,
        size_bytes: varint(&mut rest)?,
        mtime_us: varint(&mut rest)? as i64,
        mode: varint(&mut rest)? as u32,
        uid: varint(&mut rest)? as u32,
        gid: varint(&mut rest)? as u32,
        changed_after_freeze: tag & CHANGED_TAG != 0,
    }))
}

fn put_varint(into: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

fn varint(from: &mut &[u8]) -> io::Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first().ok_or_else(short)?;
        *from = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(short())
}

fn short() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a run does not say what was written into it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::Kind;
    use proptest::prelude::*;

    fn version(size_bytes: u64) -> Version {
        Version {
            kind: Kind::Fifo,
            size_bytes,
            mtime_us: (size_bytes as i64).wrapping_neg(),
            mode: 0o7777,
            uid: 0,
            gid: u32::MAX,
            changed_after_freeze: size_bytes.is_multiple_of(2),
        }
    }

    fn sorted(facts: &[(Vec<u8>, Fact)], bytes_max: usize) -> (Vec<(Vec<u8>, Fact)>, usize) {
        let folder = tempfile::tempdir().unwrap();
        let mut sorter = Sorter::new(folder.path(), bytes_max, Room::whole_disk());
        for (path, fact) in facts {
            sorter.push(path, None, *fact).unwrap();
        }
        let runs = sorter.runs();
        let mut sorted = sorter.finish().unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the run file has no name");
        let mut all = Vec::new();
        while let Some((path, fact)) = sorted.next().unwrap() {
            all.push((path.to_vec(), fact));
        }
        (all, runs)
    }

    #[test]
    fn folder_and_name_make_a_path() {
        let mut sorter = Sorter::new(Path::new("/nowhere"), 1 << 20, Room::whole_disk());
        let fact = Fact::Folder { ended: true, failed: false };
        for (folder, name) in [(&b"/"[..], Some(&b"b"[..])), (b"/b", Some(b"c")), (b"/", None), (b"/a", None)] {
            sorter.push(folder, name, fact).unwrap();
        }
        let mut sorted = sorter.finish().unwrap();
        for path in [&b"/"[..], b"/a", b"/b", b"/b/c"] {
            assert_eq!(sorted.next().unwrap(), Some((path, fact)));
        }
        assert_eq!(sorted.next().unwrap(), None);
    }

    #[test]
    fn extreme_values_and_the_longest_path_survive_a_run() {
        let long = [b"/".as_slice(), &vec![0xff; PATH_BYTES_MAX - 1]].concat();
        let facts: Vec<_> = [u64::MAX, 0, 1 << 63, 127, 128]
            .map(|size| (long.clone(), Fact::Entry(version(size))))
            .into_iter()
            .collect();
        let (all, runs) = sorted(&facts, 40 << 10);
        assert_eq!((all, runs), (facts, 4));
    }

    proptest! {
        #[test]
        fn spilled_or_not_the_order_is_that_of_paths_and_then_of_arrival(
            paths in proptest::collection::vec(proptest::collection::vec(0xfdu8.., 0..5), 0..60), bytes_max in 200usize..4_000,
        ) {
            let facts: Vec<(Vec<u8>, Fact)> = paths.into_iter().enumerate().map(|(index, path)| {
                let fact = if index % 5 == 0 { Fact::Folder { ended: index % 2 == 0, failed: index % 3 == 0 } } else { Fact::Entry(version(index as u64)) };
                ([b"/".as_slice(), &path].concat(), fact)
            }).collect();
            let mut expected = facts.clone();
            expected.sort_by(|a, b| a.0.cmp(&b.0));
            prop_assert_eq!(&sorted(&facts, bytes_max).0, &expected);
            prop_assert_eq!(sorted(&facts, 1 << 20), (expected, 0));
        }
    }
}
