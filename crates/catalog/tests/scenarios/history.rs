//! Restore point after restore point: what begins, goes on, ends, and what nobody knows.

use crate::trees::*;
use lull_catalog::*;
use std::collections::BTreeSet;

fn catalog() -> (tempfile::TempDir, Catalog) {
    let folder = place();
    let catalog = Catalog::open(folder.path()).unwrap();
    (folder, catalog)
}

fn set(path: &[u8]) -> BTreeSet<Vec<u8>> {
    BTreeSet::from([path.to_vec()])
}

#[test]
fn a_changed_file_ends_and_begins_and_an_unchanged_one_goes_on() {
    let (_folder, catalog) = catalog();
    ingest(&catalog, 1, &tree(&[(b"/a/same", file(1, 1)), (b"/a/changes", file(1, 1)), (b"/a/goes", file(1, 1))]));
    let report =
        ingest(&catalog, 2, &tree(&[(b"/a/same", file(1, 1)), (b"/a/changes", file(2, 2)), (b"/a/comes", file(1, 1))]));
    let counts = report.counts;
    assert_eq!((counts.unchanged, counts.changed, counts.added, counts.gone, counts.unknown), (2, 1, 1, 1, 0));
    assert_eq!(points_of(&catalog, b"/a/same"), [[1, 2]]);
    assert_eq!(points_of(&catalog, b"/a/changes"), [[2], [1]]);
    assert_eq!(points_of(&catalog, b"/a/goes"), [[1]]);
    assert_eq!(points_of(&catalog, b"/a/comes"), [[2]]);
    check_is_clean(&catalog, VM);
}

#[test]
fn every_property_of_a_file_makes_a_version() {
    let (_folder, catalog) = catalog();
    let version = file(1, 1);
    let versions = [
        version,
        Version { kind: Kind::Symlink, ..version },
        Version { size_bytes: 2, ..version },
        Version { mtime_us: -1, ..version },
        Version { mode: 0o4755, ..version },
        Version { uid: u32::MAX, ..version },
        Version { gid: 7, ..version },
        Version { changed_after_freeze: true, ..version },
        version,
    ];
    for (number, version) in (1..).zip(versions) {
        ingest(&catalog, number, &tree(&[(b"/f", version)]));
    }
    let found = catalog.versions(VM, b"/f").unwrap();
    assert_eq!(found.iter().rev().map(|found| found.version).collect::<Vec<_>>(), versions);
    check_is_clean(&catalog, VM);
}

#[test]
fn a_folder_that_becomes_a_file_takes_what_was_in_it_along() {
    let (_folder, catalog) = catalog();
    ingest(&catalog, 1, &tree(&[(b"/d/inner/f", file(1, 1))]));
    ingest(&catalog, 2, &tree(&[(b"/d", file(1, 1))]));
    ingest(&catalog, 3, &tree(&[(b"/d/inner/f", file(1, 1))]));
    assert_eq!(points_of(&catalog, b"/d/inner/f"), [[3], [1]]);
    assert_eq!(points_of(&catalog, b"/d"), [[3], [2], [1]]);
    assert_eq!(existed(&catalog, 2, true), tree(&[(b"/d", file(1, 1))]));
}

#[test]
fn below_an_unreadable_folder_nothing_is_deleted() {
    let (_folder, catalog) = catalog();
    let whole = tree(&[(b"/a/b/f", file(1, 1)), (b"/a-b/f", file(1, 1)), (b"/a/g", file(1, 1))]);
    ingest(&catalog, 1, &whole);
    let report = ingest_walked(&catalog, 2, &whole, &Walking { unreadable: set(b"/a"), ..Walking::default() });
    assert_eq!((report.counts.gone, report.counts.unknown), (0, 3));
    assert_eq!(points_of(&catalog, b"/a/b/f"), [[1, -2]], "unknown in 2");
    assert_eq!(points_of(&catalog, b"/a-b/f"), [[1, 2]]);
    // Seen again unchanged: it was there all the time.
    ingest(&catalog, 3, &whole);
    assert_eq!(points_of(&catalog, b"/a/b/f"), [[1, 2, 3]]);
    // Unknown once more, then gone: when it went nobody knows.
    ingest_walked(&catalog, 4, &whole, &Walking { unreadable: set(b"/a/b"), ..Walking::default() });
    ingest(&catalog, 5, &tree(&[(b"/a/g", file(1, 1))]));
    assert_eq!(points_of(&catalog, b"/a/b/f"), [[1, 2, 3, -4]]);
    assert_eq!(points_of(&catalog, b"/a/g"), [[1, 2, 3, 4, 5]]);
    check_is_clean(&catalog, VM);
}

#[test]
fn an_entry_that_could_not_be_read_is_unknown_and_its_listed_siblings_are_not() {
    let (_folder, catalog) = catalog();
    ingest(&catalog, 1, &tree(&[(b"/d/seen", file(1, 1)), (b"/d/unread", file(1, 1))]));
    let mut listings = Walking::default().listings(&tree(&[(b"/d/seen", file(2, 2))]));
    let listing = listings.iter_mut().find(|listing| listing.path == b"/d").unwrap();
    listing.error = Some("unread: EIO".into());
    ingest_frames(&catalog, VM, 2, frames(listings, 9));
    assert_eq!(points_of(&catalog, b"/d/seen"), [[2], [1]]);
    assert_eq!(points_of(&catalog, b"/d/unread"), [[1, -2]]);
}

#[test]
fn a_walk_that_ends_early_deletes_only_where_it_has_been() {
    let (_folder, catalog) = catalog();
    ingest(&catalog, 1, &tree(&[(b"/a/f", file(1, 1)), (b"/b/f", file(1, 1)), (b"/c/f", file(1, 1))]));
    let now = tree(&[(b"/a/g", file(1, 1)), (b"/b/f", file(1, 1)), (b"/c/f", file(1, 1))]);
    ingest_walked(&catalog, 2, &now, &Walking { unentered: set(b"/c"), ..Walking::default() });
    assert_eq!(points_of(&catalog, b"/a/f"), [[1]]);
    assert_eq!(points_of(&catalog, b"/b/f"), [[1, 2]]);
    assert_eq!(points_of(&catalog, b"/c/f"), [[1, -2]]);
}

#[test]
fn a_folder_whose_last_piece_never_came_is_not_listed() {
    let (_folder, catalog) = catalog();
    ingest(&catalog, 1, &tree(&[(b"/d/a", file(1, 1)), (b"/d/b", file(1, 1)), (b"/d/c", file(1, 1))]));
    let walking = Walking { piece: 1, ..Walking::default() };
    let mut listings = walking.listings(&tree(&[(b"/d/a", file(1, 1)), (b"/d/b", file(1, 1))]));
    assert!(listings.pop().is_some_and(|last| last.path == b"/d" && !last.more));
    ingest_frames(&catalog, VM, 2, frames(listings, 1));
    assert_eq!(points_of(&catalog, b"/d/a"), [[1, 2]]);
    assert_eq!(points_of(&catalog, b"/d/b"), [[1, -2]]);
    assert_eq!(points_of(&catalog, b"/d/c"), [[1, -2]]);
}

#[test]
fn what_a_job_does_not_index_any_more_is_unknown_and_not_gone() {
    let (_folder, catalog) = catalog();
    ingest(&catalog, 1, &tree(&[(b"/etc/f", file(1, 1)), (b"/etc/g", file(1, 1)), (b"/home/f", file(1, 1))]));
    // Only /etc: no folder above it is listed.
    let mut listings = Walking::default().listings(&tree(&[(b"/etc/f", file(1, 1))]));
    listings.retain(|listing| listing.path == b"/etc");
    ingest_frames(&catalog, VM, 2, frames(listings, 9));
    assert_eq!(points_of(&catalog, b"/etc/f"), [[1, 2]]);
    assert_eq!(points_of(&catalog, b"/etc/g"), [[1]]);
    assert_eq!(points_of(&catalog, b"/etc"), [[1, -2]]);
    assert_eq!(points_of(&catalog, b"/home/f"), [[1, -2]]);
}

#[test]
fn a_restore_point_without_an_index_leaves_a_gap_and_ends_nothing() {
    let (_folder, catalog) = catalog();
    let now = tree(&[(b"/f", file(1, 1))]);
    ingest(&catalog, 1, &now);
    ingest(&catalog, 5, &now);
    assert_eq!(points_of(&catalog, b"/f"), [[1, 5]]);
    assert!(matches!(
        catalog.browse(VM, Some(point_id(3)), b"/", &mut |_| std::ops::ControlFlow::Continue(())),
        Err(CatalogError::NoPoint { .. })
    ));
}

#[test]
fn a_guests_clock_set_back_does_no_harm() {
    let (_folder, catalog) = catalog();
    ingest(&catalog, 1, &tree(&[(b"/f", file(1, 2_000_000_000_000_000))]));
    let summary = lull_guest_wire::listing::IndexSummary { began_us: -5, ended_us: -9, ..complete() };
    let back = tree(&[(b"/f", file(1, -7))]);
    let frames = frames(Walking::default().listings(&back), 9);
    let earlier = NewPoint { taken_at_us: -1, ..point(2) };
    catalog.ingest(VM, &earlier, &mut frames.into_iter().map(Ok), &summary).unwrap();
    assert_eq!(points_of(&catalog, b"/f"), [[2], [1]]);
    assert_eq!(existed(&catalog, 2, true), back);
    check_is_clean(&catalog, VM);
}

#[test]
fn the_same_restore_point_again_changes_nothing() {
    let (folder, catalog) = catalog();
    let now = tree(&[(b"/f", file(1, 1))]);
    ingest(&catalog, 1, &now);
    let table = folder.path().join(VM.to_string()).join("history.parquet");
    let before = std::fs::read(&table).unwrap();
    let mut unread = std::iter::once_with(|| -> std::io::Result<Vec<u8>> { panic!("a frame was read") });
    assert_eq!(catalog.ingest(VM, &point(1), &mut unread, &complete()).unwrap(), IngestOutcome::AlreadyThere);
    assert_eq!(std::fs::read(&table).unwrap(), before);
}

#[test]
fn of_two_that_take_the_same_restore_point_in_at_once_one_does() {
    let (_folder, catalog) = catalog();
    let sent = frames(Walking::default().listings(&tree(&[(b"/f", file(1, 1))])), 9);
    let outcomes: Vec<IngestOutcome> = std::thread::scope(|scope| {
        let take = || catalog.ingest(VM, &point(1), &mut sent.iter().cloned().map(Ok), &complete()).unwrap();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(take)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(outcomes.iter().filter(|outcome| **outcome != IngestOutcome::AlreadyThere).count(), 1);
    assert_eq!(points_of(&catalog, b"/f"), [[1]]);
}

#[test]
fn an_older_restore_point_comes_too_late() {
    let (_folder, catalog) = catalog();
    ingest(&catalog, 4, &tree(&[(b"/f", file(1, 1))]));
    for number in [3, 4] {
        let late = NewPoint { id: uuid::Uuid::from_u128(9), ..point(number) };
        let refused = catalog.ingest(VM, &late, &mut std::iter::empty(), &complete()).unwrap_err();
        assert!(matches!(refused, CatalogError::OutOfOrder { highest: 4, .. }), "{refused}");
    }
    // Also when the newer one expired meanwhile.
    catalog.forget(VM, &[point_id(4)]).unwrap();
    let refused = catalog.ingest(VM, &point(4), &mut std::iter::empty(), &complete()).unwrap_err();
    assert!(matches!(refused, CatalogError::OutOfOrder { .. }), "{refused}");
}

#[test]
fn a_listing_that_cannot_be_read_leaves_the_table_as_it_was() {
    let (folder, catalog) = catalog();
    ingest(&catalog, 1, &tree(&[(b"/f", file(1, 1))]));
    let good = frames(Walking::default().listings(&tree(&[(b"/g", file(1, 1))])), 9);
    let broken = good.into_iter().map(Ok).chain([Err(std::io::Error::other("the disk"))]);
    let refused = catalog.ingest(VM, &point(2), &mut { broken }, &complete()).unwrap_err();
    assert!(matches!(refused, CatalogError::Listing(_)), "{refused}");
    assert_eq!(points_of(&catalog, b"/f"), [[1]]);
    assert_eq!(std::fs::read_dir(folder.path().join(VM.to_string())).unwrap().count(), 1, "nothing half-written stays");
}

#[test]
fn retention_drops_rows_that_lie_in_no_living_restore_point() {
    let (_folder, catalog) = catalog();
    ingest(&catalog, 1, &tree(&[(b"/old", file(1, 1)), (b"/f", file(1, 1))]));
    ingest(&catalog, 2, &tree(&[(b"/mid", file(1, 1)), (b"/f", file(2, 2))]));
    ingest(&catalog, 3, &tree(&[(b"/new", file(1, 1)), (b"/f", file(2, 2))]));
    let report = catalog.forget(VM, &[point_id(1), point_id(2), point_id(77)]).unwrap();
    assert_eq!((report.points, report.rows), (2, 3));
    assert_eq!(search(&catalog, &everything()).len(), 2);
    assert_eq!(points_of(&catalog, b"/f"), [[3]]);
    assert_eq!(catalog.forget(VM, &[point_id(1)]).unwrap(), ForgetReport::default(), "again is nothing");
    check_is_clean(&catalog, VM);
    // The newest may go too; what follows goes on from what is left.
    ingest(&catalog, 4, &tree(&[(b"/f", file(2, 2))]));
    catalog.forget(VM, &[point_id(4)]).unwrap();
    ingest(&catalog, 5, &tree(&[(b"/new", file(1, 1))]));
    assert_eq!(points_of(&catalog, b"/new"), [[3, 5]]);
    assert_eq!(points_of(&catalog, b"/f"), [[3]]);
    // And all of them.
    catalog.forget(VM, &[point_id(3), point_id(5)]).unwrap();
    assert_eq!((catalog.points(VM).unwrap().len(), search(&catalog, &everything()).len()), (0, 0));
    ingest(&catalog, 6, &tree(&[(b"/f", file(2, 2))]));
    assert_eq!(points_of(&catalog, b"/f"), [[6]]);
    check_is_clean(&catalog, VM);
}

#[test]
fn how_a_walk_went_is_kept_with_its_point() {
    let (_folder, catalog) = catalog();
    let summary = lull_guest_wire::listing::IndexSummary {
        began_us: 5,
        ended_us: 9,
        unreadable_folders: 3,
        vanished: 2,
        stopped_because: Some("the disk of the server is full".into()),
        examples: vec!["/root: EACCES".into()],
        ..Default::default()
    };
    let frames = frames(Walking::default().listings(&tree(&[(b"/f", file(1, 1))])), 9);
    catalog.ingest(VM, &point(1), &mut frames.into_iter().map(Ok), &summary).unwrap();
    let points = catalog.points(VM).unwrap();
    let Point { id, number, taken_at_us, walk } = &points[0];
    assert_eq!((*id, *number, *taken_at_us), (point_id(1), 1, 1_000_000));
    assert_eq!((walk.entries, walk.unreadable_folders, walk.vanished, walk.complete), (1, 3, 2, false));
    assert_eq!(walk.stopped_because.as_deref(), Some("the disk of the server is full"));
    assert_eq!(walk.examples, ["/root: EACCES"]);
}
