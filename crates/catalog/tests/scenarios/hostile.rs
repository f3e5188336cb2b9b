//! A guest that sends what no walk sends.

use crate::trees::*;
use lull_catalog::ingest::PATH_BYTES_PER_COMPRESSED;
use lull_catalog::sort::PATH_BYTES_MAX;
use lull_catalog::*;
use std::sync::{Arc, Mutex};

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

/// A few bytes that unpack to paths without end, as entries or as folders alone.
#[test]
fn a_listing_made_to_fill_a_disk_is_cut_and_one_that_came_as_large_is_not() {
    let of_any = 1 << 20;
    let bounds = Bounds { path_bytes_of_any: of_any, ..Bounds::default() };
    let deep = [b"/".as_slice(), &[b'x'; 250]].concat().repeat(100);
    let bomb = |n: u32| {
        let folder = [format!("/{n}").as_bytes(), &deep].concat();
        let entries = (0..2).map(|n| entry(format!("{n}").as_bytes(), &file(1, 1))).collect();
        frame(vec![listing(&folder, entries)])
    };
    let empty = |n: u32| listing(&[format!("/{n}").as_bytes(), &deep].concat(), vec![]);
    let folders = |n: u32| frame((0..20).map(|part| empty(20 * n + part)).collect());
    let many: [(&str, Vec<Vec<u8>>); 2] =
        [("entries", (0..300).map(bomb).collect()), ("folders", (0..30).map(folders).collect())];
    for (what, sent) in many {
        let folder = place();
        let catalog = Catalog::open(folder.path()).unwrap().with_bounds(bounds);
        let allowed = of_any + sent.iter().map(Vec::len).sum::<usize>() as u64 * PATH_BYTES_PER_COMPRESSED;
        let report = ingest_frames(&catalog, VM, 1, sent);
        let walk = report.point.walk;
        assert!(walk.entries * 25_000 <= allowed, "{what}: {walk:?}");
        assert!(walk.stopped_because.is_some_and(|why| why.contains("more than the catalog takes")), "{what}");
        check_is_clean(&catalog, VM);
    }
    // Names that nobody can guess unpack to little more than they were.
    let folder = place();
    let catalog = Catalog::open(folder.path()).unwrap().with_bounds(bounds);
    let names = (0..20_000u64).map(|n| {
        let scattered = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        entry(format!("{scattered:x}{:x}{n:x}", scattered.rotate_left(17)).as_bytes(), &file(scattered, 1))
    });
    let names: Vec<_> = names.collect();
    let sent = names.chunks(2_000).map(|some| frame(vec![listing(&deep[..251], some.to_vec())])).collect();
    let walk = ingest_frames(&catalog, VM, 1, sent).point.walk;
    assert!(walk.complete && walk.entries == 20_000, "5 MB of paths: {walk:?}");
}

/// Whatever the disk has: before each piece it is asked, no piece is larger than was said, and a refusal leaves the old table.
#[test]
fn an_ingest_without_room_leaves_the_old_table_and_says_how_much_is_needed() {
    let old = tree(&[(b"/old", file(1, 1))]);
    let names: Vec<Vec<u8>> =
        (0..400u32).map(|n| format!("/folder/{}", n.wrapping_mul(0x9e37_79b9)).into_bytes()).collect();
    let files: Vec<(&[u8], Version)> = (0..).zip(&names).map(|(n, name)| (name.as_slice(), file(n, 1))).collect();
    let new = tree(&files);
    let mut refused = 0;
    loop {
        let folder = place();
        let bounds = Bounds { sort_bytes_max: 4 << 10, group_rows_max: 64, ..Bounds::default() };
        let catalog = Catalog::open(folder.path()).unwrap().with_bounds(bounds);
        ingest(&catalog, 1, &old);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let so_far = asked.clone();
        let room = Room::new(move |folder, bytes| {
            let mut asked = so_far.lock().unwrap();
            let written = std::fs::metadata(folder.join("history.parquet.new")).unwrap().len();
            assert!(written <= 4 + asked.iter().sum::<u64>(), "{written} bytes, asked for {asked:?}");
            if asked.len() == refused {
                return Err(NoRoom { free_bytes: 300 << 20, kept_bytes: 256 << 20 });
            }
            asked.push(bytes);
            Ok(())
        });
        let catalog = catalog.with_room(room);
        let mut sent = frames(Walking::default().listings(&new), 3).into_iter().map(Ok);
        match catalog.ingest(VM, &point(2), &mut sent, &complete()) {
            Ok(IngestOutcome::Ingested(report)) => {
                let asked = asked.lock().unwrap();
                assert!(report.table_bytes <= asked.iter().sum());
                assert!(refused > 8 && report.runs > 2, "asked {refused} times, {} runs", report.runs);
                assert_eq!(existed(&catalog, 2, false), new);
                return;
            }
            Ok(IngestOutcome::AlreadyThere) => panic!("it was not"),
            Err(error) => {
                let said = error.to_string();
                assert!(
                    said.contains("the disk is full: 300 MiB are free in ") && said.contains("257 are needed"),
                    "{said}"
                );
            }
        }
        let left: Vec<_> =
            std::fs::read_dir(folder.path().join(VM.to_string())).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["history.parquet"], "refused at {refused}");
        assert_eq!(existed(&catalog, 1, false), old);
        refused += 1;
    }
}
