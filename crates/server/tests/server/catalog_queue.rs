//! Listings that cannot be taken in: for lack of room, or because an earlier one of the VM cannot.

use crate::catalog::{asked, backed_up, piece, points, tables, taken_in};
use crate::fake::Fake;
use crate::harness::{PATIENCE, Place, Server, furnish, one_vm};
use lull_api::catalog::CatalogTable;
use lull_api::infrastructure::Finding;
use lull_api::job::GuestSettings;
use lull_guest_wire::listing::{Entry, FolderListing, Kind, Listing};
use lull_server::{CatalogPace, Clock};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use uuid::Uuid;

fn listing_of(place: &Place, point: Uuid) -> PathBuf {
    place.state.join(format!("catalog/incoming/{point}.listing"))
}

/// A listing as it lies there when it came in.
fn plant(path: &Path, frame: &[u8]) {
    plant_all(path, &[frame.to_vec()]);
}

fn plant_all(path: &Path, frames: &[Vec<u8>]) {
    let spooled =
        frames.iter().flat_map(|frame| [&u32::try_from(frame.len()).unwrap().to_le_bytes()[..], frame].concat());
    std::fs::write(path, spooled.collect::<Vec<u8>>()).unwrap();
}

async fn with_pace(place: &Place, fake: &Fake, reserve_bytes: u64, pauses_ms: &[u64]) -> Server {
    let pace = CatalogPace { reserve_bytes, pauses_ms: pauses_ms.to_vec() };
    Server::start_with(&place.state, std::slice::from_ref(fake), Clock::system(), pace).await.unwrap()
}

async fn table_when(server: &Server, what: &str, holds: impl Fn(&CatalogTable) -> bool) -> CatalogTable {
    let since = Instant::now();
    loop {
        let all = tables(server).await;
        if let [table] = all.as_slice()
            && holds(table)
        {
            return table.clone();
        }
        assert!(since.elapsed() < PATIENCE, "not {what}: {all:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A restore point is recorded while its guest may still be listed, and other tasks end meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_listing_is_not_taken_in_before_its_task_is_over() {
    let (place, fake) = (Place::new(), Fake::embedded());
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    furnish(&server, &place, &["db", "web"], GuestSettings::default()).await;
    server.change("j", json!({"vms": ["db"]})).await;
    let other = json!({"name": "k", "vms": ["web"], "repository": "r"});
    let _: serde_json::Value = server.client.post("/jobs", &other).await.unwrap();

    let listing = |name: &'static [u8]| vec![piece(b"/srv", &[(name, 1)])];
    fake.set(|script| (script.listing, script.hang_after) = (listing(b"of-db"), Some(33)));
    let id = server.run("j").await.summary.id;
    let recorded = server.until(id, "its restore point is recorded", |s| s.tasks[0].restore_point.is_some()).await;
    let point = recorded.tasks[0].restore_point.unwrap();
    fake.set(|script| (script.listing, script.hang_after) = (listing(b"of-web"), None));
    server.finished(server.run("k").await.summary.id).await;
    let since = Instant::now();
    while asked(&server, "/catalog/search?pattern=of-").await.0.is_empty() {
        assert!(since.elapsed() < PATIENCE, "not taken in: {:?}", tables(&server).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(listing_of(&place, point).exists(), "it may not be whole yet");
    let (hits, ..) = asked(&server, "/catalog/search?pattern=of-db").await;
    assert_eq!(hits, [], "it may not be whole yet");

    server.kill().await;
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    assert_eq!(server.finished(id).await.summary.result.as_deref(), Some("warning"));
    taken_in(&server).await;
    let (hits, ..) = asked(&server, "/catalog/search?pattern=of-db").await;
    assert_eq!(points(&hits[0]), [point]);
}

/// The server's disk is full for its tables: the table stays, the attempts end, and everybody is told why.
#[tokio::test(flavor = "multi_thread")]
async fn a_listing_without_room_is_given_up_in_the_end_and_says_why_while_the_older_table_is_searched() {
    let (place, fake, server) = one_vm().await;
    let first = backed_up(&server, &fake, vec![piece(b"/srv", &[(b"a", 1)])]).await;
    let second = backed_up(&server, &fake, vec![]).await;
    server.kill().await;
    plant(&listing_of(&place, second), &piece(b"/srv", &[(b"b", 1)]));

    let nowhere = u64::MAX / 2;
    let server = with_pace(&place, &fake, nowhere, &[3_600_000]).await;
    let is_tried = |table: &CatalogTable| table.pending.iter().any(|pending| pending.trouble.is_some());
    let table = table_when(&server, "tried", is_tried).await;
    let trouble = table.pending[0].trouble.clone().unwrap();
    assert!(table.pending[0].id == second && trouble.contains("the disk is full:"), "{trouble}");
    assert!(trouble.contains("MiB are free in") && trouble.contains("are needed"), "{trouble}");
    assert!(trouble.contains("make room on that disk"), "{trouble}");
    let (hits, ..) = asked(&server, "/catalog/search?pattern=a").await;
    assert_eq!(points(&hits[0]), [first], "the older table is searched");
    server.kill().await;

    // The count outlives the server: this one is the last attempt.
    let server = with_pace(&place, &fake, nowhere, &[3_600_000]).await;
    let table = table_when(&server, "given up", |table| table.pending.is_empty()).await;
    let said =
        format!("restore point {second} has no index: its listing was given up, after 2 attempts: the disk is full:");
    assert!(table.problems.len() == 1 && table.problems[0].starts_with(&said), "{:?}", table.problems);
    assert!(!listing_of(&place, second).exists(), "what was given up takes no room");
    let (hits, ..) = asked(&server, "/catalog/search?pattern=a").await;
    assert_eq!(points(&hits[0]), [first]);
    server.kill().await;

    // The reason stays as long as the restore point, and the next one is taken in.
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    let findings: Vec<Finding> = server.client.get("/doctor").await.unwrap();
    let about = findings.iter().find(|finding| finding.subject == "catalog").unwrap();
    assert!(about.state == "warning" && about.text.contains("the disk is full:"), "{about:?}");
    let third = backed_up(&server, &fake, vec![piece(b"/srv", &[(b"a", 1)])]).await;
    let table = &tables(&server).await[0];
    assert_eq!(table.restore_points.iter().map(|point| point.id).collect::<Vec<_>>(), [first, third]);
    assert!(table.problems[0].starts_with(&said), "{:?}", table.problems);
}

/// What cannot be taken in for a while is tried again after growing pauses, and then it is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_listing_is_tried_again_until_there_is_room() {
    let (place, fake, server) = one_vm().await;
    let point = backed_up(&server, &fake, vec![]).await;
    server.kill().await;
    // A folder where the listing should be cannot be read.
    std::fs::create_dir(listing_of(&place, point)).unwrap();
    let server = with_pace(&place, &fake, 0, &[50, 50, 50, 50, 60_000]).await;
    let is_tried = |table: &CatalogTable| table.pending.iter().any(|pending| pending.trouble.is_some());
    table_when(&server, "tried", is_tried).await;
    std::fs::remove_dir(listing_of(&place, point)).unwrap();
    plant(&listing_of(&place, point), &piece(b"/srv", &[(b"a", 1)]));
    taken_in(&server).await;
    let (hits, ..) = asked(&server, "/catalog/search?pattern=a").await;
    assert_eq!(points(&hits[0]), [point]);
    let left: Vec<_> = std::fs::read_dir(place.state.join("catalog/incoming")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A file that the older restore point had must never seem to be in the newer one.
#[tokio::test(flavor = "multi_thread")]
async fn later_listings_of_a_vm_wait_for_an_earlier_one_that_is_tried_again() {
    let (place, fake, server) = one_vm().await;
    let older = backed_up(&server, &fake, vec![]).await;
    let newer = backed_up(&server, &fake, vec![]).await;
    server.kill().await;
    std::fs::create_dir(listing_of(&place, older)).unwrap();
    plant(&listing_of(&place, newer), &piece(b"/srv", &[(b"new", 1)]));
    let server = with_pace(&place, &fake, 0, &[400, 60_000]).await;
    let waits = |table: &CatalogTable| {
        let trouble = |id| table.pending.iter().find(|pending| pending.id == id)?.trouble.clone();
        trouble(older).is_some()
            && trouble(newer).is_some_and(|why| why.contains(&format!("waits for restore point {older}")))
    };
    table_when(&server, "waiting", waits).await;
    std::fs::remove_dir(listing_of(&place, older)).unwrap();
    plant(&listing_of(&place, older), &piece(b"/srv", &[(b"old", 1)]));
    taken_in(&server).await;
    let table = &tables(&server).await[0];
    assert_eq!(table.restore_points.iter().map(|point| point.id).collect::<Vec<_>>(), [older, newer]);
    let (hits, ..) = asked(&server, "/catalog/search?pattern=old").await;
    assert_eq!(points(&hits[0]), [older]);
    server.kill().await;

    // One that comes when the table is further on stays without an index.
    let catalog = lull_catalog::Catalog::open(&place.state.join("catalog")).unwrap();
    let vm = catalog.vms().unwrap()[0];
    catalog.forget(vm, &[older]).unwrap();
    plant(&listing_of(&place, older), &piece(b"/srv", &[(b"old", 1)]));
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    let table = table_when(&server, "refused", |table| !table.problems.is_empty()).await;
    assert!(table.problems[0].contains("which is newer, was taken in before"), "{:?}", table.problems);
    assert_eq!(table.restore_points.iter().map(|point| point.id).collect::<Vec<_>>(), [newer]);
}

/// The state folder of the process that is to be killed.
const STATE: &str = "LULL_SERVER_KILLED_STATE";
const PIECES: u32 = 100;
const PIECE: u32 = 8_000;

/// Eight hundred thousand files: it takes a while.
fn large_listing() -> Vec<Vec<u8>> {
    let piece = |piece: u32| {
        let names: Vec<Vec<u8>> = (0..PIECE).map(|n| format!("{piece:02}-{n:05}").into_bytes()).collect();
        let entry = |name| Entry {
            name,
            kind: Kind::File,
            size_bytes: 1,
            mtime_us: 1,
            mode: 0o644,
            uid: 0,
            gid: 0,
            changed_after_freeze: false,
        };
        let entries = names.iter().map(|name| entry(name.as_slice())).collect();
        let more = piece + 1 < PIECES;
        let listing = Listing { folders: vec![FolderListing { path: b"/srv", error: None, more, entries }] };
        zstd::bulk::compress(&postcard::to_stdvec(&listing).unwrap(), 1).unwrap()
    };
    (0..PIECES).map(piece).collect()
}

/// A server in a process of its own.
struct Process(Child);

impl Process {
    fn start(state: &Path) -> Process {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "catalog_queue::killed_inside_an_ingest_the_server_takes_the_listing_in_once"]);
        Process(command.env(STATE, state).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_inside_an_ingest_the_server_takes_the_listing_in_once() {
    if let Some(state) = std::env::var_os(STATE) {
        let _server = Server::start(Path::new(&state), &[Fake::embedded()]).await;
        return std::future::pending().await;
    }
    // As soon as there is a new table, and once rows are written into it.
    for written_bytes in [0, 16 << 10] {
        // On a machine that is busy the moment may pass unseen.
        let mut tries = 0;
        while !was_killed_inside(written_bytes).await {
            tries += 1;
            assert!(tries < 5, "the moment passed unseen each time");
        }
    }
}

/// Whether the process was killed before its ingest was over; then everything must be as it ought to.
async fn was_killed_inside(written_bytes: u64) -> bool {
    let (place, fake, server) = one_vm().await;
    let older = backed_up(&server, &fake, vec![piece(b"/srv", &[(b"old", 1)])]).await;
    let newer = backed_up(&server, &fake, vec![]).await;
    let vm = tables(&server).await[0].vm_id;
    server.stop().await.unwrap();
    let listing = listing_of(&place, newer);
    plant_all(&listing, &large_listing());
    let folder = place.state.join(format!("catalog/{vm}"));
    let new_table = folder.join("history.parquet.new");

    let mut process = Process::start(&place.state);
    let since = Instant::now();
    while !std::fs::metadata(&new_table).is_ok_and(|found| found.len() >= written_bytes) {
        if !listing.exists() {
            return false;
        }
        assert!(since.elapsed() < PATIENCE && process.0.try_wait().unwrap().is_none(), "no new table was begun");
        std::thread::sleep(Duration::from_micros(200));
    }
    process.0.kill().unwrap();
    process.0.wait().unwrap();
    if !new_table.exists() {
        return false;
    }
    assert!(listing.exists(), "a listing goes only once it is in the table");
    let attempts = place.state.join(format!("catalog/incoming/{newer}.attempts"));
    assert!(std::fs::read_to_string(&attempts).unwrap().contains("\"begun\":1"));

    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    taken_in(&server).await;
    let table = &tables(&server).await[0];
    let indexed: Vec<(Uuid, u64)> = table.restore_points.iter().map(|point| (point.id, point.entries)).collect();
    assert_eq!(indexed, [(older, 1), (newer, u64::from(PIECES * PIECE))]);
    assert_eq!(table.problems, Vec::<String>::new());
    let (hits, ..) = asked(&server, "/catalog/search?pattern=00-00000").await;
    assert_eq!(hits.iter().map(points).collect::<Vec<_>>(), [[newer]]);
    let (hits, ..) = asked(&server, "/catalog/search?pattern=old").await;
    assert_eq!(hits.iter().map(points).collect::<Vec<_>>(), [[older]], "its folder was listed to its end without it");
    let left = |folder: &Path| std::fs::read_dir(folder).unwrap().count();
    assert_eq!((left(&folder), left(&place.state.join("catalog/incoming"))), (1, 0));
    true
}
