//! The process is killed while it replaces a table, to take a restore point in or to forget one: at places all over what it writes, at
//! times all over its work, and right after the new table got its name. Or its disk is full.

use crate::trees::*;
use lull_catalog::*;
use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where the process that will be killed works; the last file size that it is allowed.
const FOLDER: &str = "LULL_CATALOG_CRASH_FOLDER";
const BYTES: &str = "LULL_CATALOG_CRASH_BYTES";
/// What the process does: `forget` point 1, else take point 2 in.
const WORK: &str = "LULL_CATALOG_CRASH_WORK";

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

/// In the process that is to be killed.
fn be_killed() -> bool {
    let Some(folder) = std::env::var_os(FOLDER) else { return false };
    let catalog = open(Path::new(&folder));
    let listings = Walking::default().listings(&after());
    if let Some(bytes) = std::env::var(BYTES).ok().and_then(|bytes| bytes.parse().ok()) {
        // The kernel ends the process in the write that goes beyond.
        setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).unwrap();
        setrlimit(Resource::Fsize, Rlimit { current: Some(bytes), maximum: Some(bytes) }).unwrap();
    }
    match std::env::var_os(WORK) {
        Some(_) => drop(catalog.forget(VM, &[point_id(1)]).unwrap()),
        None => drop(ingest_frames(&catalog, VM, 2, frames(listings, 3))),
    }
    true
}

fn forgetting(test: &str, folder: &Path, bytes: Option<u64>) -> Child {
    command(test, folder, bytes).env(WORK, "forget").spawn().unwrap()
}

fn killable(test: &str, folder: &Path, bytes: Option<u64>) -> Child {
    command(test, folder, bytes).spawn().unwrap()
}

fn command(test: &str, folder: &Path, bytes: Option<u64>) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(FOLDER, folder).stdout(Stdio::null()).stderr(Stdio::null());
    if let Some(bytes) = bytes {
        command.env(BYTES, bytes.to_string());
    }
    command
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

/// Both points, or the second alone; whole, and nothing else; then the forgetting again. Says whether the first was forgotten.
fn forgets(folder: &Path) -> bool {
    let catalog = open(folder);
    assert_eq!(files(folder), ["history.parquet"], "leftovers are swept when the catalog is opened");
    check_is_clean(&catalog, VM);
    let is_new = catalog.points(VM).unwrap().len() == 1;
    assert_eq!(existed(&catalog, 2, true), after());
    if !is_new {
        assert_eq!(existed(&catalog, 1, true), before());
    }
    assert_eq!(catalog.forget(VM, &[point_id(1)]).unwrap().points, usize::from(!is_new));
    assert_eq!((catalog.points(VM).unwrap().len(), existed(&catalog, 2, true)), (1, after()));
    check_is_clean(&catalog, VM);
    is_new
}

fn with_both_points() -> tempfile::TempDir {
    let folder = with_point_1();
    ingest(&open(folder.path()), 2, &after());
    folder
}

fn with_point_1() -> tempfile::TempDir {
    let folder = place();
    ingest(&open(folder.path()), 1, &before());
    folder
}

#[test]
fn killed_at_places_all_over_the_new_table_the_old_one_is_there() {
    if be_killed() {
        return;
    }
    let folder = with_point_1();
    let rehearsal = with_point_1();
    ingest(&open(rehearsal.path()), 2, &after());
    let bytes = open(rehearsal.path()).table_bytes(VM).unwrap();
    let mut killed = 0;
    for limit in (0..bytes).step_by(bytes as usize / 60) {
        let test = "crash::killed_at_places_all_over_the_new_table_the_old_one_is_there";
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

#[test]
fn killed_while_it_forgets_the_old_table_or_the_new_one_is_there() {
    if be_killed() {
        return;
    }
    let test = "crash::killed_while_it_forgets_the_old_table_or_the_new_one_is_there";
    let folder = with_both_points();
    let began = Instant::now();
    assert!(forgetting(test, folder.path(), None).wait().unwrap().success());
    let whole = began.elapsed();
    let bytes = open(folder.path()).table_bytes(VM).unwrap();
    assert!(forgets(folder.path()));
    let folder = with_both_points();
    for limit in (0..bytes).step_by(bytes as usize / 20) {
        let status = forgetting(test, folder.path(), Some(limit)).wait().unwrap();
        assert_eq!(status.signal(), Some(Signal::XFSZ.as_raw()), "a file of {limit} bytes ends the process");
        assert_eq!(open(folder.path()).points(VM).unwrap().len(), 2);
    }
    assert!(!forgets(folder.path()));
    let rounds = 20;
    for round in 0..rounds {
        let folder = with_both_points();
        let mut child = forgetting(test, folder.path(), None);
        std::thread::sleep(whole * round / rounds + Duration::from_micros(137));
        child.kill().unwrap();
        child.wait().unwrap();
        forgets(folder.path());
    }
}

/// On a disk, where the folder's sync takes longer than it takes to be killed.
#[test]
fn killed_once_the_new_table_has_its_name_the_new_one_is_there() {
    if be_killed() {
        return;
    }
    let test = "crash::killed_once_the_new_table_has_its_name_the_new_one_is_there";
    let mut killed = 0;
    for round in 0..10 {
        let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let catalog = open(place.path());
        ingest(&catalog, 1, &before());
        let is_forgetting = round % 2 == 1;
        if is_forgetting {
            ingest(&catalog, 2, &after());
        }
        let table = place.path().join(VM.to_string()).join("history.parquet");
        let inode = || std::fs::metadata(&table).unwrap().ino();
        let old = inode();
        let start = if is_forgetting { forgetting } else { killable };
        let mut child = start(test, place.path(), None);
        let since = Instant::now();
        while inode() == old {
            assert!(since.elapsed() < Duration::from_secs(30), "nothing was replaced");
        }
        child.kill().unwrap();
        killed += usize::from(child.wait().unwrap().signal() == Some(Signal::KILL.as_raw()));
        assert!(if is_forgetting { forgets(place.path()) } else { recovers(place.path()) });
    }
    assert!(killed > 0, "each of them ended before it could be killed");
}
