//! A spool of listing frames, as a server keeps what a guest sends: each its length (u32, little-endian), then the frame.
//!
//! Makes one of a tree of this machine, and others of one. Knows nothing of the catalog.

use anyhow::{Context, Result, bail};
use lull_guest_wire::listing::{self, Kind, UNPACKED_BYTES_MAX};
use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A frame is sent once its listing holds about so many bytes: with a piece more, and incompressible, it still is no longer than one may be.
const LISTING_BYTES: usize = 128 << 10;
/// A folder of more entries goes in pieces.
const PIECE_ENTRIES: usize = 2_048;

/// An entry of a folder, with a name of its own.
struct Entry {
    name: Vec<u8>,
    kind: Kind,
    size_bytes: u64,
    mtime_us: i64,
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Entry {
    fn borrowed(&self) -> listing::Entry<'_> {
        listing::Entry {
            name: &self.name,
            kind: self.kind,
            size_bytes: self.size_bytes,
            mtime_us: self.mtime_us,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            changed_after_freeze: false,
        }
    }
}

/// A folder, or a piece of it.
struct Folder {
    path: Vec<u8>,
    more: bool,
    entries: Vec<Entry>,
}

/// A file of frames.
pub struct Spool(PathBuf);

impl Spool {
    /// One at `path`, not yet written.
    pub fn at(path: PathBuf) -> Spool {
        Spool(path)
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The frames in it.
    pub fn frames(&self) -> Result<impl Iterator<Item = std::io::Result<Vec<u8>>> + use<>> {
        let mut file = BufReader::new(File::open(&self.0).with_context(|| format!("opening {}", self.0.display()))?);
        Ok(std::iter::from_fn(move || {
            let mut length = [0; 4];
            match file.read_exact(&mut length) {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return None,
                Err(error) => return Some(Err(error)),
                Ok(()) => {}
            }
            let mut frame = vec![0; u32::from_le_bytes(length) as usize];
            Some(file.read_exact(&mut frame).map(|()| frame))
        }))
    }

    /// Writes what lies below `tree`, on its file system. Says how many entries.
    pub fn walk(&self, tree: &Path) -> Result<u64> {
        let device = tree.symlink_metadata().with_context(|| format!("reading {}", tree.display()))?.dev();
        let mut writer = Writer::new(&self.0)?;
        let mut folders = vec![tree.to_path_buf()];
        while let Some(folder) = folders.pop() {
            let mut entries = Vec::new();
            // What cannot be read, or goes meanwhile, is no part of the measurement.
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                let Ok(metadata) = entry.path().symlink_metadata() else { continue };
                let kind = kind(metadata.file_type());
                if kind == Kind::Folder && metadata.dev() == device {
                    folders.push(entry.path());
                }
                entries.push(Entry {
                    name: entry.file_name().into_vec(),
                    kind,
                    size_bytes: metadata.size(),
                    mtime_us: metadata.mtime() * 1_000_000 + metadata.mtime_nsec() / 1_000,
                    mode: metadata.mode() & 0o7777,
                    uid: metadata.uid(),
                    gid: metadata.gid(),
                });
            }
            writer.folder(folder.as_os_str().as_bytes(), entries)?;
        }
        writer.finish()
    }

    /// Writes to `after` the same with every hundredth file changed; another hundredth for another `number`. Says how many.
    pub fn change(&self, after: &Spool, number: u32) -> Result<u64> {
        let mut writer = Writer::new(&after.0)?;
        let mut changed = 0;
        self.each_folder(|mut listing| {
            for (index, entry) in listing.entries.iter_mut().enumerate() {
                let is_file = entry.kind == Kind::File;
                if is_file && hash(&listing.path, index as u64, number).is_multiple_of(100) {
                    // An odd time, so that it costs what a real one does.
                    entry.mtime_us += i64::from(number) * 86_400_000_000 + (changed as i64 * 7_919_731) % 3_600_000_000;
                    entry.size_bytes += 17 + changed % 4_096;
                    changed += 1;
                }
            }
            writer.listing(listing)?;
            Ok(true)
        })?;
        writer.finish()?;
        Ok(changed)
    }

    /// Writes to `filled` the first `entries` of it, over and over below other folders if it has fewer.
    pub fn fill(&self, filled: &Spool, entries: u64) -> Result<()> {
        let mut writer = Writer::new(&filled.0)?;
        for round in 0.. {
            self.each_folder(|mut listing| {
                let left = usize::try_from(entries - writer.entries)?;
                listing.entries.truncate(left);
                if round > 0 {
                    let below = format!("/again-{round}").into_bytes();
                    listing.path = if listing.path == b"/" { below } else { [below, listing.path].concat() };
                }
                writer.listing(listing)?;
                Ok(writer.entries < entries)
            })?;
            if writer.entries == entries {
                break;
            }
            if writer.entries == 0 {
                bail!("the tree is empty");
            }
        }
        writer.finish()?;
        Ok(())
    }

    fn each_folder(&self, mut each: impl FnMut(Folder) -> Result<bool>) -> Result<()> {
        for frame in self.frames()? {
            let unpacked = zstd::bulk::decompress(&frame?, UNPACKED_BYTES_MAX)?;
            for folder in listing::read(&unpacked)?.folders {
                let entries = folder.entries.iter().map(|entry| Entry {
                    name: entry.name.to_vec(),
                    kind: entry.kind,
                    size_bytes: entry.size_bytes,
                    mtime_us: entry.mtime_us,
                    mode: entry.mode,
                    uid: entry.uid,
                    gid: entry.gid,
                });
                if !each(Folder { path: folder.path.to_vec(), more: folder.more, entries: entries.collect() })? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

fn hash(path: &[u8], index: u64, number: u32) -> u64 {
    let seed = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(number) << 40;
    let hash = path
        .iter()
        .fold(0xcbf2_9ce4_8422_2325 ^ seed, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    hash ^ hash >> 29
}

fn kind(file_type: std::fs::FileType) -> Kind {
    match file_type {
        t if t.is_dir() => Kind::Folder,
        t if t.is_symlink() => Kind::Symlink,
        t if t.is_fifo() => Kind::Fifo,
        t if t.is_socket() => Kind::Socket,
        t if t.is_char_device() => Kind::CharDevice,
        t if t.is_block_device() => Kind::BlockDevice,
        _ => Kind::File,
    }
}

struct Writer {
    file: BufWriter<File>,
    folders: Vec<Folder>,
    bytes: usize,
    entries: u64,
}

impl Writer {
    fn new(path: &Path) -> Result<Writer> {
        let file = File::create(path).with_context(|| format!("writing {}", path.display()))?;
        Ok(Writer { file: BufWriter::new(file), folders: Vec::new(), bytes: 0, entries: 0 })
    }

    fn folder(&mut self, path: &[u8], mut entries: Vec<Entry>) -> Result<()> {
        loop {
            let rest = entries.split_off(entries.len().min(PIECE_ENTRIES));
            let more = !rest.is_empty();
            self.listing(Folder { path: path.to_vec(), more, entries })?;
            if !more {
                return Ok(());
            }
            entries = rest;
        }
    }

    fn listing(&mut self, listing: Folder) -> Result<()> {
        self.entries += listing.entries.len() as u64;
        self.bytes += listing.path.len() + 8;
        self.bytes += listing.entries.iter().map(|entry| entry.name.len() + 24).sum::<usize>();
        self.folders.push(listing);
        if self.bytes >= LISTING_BYTES { self.send() } else { Ok(()) }
    }

    fn send(&mut self) -> Result<()> {
        let folders = self.folders.iter().map(|folder| listing::FolderListing {
            path: &folder.path,
            error: None,
            more: folder.more,
            entries: folder.entries.iter().map(Entry::borrowed).collect(),
        });
        let frame = zstd::bulk::compress(&postcard::to_stdvec(&listing::Listing { folders: folders.collect() })?, 1)?;
        self.folders.clear();
        self.bytes = 0;
        self.file.write_all(&u32::try_from(frame.len())?.to_le_bytes())?;
        Ok(self.file.write_all(&frame)?)
    }

    fn finish(mut self) -> Result<u64> {
        self.send()?;
        self.file.flush()?;
        Ok(self.entries)
    }
}
