//! Unpacks what a walk sends: one zstd frame around one postcard `Listing`, taken apart without a copy of its entries.
//!
//! The guest is not trusted. Compressed and unpacked size are bounded before anything is allocated, the memory does not grow with the
//! number of entries that a listing claims to have, and no path leaves here that is not a plain absolute one. Knows nothing of what
//! becomes of the entries. The types in `guest_wire::listing` are the truth about the bytes; those here borrow from them.

use crate::error::CatalogError;
use crate::version::{Kind, Version};
use lull_guest_wire::listing::{LISTING_COMPRESSED_BYTES_MAX, LISTING_UNPACKED_BYTES_MAX};
use serde::Deserialize;

/// One thing that a listing says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item<'a> {
    /// An entry of a folder.
    Entry {
        /// The folder's absolute path.
        folder: &'a [u8],
        /// The entry's name.
        name: &'a [u8],
        /// What it is.
        version: Version,
    },
    /// A piece of a folder was listed; comes after its entries.
    Folder {
        /// Its absolute path.
        path: &'a [u8],
        /// No other piece follows.
        ended: bool,
        /// It, or an entry of it, could not be read.
        failed: bool,
    },
}

/// Why a frame was not taken.
#[derive(Debug)]
pub enum FrameTrouble {
    /// The frame is not what a walk sends; what it said before that was handed on.
    Bad(String),
    /// Whoever takes the items failed.
    Taker(CatalogError),
}

/// Takes frames apart, one after another, in the same memory.
pub struct Decoder {
    zstd: zstd::bulk::Decompressor<'static>,
    unpacked: Vec<u8>,
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    path: &'a [u8],
    #[serde(borrow)]
    error: Option<&'a str>,
    more: bool,
    entries: u64,
}

#[derive(Deserialize)]
struct EntryRef<'a> {
    #[serde(borrow)]
    name: &'a [u8],
    kind: Kind,
    size_bytes: u64,
    mtime_us: i64,
    mode: u32,
    uid: u32,
    gid: u32,
    changed_after_freeze: bool,
}

impl Decoder {
    /// A decoder that holds one unpacked listing.
    ///
    /// # Errors
    /// When zstd has no memory.
    pub fn new() -> std::io::Result<Decoder> {
        Ok(Decoder { zstd: zstd::bulk::Decompressor::new()?, unpacked: Vec::with_capacity(LISTING_UNPACKED_BYTES_MAX) })
    }

    /// Hands each thing that `frame` says to `taker`.
    ///
    /// # Errors
    /// When the frame is not what a walk sends, or the taker fails.
    pub fn decode(
        &mut self,
        frame: &[u8],
        taker: &mut dyn FnMut(Item<'_>) -> Result<(), CatalogError>,
    ) -> Result<(), FrameTrouble> {
        if frame.len() > LISTING_COMPRESSED_BYTES_MAX {
            return Err(bad(format!("a piece of {} bytes, allowed are {LISTING_COMPRESSED_BYTES_MAX}", frame.len())));
        }
        self.unpacked.clear();
        self.zstd.decompress_to_buffer(frame, &mut self.unpacked).map_err(|error| {
            bad(format!("a piece that cannot be unpacked into {LISTING_UNPACKED_BYTES_MAX} bytes: {error}"))
        })?;
        items(&self.unpacked, taker)
    }
}

fn items(unpacked: &[u8], taker: &mut dyn FnMut(Item<'_>) -> Result<(), CatalogError>) -> Result<(), FrameTrouble> {
    let (folders, mut rest) = take::<u64>(unpacked)?;
    for _ in 0..folders {
        let (head, after) = take::<Head<'_>>(rest)?;
        rest = after;
        if !is_plain_absolute(head.path) {
            return Err(bad(format!("a folder path that is no plain absolute one: {}", head.path.escape_ascii())));
        }
        for _ in 0..head.entries {
            let (entry, after) = take::<EntryRef<'_>>(rest)?;
            rest = after;
            if !is_name(entry.name) {
                return Err(bad(format!("an entry name that is none: {}", entry.name.escape_ascii())));
            }
            let version = Version {
                kind: entry.kind,
                size_bytes: entry.size_bytes,
                mtime_us: entry.mtime_us,
                mode: entry.mode,
                uid: entry.uid,
                gid: entry.gid,
                changed_after_freeze: entry.changed_after_freeze,
            };
            taker(Item::Entry { folder: head.path, name: entry.name, version }).map_err(FrameTrouble::Taker)?;
        }
        taker(Item::Folder { path: head.path, ended: !head.more, failed: head.error.is_some() })
            .map_err(FrameTrouble::Taker)?;
    }
    if rest.is_empty() { Ok(()) } else { Err(bad(format!("{} bytes after the end of a piece", rest.len()))) }
}

fn take<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<(T, &'a [u8]), FrameTrouble> {
    postcard::take_from_bytes(bytes).map_err(|error| bad(format!("a piece that is no listing: {error}")))
}

fn bad(reason: String) -> FrameTrouble {
    FrameTrouble::Bad(reason)
}

fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && memchr::memchr2(b'/', 0, name).is_none()
}

/// `/`, or names with one `/` before each.
pub(crate) fn is_plain_absolute(path: &[u8]) -> bool {
    match path.split_first() {
        Some((b'/', [])) => true,
        Some((b'/', rest)) => rest.split(|byte| *byte == b'/').all(is_name),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lull_guest_wire::listing::{Entry, FolderListing, Listing};
    use proptest::prelude::*;

    fn packed(bytes: &[u8]) -> Vec<u8> {
        zstd::bulk::compress(bytes, 1).unwrap()
    }

    fn decoded(frame: &[u8]) -> Result<Vec<String>, String> {
        let mut said = Vec::new();
        let outcome = Decoder::new().unwrap().decode(frame, &mut |item| {
            said.push(match item {
                Item::Entry { folder, name, version } => {
                    format!("{}|{}|{version:?}", folder.escape_ascii(), name.escape_ascii())
                }
                Item::Folder { path, ended, failed } => format!("{}: {ended} {failed}", path.escape_ascii()),
            });
            Ok(())
        });
        match outcome {
            Ok(()) => Ok(said),
            Err(FrameTrouble::Bad(reason)) => Err(reason),
            Err(FrameTrouble::Taker(error)) => Err(error.to_string()),
        }
    }

    fn entry(name: &[u8], kind: Kind) -> Entry {
        Entry {
            name: name.to_vec(),
            kind,
            size_bytes: u64::MAX,
            mtime_us: -1,
            mode: 0o4755,
            uid: 1,
            gid: u32::MAX,
            changed_after_freeze: true,
        }
    }

    fn folder(path: &[u8], entries: Vec<Entry>) -> FolderListing {
        FolderListing { path: path.to_vec(), error: None, more: false, entries }
    }

    #[test]
    fn what_a_walk_sends_is_read_as_it_was_meant() {
        let mut entries = Vec::new();
        for (kind, _, _) in crate::version::KINDS {
            entries.push(entry(format!("\n\u{fc}{kind:?}").as_bytes(), kind));
        }
        entries.push(entry(b"\xff\xfe", Kind::File));
        let listing = Listing {
            folders: vec![
                folder(b"/", entries.clone()),
                FolderListing { error: Some("EACCES".into()), more: true, ..folder(b"/a/\xff", vec![]) },
            ],
        };
        let said = decoded(&packed(&postcard::to_stdvec(&listing).unwrap())).unwrap();
        let mut expected: Vec<String> = entries
            .iter()
            .map(|e| {
                let version = Version {
                    kind: e.kind,
                    size_bytes: e.size_bytes,
                    mtime_us: e.mtime_us,
                    mode: e.mode,
                    uid: e.uid,
                    gid: e.gid,
                    changed_after_freeze: e.changed_after_freeze,
                };
                format!("/|{}|{version:?}", e.name.escape_ascii())
            })
            .collect();
        expected.extend(["/: true false".to_string(), "/a/\\xff: false true".to_string()]);
        assert_eq!(said, expected);
    }

    #[test]
    fn paths_that_would_lie_elsewhere_are_refused() {
        for path in [&b""[..], b"a", b"/a/", b"//", b"/a//b", b"/a/../b", b"/.", b"/a\0b"] {
            let listing = Listing { folders: vec![folder(path, vec![])] };
            let refused = decoded(&packed(&postcard::to_stdvec(&listing).unwrap())).unwrap_err();
            assert!(refused.contains("no plain absolute one"), "{refused}");
        }
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
            let listing = Listing { folders: vec![folder(b"/", vec![entry(name, Kind::File)])] };
            let refused = decoded(&packed(&postcard::to_stdvec(&listing).unwrap())).unwrap_err();
            assert!(refused.contains("an entry name that is none"), "{refused}");
        }
    }

    #[test]
    fn a_piece_larger_than_its_bound_is_refused_before_it_is_unpacked() {
        let bomb = packed(&vec![0; LISTING_UNPACKED_BYTES_MAX + 1]);
        assert!(bomb.len() < 4_096);
        assert!(decoded(&bomb).unwrap_err().contains("cannot be unpacked"));
        assert!(decoded(&vec![0; LISTING_COMPRESSED_BYTES_MAX + 1]).unwrap_err().contains("allowed are"));
    }

    #[test]
    fn a_listing_that_claims_more_than_it_holds_is_refused() {
        for claim in [
            postcard::to_stdvec(&u64::MAX).unwrap(),
            postcard::to_stdvec(&(1u64, &b"/"[..], Option::<&str>::None, false, u64::MAX)).unwrap(),
            [postcard::to_stdvec(&Listing::default()).unwrap(), vec![0]].concat(),
        ] {
            assert!(decoded(&packed(&claim)).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decoded(&bytes);
            let _ = decoded(&packed(&bytes));
        }
    }
}
