//! Full backups that go well: content, size, metadata, what stays.

use lull_hypervisor::{Kind, scan, verify};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::bed::{Bed, MIB, Style, assert_same, copy, files_in};

/// Under write load, the backup equals the disks at the instant of the snapshot.
async fn backup_equals_the_instant(styles: &[Style]) {
    let bed = Bed::start(styles).await;
    backup_equals_the_instant_of(&bed, styles).await;
}

async fn backup_equals_the_instant_of(bed: &Bed, styles: &[Style]) {
    for disk in 0..styles.len() {
        bed.write(disk, 0x22, 6 * MIB, 3 * MIB).await;
    }
    let mut order = bed.order("rp1");
    // Slow enough for the guest to overwrite much of what is not copied yet.
    order.speed_bytes_per_s = Some(32 * MIB * styles.len() as u64);
    let mut backup = bed.open().await.prepare(order).await.unwrap();
    bed.control("stop", Value::Null).await;
    let reference = bed.reference();
    let taken = backup.snapshot(true).await.unwrap();
    bed.control("cont", Value::Null).await;
    assert_eq!((taken.atomic, taken.vm_was_stopped), (styles.len() == 1, false));
    assert_eq!(taken.disks.len(), styles.len());

    let load = bed.load();
    let mut seen = Vec::new();
    backup.copy(|p| seen.push(p), CancellationToken::new()).await.unwrap();
    assert!(seen.windows(2).all(|w| w[0].copied_bytes <= w[1].copied_bytes), "{seen:?}");
    assert_eq!(seen.last().unwrap().copied_bytes, seen.last().unwrap().total_bytes);
    assert_eq!(
        files_in(&bed.fleecing),
        Vec::<std::path::PathBuf>::new(),
        "fleecing images go as soon as a disk is copied"
    );
    backup.annotate("level", "crash");
    let files = backup.finish().await.unwrap();
    let (rounds, _) = load.stop().await;
    assert!(rounds > 20, "{rounds} rounds of writes are no load");
    drop(backup);

    for (reference, disk) in reference.iter().zip(&files.disks) {
        assert_same(reference, disk);
    }
    assert!(
        files.metadata.disks.iter().all(|d| d.file_bytes < 20 * MIB),
        "holes stay holes: {:?}",
        files.metadata.disks
    );
    let scanned = scan(&bed.repository).unwrap();
    assert_eq!((scanned.points.len(), scanned.strangers.len()), (1, 0));
    assert_eq!((&scanned.points[0].point.metadata, &scanned.points[0].broken), (&files.metadata, &None));
    assert_eq!((files.metadata.kind, files.metadata.annotations["level"].as_str()), (Kind::Full, "crash"));
    assert!(verify(&files.dir).await.is_sound());
    assert_eq!(files_in(&bed.repository).len(), styles.len() + 1, "nothing but disks and metadata");
    assert_eq!(bed.open().await.residue(&["lull-rp1".into()]).await.unwrap(), Vec::<String>::new());
    assert_eq!(bed.run_state().await, "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_blockdev_disk() {
    backup_equals_the_instant(&[Style::Blockdev]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_legacy_drive_without_any_id() {
    backup_equals_the_instant(&[Style::Drive]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_raw_scsi_disk() {
    backup_equals_the_instant(&[Style::ScsiRaw]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_disk_in_an_io_thread() {
    backup_equals_the_instant(&[Style::IoThread]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_disk_over_a_backing_image() {
    backup_equals_the_instant(&[Style::Overlay]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_disk_of_the_old_qcow2_version() {
    backup_equals_the_instant(&[Style::OldQcow2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_whose_size_is_no_multiple_of_a_cluster() {
    let styles = [Style::ScsiRaw, Style::Blockdev];
    let bed = Bed::start_sized(&styles, 64 * MIB + 3 * 512, &[]).await;
    bed.write(0, 0x55, 64 * MIB, 3 * 512).await;
    bed.write(1, 0x55, 64 * MIB - 512, 4 * 512).await;
    backup_equals_the_instant_of(&bed, &styles).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn four_disks_of_four_kinds() {
    backup_equals_the_instant(&[Style::Blockdev, Style::ScsiRaw, Style::IoThread, Style::Drive]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_is_not_frozen_is_stopped_for_several_disks_and_continued() {
    let bed = Bed::start(&[Style::Blockdev, Style::Blockdev]).await;
    let mut events = bed.control.events();
    let mut backup = bed.open().await.prepare(bed.order("rp1")).await.unwrap();
    let taken = backup.snapshot(false).await.unwrap();
    assert!(taken.atomic && taken.vm_was_stopped);
    assert_eq!(bed.run_state().await, "running");
    let mut names = Vec::new();
    while let Ok(event) = events.try_recv() {
        names.push(event.name);
    }
    names.retain(|n| n == "STOP" || n == "RESUME");
    assert_eq!(names, ["STOP", "RESUME"]);
    copy(&mut backup).await.unwrap();
    backup.finish().await.unwrap();
    drop(backup);
    assert_eq!(bed.open().await.residue(&["lull-rp1".into()]).await.unwrap(), Vec::<String>::new());
}

/// The next increment's promise: bitmap and restore point together give the disk as it is later.
#[tokio::test(flavor = "multi_thread")]
async fn the_bitmap_knows_all_that_the_restore_point_does_not() {
    let mut bed = Bed::start(&[Style::Blockdev]).await;
    let mut backup = bed.open().await.prepare(bed.order("rp1")).await.unwrap();
    let load = bed.load();
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    backup.snapshot(false).await.unwrap();
    copy(&mut backup).await.unwrap();
    let files = backup.finish().await.unwrap();
    load.stop().await;
    let increment = bed.dir.path().join("increment.qcow2");
    crate::bed::tool(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            crate::bed::str(&files.disks[0]),
            crate::bed::str(&increment),
        ],
    );
    let target = serde_json::json!({"driver": "qcow2", "node-name": "inc", "backing": null, "file": {"driver": "file", "filename": increment}});
    bed.control("blockdev-add", target).await;
    let job = serde_json::json!({"job-id": "inc", "device": "disk0", "target": "inc", "sync": "incremental", "bitmap": "lull-rp1", "auto-dismiss": false});
    bed.control("blockdev-backup", job).await;
    loop {
        let jobs = bed.control("query-jobs", Value::Null).await;
        if jobs[0]["status"] == "concluded" {
            assert_eq!(jobs[0].get("error"), None);
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    bed.shut_down().await;
    let now = bed.reference();
    assert_same(&now[0], &increment);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_disk_is_left_out_and_named() {
    let cd = [
        "-device",
        "scsi-cd,bus=scsi.0,id=cd0",
        "-drive",
        "if=none,id=ro0,format=raw,readonly=on,file=/bin/true",
        "-device",
        "scsi-hd,bus=scsi.0,drive=ro0,id=ro",
    ];
    let bed = Bed::start_sized(&[Style::Blockdev], 64 * MIB, &cd).await;
    let mut backup = bed.taken(bed.order("rp1")).await;
    copy(&mut backup).await.unwrap();
    let metadata = backup.finish().await.unwrap().metadata;
    let skipped: Vec<(&str, &str)> = metadata.skipped.iter().map(|s| (s.name.as_str(), s.reason.as_str())).collect();
    assert_eq!(metadata.disks.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["vd0"]);
    assert!(skipped.contains(&("cd0", "no medium")) && skipped.contains(&("ro", "read-only")), "{skipped:?}");
}
