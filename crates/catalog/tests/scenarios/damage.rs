//! Tables that the disk changed: named, set aside, rebuilt; and the others searched all the same.

use crate::trees::*;
use lull_catalog::*;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use uuid::Uuid;

const OTHER: Uuid = Uuid::from_u128(0x22);

fn table(folder: &Path) -> PathBuf {
    folder.join(VM.to_string()).join("history.parquet")
}

fn two_vms(folder: &Path) -> Catalog {
    let catalog = Catalog::open(folder).unwrap().with_bounds(Bounds { group_rows_max: 3, ..Bounds::default() });
    ingest(&catalog, 1, &tree(&[(b"/a/f", file(1, 1)), (b"/b/f", file(1, 1)), (b"/c/f", file(1, 1))]));
    let listings = Walking::default().listings(&tree(&[(b"/elsewhere/f", file(1, 1))]));
    ingest_frames(&catalog, OTHER, 1, frames(listings, 9));
    catalog
}

fn searched(catalog: &Catalog) -> (Vec<Hit>, SearchReport) {
    let mut hits = Vec::new();
    let report = catalog.search(&everything(), &mut |hit| {
        hits.push(hit);
        ControlFlow::Continue(())
    });
    (hits, report.unwrap())
}

#[test]
fn a_byte_changed_anywhere_is_found_or_changes_nothing() {
    let folder = place();
    let catalog = two_vms(folder.path());
    let table = table(folder.path());
    let sound = std::fs::read(&table).unwrap();
    let (all, _) = searched(&catalog);
    let mut found = 0;
    for at in 0..sound.len() {
        let mut changed = sound.clone();
        changed[at] ^= [0x01, 0x80, 0xff][at % 3];
        std::fs::write(&table, &changed).unwrap();
        let (hits, report) = searched(&catalog);
        if report.set_aside.is_empty() {
            assert!(report.unreadable.is_empty(), "byte {at}: {:?}", report.unreadable);
            assert_eq!(hits, all, "byte {at} of {} was changed", sound.len());
        } else {
            found += 1;
            assert!(hits.iter().all(|hit| all.contains(hit)), "byte {at}");
            assert_eq!(hits.iter().filter(|hit| hit.vm == OTHER).count(), 2, "the other table");
            std::fs::remove_file(&report.set_aside[0].path).unwrap();
        }
    }
    // What is left are statistics and the like, which only others read.
    assert!(found > sound.len() / 2, "{found} of {} changes were found", sound.len());
}

#[test]
fn a_table_cut_anywhere_is_set_aside() {
    let folder = place();
    let catalog = two_vms(folder.path());
    let table = table(folder.path());
    let sound = std::fs::read(&table).unwrap();
    for bytes in (0..sound.len()).step_by(7) {
        std::fs::write(&table, &sound[..bytes]).unwrap();
        let (hits, report) = searched(&catalog);
        assert_eq!((hits.len(), report.set_aside.len()), (2, 1), "cut to {bytes} bytes");
        std::fs::remove_file(&report.set_aside[0].path).unwrap();
    }
}

#[test]
fn a_damaged_table_names_itself_is_set_aside_and_rebuilt_from_the_next_run() {
    let folder = place();
    let catalog = two_vms(folder.path());
    let table = table(folder.path());
    let mut bytes = std::fs::read(&table).unwrap();
    bytes[100] ^= 0xff;
    std::fs::write(&table, &bytes).unwrap();
    assert!(catalog.check(VM).unwrap().problems[0].contains("does not fit its checksum"));
    assert!(table.exists(), "a check changes nothing");

    let (hits, report) = searched(&catalog);
    assert_eq!(hits.len(), 2);
    let SetAside { vm, path, reason } = &report.set_aside[0];
    assert_eq!((*vm, path.file_name().unwrap()), (VM, "history.parquet.damaged-1".as_ref()));
    assert!(reason.contains("row group 0 does not fit its checksum"), "{reason}");
    assert_eq!(catalog.damaged_tables(VM).unwrap(), std::slice::from_ref(path));
    assert_eq!(std::fs::read(path).unwrap(), bytes);
    assert_eq!(catalog.vms().unwrap(), [OTHER]);

    ingest(&catalog, 2, &tree(&[(b"/a/f", file(1, 1))]));
    assert_eq!(points_of(&catalog, b"/a/f"), [[2]]);
    // An ingest and a retention find it too, and each gets a name of its own.
    for (number, name) in [(3, "history.parquet.damaged-2"), (5, "history.parquet.damaged-3")] {
        let mut bytes = std::fs::read(&table).unwrap();
        bytes[20] ^= 0xff;
        std::fs::write(&table, &bytes).unwrap();
        let aside = if number == 3 {
            ingest(&catalog, number, &tree(&[(b"/a/f", file(1, 1))])).set_aside
        } else {
            catalog.forget(VM, &[point_id(3)]).unwrap().set_aside
        };
        assert_eq!(aside.unwrap().path.file_name().unwrap(), name);
    }
}

#[test]
fn a_table_of_a_later_format_is_named_and_left_alone() {
    let folder = place();
    let catalog = two_vms(folder.path());
    let table = table(folder.path());
    let mut bytes = std::fs::read(&table).unwrap();
    // The header in the file's metadata, with its checksum.
    let at = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).position(|window| window == what).unwrap();
    let begin = at(&bytes, b"{\"format\":1,");
    let end = begin + at(&bytes[begin..], b"}]}") + 3;
    let crc = format!("{:08x}", crc32fast::hash(&bytes[begin..end]));
    bytes[begin + 10] = b'2';
    let later = format!("{:08x}", crc32fast::hash(&bytes[begin..end]));
    let crc_at = at(&bytes, crc.as_bytes());
    bytes[crc_at..crc_at + 8].copy_from_slice(later.as_bytes());
    std::fs::write(&table, &bytes).unwrap();

    let (hits, report) = searched(&catalog);
    assert_eq!((hits.len(), report.set_aside.len()), (2, 0));
    assert!(matches!(report.unreadable.as_slice(), [(VM, CatalogError::Format { found: 2, known: 1, .. })]));
    let refused = catalog.ingest(VM, &point(2), &mut std::iter::empty(), &complete()).unwrap_err();
    assert!(matches!(refused, CatalogError::Format { .. }), "{refused}");
    assert_eq!(std::fs::read(&table).unwrap(), bytes);
}

#[test]
fn a_table_of_another_vm_is_not_taken_for_ones_own() {
    let folder = place();
    let catalog = two_vms(folder.path());
    std::fs::copy(folder.path().join(OTHER.to_string()).join("history.parquet"), table(folder.path())).unwrap();
    let (hits, report) = searched(&catalog);
    assert_eq!(hits.len(), 2);
    assert!(report.set_aside[0].reason.contains("table of VM"), "{:?}", report.set_aside);
}
