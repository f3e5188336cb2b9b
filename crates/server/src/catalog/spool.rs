//! A listing on its way from a proxy into the catalog, in a file of its own.
//!
//! The file: of each frame its length as a little-endian `u32`, then the frame; then a length of 0 and, to the end of the file, the walk's
//! summary as JSON. A file that ends before that is one whose listing broke off: what is whole of it counts. Knows nothing of what is in
//! a frame.

use lull_catalog::{COMPRESSED_BYTES_MAX, IndexSummary};
use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

/// The listing of one guest may take so much of the server's disk.
const SPOOL_BYTES_MAX: u64 = 8 << 30;
/// The disk is asked for its free space each time so much was written.
const LOOK_EVERY_BYTES: u64 = 4 << 20;
/// Longest summary that is read, in bytes.
const SUMMARY_BYTES_MAX: u64 = 1 << 20;

/// A listing that is coming in.
pub struct Spool {
    path: PathBuf,
    file: tokio::fs::File,
    written: u64,
    looked_at: Option<u64>,
    reserve_bytes: u64,
}

impl Spool {
    /// Begins the file anew. `reserve_bytes` of its disk are left to others: the server's database lies there too.
    pub async fn begin(path: &Path, reserve_bytes: u64) -> io::Result<Spool> {
        let file = tokio::fs::File::create(path).await?;
        Ok(Spool { path: path.to_path_buf(), file, written: 0, looked_at: None, reserve_bytes })
    }

    /// Goes on with a file that was begun by an earlier run of the server, after its last whole frame; answers how many there are.
    /// Nothing where the listing has its end already.
    pub async fn resume(path: &Path, reserve_bytes: u64) -> io::Result<Option<(Spool, u64)>> {
        let looked_at = path.to_path_buf();
        let found = tokio::task::spawn_blocking(move || whole_frames(&looked_at)).await;
        let Some((frames, length)) = found.map_err(io::Error::other)?? else { return Ok(None) };
        let mut file = tokio::fs::OpenOptions::new().write(true).create(true).truncate(false).open(path).await?;
        file.set_len(length).await?;
        file.seek(SeekFrom::End(0)).await?;
        let spool = Spool { path: path.to_path_buf(), file, written: length, looked_at: None, reserve_bytes };
        Ok(Some((spool, frames)))
    }

    /// Adds a frame.
    ///
    /// # Errors
    /// Why it was not added: for people.
    pub async fn frame(&mut self, compressed: &[u8]) -> Result<(), String> {
        let length = u32::try_from(compressed.len()).ok().filter(|length| (1..=longest()).contains(length));
        let length = length.ok_or_else(|| format!("the proxy sent a piece of {} bytes", compressed.len()))?;
        self.may_grow()?;
        let whole = [&length.to_le_bytes(), compressed].concat();
        self.file.write_all(&whole).await.map_err(|error| self.cannot("write", &error))?;
        self.written += whole.len() as u64;
        Ok(())
    }

    /// Says how the walk ended, and sees to it that all of it is on disk.
    pub async fn end(mut self, summary: &IndexSummary) -> Result<(), String> {
        let text = serde_json::to_vec(summary).map_err(|error| error.to_string())?;
        let end = [&0u32.to_le_bytes(), text.as_slice()].concat();
        self.file.write_all(&end).await.map_err(|error| self.cannot("write", &error))?;
        self.file.sync_all().await.map_err(|error| self.cannot("sync", &error))
    }

    fn may_grow(&mut self) -> Result<(), String> {
        if self.written > SPOOL_BYTES_MAX {
            return Err(format!("it is longer than {} GiB", SPOOL_BYTES_MAX >> 30));
        }
        if self.looked_at.is_some_and(|at| self.written - at < LOOK_EVERY_BYTES) {
            return Ok(());
        }
        self.looked_at = Some(self.written);
        let free = crate::disk::free_bytes(&self.path).unwrap_or(u64::MAX);
        if free < self.reserve_bytes {
            let (free, reserve) = (free >> 20, self.reserve_bytes >> 20);
            return Err(format!(
                "the backup server's disk is full ({free} MiB free, {reserve} are kept for the server)"
            ));
        }
        Ok(())
    }

    fn cannot(&self, action: &str, error: &io::Error) -> String {
        format!("the backup server could not {action} {}: {error}", self.path.display())
    }
}

fn longest() -> u32 {
    u32::try_from(COMPRESSED_BYTES_MAX).unwrap_or(u32::MAX)
}

/// Whole frames of a listing without an end, and the bytes that they take; nothing where it has its end. One that is not there has none.
fn whole_frames(path: &Path) -> io::Result<Option<(u64, u64)>> {
    let mut file = match File::open(path) {
        Ok(file) => BufReader::new(file),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Some((0, 0))),
        Err(error) => return Err(error),
    };
    let bytes = file.get_ref().metadata()?.len();
    let (mut frames, mut whole) = (0, 0);
    while let Some(length) = next_length(&mut file)? {
        let end = file.stream_position()? + u64::from(length);
        if length == 0 {
            return Ok(None);
        }
        if length > longest() || end > bytes {
            break;
        }
        file.seek_relative(i64::from(length))?;
        (frames, whole) = (frames + 1, end);
    }
    Ok(Some((frames, whole)))
}

/// A listing that came in: its frames, one after another.
pub struct Spooled {
    file: BufReader<File>,
    left: u64,
}

impl Spooled {
    /// Opens the file and finds its summary; one that says so where there is none.
    pub fn open(path: &Path) -> io::Result<(Spooled, IndexSummary)> {
        let mut file = BufReader::new(File::open(path)?);
        let mut frames = 0;
        let summary = loop {
            match next_length(&mut file)? {
                None => break None,
                Some(0) => break summary(&mut file)?,
                Some(length) => {
                    let whole = file.stream_position()? + u64::from(length) <= file.get_ref().metadata()?.len();
                    if length > longest() || !whole {
                        break None;
                    }
                    file.seek_relative(i64::from(length))?;
                    frames += 1;
                }
            }
        };
        let summary = summary.unwrap_or_else(|| IndexSummary {
            complete: false,
            stopped_because: Some("the backup server stopped, or its disk was full, before the listing ended".into()),
            ..IndexSummary::default()
        });
        file.seek(SeekFrom::Start(0))?;
        Ok((Spooled { file, left: frames }, summary))
    }

    fn frame(&mut self) -> io::Result<Vec<u8>> {
        let length = next_length(&mut self.file)?.filter(|length| *length <= longest());
        let length = length.ok_or_else(|| io::Error::from(ErrorKind::UnexpectedEof))?;
        let mut frame = vec![0; length as usize];
        self.file.read_exact(&mut frame)?;
        Ok(frame)
    }
}

impl Iterator for Spooled {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        Some(self.frame())
    }
}

/// The next length; nothing where the file ends before it does.
fn next_length(file: &mut BufReader<File>) -> io::Result<Option<u32>> {
    let mut bytes = [0; 4];
    match file.read_exact(&mut bytes) {
        Ok(()) => Ok(Some(u32::from_le_bytes(bytes))),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn summary(file: &mut BufReader<File>) -> io::Result<Option<IndexSummary>> {
    let mut text = Vec::new();
    file.take(SUMMARY_BYTES_MAX).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> IndexSummary {
        IndexSummary { entries: 7, complete: true, ..IndexSummary::default() }
    }

    async fn spooled(folder: &Path) -> PathBuf {
        let path = folder.join("a.listing");
        let mut spool = Spool::begin(&path, 0).await.unwrap();
        spool.frame(b"one").await.unwrap();
        spool.frame(b"two, and longer").await.unwrap();
        spool.end(&whole()).await.unwrap();
        path
    }

    #[tokio::test]
    async fn a_listing_comes_out_as_it_went_in() {
        let folder = tempfile::tempdir().unwrap();
        let (frames, summary) = Spooled::open(&spooled(folder.path()).await).unwrap();
        let frames: Vec<Vec<u8>> = frames.map(Result::unwrap).collect();
        assert_eq!((frames, summary), (vec![b"one".to_vec(), b"two, and longer".to_vec()], whole()));
    }

    #[tokio::test]
    async fn cut_at_any_byte_what_is_whole_counts_and_the_listing_is_not_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = spooled(folder.path()).await;
        let bytes = std::fs::read(&path).unwrap();
        for end in 0..bytes.len() {
            std::fs::write(&path, &bytes[..end]).unwrap();
            let (frames, summary) = Spooled::open(&path).unwrap();
            let frames: Vec<Vec<u8>> = frames.map(Result::unwrap).collect();
            let expected = usize::from(end >= 7) + usize::from(end >= 26);
            assert_eq!((frames.len(), summary.complete), (expected, false), "cut at {end}");
            assert!(summary.stopped_because.is_some_and(|why| why.contains("before the listing ended")));
        }
    }

    #[tokio::test]
    async fn a_listing_that_was_cut_anywhere_is_gone_on_with_after_its_last_whole_frame() {
        let folder = tempfile::tempdir().unwrap();
        let path = spooled(folder.path()).await;
        assert!(Spool::resume(&path, 0).await.unwrap().is_none(), "it has its end");
        let bytes = std::fs::read(&path).unwrap();
        for end in 0..=26 {
            std::fs::write(&path, &bytes[..end]).unwrap();
            let (mut spool, frames) = Spool::resume(&path, 0).await.unwrap().unwrap();
            assert_eq!(frames, u64::from(end >= 7) + u64::from(end >= 26), "cut at {end}");
            spool.frame(b"new").await.unwrap();
            spool.end(&whole()).await.unwrap();
            let (listed, summary) = Spooled::open(&path).unwrap();
            let last = listed.last().unwrap().unwrap();
            assert_eq!((last, summary), (b"new".to_vec(), whole()), "cut at {end}");
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(Spool::resume(&path, 0).await.unwrap().unwrap().1, 0);
    }

    #[tokio::test]
    async fn what_would_fill_the_disk_or_is_no_frame_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::begin(&folder.path().join("a.listing"), u64::MAX).await.unwrap();
        assert!(spool.frame(b"one").await.unwrap_err().contains("disk is full"));
        let mut spool = Spool::begin(&folder.path().join("a.listing"), 0).await.unwrap();
        for size in [0, COMPRESSED_BYTES_MAX + 1] {
            assert!(spool.frame(&vec![0; size]).await.unwrap_err().contains("a piece of"));
        }
    }
}
