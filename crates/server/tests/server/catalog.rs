//! Listings from a proxy to the catalog, and what callers find there.

use crate::fake::Fake;
use crate::harness::{PATIENCE, Place, Server, furnish, one_vm, problem};
use futures::StreamExt;
use lull_api::catalog::{CatalogEnd, CatalogLine, CatalogTable, FileHit, FolderEntry};
use lull_api::infrastructure::{Finding, RestorePoint};
use lull_api::job::GuestSettings;
use lull_guest_wire::listing::{COMPRESSED_BYTES_MAX, Entry, FolderListing, Kind, Listing};
use std::pin::pin;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// A piece of a listing: the files of one folder, with their sizes.
pub fn piece(folder: &[u8], files: &[(&'static [u8], u64)]) -> Vec<u8> {
    let entry = |&(name, size): &(&'static [u8], u64)| Entry {
        name,
        kind: Kind::File,
        size_bytes: size,
        mtime_us: 1_000_000 * size as i64,
        mode: 0o644,
        uid: 0,
        gid: 0,
        changed_after_freeze: false,
    };
    let mut entries: Vec<Entry> = files.iter().map(entry).collect();
    entries.sort_by_key(|entry| entry.name);
    let listing = Listing { folders: vec![FolderListing { path: folder, error: None, more: false, entries }] };
    zstd::bulk::compress(&postcard::to_stdvec(&listing).unwrap(), 1).unwrap()
}

pub async fn asked(server: &Server, path: &str) -> (Vec<FileHit>, Vec<FolderEntry>, CatalogEnd) {
    let (mut hits, mut entries) = (Vec::new(), Vec::new());
    let mut lines = pin!(server.client.lines::<CatalogLine>(path).await.unwrap_or_else(|e| panic!("{path}: {e}")));
    while let Some(line) = lines.next().await {
        match line.unwrap() {
            CatalogLine::Hit(hit) => hits.push(hit),
            CatalogLine::Entry(entry) => entries.push(entry),
            CatalogLine::End(end) => return (hits, entries, end),
            CatalogLine::Failed(problem) => panic!("{path}: {problem}"),
        }
    }
    panic!("{path}: the answer broke off");
}

/// Runs the job with this listing and waits until it is in the catalog.
pub async fn backed_up(server: &Server, fake: &Fake, listing: Vec<Vec<u8>>) -> Uuid {
    fake.set(|script| script.listing = listing);
    let session = server.finished(server.run("j").await.summary.id).await;
    assert_eq!(session.summary.result.as_deref(), Some("success"));
    let points: Vec<RestorePoint> = server.client.get("/restore-points").await.unwrap();
    taken_in(server).await;
    points[0].id
}

pub async fn tables(server: &Server) -> Vec<CatalogTable> {
    server.client.get("/catalog").await.unwrap()
}

pub async fn taken_in(server: &Server) {
    let since = Instant::now();
    while tables(server).await.iter().any(|table| !table.pending.is_empty()) {
        assert!(since.elapsed() < PATIENCE, "not taken in: {:?}", tables(server).await);
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

pub fn points(hit: &FileHit) -> Vec<Uuid> {
    hit.version.restore_points.iter().map(|at| at.id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_found_over_all_restore_points_in_every_version() {
    let (_place, fake, server) = one_vm().await;
    let first = backed_up(&server, &fake, vec![piece(b"/srv", &[(b"orders.csv", 10), (b"odd-\xff", 1)])]).await;
    let second = backed_up(&server, &fake, vec![piece(b"/srv", &[(b"orders.csv", 20), (b"odd-\xff", 1)])]).await;
    let third = backed_up(&server, &fake, vec![piece(b"/srv", &[(b"odd-\xff", 1)])]).await;

    let (hits, _, end) = asked(&server, "/catalog/search?pattern=orders").await;
    let found: Vec<_> = hits.iter().map(|hit| (hit.path.as_str(), hit.version.size_bytes, points(hit))).collect();
    assert_eq!(found, [("/srv/orders.csv", 20, vec![second]), ("/srv/orders.csv", 10, vec![first])], "newest first");
    assert_eq!((hits[0].vm.as_str(), end), ("db", CatalogEnd { told: 2, ..CatalogEnd::default() }));

    let (hits, ..) = asked(&server, "/catalog/search?pattern=odd-*&how=glob&vm=db&size_max=1").await;
    assert_eq!(points(&hits[0]), [first, second, third]);
    assert_eq!(
        (hits[0].path.as_str(), hits[0].path_hex.as_deref()),
        ("/srv/odd-\u{fffd}", Some("2f7372762f6f64642dff"))
    );
    let (hits, ..) = asked(&server, "/catalog/search?pattern_hex=ff").await;
    assert_eq!(hits.len(), 1, "a name that is no UTF-8 can be asked for");

    let (hits, _, end) = asked(&server, "/catalog/search?limit=2&order=path").await;
    let (rest, _, last) =
        asked(&server, &format!("/catalog/search?limit=2&order=path&page={}", end.next_page.unwrap())).await;
    assert_eq!((hits.len(), rest.len(), last.next_page), (2, 1, None));

    let latest = format!("/catalog/browse?vm=db&restore_point={third}&path=/srv");
    let (_, entries, _) = asked(&server, &latest).await;
    assert_eq!(entries.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>(), ["odd-\u{fffd}"]);
    let (_, entries, _) = asked(&server, "/catalog/browse?vm=db&path=/srv/orders.csv").await;
    let sizes: Vec<u64> = entries[0].versions.iter().map(|version| version.size_bytes).collect();
    assert_eq!(sizes, [20, 10], "of a file its versions, the newest first");

    let mut csv = Vec::new();
    let mut chunks = pin!(server.client.bytes("/catalog/export?vm=db").await.unwrap());
    while let Some(chunk) = chunks.next().await {
        csv.extend_from_slice(&chunk.unwrap());
    }
    let csv = String::from_utf8(csv).unwrap();
    assert_eq!(csv.lines().count(), 4, "{csv}");
    assert!(csv.contains(&format!("/srv/orders.csv,,file,10,10000000,420,0,0,false,{first},{first},1,0")), "{csv}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_wrongly_is_said() {
    let (_place, fake, server) = one_vm().await;
    backed_up(&server, &fake, vec![piece(b"/srv", &[(b"a", 1)])]).await;
    for (path, status, words) in [
        ("/catalog/search?pattern=(&how=regex", 422, "the pattern cannot be searched for"),
        ("/catalog/search?how=soundex", 422, "must be substring, glob or regex"),
        ("/catalog/search?vm=dbb", 422, "there is no VM \"dbb\""),
        ("/catalog/search?page=00", 422, "begin again without it"),
        ("/catalog/search?limit=99999", 422, "at most 10000"),
        ("/catalog/search?kind=door", 422, "must be file, folder"),
        ("/catalog/search?modified_after=yesterday", 422, "must be a time"),
        ("/catalog/search?restore_point=latest", 422, "latest needs one VM"),
        ("/catalog/search?restore_point=0000", 422, "there is no restore point"),
        ("/catalog/browse?vm=db&path=srv", 422, "must be an absolute path"),
        ("/catalog/browse?vm=db&path=/srv&path_hex=2f", 422, "give either"),
        ("/catalog/export?vm=web", 404, "has no catalog"),
        ("/catalog/export?vm=db&format=xml", 422, "must be csv or json-lines"),
    ] {
        let answer = server.client.get::<serde_json::Value>(path).await;
        let said = problem(answer);
        assert!(
            said.status == status && format!("{} {}", said.what, said.why.clone().unwrap_or_default()).contains(words),
            "{path}: {said:?}"
        );
    }
}

/// An answer that knows nothing of a restore point does not look like one that found nothing there.
#[tokio::test(flavor = "multi_thread")]
async fn a_search_says_of_which_restore_points_it_does_not_know_everything() {
    let (_place, fake, server) = one_vm().await;
    let unlisted = backed_up(&server, &fake, vec![]).await;
    let nothing_listed = "nothing was listed, see `lull session show 1`";
    let latest = "/catalog/search?pattern=a&vm=db&restore_point=latest";
    let (hits, _, end) = asked(&server, latest).await;
    let said = format!("restore point {unlisted} of db has no index: {nothing_listed}");
    assert_eq!((hits.len(), end.missing, end.unknown), (0, vec![said], vec![]));
    let (_, _, end) = asked(&server, "/catalog/search?pattern=a&vm=db").await;
    let said = format!("db: 1 restore point has no index: {unlisted} ({nothing_listed})");
    assert_eq!((&end.missing, &end.unknown), (&vec![], &vec![said.clone()]));
    let (_, _, end) = asked(&server, "/catalog/search?pattern=a").await;
    assert_eq!(end.unknown, Vec::<String>::new(), "nobody asked for a VM that was never listed");

    let cut = backed_up(&server, &fake, vec![piece(b"/srv", &[(b"a", 1)]), b"no zstd".to_vec()]).await;
    let (hits, _, end) = asked(&server, latest).await;
    assert_eq!(points(&hits[0]), [cut]);
    let said_cut = format!("the listing of restore point {cut} of db is not complete: the guest sent something else");
    assert!(end.missing.len() == 1 && end.missing[0].starts_with(&said_cut), "{end:?}");
    let (_, entries, end) = asked(&server, "/catalog/browse?vm=db&path=/srv").await;
    assert_eq!((entries.len(), end.unknown.len(), &end.unknown[0]), (1, 2, &said));
    assert!(end.unknown[1].starts_with(&format!("db: 1 restore point has a listing that is not complete: {cut} (")));

    let whole = backed_up(&server, &fake, vec![piece(b"/srv", &[(b"a", 1)])]).await;
    let (hits, _, end) = asked(&server, latest).await;
    assert_eq!((points(&hits[0]), end.missing, end.unknown), (vec![cut, whole], vec![], vec![]));
}

/// Callers that ask and do not read hold what they asked for: so many, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn of_many_answers_at_once_the_last_waits_for_its_turn_and_says_so() {
    let (_place, fake, server) = one_vm().await;
    let folder = [b"/".as_slice(), &[b'x'; 250]].concat();
    let many = (0..12u32).map(|part| {
        let names: Vec<Vec<u8>> = (0..6_000).map(|n| format!("{part:02}-{n:05}").into_bytes()).collect();
        let entry = |name| Entry {
            name,
            kind: Kind::File,
            size_bytes: 1,
            mtime_us: 1,
            mode: 0,
            uid: 0,
            gid: 0,
            changed_after_freeze: false,
        };
        let entries = names.iter().map(|name| entry(name.as_slice())).collect();
        let listing = Listing { folders: vec![FolderListing { path: &folder, error: None, more: part < 11, entries }] };
        zstd::bulk::compress(&postcard::to_stdvec(&listing).unwrap(), 1).unwrap()
    });
    backed_up(&server, &fake, many.collect()).await;
    let everything = "/catalog/search?order=path&limit=0";
    let mut unread = Vec::new();
    for _ in 0..4 {
        // The answer has begun, and is larger than what lies between the two.
        unread.push(server.client.bytes(everything).await.unwrap_or_else(|error| panic!("{error}")));
    }
    let one = "/catalog/search?pattern=00-00000";
    let refused = problem(server.client.lines::<CatalogLine>(one).await.map(drop));
    assert_eq!((refused.status, refused.code.as_str()), (503, "catalog-busy"), "{refused:?}");
    unread.pop();
    let (hits, ..) = asked(&server, one).await;
    assert_eq!(hits.len(), 1);
}

/// The guest is not trusted, nor is its proxy's memory: what came before counts, the backup is as good as without.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_listing_ends_the_listing_and_not_the_backup() {
    let (_place, fake, server) = one_vm().await;
    let good = piece(b"/srv", &[(b"a", 1)]);
    let too_long = vec![0; COMPRESSED_BYTES_MAX + 1];
    // So that the proxy hears that it shall end.
    fake.set(|script| script.pause_ms = 40);
    for (n, bad) in [too_long, b"no zstd".to_vec()].into_iter().enumerate() {
        let point = backed_up(&server, &fake, vec![good.clone(), bad, piece(b"/late", &[(b"b", 1)])]).await;
        let table = &tables(&server).await[0];
        let indexed = table.restore_points.iter().find(|indexed| indexed.id == point).unwrap();
        assert!(!indexed.complete && indexed.entries == 1 && indexed.stopped_because.is_some(), "{n}: {indexed:?}");
    }
    let stops = fake.world.index_stops.lock().unwrap().clone();
    assert!(stops.len() == 1 && stops[0].contains("a piece of"), "{stops:?}");
}

/// Killed after the listing came in and before it was in the catalog.
#[tokio::test(flavor = "multi_thread")]
async fn listings_that_wait_are_taken_in_at_the_next_start_and_orphans_are_swept() {
    let (place, fake, server) = one_vm().await;
    let point = backed_up(&server, &fake, vec![]).await;
    let tables_before = tables(&server).await;
    assert_eq!(tables_before, [], "nothing was listed");
    server.kill().await;
    let incoming = place.state.join("catalog/incoming");
    let frame = piece(b"/srv", &[(b"a", 1)]);
    let spooled = [&u32::try_from(frame.len()).unwrap().to_le_bytes()[..], &frame].concat();
    std::fs::write(incoming.join(format!("{point}.listing")), &spooled).unwrap();
    let orphan = incoming.join(format!("{}.listing", Uuid::new_v4()));
    std::fs::write(&orphan, &spooled).unwrap();

    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    taken_in(&server).await;
    let (hits, ..) = asked(&server, "/catalog/search?pattern=a").await;
    assert_eq!(points(&hits[0]), [point]);
    let table = &tables(&server).await[0];
    assert!(!table.restore_points[0].complete, "its end never came: {table:?}");
    for _ in 0..100 {
        if !orphan.exists() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("a listing without a restore point stayed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_table_names_itself_and_begins_anew_while_others_are_searched() {
    let (place, fake) = (Place::new(), Fake::embedded());
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    furnish(&server, &place, &["db", "web"], GuestSettings::default()).await;
    let old = backed_up(&server, &fake, vec![piece(b"/srv", &[(b"a", 1)])]).await;
    let all = tables(&server).await;
    let of = |name: &str| all.iter().find(|table| table.vm == name).unwrap().vm_id;
    let (db, web) = (of("db"), of("web"));
    let path = place.state.join(format!("catalog/{db}/history.parquet"));
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 8;
    bytes[middle..middle + 8].fill(0x55);
    std::fs::write(&path, bytes).unwrap();

    let (hits, _, end) = asked(&server, "/catalog/search?pattern=a").await;
    assert_eq!(hits.iter().map(|hit| hit.vm_id).collect::<Vec<_>>(), [web]);
    assert!(end.missing.len() == 1 && end.missing[0].contains("the catalog of db is damaged"), "{end:?}");
    assert!(tables(&server).await.iter().any(|table| table.vm == "db" && !table.problems.is_empty()));

    backed_up(&server, &fake, vec![piece(b"/srv", &[(b"a", 2)])]).await;
    let (hits, ..) = asked(&server, "/catalog/search?pattern=a&vm=db").await;
    assert_eq!(hits.iter().map(|hit| hit.version.size_bytes).collect::<Vec<_>>(), [2]);
    assert!(hits.iter().all(|hit| !points(hit).contains(&old)));
}

/// Found when the next listing comes in: the doctor says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_found_damaged_by_a_backup_is_named_by_the_doctor() {
    let (place, fake, server) = one_vm().await;
    backed_up(&server, &fake, vec![piece(b"/srv", &[(b"a", 1)])]).await;
    let vm = tables(&server).await[0].vm_id;
    std::fs::write(place.state.join(format!("catalog/{vm}/history.parquet")), b"PAR1 and no more").unwrap();
    backed_up(&server, &fake, vec![piece(b"/srv", &[(b"a", 2)])]).await;
    let findings: Vec<Finding> = server.client.get("/doctor").await.unwrap();
    let about = findings.iter().find(|finding| finding.subject == "catalog").unwrap();
    assert!(about.state == "warning" && about.text.contains("history.parquet.damaged-1"), "{about:?}");
    let (hits, ..) = asked(&server, "/catalog/search?pattern=a").await;
    assert_eq!(hits.iter().map(|hit| hit.version.size_bytes).collect::<Vec<_>>(), [2]);
}
