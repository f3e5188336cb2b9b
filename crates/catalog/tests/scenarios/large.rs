//! A tree of five million entries, five folders of a million each, is taken in within the memory that an ingest may have.

use crate::trees::*;
use lull_catalog::*;
use std::path::Path;
use std::process::Command;

/// Where the process whose memory is measured works.
const FOLDER: &str = "LULL_CATALOG_LARGE_FOLDER";
const FOLDERS: u64 = 5;
const ENTRIES: u64 = 1_000_000;
const PIECE: u64 = 10_000;
/// So much of a process's memory may be resident while it takes a listing in, in KiB.
const RESIDENT_KIB_MAX: u64 = 200 << 10;

/// As a walk sends them: pieces of several folders by turns, names in no order.
fn sent() -> impl Iterator<Item = std::io::Result<Vec<u8>>> {
    (0..ENTRIES / PIECE).flat_map(|piece| (0..FOLDERS).map(move |folder| (piece, folder))).map(|(piece, folder)| {
        let name = |n: u64| format!("{:07}", n * 7_919 % ENTRIES).into_bytes();
        let entries = (piece * PIECE..(piece + 1) * PIECE).map(|n| entry(&name(n), &file(n % 4_096, n as i64)));
        let more = piece + 1 < ENTRIES / PIECE;
        let path = format!("/srv/{folder}/many").into_bytes();
        Ok(frame(vec![FolderListing { path, error: None, more, entries: entries.collect() }]))
    })
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn five_million_entries_are_taken_in_within_the_memory_of_an_ingest() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        let catalog = Catalog::open(Path::new(&folder)).unwrap();
        let outcome = catalog.ingest(VM, &point(1), &mut sent(), &complete()).unwrap();
        let IngestOutcome::Ingested(report) = outcome else { panic!("{outcome:?}") };
        assert!(report.point.walk.complete && report.runs > 1, "{report:?}");
        assert_eq!((report.point.walk.entries, report.counts.added), (FOLDERS * ENTRIES, FOLDERS * ENTRIES));
        let resident_kib = resident_kib();
        println!("{resident_kib} KiB, {} bytes, {} runs", report.table_bytes, report.runs);
        assert!(resident_kib <= RESIDENT_KIB_MAX, "{resident_kib} KiB");
        return;
    }
    let folder = place();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "large::five_million_entries_are_taken_in_within_the_memory_of_an_ingest", "--nocapture"]);
    let output = child.env(FOLDER, folder.path()).output().unwrap();
    print!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let catalog = Catalog::open(folder.path()).unwrap();
    check_is_clean(&catalog, VM);
    assert_eq!(points_of(&catalog, b"/srv/4/many/0999999"), [[1]]);
}
