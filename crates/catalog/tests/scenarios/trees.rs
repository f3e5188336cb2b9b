//! Made-up guests: trees in memory, and the frames that a walk of one sends. Knows nothing of the catalog but what it is given.

use lull_catalog::{Catalog, Hit, IngestOutcome, IngestReport, Kind, NewPoint, Order, Query, Version};
use lull_guest_wire::listing::{self, IndexSummary};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use uuid::Uuid;

pub const VM: Uuid = Uuid::from_u128(0x11);

/// Everything below `/`, by absolute path.
pub type Tree = BTreeMap<Vec<u8>, Version>;

/// A folder of its own, in memory where that can be had: some tests replace tables by the thousand, each synced to its disk.
pub fn place() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

pub fn file(size_bytes: u64, mtime_us: i64) -> Version {
    Version { kind: Kind::File, size_bytes, mtime_us, mode: 0o644, uid: 0, gid: 0, changed_after_freeze: false }
}

pub fn folder() -> Version {
    Version { kind: Kind::Folder, mode: 0o755, ..file(4_096, 0) }
}

/// The files, with the folders that they need.
pub fn tree(files: &[(&[u8], Version)]) -> Tree {
    let mut tree = Tree::new();
    for (path, version) in files {
        let mut at = 1;
        while let Some(slash) = path[at..].iter().position(|byte| *byte == b'/') {
            tree.entry(path[..at + slash].to_vec()).or_insert_with(folder);
            at += slash + 1;
        }
        tree.insert(path.to_vec(), *version);
    }
    tree
}

pub fn parent(path: &[u8]) -> &[u8] {
    let slash = path.iter().rposition(|byte| *byte == b'/').unwrap();
    &path[..slash.max(1)]
}

pub fn name(path: &[u8]) -> &[u8] {
    &path[path.iter().rposition(|byte| *byte == b'/').unwrap() + 1..]
}

/// A listing of a folder, or a piece of it, that owns what it says.
#[derive(Debug, Clone)]
pub struct FolderListing {
    pub path: Vec<u8>,
    pub error: Option<String>,
    pub more: bool,
    pub entries: Vec<(Vec<u8>, Version)>,
}

impl FolderListing {
    fn borrowed(&self) -> listing::FolderListing<'_> {
        let entries = self.entries.iter().map(|(name, version)| listing::Entry {
            name,
            kind: version.kind,
            size_bytes: version.size_bytes,
            mtime_us: version.mtime_us,
            mode: version.mode,
            uid: version.uid,
            gid: version.gid,
            changed_after_freeze: version.changed_after_freeze,
        });
        listing::FolderListing {
            path: &self.path,
            error: self.error.as_deref(),
            more: self.more,
            entries: entries.collect(),
        }
    }
}

/// How a walk of a tree goes.
#[derive(Debug, Clone, Default)]
pub struct Walking {
    /// Folders that it cannot read.
    pub unreadable: BTreeSet<Vec<u8>>,
    /// Folders that it does not enter: other file systems, noise, or it ended before.
    pub unentered: BTreeSet<Vec<u8>>,
    /// Entries of one piece at most; 0 for all.
    pub piece: usize,
}

impl Walking {
    /// The folders that the walk comes to; and those of them of whose inside it learns nothing.
    fn folders(&self, tree: &Tree) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let (mut read, mut unknown) = (Vec::new(), Vec::new());
        let mut to_do = vec![b"/".to_vec()];
        while let Some(path) = to_do.pop() {
            if self.unreadable.contains(&path) || self.unentered.contains(&path) {
                unknown.push(path);
                continue;
            }
            let inside = tree.iter().filter(|(child, version)| version.kind == Kind::Folder && parent(child) == path);
            to_do.extend(inside.map(|(child, _)| child.clone()));
            read.push(path);
        }
        (read, unknown)
    }

    pub fn listings(&self, tree: &Tree) -> Vec<FolderListing> {
        let mut listings = Vec::new();
        let (read, unknown) = self.folders(tree);
        for path in read {
            let inside = tree.iter().filter(|(child, _)| parent(child) == path);
            let mut entries: Vec<_> = inside.map(|(child, version)| entry(name(child), version)).collect();
            if self.piece > 0 {
                while entries.len() > self.piece {
                    let rest = entries.split_off(self.piece);
                    listings.push(FolderListing { path: path.clone(), error: None, more: true, entries });
                    entries = rest;
                }
            }
            listings.push(FolderListing { path, error: None, more: false, entries });
        }
        for path in unknown.into_iter().filter(|path| self.unreadable.contains(path)) {
            listings.push(FolderListing { path, error: Some("EACCES".into()), more: false, entries: vec![] });
        }
        listings
    }

    /// What the walk sees, and the folders of whose inside it learns nothing.
    pub fn sees(&self, tree: &Tree) -> (Tree, Vec<Vec<u8>>) {
        let (read, unknown) = self.folders(tree);
        let seen = tree.iter().filter(|(path, _)| read.iter().any(|folder| parent(path) == folder));
        (seen.map(|(path, version)| (path.clone(), *version)).collect(), unknown)
    }
}

pub fn entry(name: &[u8], version: &Version) -> (Vec<u8>, Version) {
    (name.to_vec(), *version)
}

pub fn frame(folders: Vec<FolderListing>) -> Vec<u8> {
    let listing = listing::Listing { folders: folders.iter().map(FolderListing::borrowed).collect() };
    zstd::bulk::compress(&postcard::to_stdvec(&listing).unwrap(), 1).unwrap()
}

/// Frames of at most `folders` folders each.
pub fn frames(listings: Vec<FolderListing>, folders: usize) -> Vec<Vec<u8>> {
    listings.chunks(folders).map(|some| frame(some.to_vec())).collect()
}

pub fn point(number: u32) -> NewPoint {
    NewPoint { id: point_id(number), number, taken_at_us: i64::from(number) * 1_000_000 }
}

pub fn point_id(number: u32) -> Uuid {
    Uuid::from_u128(0xabc0000 + u128::from(number))
}

pub fn complete() -> IndexSummary {
    IndexSummary { complete: true, ..IndexSummary::default() }
}

pub fn ingest_frames(catalog: &Catalog, vm: Uuid, number: u32, frames: Vec<Vec<u8>>) -> IngestReport {
    let outcome = catalog.ingest(vm, &point(number), &mut frames.into_iter().map(Ok), &complete()).unwrap();
    match outcome {
        IngestOutcome::Ingested(report) => *report,
        IngestOutcome::AlreadyThere => panic!("point {number} was there"),
    }
}

/// Takes in a whole walk of `tree` as point `number` of [`VM`].
pub fn ingest(catalog: &Catalog, number: u32, tree: &Tree) -> IngestReport {
    ingest_walked(catalog, number, tree, &Walking::default())
}

pub fn ingest_walked(catalog: &Catalog, number: u32, tree: &Tree, walking: &Walking) -> IngestReport {
    ingest_frames(catalog, VM, number, frames(walking.listings(tree), 3))
}

pub fn search(catalog: &Catalog, query: &Query) -> Vec<Hit> {
    let mut hits = Vec::new();
    let report = catalog
        .search(query, &mut |hit| {
            hits.push(hit);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(report.set_aside.is_empty() && report.unreadable.is_empty(), "{report:?}");
    assert_eq!(report.hits, hits.len() as u64);
    hits
}

pub fn everything() -> Query {
    Query { order: Order::Path, ..Query::default() }
}

/// What existed in point `number` of [`VM`], as a search finds it; with what is only assumed where `assumed`.
pub fn existed(catalog: &Catalog, number: u32, assumed: bool) -> Tree {
    let hits = search(catalog, &Query { point: Some(point_id(number)), ..everything() });
    hits.into_iter()
        .filter(|hit| assumed || hit.points.iter().any(|presence| presence.number == number && presence.known))
        .map(|hit| (hit.path, hit.version))
        .collect()
}

/// The points in which each version of `path` existed, the newest version first; an assumed point is negative.
pub fn points_of(catalog: &Catalog, path: &[u8]) -> Vec<Vec<i64>> {
    let versions = catalog.versions(VM, path).unwrap();
    let sign = |known: bool| if known { 1 } else { -1 };
    versions.iter().map(|v| v.points.iter().map(|p| i64::from(p.number) * sign(p.known)).collect()).collect()
}

pub fn check_is_clean(catalog: &Catalog, vm: Uuid) {
    assert_eq!(catalog.check(vm).unwrap().problems, Vec::<String>::new());
}
