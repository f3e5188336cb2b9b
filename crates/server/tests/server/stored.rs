//! What is on disk: state folders of past versions, newer ones, damaged ones.

use crate::fake::Fake;
use crate::harness::{Place, Server, furnish, one_vm};
use lull_api::infrastructure::{Credential, RestorePoint, Vm};
use lull_api::job::{GuestSettings, Job};
use lull_api::session::SessionSummary;
use sqlx::{ConnectOptions, Connection};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

fn kept(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(version)
}

/// A state folder as an earlier version left it, with a finished job and one that was killed at work.
fn copied(version: &str, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for file in ["lull.db", "secret.key", "admin-token"] {
        std::fs::copy(kept(version).join(file), to.join(file)).unwrap();
        std::fs::set_permissions(to.join(file), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o700)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_folder_of_version_1_opens_with_everything_in_it() {
    if std::env::var_os("LULL_WRITE_STATE").is_some() {
        write_state(&kept("state-v1")).await;
    }
    let (place, fake) = (Place::new(), Fake::embedded());
    copied("state-v1", &place.state);
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    let jobs: Vec<Job> = server.client.get("/jobs").await.unwrap();
    assert_eq!((jobs[0].name.as_str(), jobs[0].guest.lease_ms), ("j", Some(7_000)));
    // Nobody could choose these then: a chain had 14 points, nothing ran by itself and everything was kept.
    assert_eq!((jobs[0].full_every, &jobs[0].schedule, &jobs[0].retention), (14, &None, &Default::default()));
    let vm: Vm = server.client.get("/vms/db").await.unwrap();
    assert_eq!((vm.credential.as_deref(), vm.host_key.as_deref()), (Some("c"), Some("SHA256:first")));
    let points: Vec<RestorePoint> = server.client.get("/restore-points").await.unwrap();
    assert_eq!((points.len(), points[0].level.as_str()), (1, "application"));
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(place.state.join("lull.db"));
    let mut db = options.connect().await.unwrap();
    let made_by: String = sqlx::query_scalar("SELECT job FROM restore_points").fetch_one(&mut db).await.unwrap();
    assert_eq!(made_by, jobs[0].id.to_string());
    db.close().await.unwrap();
    assert_eq!(server.ready.recovering_tasks, 1);
    server.finished(2).await;
    let sessions: Vec<SessionSummary> = server.client.get("/sessions").await.unwrap();
    let results: Vec<_> = sessions.iter().map(|s| s.result.as_deref().unwrap()).collect();
    assert_eq!(results, ["failed", "success"]);
    assert_eq!(server.session(1).await.tasks[0].level.as_deref(), Some("application"));
    // Its secrets still open.
    server.finished(server.run("j").await.summary.id).await;
    let credential = fake.orders()[0].guest.clone().unwrap().credential.unwrap();
    let password = lull_proxy_wire::v1::credential::Login::Password("s3cret-password".into());
    assert!(credential.login == Some(password));
}

/// Makes the folder that later versions must be able to open.
async fn write_state(to: &Path) {
    let (place, fake) = (Place::new(), Fake::embedded());
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    let guest = GuestSettings { lease_ms: Some(7_000), ..Default::default() };
    furnish(&server, &place, &["db"], guest).await;
    server.finished(server.run("j").await.summary.id).await;
    fake.set(|script| script.hang_after = Some(12));
    let id = server.run("j").await.summary.id;
    server.until(id, "it is frozen", |s| s.tasks[0].steps.iter().any(|step| step.step == "freeze")).await;
    server.kill().await;
    // After a kill the last writes stand in the write-ahead log; one file is easier to keep.
    let mut db =
        sqlx::sqlite::SqliteConnectOptions::new().filename(place.state.join("lull.db")).connect().await.unwrap();
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut db).await.unwrap();
    db.close().await.unwrap();
    std::fs::create_dir_all(to).unwrap();
    for file in ["lull.db", "secret.key", "admin-token"] {
        std::fs::copy(place.state.join(file), to.join(file)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_state_folder_is_private() {
    let (place, _fake, server) = one_vm().await;
    assert_eq!(place.state.metadata().unwrap().mode() & 0o777, 0o700);
    for file in ["lull.db", "secret.key", "admin-token"] {
        assert_eq!(place.state.join(file).metadata().unwrap().mode() & 0o077, 0, "{file}");
    }
    let second = Server::try_start(&place.state, &[Fake::embedded()]).await.err().unwrap();
    assert!(second.contains("another backup server uses"), "{second}");
    drop(server);
}

async fn refused(place: &Place) -> String {
    Server::try_start(&place.state, &[Fake::embedded()]).await.err().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_lost_and_foreign_files_are_named_with_the_remedy() {
    let (place, _fake, server) = one_vm().await;
    server.stop().await.unwrap();
    let (db, key) = (place.state.join("lull.db"), place.state.join("secret.key"));
    let (whole_db, whole_key) = (std::fs::read(&db).unwrap(), std::fs::read(&key).unwrap());

    std::fs::write(&key, "not a key").unwrap();
    let error = refused(&place).await;
    assert!(error.contains("secret.key is damaged") && error.contains("put back a copy"), "{error}");
    std::fs::write(&key, format!("{}\n", "ab".repeat(32))).unwrap();
    let error = refused(&place).await;
    assert!(error.contains("secret.key is not the one") && error.contains("put back the copy"), "{error}");
    std::fs::remove_file(&key).unwrap();
    let error = refused(&place).await;
    assert!(error.contains("secret.key is missing") && error.contains("put back a copy"), "{error}");
    assert!(!key.exists(), "a lost key must not be replaced by a new one");
    std::fs::write(&key, &whole_key).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();

    std::fs::write(&db, b"this was a database once, before something happened to it").unwrap();
    let error = refused(&place).await;
    assert!(error.contains("lull.db is damaged") && error.contains("put back a copy"), "{error}");
    let mut torn = whole_db.clone();
    let middle = torn.len() / 2;
    torn[middle..].fill(0xa5);
    std::fs::write(&db, &torn).unwrap();
    let error = refused(&place).await;
    assert!(error.contains("lull.db is damaged"), "{error}");

    // The version stands at byte 60 of the header, the application's id at byte 68.
    let mut newer = whole_db.clone();
    newer[60..64].copy_from_slice(&99u32.to_be_bytes());
    std::fs::write(&db, &newer).unwrap();
    let error = refused(&place).await;
    assert!(error.contains("format 99") && error.contains("run the newer version"), "{error}");
    let mut foreign = whole_db.clone();
    foreign[68..72].copy_from_slice(&7u32.to_be_bytes());
    std::fs::write(&db, &foreign).unwrap();
    let error = refused(&place).await;
    assert!(error.contains("another program"), "{error}");

    std::fs::write(&db, &whole_db).unwrap();
    let server = Server::start(&place.state, &[Fake::embedded()]).await;
    let credentials: Vec<Credential> = server.client.get("/credentials").await.unwrap();
    assert_eq!(credentials.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_a_restore_point_deletes_its_files_and_no_others() {
    let (place, _fake, server) = one_vm().await;
    let session = server.finished(server.run("j").await.summary.id).await;
    let point: RestorePoint =
        server.client.get(&format!("/restore-points/{}", session.tasks[0].restore_point.unwrap())).await.unwrap();
    let dir = Path::new(&point.directory);
    std::fs::create_dir_all(dir).unwrap();
    for file in ["disk0.qcow2", "restore-point.json", "mine.txt"] {
        std::fs::write(dir.join(file), "x").unwrap();
    }
    let path = format!("/restore-points/{}", point.id);
    let verification: lull_api::infrastructure::Verification =
        server.client.post(&format!("{path}/verify"), &()).await.unwrap();
    assert!(!verification.ok && !verification.findings.is_empty());
    let shown: RestorePoint = server.client.get(&path).await.unwrap();
    assert!(shown.verified.unwrap().ends_with("damaged"));

    let kept = crate::harness::problem(server.client.delete(&path).await);
    assert_eq!((kept.status, kept.code.as_str()), (409, "not-deleted"));
    assert!(dir.join("mine.txt").exists());
    std::fs::remove_file(dir.join("mine.txt")).unwrap();
    let hidden = place.dir.path().join("unmounted");
    std::fs::rename(&place.repository, &hidden).unwrap();
    let unmounted = crate::harness::problem(server.client.delete(&path).await);
    assert_eq!(unmounted.status, 409, "files that cannot be seen are not gone");
    std::fs::rename(&hidden, &place.repository).unwrap();
    server.client.delete(&path).await.unwrap();
    assert!(!dir.exists() && place.repository.exists());
    let points: Vec<RestorePoint> = server.client.get("/restore-points").await.unwrap();
    assert_eq!(points, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_nothing_can_be_written_down_nothing_goes_on() {
    let (place, fake, server) = one_vm().await;
    fake.set(|script| script.pause_ms = 30);
    let id = server.run("j").await.summary.id;
    server.until(id, "steps run", |s| s.tasks[0].steps.len() >= 3).await;
    // Longer than SQLite itself waits for another writer.
    let mut other =
        sqlx::sqlite::SqliteConnectOptions::new().filename(place.state.join("lull.db")).connect().await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let before = server.session(id).await.last_event;
    tokio::time::sleep(std::time::Duration::from_secs(12)).await;
    let session = server.session(id).await;
    assert_eq!((session.last_event, session.summary.state.as_str()), (before, "running"));
    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    let session = server.finished(id).await;
    assert_eq!(session.summary.result.as_deref(), Some("success"), "{session:#?}");
    let numbers: Vec<u64> = server.events(id).await.iter().map(|event| event.seq).collect();
    assert_eq!(numbers, (1..=session.last_event).collect::<Vec<_>>());
}
