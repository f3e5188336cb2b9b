//! Restore points day after day: what the catalog finds, and bad luck between and within two runs.

use crate::program::wait_for;
use crate::told::assert_says;
use crate::world::{JOB, VM, World, assert_clean_receipt, sentence, task};
use lull_api::catalog::{CatalogLine, CatalogTable, FileHit};
use lull_api::infrastructure::RestorePoint;
use lull_api::session::Session;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// What a search finds, the newest version first.
fn found(world: &World, arguments: &[&str]) -> Vec<FileHit> {
    let outcome = world.lull(&[&["catalog", "search"], arguments].concat()).ok();
    let lines = outcome.stdout.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.filter_map(|line| if let CatalogLine::Hit(hit) = line { Some(hit) } else { None }).collect()
}

/// Size and restore points of each version.
fn versions(world: &World, name: &str) -> Vec<(u64, Vec<Uuid>)> {
    let points = |hit: &FileHit| hit.version.restore_points.iter().map(|at| at.id).collect();
    found(world, &[name]).iter().map(|hit| (hit.version.size_bytes, points(hit))).collect()
}

/// Waits until everything that came in is in the catalog.
fn table(world: &World) -> CatalogTable {
    let taken_in = || {
        let tables: Vec<CatalogTable> = world.lull(&["catalog", "status", "--vm", VM]).ok().json();
        tables.into_iter().find(|table| table.pending.is_empty())
    };
    wait_for(30, "the listings are taken in", taken_in)
}

fn succeeds(world: &World, job: &str) -> RestorePoint {
    let session = world.run_job(job);
    assert_eq!(session.summary.result.as_deref(), Some("success"), "{session:#?}");
    point_of(world, &session)
}

fn point_of(world: &World, session: &Session) -> RestorePoint {
    let id = task(session).restore_point.unwrap_or_else(|| panic!("a restore point: {session:#?}"));
    table(world);
    world.points().into_iter().find(|point| point.id == id).expect("it is listed")
}

/// Files come, change and go; also one whose name is no UTF-8, and one with a newline.
pub fn found_again(world: &mut World) {
    let folder = "/root/history";
    world.guest.ssh(&format!(
        "mkdir {folder}; cd {folder}; printf 1234 >ledger; printf x >gone; printf x >\"$(printf 'odd-\\377')\"; \
         printf x >\"$(printf 'new\\nline')\"; sync"
    ));
    let first = succeeds(world, JOB);
    world.guest.ssh(&format!("cd {folder}; printf 12345678 >ledger; rm gone; sync"));
    let second = succeeds(world, JOB);
    assert_eq!((second.kind.as_str(), second.parent), ("incremental", Some(first.id)));
    assert_eq!(versions(world, "ledger"), [(8, vec![second.id]), (4, vec![first.id])]);
    assert_eq!(versions(world, "gone"), [(1, vec![first.id])]);
    let odd = found(world, &["odd-", "--vm", VM]);
    assert_eq!(odd[0].path_hex.as_deref().map(|hex| hex.ends_with("6f64642dff")), Some(true), "{odd:?}");
    assert_eq!(versions(world, "new\nline"), [(1, vec![first.id, second.id])]);
    let now = found(world, &["/root/history/*", "--glob", "--path", "--vm", VM, "--restore-point", "latest"]);
    assert_eq!(now.len(), 3, "{now:?}");
    world.guest.ssh(&format!("rm -r {folder}"));
}

/// The server dies around the ingest, wherever that happens to be (inside it: `killed_inside_an_ingest_the_server_takes_the_listing_in_once`):
/// at its next start the catalog has the listing.
pub fn server_killed_in_ingest(world: &mut World) {
    world.guest.ssh("printf 1 >/root/before-the-kill; sync");
    let (id, events) = world.start_job(JOB);
    events.until_step("receipt");
    let session = world.finished(id);
    world.kill_server();
    drop(events);
    world.start_server();
    let point = point_of(world, &session);
    assert_eq!(versions(world, "before-the-kill"), [(1, vec![point.id])]);
    world.guest.ssh("rm /root/before-the-kill");
}

/// By the guest's clock the later version is the older one. The catalog counts restore points.
pub fn clock_of_the_guest_set_back(world: &mut World) {
    let set_back = "date -s @$(($(date +%s) - 40000000)) >/dev/null";
    world.guest.ssh("printf 1 >/root/written-by-clock; sync");
    let first = succeeds(world, JOB);
    world.guest.ssh(&format!("{set_back}; printf 12 >/root/written-by-clock; sync"));
    let second = succeeds(world, JOB);
    // Newest first goes by the files' own times; which restore point has which version does not.
    assert_eq!(versions(world, "written-by-clock"), [(1, vec![first.id]), (2, vec![second.id])]);
    let unchanged = found(world, &["/etc/passwd", "--glob", "--path", "--vm", VM]);
    assert_eq!(unchanged.len(), 1, "a clock is no change of a file: {unchanged:?}");

    // In mid-walk, too: it ends, and says what it cannot know any more.
    slow_to_walk(world, 512 << 10);
    let (id, events) = world.start_job(JOB);
    events.until_step("index");
    world.guest.ssh(set_back);
    let session = world.finished(id);
    throttle(world, 0);
    assert_eq!(session.summary.result.as_deref(), Some("success"), "{session:#?}");
    assert_says(
        &task(&session).notes.join("\n"),
        &["the guest's clock was set back by", "while its files were listed"],
    );
    let newest = table(world).restore_points.pop().unwrap();
    assert!(newest.complete, "{newest:?}");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    world.guest.ssh(&format!("date -s @{now} >/dev/null; rm -r /mnt/scratch/many /root/written-by-clock"));
}

/// Folders that must be read from a disk that gives so many bytes a second.
fn slow_to_walk(world: &World, bytes: u64) {
    world
        .guest
        .ssh("cd /mnt/scratch; mkdir many; cd many; seq 2000 | xargs mkdir; sync; echo 3 >/proc/sys/vm/drop_caches");
    throttle(world, bytes);
}

/// In mid-walk: the backup is as good as without it, the catalog says what it does not know.
pub fn guest_reboots_in_mid_walk(world: &mut World) {
    slow_to_walk(world, 64 << 10);
    reboots(world, "index", &[]);
    let newest = table(world).restore_points.pop().unwrap();
    assert!(!newest.complete && newest.stopped_because.is_some(), "{newest:?}");
    world.guest.ssh("rm -r /mnt/scratch/many");
}

/// Lets the guest read and write so many bytes a second on its second disk; 0 for as many as it can.
fn throttle(world: &World, bytes: u64) {
    let zeros = ["bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"].map(|key| (key.to_string(), 0.into()));
    let mut limits: serde_json::Map<String, serde_json::Value> = zeros.into_iter().collect();
    limits.insert("id".into(), "/machine/peripheral/vd1/virtio-backend".into());
    limits.insert("bps".into(), bytes.into());
    world.qmp().ask("block_set_io_throttle", limits.into());
}

/// In mid-copy: the snapshot is what it was before.
pub fn guest_reboots_in_mid_copy(world: &mut World) {
    world.guest.ssh("dd if=/dev/urandom of=/root/bulk bs=1M count=96 conv=fsync 2>/dev/null");
    reboots(world, "copy", &["--copy-limit", "16MiB", "--indexing", "disabled"]);
    world.guest.ssh("rm /root/bulk");
}

fn reboots(world: &mut World, step: &str, flags: &[&str]) {
    world.make_job("reboots", flags);
    let (id, events) = world.start_job("reboots");
    events.until_step(step);
    let began = Instant::now();
    // By the guest itself, at once and without order: QEMU's socket is the backup's until it is over.
    world.guest.ssh("echo 1 >/proc/sys/kernel/sysrq; (sleep 0.2; echo b >/proc/sysrq-trigger) >/dev/null 2>&1 &");
    let session = world.finished(id);
    throttle(world, 0);
    println!(
        "   reset in step {step}: {} after {:.1} s",
        session.summary.result.as_deref().unwrap_or_default(),
        began.elapsed().as_secs_f64()
    );
    drop(events);
    world.guest.wait_for_postgres();
    world.guest.ssh("mount /dev/vdb /mnt/scratch; touch /root/seen");
    let result = session.summary.result.as_deref();
    assert!(matches!(result, Some("success" | "warning")), "{session:#?}");
    assert_clean_receipt(&session);
    let point = point_of(world, &session);
    assert_eq!(point.level, "application", "the reset came after the snapshot");
    world.lull(&["restore-point", "verify", &point.id.to_string()]).ok();
    world.lull(&["job", "remove", "reboots"]).ok();
}

/// The repository is gone at the next run: it fails and says so; once it is back, the chain goes on.
pub fn repository_away_between_two_runs(world: &mut World) {
    let before = succeeds(world, JOB);
    let (repository, aside) = (world.folder.join("repository"), world.folder.join("repository-aside"));
    std::fs::rename(&repository, &aside).unwrap();
    let session = world.run_job(JOB);
    assert_says(&sentence(&session), &["at the repository", &repository.display().to_string()]);
    assert!(!repository.exists(), "it is not made anew: something may be mounted there");
    std::fs::rename(&aside, &repository).unwrap();
    let after = succeeds(world, JOB);
    assert_eq!((after.kind.as_str(), after.parent), ("incremental", Some(before.id)));
    world.lull(&["restore-point", "verify", &after.id.to_string()]).ok();
}

/// The second is refused, and says which session has the VM.
pub fn two_jobs_at_once(world: &mut World) {
    world.guest.ssh("dd if=/dev/urandom of=/root/bulk bs=1M count=64 conv=fsync 2>/dev/null");
    world.make_job("slowly", &["--copy-limit", "16MiB"]);
    let (id, events) = world.start_job("slowly");
    events.until_step("copy");
    let second = world.lull(&["job", "run", JOB]);
    assert_eq!(second.code, 3, "{second:?}");
    assert_says(&second.stderr, &["nothing was started", VM, &format!("session {id}")]);
    let first = world.finished(id);
    drop(events);
    assert_eq!(first.summary.result.as_deref(), Some("success"), "{first:#?}");
    world.guest.ssh("rm /root/bulk");
    world.lull(&["job", "remove", "slowly"]).ok();
}

/// A job that runs every minute, and keeps one restore point: what has expired leaves folder, list and catalog, and what stays is whole.
pub fn runs_by_itself_and_keeps_one(world: &mut World) {
    let before = world.newest_session();
    world.make_job("clockwork", &["--schedule", "* * * * *", "--keep-last", "1", "--full-every", "1"]);
    let begun = |after: i64| {
        let newer = || Some(world.newest_session()).filter(|newest| *newest > after);
        world.finished(wait_for(90, "the schedule begins a session", newer))
    };
    let first = begun(before);
    assert!(first.summary.scheduled_for.is_some(), "{first:#?}");
    assert_eq!(first.summary.result.as_deref(), Some("success"), "{first:#?}");
    let expired = point_of(world, &first);
    let second = begun(first.summary.id);
    world.lull(&["job", "edit", "clockwork", "--no-schedule"]).ok();
    world.finished(world.newest_session());
    let gone = || world.points().iter().all(|point| point.id != expired.id).then_some(());
    wait_for(60, "the expired restore point goes", gone);
    assert!(!std::path::Path::new(&expired.directory).exists());
    let indexed = table(world).restore_points;
    assert!(indexed.iter().all(|point| point.id != expired.id), "{indexed:?}");
    // A third run may have begun before the schedule was taken away.
    let told = || {
        let mut notes = (second.summary.id..=world.newest_session()).flat_map(|id| world.session(id).notes);
        notes.find(|note| note.contains(&expired.id.to_string()) && note.contains("removed"))
    };
    println!("   {}", wait_for(30, "the session says so", told));
    let kept = world.points().into_iter().find(|point| point.job.as_deref() == Some("clockwork")).expect("one stays");
    world.lull(&["restore-point", "verify", &kept.id.to_string()]).ok();
    world.lull(&["job", "remove", "clockwork"]).ok();
    // The next backup of the VM sweeps the bitmap of the restore point before the newest, whatever became of that one.
    succeeds(world, JOB);
}
