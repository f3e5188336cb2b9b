//! Incremental backups: content, what they read, what stays, and what makes a backup full instead.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lull_hypervisor::remove::{in_reach, remove_files};
use lull_hypervisor::{BackupOrder, Base, Kind, PreparedBackup, RestorePointFiles, SweepOrder, scan, sweep, verify};
use serde_json::{Value, json};

use crate::bed::{Bed, MIB, Style, assert_same, copy, files_in, str, tool};
use crate::storage::small;

/// An order that builds on `parent`.
fn after(bed: &Bed, restore_point: &str, parent: &RestorePointFiles) -> BackupOrder {
    let base = Base::Parent { restore_point: parent.metadata.restore_point.clone(), dir: parent.dir.clone() };
    BackupOrder { base, ..bed.order(restore_point) }
}

/// Snapshot, copy and finish; also what the copy read.
async fn complete(mut backup: PreparedBackup) -> (RestorePointFiles, u64) {
    let read_bytes = copy(&mut backup).await.unwrap().read_bytes;
    (backup.finish().await.unwrap(), read_bytes)
}

async fn full(bed: &Bed, restore_point: &str) -> RestorePointFiles {
    let (files, read_bytes) = complete(bed.taken(bed.order(restore_point)).await).await;
    assert_eq!(read_bytes, bed.disks.iter().map(|d| d.bytes).sum::<u64>());
    files
}

/// Takes an increment while the VM is paused, with what the disks held then.
async fn increment_of_a_paused_vm(
    bed: &Bed,
    restore_point: &str,
    parent: &RestorePointFiles,
) -> (PreparedBackup, Vec<PathBuf>) {
    let mut order = after(bed, restore_point, parent);
    // Slow enough for the guest to write while it is copied.
    order.speed_bytes_per_s = Some(16 * MIB);
    let mut backup = bed.open().await.prepare(order).await.unwrap();
    assert_eq!((backup.parent(), backup.full_because()), (Some(parent.metadata.restore_point.as_str()), None));
    bed.control("stop", Value::Null).await;
    let reference = bed.reference();
    backup.snapshot(true).await.unwrap();
    bed.control("cont", Value::Null).await;
    (backup, reference)
}

/// What QEMU says has changed since a bitmap was made, over all disks.
async fn dirty_bytes(bed: &Bed, bitmap: &str) -> u64 {
    let nodes = bed.control("query-named-block-nodes", json!({"flat": true})).await;
    let bitmaps = nodes.as_array().unwrap().iter().flat_map(|node| node["dirty-bitmaps"].as_array()).flatten();
    bitmaps.filter(|b| b["name"] == bitmap).map(|b| b["count"].as_u64().unwrap()).sum()
}

/// The restored content, as a program that knows nothing of Lull sees it.
fn restored(bed: &Bed, image: &Path) -> PathBuf {
    let to = bed.dir.path().join("restored.raw");
    tool("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", str(image), str(&to)]);
    to
}

/// A full backup and two increments under load: each is byte for byte what the disks were, and what a full backup taken in the same
/// pause holds; each read only what had changed.
async fn increments_equal_full_backups(styles: &[Style], bytes: u64) {
    let bed = Bed::start_sized(styles, bytes, &[]).await;
    for disk in 0..styles.len() {
        bed.write(disk, 0x22, 6 * MIB, 3 * MIB).await;
    }
    let mut parent = full(&bed, "rp0").await;
    let mut owed = vec!["lull-rp0".to_owned()];
    for (round, id) in ["rp1", "rp2"].into_iter().enumerate() {
        let at = (20 + 8 * round as u64) * MIB;
        for disk in 0..styles.len() {
            bed.write(disk, 0x30 + round as u8, at, 2 * MIB).await;
            // Old data becomes zeroes: they must not shine through from the parent. And the last bytes of the disk.
            bed.write(disk, 0, (7 + round as u64) * MIB, MIB).await;
            bed.write(disk, 0x50 + round as u8, bytes - 1024, 1024).await;
        }
        let (backup, reference) = increment_of_a_paused_vm(&bed, id, &parent).await;
        let changed = dirty_bytes(&bed, &parent.metadata.bitmap).await;
        let writing = async {
            // Once the copy has begun: what is written earlier is read too.
            tokio::time::sleep(Duration::from_millis(100)).await;
            bed.load()
        };
        let ((files, read_bytes), load) = tokio::join!(complete(backup), writing);
        assert!(load.stop().await.0 > 3);
        for (reference, disk) in reference.iter().zip(&files.disks) {
            assert_same(reference, disk);
        }
        // What was changed above, what the load of the round before changed, and nothing else.
        assert_eq!(read_bytes, changed);
        assert!(changed >= 3 * MIB * styles.len() as u64 && changed < bytes * styles.len() as u64, "{changed}");
        assert_eq!(
            (files.metadata.kind, files.metadata.parent.as_deref()),
            (Kind::Incremental, Some(parent.metadata.restore_point.as_str()))
        );
        let stored: u64 = files.metadata.disks.iter().map(|d| d.file_bytes).sum();
        assert!(stored < changed + MIB * styles.len() as u64, "{stored} bytes stored of {changed} changed");
        assert!(verify(&files.dir).await.is_sound());
        owed.push(files.metadata.bitmap.clone());
        assert_eq!(bed.open().await.residue(&owed).await.unwrap(), Vec::<String>::new());
        parent = files;
    }
    // The VM stands still from here on: an increment and a full backup of the same instant.
    bed.control("stop", Value::Null).await;
    bed.control("cont", Value::Null).await;
    let (last, _) = complete(bed.taken(after(&bed, "rp3", &parent)).await).await;
    let whole = full(&bed, "rp4").await;
    for (increment, whole) in last.disks.iter().zip(&whole.disks) {
        assert_same(&restored(&bed, increment), whole);
    }
    let scanned = scan(&bed.repository).unwrap();
    assert_eq!((scanned.points.len(), scanned.strangers.len()), (5, 0));
    assert!(scanned.points.iter().all(|p| p.broken.is_none()), "{scanned:?}");
    assert_eq!(bed.sweep(&["lull-rp4"]).await.remaining, Vec::<String>::new());
    assert_eq!(bed.open().await.residue(&["lull-rp4".into()]).await.unwrap(), Vec::<String>::new());
    assert_eq!(bed.run_state().await, "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn increments_of_one_disk_equal_full_backups() {
    increments_equal_full_backups(&[Style::Blockdev], 64 * MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn increments_of_disks_of_every_kind_equal_full_backups() {
    increments_equal_full_backups(&[Style::ScsiRaw, Style::IoThread, Style::Drive, Style::Overlay], 64 * MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn increments_of_disks_of_odd_size_equal_full_backups() {
    increments_equal_full_backups(&[Style::Blockdev, Style::ScsiRaw], 64 * MIB + 3 * 512).await;
}

/// Whatever is written around a snapshot is in that increment or in the next one.
#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_a_running_vm_loses_no_write() {
    let bed = Bed::start(&[Style::IoThread]).await;
    let mut parent = full(&bed, "rp0").await;
    for round in 1..=6 {
        let load = bed.load();
        tokio::time::sleep(Duration::from_millis(150)).await;
        let mut backup = bed.open().await.prepare(after(&bed, &format!("rp{round}"), &parent)).await.unwrap();
        backup.snapshot(false).await.unwrap();
        let (increment, _) = complete(backup).await;
        load.stop().await;
        // Nothing is written between the two: what changed since the increment is all that its bitmap knows.
        bed.control("stop", Value::Null).await;
        let reference = bed.reference();
        bed.control("cont", Value::Null).await;
        let (next, _) = complete(bed.taken(after(&bed, &format!("rp{round}b"), &increment)).await).await;
        assert_same(&reference[0], &next.disks[0]);
        parent = next;
    }
}

/// Full, and for this reason.
async fn is_full(bed: &Bed, restore_point: &str, parent: &RestorePointFiles, expect: &str) -> RestorePointFiles {
    let backup = bed.taken(after(bed, restore_point, parent)).await;
    let why = backup.full_because().expect("it is incremental").to_string();
    assert!(why.contains(expect), "{why}, not {expect}");
    bed.control("stop", Value::Null).await;
    let reference = bed.reference();
    bed.control("cont", Value::Null).await;
    let (files, _) = complete(backup).await;
    for (reference, disk) in reference.iter().zip(&files.disks) {
        assert_same(reference, disk);
    }
    assert_eq!((files.metadata.kind, &files.metadata.parent), (Kind::Full, &None));
    assert_eq!(files.metadata.full_because.as_deref(), Some(why.as_str()));
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_forbids_an_increment_makes_it_full_and_says_why() {
    let bed = Bed::start(&[Style::Blockdev, Style::ScsiRaw]).await;
    let first = full(&bed, "rp0").await;
    let bitmap = |disk: &str, name: &str| json!({"node": disk, "name": name});

    bed.control("block-dirty-bitmap-remove", bitmap("disk1", "lull-rp0")).await;
    let second = is_full(&bed, "rp1", &first, "disk vd1 is gone").await;

    bed.control("block-dirty-bitmap-disable", bitmap("disk0", "lull-rp1")).await;
    let third = is_full(&bed, "rp2", &second, "disk vd0 was switched off").await;

    let export = json!({"type": "nbd", "id": "theirs", "node-name": "disk0", "name": "disk0", "bitmaps": ["lull-rp2"]});
    let server = json!({"addr": {"type": "unix", "data": {"path": bed.dir.path().join("nbd")}}});
    bed.control("nbd-server-start", server).await;
    bed.control("block-dirty-bitmap-disable", bitmap("disk0", "lull-rp2")).await;
    bed.control("block-export-add", export).await;
    let fourth = is_full(&bed, "rp3", &third, "disk vd0 is in use by somebody else").await;
    bed.control("nbd-server-stop", Value::Null).await;

    bed.control("block_resize", json!({"node-name": "disk1", "size": 65 * MIB})).await;
    let fifth = is_full(&bed, "rp4", &fourth, "disk vd1 was resized").await;

    let image = bed.dir.path().join("more");
    tool("qemu-img", &["create", "-q", "-f", "qcow2", str(&image), "4M"]);
    let node = json!({"driver": "qcow2", "node-name": "more", "file": {"driver": "file", "filename": image}});
    bed.control("blockdev-add", node).await;
    bed.control("device_add", json!({"driver": "scsi-hd", "bus": "scsi.0", "id": "more", "drive": "more"})).await;
    let backup = bed.open().await.prepare(after(&bed, "rp5", &fifth)).await.unwrap();
    let why = backup.full_because().unwrap().to_string();
    assert!(why.contains("disk more is new"), "{why}");
    let sixth = {
        let mut backup = backup;
        backup.snapshot(true).await.unwrap();
        complete(backup).await.0
    };
    bed.control("device_del", json!({"id": "more"})).await;
    for _ in 0..100 {
        let block = bed.control("query-block", Value::Null).await;
        if !block.as_array().unwrap().iter().any(|d| d["qdev"] == "more") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let seventh = is_full(&bed, "rp6", &sixth, "disk more is gone").await;

    std::fs::write(&seventh.disks[0], "damaged").unwrap();
    let eighth = is_full(&bed, "rp7", &seventh, "restore point rp6: disk0.qcow2 cannot be read").await;

    std::fs::remove_dir_all(&eighth.dir).unwrap();
    let ninth = is_full(&bed, "rp8", &eighth, "restore point rp7: restore-point.json cannot be read").await;

    let mut elsewhere = ninth.clone();
    elsewhere.dir = bed.repository.join("other/rp8");
    is_full(&bed, "rp9", &elsewhere, "lies in another folder").await;
}

/// A snapshot by others puts another image in front: the bitmap stays behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_whose_image_changed_is_backed_up_in_full() {
    let bed = Bed::start(&[Style::Blockdev]).await;
    let first = full(&bed, "rp0").await;
    let overlay = bed.dir.path().join("overlay");
    let snapshot =
        json!({"node-name": "disk0", "snapshot-file": overlay, "snapshot-node-name": "over", "format": "qcow2"});
    bed.control("blockdev-snapshot-sync", snapshot).await;
    let backup = bed.open().await.prepare(after(&bed, "rp1", &first)).await.unwrap();
    let why = backup.full_because().unwrap().to_string();
    assert!(why.contains("disk vd0 is now") && why.contains("overlay"), "{why}");
    backup.abandon().await.unwrap();
}

/// After an orderly end of the VM's process a qcow2 image still has its bitmap, a raw one has not; after a crash QEMU itself
/// calls it inconsistent.
#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_vm_goes_on_where_its_images_kept_the_bitmap() {
    let mut bed = Bed::start(&[Style::Blockdev]).await;
    let first = full(&bed, "rp0").await;
    bed.write(0, 0x61, 30 * MIB, MIB).await;
    bed.restart(true).await;
    bed.write(0, 0x62, 40 * MIB, MIB).await;
    let (backup, reference) = increment_of_a_paused_vm(&bed, "rp1", &first).await;
    let (second, read_bytes) = complete(backup).await;
    assert_same(&reference[0], &second.disks[0]);
    assert_eq!(read_bytes, 2 * MIB, "both writes, and nothing else");
    // Stored once, then the process is killed: QEMU knows that it lacks writes. Never stored: nothing is left of it.
    bed.restart(true).await;
    bed.restart(false).await;
    let third = is_full(&bed, "rp2", &second, "disk vd0 is inconsistent").await;
    bed.restart(false).await;
    is_full(&bed, "rp3", &third, "disk vd0 is gone: the VM's process did not end in order").await;
    assert_eq!(bed.sweep(&["lull-rp3"]).await.remaining, Vec::<String>::new());
    assert_eq!(bed.open().await.residue(&["lull-rp3".into()]).await.unwrap(), Vec::<String>::new());

    let mut bed = Bed::start(&[Style::ScsiRaw]).await;
    let first = full(&bed, "rp0").await;
    bed.restart(true).await;
    is_full(&bed, "rp1", &first, "the VM's process was restarted").await;
}

/// A full repository ends an increment; the parent and its bitmap are as before, and the next one succeeds.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_repository_in_an_increment_leaves_the_parent_usable() {
    let bed = Bed::start(&[Style::Blockdev]).await;
    let _small = small(&bed.repository, 12);
    let first = full(&bed, "rp0").await;
    let before: Vec<_> = files_in(&bed.repository).iter().map(|f| std::fs::read(f).unwrap()).collect();
    bed.write(0, 0x71, 20 * MIB, 10 * MIB).await;
    let mut backup = bed.taken(after(&bed, "rp1", &first)).await;
    let error = copy(&mut backup).await.unwrap_err();
    assert!(error.cause.contains("No space left on device"), "{error}");
    assert_eq!(backup.abandon().await.unwrap().remaining, Vec::<String>::new());
    let now: Vec<_> = files_in(&bed.repository).iter().map(|f| std::fs::read(f).unwrap()).collect();
    assert_eq!((now.len(), now == before), (2, true), "the partial file is gone, the parent untouched");
    assert_eq!(bed.open().await.residue(&["lull-rp0".into()]).await.unwrap(), Vec::<String>::new());
    // Room again: what changed before and after the failure is in the next increment.
    tool("mount", &["-o", "remount,size=64m", str(&bed.repository)]);
    bed.write(0, 0x72, 40 * MIB, MIB).await;
    let (backup, reference) = increment_of_a_paused_vm(&bed, "rp2", &first).await;
    let (second, read_bytes) = complete(backup).await;
    assert_same(&reference[0], &second.disks[0]);
    assert_eq!(read_bytes, 11 * MIB);
}

/// Cancelled or given up at any step: the parent's bitmap knows all.
#[tokio::test(flavor = "multi_thread")]
async fn an_increment_given_up_at_any_step_costs_the_next_one_nothing() {
    let bed = Bed::start(&[Style::Blockdev, Style::ScsiRaw]).await;
    let first = full(&bed, "rp0").await;
    for (step, id) in ["rp1", "rp2", "rp3"].into_iter().enumerate() {
        bed.write(step % 2, 0x51, (20 + 5 * step as u64) * MIB, MIB).await;
        let mut backup = bed.open().await.prepare(after(&bed, id, &first)).await.unwrap();
        if step > 0 {
            backup.snapshot(false).await.unwrap();
        }
        if step > 1 {
            copy(&mut backup).await.unwrap();
        }
        assert_eq!(backup.abandon().await.unwrap().remaining, Vec::<String>::new());
        assert_eq!(bed.open().await.residue(&["lull-rp0".into()]).await.unwrap(), Vec::<String>::new());
    }
    let (backup, reference) = increment_of_a_paused_vm(&bed, "rp4", &first).await;
    let (files, read_bytes) = complete(backup).await;
    for (reference, disk) in reference.iter().zip(&files.disks) {
        assert_same(reference, disk);
    }
    assert_eq!(read_bytes, 3 * MIB);
}

/// Set in the process that is to be killed: the bed's folder, and how far it shall come.
const VICTIM: &str = "LULL_TEST_INCREMENT_VICTIM";

/// The program that is killed: it makes an increment and comes as far as `stage`.
async fn victim(folder: &Path, stage: &str) -> ! {
    let mut order = BackupOrder::new("rp1", "task", folder.join("repo"), folder.join("fleece"));
    order.min_free_fleecing_bytes = Some(0);
    order.base = Base::Parent { restore_point: "rp0".into(), dir: folder.join("repo/vm/rp0") };
    let vm = lull_hypervisor::QemuHost::new(folder.join("host")).open("vm").await.unwrap();
    let mut backup = vm.prepare(order).await.unwrap();
    assert!(backup.full_because().is_none());
    backup.snapshot(false).await.unwrap();
    if stage != "taken" {
        copy(&mut backup).await.unwrap();
    }
    if stage == "finished" {
        backup.finish().await.unwrap();
    }
    std::fs::write(folder.join("ready"), "").unwrap();
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// A server that dies between making a bitmap and recording its restore point: the point before is still owed, and the chain goes on from there.
#[tokio::test(flavor = "multi_thread")]
async fn killed_before_it_was_recorded_an_increment_leaves_a_usable_chain() {
    if let Ok(task) = std::env::var(VICTIM) {
        let (stage, folder) = task.split_once(':').unwrap();
        victim(Path::new(folder), stage).await;
    }
    for stage in ["taken", "copied", "finished"] {
        let bed = Bed::start(&[Style::Blockdev]).await;
        let first = full(&bed, "rp0").await;
        bed.write(0, 0x31, 20 * MIB, MIB).await;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "increments::killed_before_it_was_recorded_an_increment_leaves_a_usable_chain",
                "--nocapture",
            ])
            .env(VICTIM, format!("{stage}:{}", bed.dir.path().display()))
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while !bed.dir.path().join("ready").exists() {
            assert_eq!(child.try_wait().unwrap(), None, "it ended by itself");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bed.write(0, 0x32, 30 * MIB, MIB).await;
        child.kill().unwrap();
        child.wait().unwrap();
        // Only rp0 was recorded: its bitmap is owed, and the other one is not.
        let swept = bed.sweep(&["lull-rp0"]).await;
        assert_eq!(swept.remaining, Vec::<String>::new());
        assert!(swept.removed.contains(&"bitmap lull-rp1 on disk0".to_owned()), "{stage}: {swept:?}");
        assert_eq!(bed.open().await.residue(&["lull-rp0".into()]).await.unwrap(), Vec::<String>::new());
        let (backup, reference) = increment_of_a_paused_vm(&bed, "rp2", &first).await;
        let (next, read_bytes) = complete(backup).await;
        assert_same(&reference[0], &next.disks[0]);
        assert_eq!(read_bytes, 2 * MIB, "{stage}");
        let scanned = scan(&bed.repository).unwrap();
        assert!(scanned.points.iter().all(|p| p.broken.is_none()) && scanned.strangers.is_empty(), "{scanned:?}");
        assert_eq!(scanned.points.len(), if stage == "finished" { 3 } else { 2 });
        // Whoever knows that it was not recorded has it removed, finished or not.
        let order = SweepOrder { unrecorded: Some("rp1".into()), ..bed.sweep_order(&["lull-rp2"]) };
        let swept = sweep(&bed.host, "vm", &order).await.unwrap();
        assert_eq!(swept.remaining, Vec::<String>::new());
        let scanned = scan(&bed.repository).unwrap();
        let left: Vec<&str> = scanned.points.iter().map(|p| p.point.metadata.restore_point.as_str()).collect();
        assert_eq!((left, scanned.strangers.len()), (vec!["rp0", "rp2"], 0), "{stage}");
    }
}

/// A check of the last point finds what is wrong anywhere below it, and names the link.
#[tokio::test(flavor = "multi_thread")]
async fn a_verification_covers_the_whole_chain_and_names_the_broken_link() {
    let bed = Bed::start(&[Style::Blockdev]).await;
    let mut points = vec![full(&bed, "rp0").await];
    for (n, id) in [(1, "rp1"), (2, "rp2")] {
        bed.write(0, 0x41, (20 + 4 * n) * MIB, MIB).await;
        points.push(complete(bed.taken(after(&bed, id, &points[points.len() - 1])).await).await.0);
    }
    let report = verify(&points[2].dir).await;
    assert!(report.is_sound(), "{report:?}");
    assert_eq!(report.files.iter().map(|f| f.restore_point.as_str()).collect::<Vec<_>>(), ["rp2", "rp1", "rp0"]);

    // The same length and header, but a table that points nowhere: only a check of the image itself sees it.
    let good = std::fs::read(&points[1].disks[0]).unwrap();
    let mut bad = good.clone();
    let table = usize::try_from(u64::from_be_bytes(bad[48..56].try_into().unwrap())).unwrap();
    bad[table..table + 8].fill(0);
    std::fs::write(&points[1].disks[0], bad).unwrap();
    let report = verify(&points[2].dir).await;
    let faulty: Vec<&str> =
        report.files.iter().filter(|f| f.finding.fault().is_some()).map(|f| f.restore_point.as_str()).collect();
    assert_eq!((faulty, report.broken_links.len(), report.is_sound()), (vec!["rp1"], 0, false));
    std::fs::write(&points[1].disks[0], good).unwrap();
    assert!(verify(&points[2].dir).await.is_sound());

    tool(
        "qemu-img",
        &["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "../rp0/disk1.qcow2", str(&points[2].disks[0])],
    );
    tool(
        "qemu-img",
        &["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "../rp0/disk0.qcow2", str(&points[2].disks[0])],
    );
    let report = verify(&points[2].dir).await;
    assert!(report.files[0].finding.fault().unwrap().contains("lies over \"../rp0/disk0.qcow2\""), "{report:?}");
    std::fs::remove_dir_all(&points[1].dir).unwrap();
    let report = verify(&points[2].dir).await;
    assert!(report.broken_links[0].restore_point == "rp1", "{report:?}");
}

/// A chain of three goes, the newest point first: what is left can be restored at every step, and with the last nothing is left, in the repository as
/// in QEMU. A bitmap goes with the next sweep, as soon as its restore point is owed no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_whole_chain_is_removed_from_its_end_and_leaves_nothing() {
    let bed = Bed::start(&[Style::Blockdev]).await;
    bed.write(0, 0x21, 4 * MIB, 2 * MIB).await;
    let mut points = vec![full(&bed, "rp0").await];
    for (n, id) in [(1, "rp1"), (2, "rp2")] {
        bed.write(0, 0x40 + n, u64::from(n) * 16 * MIB, MIB).await;
        points.push(complete(bed.taken(after(&bed, id, &points[points.len() - 1])).await).await.0);
    }
    let contents = |points: &[RestorePointFiles]| -> Vec<Vec<u8>> {
        points.iter().map(|point| std::fs::read(restored(&bed, &point.disks[0])).unwrap()).collect()
    };
    let mut expected = contents(&points);
    while let Some(point) = points.pop() {
        expected.pop();
        let disks: Vec<String> = point.metadata.disks.iter().map(|disk| disk.file.clone()).collect();
        in_reach(&bed.repository, &point.dir).unwrap();
        remove_files(&point.dir, &disks).unwrap();
        remove_files(&point.dir, &disks).unwrap();
        assert!(!point.dir.exists());
        assert!(contents(&points) == expected, "without {}", point.metadata.restore_point);
        let scanned = scan(&bed.repository).unwrap();
        assert!(scanned.points.iter().all(|p| p.broken.is_none()) && scanned.strangers.is_empty(), "{scanned:?}");
        assert_eq!(scanned.points.len(), points.len());
        for left in &points {
            assert!(verify(&left.dir).await.is_sound());
        }
        let owed: Vec<String> = points.last().iter().map(|newest| newest.metadata.bitmap.clone()).collect();
        let swept = bed.sweep(&owed.iter().map(String::as_str).collect::<Vec<_>>()).await;
        assert_eq!(swept.remaining, Vec::<String>::new());
        assert_eq!(bed.open().await.residue(&owed).await.unwrap(), Vec::<String>::new());
    }
    assert_eq!(full(&bed, "rp3").await.metadata.kind, Kind::Full);
}
