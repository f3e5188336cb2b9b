//! Unpacks what a walk sends: one zstd frame around one listing, and says what it holds, one thing after another.
//!
//! The guest is not trusted. Compressed and unpacked size are bounded before anything is allocated; `guest_wire::listing` checks every
//! path and name, and borrows them from the unpacked bytes. Knows nothing of what becomes of the entries.

use crate::error::CatalogError;
use crate::version::Version;
use lull_guest_wire::listing::{self, COMPRESSED_BYTES_MAX, UNPACKED_BYTES_MAX};

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
    /// The frame is not what a walk sends; nothing of it was handed on.
    Bad(String),
    /// Whoever takes the items failed.
    Taker(CatalogError),
}

/// Takes frames apart, one after another, in the same memory.
pub struct Decoder {
    zstd: zstd::bulk::Decompressor<'static>,
    unpacked: Vec<u8>,
}

impl Decoder {
    /// A decoder that holds one unpacked listing.
    ///
    /// # Errors
    /// When zstd has no memory.
    pub fn new() -> std::io::Result<Decoder> {
        Ok(Decoder { zstd: zstd::bulk::Decompressor::new()?, unpacked: Vec::with_capacity(UNPACKED_BYTES_MAX) })
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
        if frame.len() > COMPRESSED_BYTES_MAX {
            return Err(bad(format!("a piece of {} bytes, allowed are {COMPRESSED_BYTES_MAX}", frame.len())));
        }
        self.unpacked.clear();
        self.zstd.decompress_to_buffer(frame, &mut self.unpacked).map_err(|error| {
            bad(format!("a piece that cannot be unpacked into {UNPACKED_BYTES_MAX} bytes: {error}"))
        })?;
        let listing = listing::read(&self.unpacked).map_err(|error| bad(error.to_string()))?;
        for folder in &listing.folders {
            for entry in &folder.entries {
                let version = Version {
                    kind: entry.kind,
                    size_bytes: entry.size_bytes,
                    mtime_us: entry.mtime_us,
                    mode: entry.mode,
                    uid: entry.uid,
                    gid: entry.gid,
                    changed_after_freeze: entry.changed_after_freeze,
                };
                taker(Item::Entry { folder: folder.path, name: entry.name, version }).map_err(FrameTrouble::Taker)?;
            }
            taker(Item::Folder { path: folder.path, ended: !folder.more, failed: folder.error.is_some() })
                .map_err(FrameTrouble::Taker)?;
        }
        Ok(())
    }
}

fn bad(reason: String) -> FrameTrouble {
    FrameTrouble::Bad(reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lull_guest_wire::listing::{Entry, FolderListing, Kind, Listing};
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

    #[test]
    fn what_a_walk_sends_is_read_as_it_was_meant() {
        let version = Version {
            kind: Kind::Socket,
            size_bytes: u64::MAX,
            mtime_us: -1,
            mode: 0o4755,
            uid: 1,
            gid: u32::MAX,
            changed_after_freeze: true,
        };
        let entry = |name| Entry {
            name,
            kind: version.kind,
            size_bytes: version.size_bytes,
            mtime_us: version.mtime_us,
            mode: version.mode,
            uid: version.uid,
            gid: version.gid,
            changed_after_freeze: version.changed_after_freeze,
        };
        let entries = vec![entry(b"\n"), entry(b"\xff\xfe")];
        let first = FolderListing { path: b"/", error: None, more: false, entries };
        let second = FolderListing { path: b"/a/\xff", error: Some("EACCES"), more: true, entries: vec![] };
        let listing = Listing { folders: vec![first, second] };
        assert_eq!(
            decoded(&packed(&postcard::to_stdvec(&listing).unwrap())).unwrap(),
            [
                format!("/|\\n|{version:?}"),
                format!("/|\\xff\\xfe|{version:?}"),
                "/: true false".to_string(),
                "/a/\\xff: false true".to_string(),
            ]
        );
    }

    #[test]
    fn paths_that_would_lie_elsewhere_are_refused() {
        for path in [&b""[..], b"a", b"/a/", b"//", b"/a//b", b"/a/../b", b"/.", b"/a\0b"] {
            let listing = Listing { folders: vec![FolderListing { path, error: None, more: false, entries: vec![] }] };
            let refused = decoded(&packed(&postcard::to_stdvec(&listing).unwrap())).unwrap_err();
            assert!(refused.contains("no absolute path of a folder"), "{refused}");
        }
    }

    #[test]
    fn a_piece_larger_than_its_bound_is_refused_before_it_is_unpacked() {
        let bomb = packed(&vec![0; UNPACKED_BYTES_MAX + 1]);
        assert!(bomb.len() < 4_096);
        assert!(decoded(&bomb).unwrap_err().contains("cannot be unpacked"));
        assert!(decoded(&vec![0; COMPRESSED_BYTES_MAX + 1]).unwrap_err().contains("allowed are"));
    }

    #[test]
    fn a_listing_that_claims_more_than_it_holds_is_refused() {
        for claim in [
            postcard::to_stdvec(&u64::MAX).unwrap(),
            postcard::to_stdvec(&(1u64, &b"/"[..], Option::<&str>::None, false, u64::MAX)).unwrap(),
            [postcard::to_stdvec(&Listing { folders: vec![] }).unwrap(), vec![0]].concat(),
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
