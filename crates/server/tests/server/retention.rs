//! Restore points that have expired go, with their files; what is in use does not.

use crate::chains::write_point;
use crate::fake::Fake;
use crate::harness::{Place, Server, clock_at, one_vm_at, problem};
use lull_api::infrastructure::{RestorePoint, Verification};
use lull_api::session::Session;
use lull_catalog::{Catalog, IndexSummary, NewPoint};
use lull_server::Clock;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use uuid::Uuid;

async fn points(server: &Server) -> Vec<RestorePoint> {
    server.client.get("/restore-points").await.unwrap()
}

/// Chains of two points.
async fn in_pairs(server: &Server, retention: Value) {
    server.change("j", json!({"full_every": 2, "retention": retention})).await;
}

/// Runs the job so many times; what the proxy made lies in the repository afterwards.
async fn run(server: &Server, fake: &Fake, job: &str, times: usize) -> i64 {
    let mut last = 0;
    for _ in 0..times {
        last = server.finished(server.run(job).await.summary.id).await.summary.id;
        let order = fake.orders().pop().unwrap();
        let Some(lull_proxy_wire::v1::task_order::Work::Backup(work)) = &order.work else { panic!() };
        write_point(&order, work.parent.as_ref().map(|parent| parent.restore_point_id.as_str()));
    }
    last
}

async fn until_left(server: &Server, ids: &[Uuid]) {
    let since = Instant::now();
    loop {
        let left: Vec<Uuid> = points(server).await.iter().map(|point| point.id).collect();
        if left == ids {
            return;
        }
        assert!(since.elapsed() < crate::harness::PATIENCE, "left are {left:?}, not {ids:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn ids(points: &[RestorePoint]) -> Vec<Uuid> {
    points.iter().map(|point| point.id).collect()
}

fn said(session: &Session) -> String {
    session.notes.join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_chains_go_with_their_files_and_the_session_says_so() {
    let (place, fake, server) = one_vm_at("2026-03-02T01:59:00Z").await;
    in_pairs(&server, json!({"last": 2})).await;
    run(&server, &fake, "j", 3).await;
    let before = points(&server).await;
    assert_eq!(before.len(), 3, "the first chain has a point that is asked for");
    let fourth = run(&server, &fake, "j", 1).await;
    let gone = &before[1..];
    let kept: Vec<Uuid> = points(&server).await.iter().map(|p| p.id).filter(|id| !ids(gone).contains(id)).collect();
    until_left(&server, &kept).await;
    assert!(gone.iter().all(|point| !Path::new(&point.directory).exists()));
    assert!(Path::new(&before[0].directory).join("disk0.qcow2").exists() && place.repository.join("db").exists());
    // The newest first: whatever is interrupted leaves a chain without a hole.
    let told = format!("retention: removed 2 expired restore points of db: {}, {}", gone[0].id, gone[1].id);
    server.until(fourth, "the removal is told", |session| said(session).contains(&told)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_job_keeps_what_it_asks_for_and_what_nobody_looks_after_stays() {
    let (_place, fake, server) = one_vm_at("2026-03-02T01:59:00Z").await;
    let other = json!({"name": "k", "vms": ["db"], "repository": "r", "full_every": 2});
    let _: Value = server.client.post("/jobs", &other).await.unwrap();
    in_pairs(&server, json!({"last": 1})).await;
    // Three chains: j j, k j, j j. The first goes once the second has what j asks for.
    for job in ["j", "j", "k"] {
        run(&server, &fake, job, 1).await;
    }
    let fourth = run(&server, &fake, "j", 1).await;
    server.until(fourth, "the removal is told", |session| said(session).contains("removed 2 expired")).await;
    run(&server, &fake, "j", 2).await;
    let all = points(&server).await;
    assert_eq!(all.len(), 4);
    assert_eq!(all[3].job.as_deref(), Some("k"), "the chain that another job's point is in");
    // Its maker is gone, and a new job of that name is another one.
    server.client.delete("/jobs/k").await.unwrap();
    let again = json!({"name": "k", "vms": ["db"], "repository": "r", "retention": {"last": 1}});
    let _: Value = server.client.post("/jobs", &again).await.unwrap();
    run(&server, &fake, "k", 1).await;
    let last = run(&server, &fake, "j", 3).await;
    server.until(last, "the removal is told", |session| said(session).contains("removed")).await;
    assert!(points(&server).await.iter().any(|point| point.id == all[3].id));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_verified_stays_until_that_is_over() {
    let (_place, fake, server) = one_vm_at("2026-03-02T01:59:00Z").await;
    in_pairs(&server, json!({"last": 2})).await;
    run(&server, &fake, "j", 2).await;
    let [newer, older] = &points(&server).await[..] else { panic!() };
    // Who checks this image waits until somebody writes into it.
    let image = Path::new(&newer.directory).join("disk0.qcow2");
    std::fs::remove_file(&image).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &image, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    let (client, path) = (server.client.clone(), format!("/restore-points/{}/verify", newer.id));
    // One that comes while a deletion is just being refused is refused itself.
    let verifying = tokio::spawn(async move { while client.post::<Verification>(&path, &()).await.is_err() {} });
    let since = Instant::now();
    // Also what it builds on is held. Others build on that one, so it could not be deleted anyway.
    while !problem(server.client.delete(&format!("/restore-points/{}", older.id)).await).what.contains("it is in use") {
        assert!(since.elapsed() < crate::harness::PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let fourth = run(&server, &fake, "j", 2).await;
    let told = format!("restore point {} of db has expired and stays for now: it is being verified", newer.id);
    server.until(fourth, "it is told that it stays", |session| said(session).contains(&told)).await;
    let all = points(&server).await;
    assert_eq!(all.len(), 4);
    assert!(Path::new(&older.directory).join("disk0.qcow2").exists());
    verifying.abort();
    until_left(&server, &ids(&all[..2])).await;
    server.until(fourth, "the removal is told", |session| said(session).contains("removed 2 expired")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_vm_is_backed_up_there_nothing_goes() {
    let (_place, fake, server) = one_vm_at("2026-03-02T01:59:00Z").await;
    in_pairs(&server, json!({})).await;
    run(&server, &fake, "j", 4).await;
    fake.set(|script| script.pause_ms = 100);
    let fifth = server.run("j").await.summary.id;
    server.until(fifth, "it is at work", |session| !session.tasks[0].steps.is_empty()).await;
    in_pairs(&server, json!({"last": 1})).await;
    server.set_clock("2026-03-02T03:30:00Z");
    let stays = format!("stays for now: session {fifth} is backing db up to the same repository");
    server.until(fifth, "it is told that it stays", |session| said(session).contains(&stays)).await;
    assert_eq!(points(&server).await.len(), 4);
    server.finished(fifth).await;
    let newest = points(&server).await[0].id;
    until_left(&server, &[newest]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_is_not_mounted_loses_nothing_and_people_see_why() {
    let (place, fake, server) = one_vm_at("2026-03-02T01:59:00Z").await;
    in_pairs(&server, json!({"last": 2})).await;
    run(&server, &fake, "j", 3).await;
    let hidden = place.dir.path().join("hidden");
    std::fs::rename(&place.repository, &hidden).unwrap();
    // A mount point without its file system is an empty folder.
    std::fs::create_dir(&place.repository).unwrap();
    let fourth = server.finished(server.run("j").await.summary.id).await.summary.id;
    server.until(fourth, "it is told that they stay", |session| said(session).contains("mount the repository")).await;
    assert_eq!(points(&server).await.len(), 4);
    let refused = problem(server.client.delete(&format!("/restore-points/{}", points(&server).await[0].id)).await);
    assert_eq!((refused.status, refused.code.as_str()), (409, "not-deleted"));
    std::fs::remove_dir(&place.repository).unwrap();
    std::fs::rename(&hidden, &place.repository).unwrap();
    run(&server, &fake, "j", 1).await;
    let all = points(&server).await;
    until_left(&server, &ids(&all[..3.min(all.len())])).await;
}

/// By the clock all three would be a year old; by the newest of them one is too old.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_runs_ahead_removes_nothing() {
    let (_place, fake, server) = one_vm_at("2026-03-02T01:59:00Z").await;
    server.change("j", json!({"full_every": 1})).await;
    for day in ["02T02", "03T03", "04T03"] {
        server.set_clock(&format!("2026-03-{day}:00:00Z"));
        run(&server, &fake, "j", 1).await;
    }
    let before = ids(&points(&server).await);
    server.change("j", json!({"retention": {"days": 2}})).await;
    // At the hourly look: the oldest goes, and with it it is known that the look was taken.
    server.set_clock("2027-03-04T04:00:00Z");
    until_left(&server, &before[..2]).await;
    run(&server, &fake, "j", 1).await;
    let made = points(&server).await.remove(0).id;
    // The remaining case, as documented.
    until_left(&server, &[made]).await;
    // Once the clock is right again, that one stays beside what the rule keeps.
    server.set_clock("2026-03-05T03:00:00Z");
    run(&server, &fake, "j", 1).await;
    server.set_clock("2026-03-09T03:00:00Z");
    let last = run(&server, &fake, "j", 1).await;
    server.until(last, "the removal is told", |session| said(session).contains("removed 1 expired")).await;
    let left = points(&server).await;
    assert_eq!((left.len(), left[0].id), (2, made));
    assert!(left[1].created_at.starts_with("2026-03-09"), "{left:?}");
}

/// Two restore points that the catalog knows; then its table cannot be rewritten until what is returned is put back.
async fn with_a_table_that_cannot_be_rewritten(server: Server, place: &Place, fake: &Fake) -> (Server, [PathBuf; 2]) {
    let vm: lull_api::infrastructure::Vm = server.client.get("/vms/db").await.unwrap();
    let all = points(&server).await;
    server.stop().await.unwrap();
    let folder = place.state.join("catalog");
    {
        let catalog = Catalog::open(&folder).unwrap();
        for (number, point) in (1..).zip(all.iter().rev()) {
            let new = NewPoint { id: point.id, number, taken_at_us: i64::from(number) };
            let summary = IndexSummary { complete: true, ..IndexSummary::default() };
            catalog.ingest(vm.id, &new, &mut std::iter::empty(), &summary).unwrap();
        }
        assert_eq!(catalog.points(vm.id).unwrap().len(), all.len());
    }
    let server = Server::start_at(&place.state, std::slice::from_ref(fake), server_clock()).await.unwrap();
    let mut files = std::fs::read_dir(folder.join(vm.id.to_string())).unwrap();
    let table = files.next().unwrap().unwrap().path();
    let aside = place.dir.path().join("table");
    std::fs::rename(&table, &aside).unwrap();
    std::fs::create_dir(&table).unwrap();
    (server, [aside, table])
}

fn server_clock() -> Clock {
    clock_at("2026-03-02T02:30:00Z")
}

fn put_back([aside, table]: &[PathBuf; 2]) {
    std::fs::remove_dir(table).unwrap();
    std::fs::rename(aside, table).unwrap();
}

/// The catalog forgets before the row goes; where it cannot, the list says that the point is being removed, and the server goes on by itself.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_is_forgotten_by_the_catalog_too() {
    let (place, fake, server) = one_vm_at("2026-03-02T01:59:00Z").await;
    server.change("j", json!({"full_every": 1})).await;
    run(&server, &fake, "j", 2).await;
    let all = points(&server).await;
    let (server, table) = with_a_table_that_cannot_be_rewritten(server, &place, &fake).await;
    let path = format!("/restore-points/{}", all[1].id);
    for _ in 0..2 {
        let refused = problem(server.client.delete(&path).await);
        let why = refused.why.unwrap();
        assert!(refused.code == "not-deleted" && why.contains("could not be taken out of the catalog"), "{why}");
    }
    let left = points(&server).await;
    assert_eq!(left.iter().map(|point| point.removing).collect::<Vec<_>>(), [false, true]);
    assert!(!Path::new(&all[1].directory).exists());
    let refused = problem(server.client.post::<Verification>(&format!("{path}/verify"), &()).await);
    assert!(refused.status == 409 && refused.what.contains("it is being removed"), "{refused:?}");
    server.stop().await.unwrap();
    put_back(&table);
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    until_left(&server, &[all[0].id]).await;
    server.stop().await.unwrap();
    let vm = all[0].vm.clone();
    let catalog = Catalog::open(&place.state.join("catalog")).unwrap();
    let indexed = std::fs::read_dir(place.state.join("catalog")).unwrap().filter_map(Result::ok);
    let of_vm = indexed.filter_map(|entry| entry.file_name().to_str()?.parse::<Uuid>().ok()).next().unwrap();
    let known: Vec<Uuid> = catalog.points(of_vm).unwrap().iter().map(|point| point.id).collect();
    assert_eq!(known, [all[0].id], "{vm}");
}

/// Nothing counts on what is being removed: no rule, no backup, no bitmap.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_removed_counts_for_nothing() {
    let (place, fake, server) = one_vm_at("2026-03-02T01:59:00Z").await;
    server.change("j", json!({"full_every": 1})).await;
    run(&server, &fake, "j", 2).await;
    server.change("j", json!({"full_every": 14})).await;
    run(&server, &fake, "j", 1).await;
    let all = points(&server).await;
    assert_eq!((all[0].parent, all[1].parent), (Some(all[1].id), None));
    let (server, table) = with_a_table_that_cannot_be_rewritten(server, &place, &fake).await;
    problem(server.client.delete(&format!("/restore-points/{}", all[0].id)).await);
    server.change("j", json!({"retention": {"last": 1}})).await;
    server.set_clock("2026-03-02T04:00:00Z");
    // The oldest has expired; the one after it is the newest that can be restored.
    let since = Instant::now();
    while !points(&server).await.iter().any(|point| point.id == all[2].id && point.removing) {
        assert!(since.elapsed() < crate::harness::PATIENCE, "{:?}", points(&server).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(points(&server).await.iter().map(|point| point.removing).collect::<Vec<_>>(), [true, false, true]);
    assert!(Path::new(&all[1].directory).join("disk0.qcow2").exists());
    run(&server, &fake, "j", 1).await;
    let order = fake.orders().pop().unwrap();
    let Some(lull_proxy_wire::v1::task_order::Work::Backup(work)) = &order.work else { panic!() };
    let short = |id: Uuid| id.simple().to_string()[16..].to_string();
    assert_eq!(work.parent.as_ref().map(|parent| parent.restore_point_id.clone()), Some(short(all[1].id)));
    assert_eq!(work.bitmaps_owed, [short(all[1].id)]);
    let made = points(&server).await.remove(0).id;
    put_back(&table);
    server.set_clock("2026-03-02T06:00:00Z");
    until_left(&server, &[made, all[1].id]).await;
}
