//! What a walk through a guest's file systems brings: folders with their entries, packed into frames.
//!
//! The component writes with [`ListingWriter`], compresses and sends; whoever keeps a catalog unpacks and reads with [`read`]. What
//! is read borrows from the unpacked bytes, so a name costs no memory of its own. The guest is not trusted: every length is
//! bounded before it is believed, every path and name is checked. Names are bytes; nothing here asks for UTF-8.
//!
//! Knows nothing of compression, of file systems or of a catalog.

use serde::{Deserialize, Serialize};

/// Longest compressed listing in one frame, in bytes.
pub const COMPRESSED_BYTES_MAX: usize = 256 * 1024;
/// Longest unpacked listing, in bytes: what an unpacker may allocate for one frame. Read, a hostile one takes at most some twenty
/// times its size.
pub const UNPACKED_BYTES_MAX: usize = 1 << 20;
/// The component packs at most this much into one frame, in bytes: incompressible, it still fits into [`COMPRESSED_BYTES_MAX`].
pub const PACKED_BYTES_MAX: usize = 250 * 1024;
/// A folder whose entries take more than this is sent in pieces, in bytes.
pub const PIECE_BYTES_MAX: usize = 128 * 1024;
/// Longest path of a folder, in bytes; folders below have no listing. Beyond what one system call can name (4 096).
pub const PATH_BYTES_MAX: usize = 65_535;
/// Longest name of an entry, in bytes. Most file systems know 255.
pub const NAME_BYTES_MAX: usize = 4_095;
/// Longest error of a folder, in bytes.
pub const ERROR_BYTES_MAX: usize = 1_024;
/// Most examples of what could not be read in a summary.
pub const EXAMPLES_MAX: usize = 20;

/// Which files to list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexOrder {
    /// Where.
    pub scope: IndexScope,
    /// Whether other file systems of the guest's disks that are mounted below are walked too. Virtual and network file
    /// systems never are.
    pub cross_mounts: bool,
    /// Entries whose ctime lies after this are marked, in microseconds since 1970 by the guest's clock. `None`: after the last
    /// freeze of this component, if there was one.
    pub flag_ctime_after_us: Option<i64>,
}

/// Where to look for files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum IndexScope {
    /// From the root.
    Everything,
    /// From the root, but not into what hardly anybody looks for: caches, temporary files, files of the system's packages. The
    /// list is documented.
    ExceptNoise,
    /// Below these absolute paths. A path that is no folder is listed as the only entry of its parent.
    Only(Vec<Vec<u8>>),
}

/// A part of a walk's listing, compressed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListingFrame {
    /// One zstd frame, at most [`COMPRESSED_BYTES_MAX`], that holds a [`Listing`] of at most [`UNPACKED_BYTES_MAX`].
    pub compressed: Vec<u8>,
}

/// Some folders of a walk, in no order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing<'a> {
    /// The folders. Pieces of one folder come in order, but other folders may come in between.
    #[serde(borrow)]
    pub folders: Vec<FolderListing<'a>>,
}

/// One folder, or a piece of it. A folder that the walk did not enter (noise, another file system) has none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderListing<'a> {
    /// Absolute, without a slash at the end (but for `/`).
    pub path: &'a [u8],
    /// Why the entries are not all of the folder's: of what is missing nothing is known.
    #[serde(borrow)]
    pub error: Option<&'a str>,
    /// Another piece of the same folder follows.
    pub more: bool,
    /// Its entries without `.` and `..`, in no order.
    #[serde(borrow)]
    pub entries: Vec<Entry<'a>>,
}

/// One entry of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// What it is.
    pub kind: Kind,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// When its content was changed last, in microseconds since 1970 by the guest's clock.
    pub mtime_us: i64,
    /// Permission bits, at most `0o7777`.
    pub mode: u32,
    /// Its owner's number.
    pub uid: u32,
    /// Its group's number.
    pub gid: u32,
    /// Its ctime lies after the freeze: the snapshot may hold another version of it, or none.
    pub changed_after_freeze: bool,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link; never followed.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// How a walk ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexSummary {
    /// When it began, in microseconds since 1970 by the guest's clock.
    pub began_us: i64,
    /// When it ended: [`Self::began_us`] and the time that really passed, so a clock that is set meanwhile does no harm.
    pub ended_us: i64,
    /// Folders that were read.
    pub folders: u64,
    /// Entries that were listed.
    pub entries: u64,
    /// Folders that could not be read, or not to their end.
    pub unreadable_folders: u64,
    /// Entries of which nothing but the name could be found out; they are not listed.
    pub unreadable_entries: u64,
    /// What was gone when the walk came to it.
    pub vanished: u64,
    /// Whether the walk came to its end. What was unreadable or vanished does not count against it.
    pub complete: bool,
    /// Why it did not.
    pub stopped_because: Option<String>,
    /// Some of what could not be read, with the errors; at most [`EXAMPLES_MAX`].
    pub examples: Vec<String>,
}

/// Why a listing is not believed.
#[derive(Debug, thiserror::Error)]
pub enum ListingError {
    /// Longer than any may be.
    #[error("a listing of {0} bytes, at most {UNPACKED_BYTES_MAX} are allowed")]
    Length(usize),
    /// No listing.
    #[error("bytes that are no listing")]
    Malformed(#[from] postcard::Error),
    /// Bytes after its end.
    #[error("a listing with {0} bytes after its end")]
    Trailing(usize),
    /// A path that no folder can have.
    #[error("\"{0}\" is no absolute path of a folder")]
    Path(String),
    /// A name that no entry can have.
    #[error("\"{0}\" is no name of a file")]
    Name(String),
    /// An error that is longer than any may be.
    #[error("an error of {0} bytes, at most {ERROR_BYTES_MAX} are allowed")]
    ErrorLength(usize),
    /// Permission bits that there are not.
    #[error("{0:o} are no permission bits")]
    Mode(u32),
}

/// Reads an unpacked listing and checks everything in it.
pub fn read(unpacked: &[u8]) -> Result<Listing<'_>, ListingError> {
    if unpacked.len() > UNPACKED_BYTES_MAX {
        return Err(ListingError::Length(unpacked.len()));
    }
    let (listing, rest): (Listing<'_>, _) = postcard::take_from_bytes(unpacked)?;
    if !rest.is_empty() {
        return Err(ListingError::Trailing(rest.len()));
    }
    for folder in &listing.folders {
        if !is_folder_path(folder.path) {
            return Err(ListingError::Path(shown(folder.path)));
        }
        if let Some(error) = folder.error.filter(|error| error.len() > ERROR_BYTES_MAX) {
            return Err(ListingError::ErrorLength(error.len()));
        }
        for entry in &folder.entries {
            if !is_name(entry.name) {
                return Err(ListingError::Name(shown(entry.name)));
            }
            if entry.mode > 0o7777 {
                return Err(ListingError::Mode(entry.mode));
            }
        }
    }
    Ok(listing)
}

/// Absolute, each part a name, no slash at the end (but for `/`).
pub fn is_folder_path(path: &[u8]) -> bool {
    match path {
        b"/" => true,
        [b'/', rest @ ..] => path.len() <= PATH_BYTES_MAX && rest.split(|byte| *byte == b'/').all(is_name),
        _ => false,
    }
}

/// What an entry of a folder can be called.
pub fn is_name(name: &[u8]) -> bool {
    let odd = name.is_empty() || name == b"." || name == b".." || name.len() > NAME_BYTES_MAX;
    !odd && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(100)]).escape_debug().to_string()
}

/// Bytes kept free before the folders for their number, which is known last.
const COUNT_BYTES_MAX: usize = 10;

/// Builds listings, one after the other, in memory that it keeps.
#[derive(Debug)]
pub struct ListingWriter {
    /// [`COUNT_BYTES_MAX`] bytes, then the folders that ended.
    packed: Vec<u8>,
    folders: usize,
    /// Entries of the folder that is being written.
    piece: Vec<u8>,
    entries: usize,
}

impl Default for ListingWriter {
    fn default() -> Self {
        ListingWriter::new()
    }
}

impl ListingWriter {
    /// Holds nothing yet.
    pub fn new() -> ListingWriter {
        let mut packed = Vec::with_capacity(COUNT_BYTES_MAX + PACKED_BYTES_MAX);
        packed.resize(COUNT_BYTES_MAX, 0);
        let piece = Vec::with_capacity(PIECE_BYTES_MAX + NAME_BYTES_MAX + 64);
        ListingWriter { packed, folders: 0, piece, entries: 0 }
    }

    /// Adds an entry to the folder that is being written. False once it is time to end this piece of it.
    #[must_use]
    pub fn entry(&mut self, entry: &Entry<'_>) -> bool {
        bytes(&mut self.piece, entry.name);
        self.piece.push(entry.kind as u8);
        unsigned(&mut self.piece, entry.size_bytes);
        unsigned(&mut self.piece, zigzag(entry.mtime_us));
        unsigned(&mut self.piece, entry.mode.into());
        unsigned(&mut self.piece, entry.uid.into());
        unsigned(&mut self.piece, entry.gid.into());
        self.piece.push(entry.changed_after_freeze.into());
        self.entries += 1;
        self.piece.len() < PIECE_BYTES_MAX
    }

    /// Whether the piece that is being written still fits; else [`Self::take`] what is there before [`Self::end_folder`].
    pub fn fits(&self, path: &[u8]) -> bool {
        self.packed.len() - COUNT_BYTES_MAX + self.piece.len() + path.len() + ERROR_BYTES_MAX + 32
            <= PACKED_BYTES_MAX - COUNT_BYTES_MAX
    }

    /// Ends the folder that is being written, or a piece of it.
    pub fn end_folder(&mut self, path: &[u8], error: Option<&str>, more: bool) {
        bytes(&mut self.packed, path);
        match error {
            None => self.packed.push(0),
            Some(error) => {
                self.packed.push(1);
                bytes(&mut self.packed, cut(error, ERROR_BYTES_MAX).as_bytes());
            }
        }
        self.packed.push(more.into());
        unsigned(&mut self.packed, self.entries as u64);
        self.packed.extend_from_slice(&self.piece);
        self.piece.clear();
        (self.entries, self.folders) = (0, self.folders + 1);
    }

    /// The listing of every folder that ended since the last time, unless there is none. A folder that is being written stays.
    pub fn take<T>(&mut self, pack: impl FnOnce(&[u8]) -> T) -> Option<T> {
        if self.folders == 0 {
            return None;
        }
        let mut count = Vec::with_capacity(COUNT_BYTES_MAX);
        unsigned(&mut count, self.folders as u64);
        let start = COUNT_BYTES_MAX - count.len();
        self.packed[start..COUNT_BYTES_MAX].copy_from_slice(&count);
        let packed = pack(&self.packed[start..]);
        self.packed.truncate(COUNT_BYTES_MAX);
        self.folders = 0;
        Some(packed)
    }
}

/// The text, or as much of its beginning as fits.
pub fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

// postcard's integers: seven bits to a byte, the lowest first; signed ones with the sign in the lowest bit.

fn unsigned(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn bytes(to: &mut Vec<u8>, bytes: &[u8]) {
    unsigned(to, bytes.len() as u64);
    to.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const KINDS: [Kind; 7] =
        [Kind::File, Kind::Folder, Kind::Symlink, Kind::Fifo, Kind::Socket, Kind::CharDevice, Kind::BlockDevice];

    fn entry(name: &[u8]) -> Entry<'_> {
        Entry {
            name,
            kind: Kind::File,
            size_bytes: 1,
            mtime_us: 2,
            mode: 0o644,
            uid: 0,
            gid: 0,
            changed_after_freeze: false,
        }
    }

    fn written(listing: &Listing<'_>) -> Vec<u8> {
        let mut writer = ListingWriter::new();
        for folder in &listing.folders {
            for entry in &folder.entries {
                let _ = writer.entry(entry);
            }
            writer.end_folder(folder.path, folder.error, folder.more);
        }
        writer.take(<[u8]>::to_vec).unwrap_or_else(|| vec![0])
    }

    prop_compose! {
        fn any_entry()(
            name in vec(prop_oneof![1u8..b'/', b'0'..=255], 1..20).prop_filter("dots", |name| is_name(name)),
            kind in prop::sample::select(KINDS.to_vec()),
            size_bytes: u64,
            mtime_us: i64,
            mode in 0u32..=0o7777,
            uid: u32,
            gid: u32,
            changed_after_freeze: bool,
        ) -> (Vec<u8>, Entry<'static>) {
            (name, Entry { name: b"", kind, size_bytes, mtime_us, mode, uid, gid, changed_after_freeze })
        }
    }

    proptest! {
        #[test]
        fn what_is_written_by_hand_is_postcard_and_is_read_again(
            folders in vec((vec(any_entry(), 0..20), proptest::option::of("[a-z é]{0,9}"), any::<bool>()), 0..5)
        ) {
            let folders = folders.iter().map(|(entries, error, more)| FolderListing {
                path: b"/a/b",
                error: error.as_deref(),
                more: *more,
                entries: entries.iter().map(|(name, entry)| Entry { name, ..*entry }).collect(),
            });
            let listing = Listing { folders: folders.collect() };
            let bytes = written(&listing);
            prop_assert_eq!(&bytes, &postcard::to_stdvec(&listing).unwrap());
            prop_assert_eq!(read(&bytes).unwrap(), listing);
        }

        #[test]
        fn no_bytes_make_a_reader_of_listings_panic(bytes in vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
        }

        #[test]
        fn a_listing_with_any_byte_changed_is_refused_or_still_sound(at in 0usize..60, to: u8) {
            let entries = vec![entry(b"one"), entry(b"two")];
            let mut bytes = written(&Listing { folders: vec![FolderListing { path: b"/a", error: None, more: false, entries }] });
            let at = at % bytes.len();
            bytes[at] = to;
            if let Ok(listing) = read(&bytes) {
                prop_assert!(listing.folders.iter().all(|folder| is_folder_path(folder.path)));
            }
        }
    }

    #[test]
    fn a_count_without_its_entries_allocates_next_to_nothing() {
        // Two thousand million folders are announced, and there is none.
        assert!(matches!(read(&[0xff, 0xff, 0xff, 0xff, 0x07]), Err(ListingError::Malformed(_))));
        assert!(matches!(read(&vec![0; UNPACKED_BYTES_MAX + 1]), Err(ListingError::Length(_))));
    }

    #[test]
    fn what_no_file_system_holds_is_refused() {
        let refused = |path: &[u8], name: &[u8]| {
            let folder = FolderListing { path, error: None, more: false, entries: vec![entry(name)] };
            read(&written(&Listing { folders: vec![folder] })).is_err()
        };
        assert!(!refused(b"/", b"new\nline") && !refused(b"/a/\xff\xfe", b"...") && !refused(b"/a b", b" "));
        for path in
            [&b""[..], b"a", b"//", b"/a/", b"/a//b", b"/a/../b", b"/./a", b"/a\0b", &[b'/'; 2], &vec![b'/'; 70_000]]
        {
            assert!(refused(path, b"x"), "{}", shown(path));
        }
        let long = [b"/".as_slice(), &vec![b'n'; PATH_BYTES_MAX]].concat();
        assert!(refused(&long, b"x"));
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0", &vec![b'n'; NAME_BYTES_MAX + 1]] {
            assert!(refused(b"/", name), "{}", shown(name));
        }
        let odd_mode = Entry { mode: 0o10_000, ..entry(b"a") };
        let folder = FolderListing { path: b"/", error: None, more: false, entries: vec![odd_mode] };
        assert!(matches!(read(&written(&Listing { folders: vec![folder] })), Err(ListingError::Mode(_))));
    }

    #[test]
    fn a_large_folder_comes_in_pieces_that_fit() {
        let mut writer = ListingWriter::new();
        let name = [b'n'; 255];
        let mut sent = Vec::new();
        for _ in 0..10_000 {
            if writer.entry(&entry(&name)) {
                continue;
            }
            if !writer.fits(b"/d") {
                sent.extend(writer.take(<[u8]>::to_vec));
            }
            assert!(writer.fits(b"/d"));
            writer.end_folder(b"/d", None, true);
        }
        if !writer.fits(b"/d") {
            sent.extend(writer.take(<[u8]>::to_vec));
        }
        writer.end_folder(b"/d", Some(&"é".repeat(3_000)), false);
        sent.extend(writer.take(<[u8]>::to_vec));
        assert!(writer.take(|_| ()).is_none());
        assert!(sent.iter().all(|packed| packed.len() <= PACKED_BYTES_MAX));
        let listings: Vec<Listing<'_>> = sent.iter().map(|packed| read(packed).unwrap()).collect();
        let pieces: Vec<&FolderListing<'_>> = listings.iter().flat_map(|listing| &listing.folders).collect();
        assert_eq!(pieces.iter().map(|piece| piece.entries.len()).sum::<usize>(), 10_000);
        assert!(pieces.iter().rev().skip(1).all(|piece| piece.more) && !pieces[pieces.len() - 1].more);
        assert!(pieces.len() > 10);
    }
}
