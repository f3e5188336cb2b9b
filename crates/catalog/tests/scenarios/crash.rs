//! The process is killed while it takes a restore point in: at every part of what it writes, and at any time. Or its disk is full.

use crate::trees::*;
use lull_catalog::*;
use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where the process that will be killed works; the last file size that it is allowed.
const FOLDER: &str = "LULL_CATALOG_CRASH_FOLDER";
const BYTES: &str = "LULL_CATALOG_CRASH_BYTES";

fn before() -> Tree {
    let names: Vec<Vec<u8>> = (0..400).map(|n| format!("/folder-{}/file-{n}", n % 7).into_bytes()).collect();
    let files: Vec<(&[u8], Version)> =
        (0..).zip(&names).map(|(n, name)| (name.as_slice(), file(n * 37, n as i64))).collect();
    tree(&files)
}

fn after() -> Tree {
    let mut tree = before();
    for (n, version) in tree.values_mut().enumerate().filter(|(n, _)| n % 3 == 0) {
        version.size_bytes += n as u64;
    }
    tree
}

fn open(folder: &Path) -> Catalog {
    // So small that runs are spilled and row groups end.
    Catalog::open(folder).unwrap().with_bounds(Bounds {
        sort_bytes_max: 8 << 10,
        group_rows_max: 64,
        ..Bounds::default()
    })
}

/// In the process that is to be killed: takes point 2 in.
fn be_killed() -> bool {
    let Some(folder) = std::env::var_os(FOLDER) else { return false };
    let catalog = open(Path::new(&folder));
    let listings = Walking::default().listings(&after());
    if let Some(bytes) = std::env::var(BYTES).ok().and_then(|bytes| bytes.parse().ok()) {
        // The kernel ends the process in the write that goes beyond.
        setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).unwrap();
        setrlimit(Resource::Fsize, Rlimit { current: Some(bytes), maximum: Some(bytes) }).unwrap();
    }
    ingest_frames(&catalog, VM, 2, frames(listings, 3));
    true
}

fn killable(test: &str, folder: &Path, bytes: Option<u64>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(FOLDER, folder).stdout(Stdio::null()).stderr(Stdio::null());
    if let Some(bytes) = bytes {
        command.env(BYTES, bytes.to_string());
    }
    command.spawn().unwrap()
}

fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder.join(VM.to_string())).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The old table or the new one, whole, and nothing else; then the ingest again. Says whether it was the new one.
fn recovers(folder: &Path) -> bool {
    let catalog = open(folder);
    assert_eq!(files(folder), ["history.parquet"], "leftovers are swept when the catalog is opened");
    check_is_clean(&catalog, VM);
    let is_new = catalog.points(VM).unwrap().len() == 2;
    assert_eq!(existed(&catalog, 1, true), before());
    let outcome = catalog.ingest(
        VM,
        &point(2),
        &mut frames(Walking::default().listings(&after()), 3).into_iter().map(Ok),
        &complete(),
    );
    assert_eq!(matches!(outcome.unwrap(), IngestOutcome::AlreadyThere), is_new);
    assert_eq!((existed(&catalog, 1, true), existed(&catalog, 2, true)), (before(), after()));
    check_is_clean(&catalog, VM);
    is_new
}

fn with_point_1() -> tempfile::TempDir {
    let folder = place();
    ingest(&open(folder.path()), 1, &before());
    folder
}

#[test]
fn killed_at_any_byte_the_old_table_is_there() {
    if be_killed() {
        return;
    }
    let folder = with_point_1();
    let rehearsal = with_point_1();
    ingest(&open(rehearsal.path()), 2, &after());
    let bytes = open(rehearsal.path()).table_bytes(VM).unwrap();
    let mut killed = 0;
    for limit in (0..bytes).step_by(bytes as usize / 60) {
        let test = "crash::killed_at_any_byte_the_old_table_is_there";
        let status = killable(test, folder.path(), Some(limit)).wait().unwrap();
        assert_eq!(status.signal(), Some(Signal::XFSZ.as_raw()), "a file of {limit} bytes ends the process");
        killed += 1;
        let catalog = open(folder.path());
        assert_eq!(files(folder.path()), ["history.parquet"]);
        assert_eq!(catalog.points(VM).unwrap().len(), 1);
        assert_eq!(existed(&catalog, 1, true), before());
    }
    assert!(killed >= 60);
    assert!(!recovers(folder.path()));
}

#[test]
fn a_full_disk_fails_the_ingest_and_leaves_the_old_table() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        // The signal is ignored here, so a write that goes beyond fails.
        let bytes = std::env::var(BYTES).unwrap().parse().unwrap();
        setrlimit(Resource::Fsize, Rlimit { current: Some(bytes), maximum: Some(bytes) }).unwrap();
        let catalog = open(Path::new(&folder));
        let mut sent = frames(Walking::default().listings(&after()), 3).into_iter().map(Ok);
        let error = catalog.ingest(VM, &point(2), &mut sent, &complete()).unwrap_err();
        assert!(matches!(error, CatalogError::Io { action: "write", .. }), "{error:?}");
        assert_eq!(files(Path::new(&folder)), ["history.parquet"], "nothing half-written stays");
        return;
    }
    let folder = with_point_1();
    let bytes = open(folder.path()).table_bytes(VM).unwrap();
    for limit in (0..bytes).step_by(bytes as usize / 10) {
        let mut child = Command::new("sh");
        child.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(std::env::current_exe().unwrap());
        child.args(["--exact", "crash::a_full_disk_fails_the_ingest_and_leaves_the_old_table"]);
        let output = child.env(FOLDER, folder.path()).env(BYTES, limit.to_string()).output().unwrap();
        assert!(output.status.success(), "{limit} bytes: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(existed(&open(folder.path()), 1, true), before());
    }
    assert!(!recovers(folder.path()));
}

#[test]
fn killed_at_any_time_the_old_table_or_the_new_one_is_there() {
    if be_killed() {
        return;
    }
    let test = "crash::killed_at_any_time_the_old_table_or_the_new_one_is_there";
    let folder = with_point_1();
    let began = Instant::now();
    assert!(killable(test, folder.path(), None).wait().unwrap().success());
    let whole = began.elapsed();
    assert!(recovers(folder.path()));
    let rounds = 40;
    for round in 0..rounds {
        let folder = with_point_1();
        let mut child = killable(test, folder.path(), None);
        std::thread::sleep(whole * round / rounds + Duration::from_micros(137));
        child.kill().unwrap();
        child.wait().unwrap();
        recovers(folder.path());
    }
}
