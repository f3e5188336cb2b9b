//! A guest that sends what no walk sends.

use crate::trees::*;
use lull_catalog::sort::PATH_BYTES_MAX;
use lull_catalog::*;

fn listing(path: &[u8], entries: Vec<(Vec<u8>, Version)>) -> FolderListing {
    FolderListing { path: path.to_vec(), error: None, more: false, entries }
}

#[test]
fn what_is_no_listing_ends_it_and_what_came_before_counts() {
    let folder = place();
    let catalog = Catalog::open(folder.path()).unwrap();
    ingest(&catalog, 1, &tree(&[(b"/a/f", file(1, 1)), (b"/b/f", file(1, 1))]));
    let sent = vec![
        frame(vec![listing(b"/", vec![entry(b"a", &folder_version()), entry(b"b", &folder_version())])]),
        frame(vec![listing(b"/a", vec![])]),
        b"garbage".to_vec(),
        frame(vec![listing(b"/b", vec![])]),
    ];
    let report = ingest_frames(&catalog, VM, 2, sent);
    assert!(!report.point.walk.complete);
    assert!(report.point.walk.stopped_because.unwrap().contains("something else than a listing"));
    assert_eq!(points_of(&catalog, b"/a/f"), [[1]]);
    assert_eq!(points_of(&catalog, b"/b/f"), [[1, -2]], "its folder was listed after the garbage");
    check_is_clean(&catalog, VM);
}

fn folder_version() -> Version {
    folder()
}

#[test]
fn a_path_that_is_listed_twice_is_there_once_and_as_it_was_seen_last() {
    let folder = place();
    let catalog = Catalog::open(folder.path()).unwrap();
    let twice = vec![entry(b"f", &file(1, 1)), entry(b"f", &file(2, 2))];
    ingest_frames(
        &catalog,
        VM,
        1,
        vec![frame(vec![listing(b"/", twice)]), frame(vec![listing(b"/", vec![entry(b"f", &file(3, 3))])])],
    );
    let versions = catalog.versions(VM, b"/f").unwrap();
    assert_eq!(versions.iter().map(|found| found.version).collect::<Vec<_>>(), [file(3, 3)]);
}

#[test]
fn long_paths_repeated_in_small_frames_cost_no_memory_and_no_truth() {
    let folder = place();
    let bounds = Bounds { sort_bytes_max: 1 << 20, ..Bounds::default() };
    let catalog = Catalog::open(folder.path()).unwrap().with_bounds(bounds);
    let deep = [b"/".as_slice(), &[b'x'; 200]].concat().repeat(20);
    let entries = (0..2_000u32).map(|n| entry(format!("{n:05}").as_bytes(), &file(1, 1))).collect();
    let sent = vec![frame(vec![listing(&deep, entries)])];
    assert!(sent[0].len() < 32 << 10);
    let report = ingest_frames(&catalog, VM, 1, sent);
    assert!(report.runs > 5, "8 MB of paths in {} runs", report.runs);
    assert!(report.table_bytes < 128 << 10);
    let hits = search(&catalog, &everything());
    assert_eq!((hits.len(), hits[1_999].path.len()), (2_000, 4_026));
    assert_eq!(hits[1_999].path, [deep.as_slice(), b"/01999"].concat());
}

#[test]
fn a_path_longer_than_any_is_left_out_and_its_folder_is_not_taken_as_listed() {
    let folder = place();
    let catalog = Catalog::open(folder.path()).unwrap();
    let deep = [b"/".as_slice(), &[b'x'; 255]].concat().repeat(PATH_BYTES_MAX / 256 - 1);
    let edge = [deep.as_slice(), b"/", &[b'y'; 255]].concat();
    assert_eq!(edge.len(), PATH_BYTES_MAX);
    ingest_frames(
        &catalog,
        VM,
        1,
        vec![frame(vec![listing(&deep, vec![entry(&[b'y'; 255], &file(1, 1)), entry(b"z", &file(1, 1))])])],
    );
    assert_eq!(points_of(&catalog, &edge), [[1]]);
    let report = ingest_frames(
        &catalog,
        VM,
        2,
        vec![frame(vec![
            listing(&deep, vec![entry(&[b'y'; 256], &file(1, 1))]),
            listing(&[edge.as_slice(), b"/a"].concat(), vec![]),
        ])],
    );
    assert_eq!(report.point.walk.entries, 0);
    assert_eq!(points_of(&catalog, &[deep.as_slice(), b"/z"].concat()), [[1, -2]]);
    check_is_clean(&catalog, VM);
}
