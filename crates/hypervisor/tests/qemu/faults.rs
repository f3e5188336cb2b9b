//! Storage that fails while the guest writes: the VM runs on, the backup fails with the right reason, nothing stays.

use std::time::Duration;

use lull_hypervisor::{ErrorClass, PreparedBackup};
use tokio_util::sync::CancellationToken;

use crate::bed::{Bed, MIB, OLD, Style, assert_same, copy, files_in};
use crate::storage::{freezable, small};

/// No guest write may wait longer than this for anything of ours; the machine that runs the tests is busy.
const LONGEST_WRITE: Duration = Duration::from_secs(3);

/// Undoes it and sees that the VM is as before.
async fn undone(bed: &Bed, backup: PreparedBackup) {
    let report = backup.abandon().await.unwrap();
    assert_eq!(report.remaining, Vec::<String>::new());
    bed.assert_as_before().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_repository_fails_the_backup_and_the_vm_runs_on() {
    let bed = Bed::start(&[Style::Blockdev, Style::ScsiRaw]).await;
    let _small = small(&bed.repository, 6);
    let load = bed.load();
    let mut backup = bed.taken(bed.order("rp1")).await;
    let error = copy(&mut backup).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Repository, "{error}");
    assert!(error.cause.contains("No space left on device"), "{error}");
    let (rounds, longest) = load.stop().await;
    assert!(rounds > 0 && longest < LONGEST_WRITE, "{rounds} {longest:?}");
    undone(&bed, backup).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_fleecing_folder_breaks_the_snapshot_and_the_vm_runs_on() {
    let bed = Bed::start(&[Style::Blockdev]).await;
    let _small = small(&bed.fleecing, 4);
    let mut order = bed.order("rp1");
    order.speed_bytes_per_s = Some(MIB);
    let mut backup = bed.taken(order).await;
    // More than the fleecing folder holds: each MiB overwritten for the first time takes one there.
    for n in 0..8 {
        assert!(bed.write(0, 0x33, (4 + n) * MIB, MIB).await < LONGEST_WRITE);
    }
    let error = copy(&mut backup).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Fleecing, "{error}");
    assert!(error.cause.contains("full"), "{error}");
    undone(&bed, backup).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_fleecing_folder_delays_a_write_by_no_more_than_its_limit() {
    let bed = Bed::start(&[Style::Blockdev]).await;
    let mut hanging = freezable(&bed.fleecing, 64);
    let mut order = bed.order("rp1");
    order.cbw_timeout_s = 1;
    let mut backup = bed.taken(order).await;
    hanging.freeze();
    let first = bed.write(0, 0x33, 4 * MIB, MIB).await;
    assert!(first > Duration::from_millis(900) && first < Duration::from_secs(4), "{first:?}");
    let second = bed.write(0, 0x33, 6 * MIB, MIB).await;
    assert!(second < Duration::from_millis(900), "a broken snapshot holds up nobody: {second:?}");
    hanging.thaw();
    let error = copy(&mut backup).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Fleecing, "{error}");
    assert!(error.cause.contains("longer than 1 s"), "{error}");
    undone(&bed, backup).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_repository_stalls_the_copy_but_not_the_vm_and_is_swept_when_it_is_back() {
    // Enough scattered data for the copy to have as many requests under way as it ever has.
    let bed = Bed::start_sized(&[Style::Blockdev, Style::Blockdev], 512 * MIB, &[]).await;
    for (disk, mib) in (0..400).step_by(2).flat_map(|mib| [(0, mib), (1, mib)]) {
        bed.write(disk, 0x66, mib * MIB, MIB).await;
    }
    let mut hanging = freezable(&bed.repository, 1024);
    let mut order = bed.order("rp1");
    order.stall_timeout_s = 2;
    let mut backup = bed.taken(order).await;
    let load = bed.load();
    hanging.freeze();
    let error = copy(&mut backup).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Repository, "{error}");
    assert!(error.cause.contains("too slow or gone"), "{error}");
    let report = backup.abandon().await.unwrap();
    assert!(report.remaining.iter().any(|r| r == "job lull-rp1-0-job"), "{report:?}");
    let (rounds, longest) = load.stop().await;
    assert!(rounds > 100 && longest < LONGEST_WRITE, "{rounds} rounds, longest {longest:?}");
    assert_eq!(bed.run_state().await, "running");
    hanging.thaw();
    let swept = bed.sweep(&[]).await;
    assert_eq!(swept.remaining, Vec::<String>::new());
    bed.assert_as_before().await;
}

/// Closing an image writes to it: QEMU is not asked to while the repository hangs.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_in_a_hanging_repository_is_not_closed_before_it_is_back() {
    let bed = Bed::start(&[Style::Blockdev]).await;
    let mut hanging = freezable(&bed.repository, 128);
    let backup = bed.taken(bed.order("rp1")).await;
    hanging.freeze();
    let report = backup.abandon().await.unwrap();
    assert_eq!(report.remaining.first().map(String::as_str), Some("node lull-rp1-0-target"), "{report:?}");
    assert!(report.removed.contains(&"node lull-rp1-0-cbw".to_owned()), "{report:?}");
    assert!(bed.write(0, 0x33, 4 * MIB, MIB).await < LONGEST_WRITE);
    hanging.thaw();
    assert_eq!(bed.sweep(&[]).await.remaining, Vec::<String>::new());
    bed.assert_as_before().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_repository_slows_the_copy_but_not_the_vm() {
    let bed = Bed::start(&[Style::Blockdev]).await;
    let mut slow = freezable(&bed.repository, 128);
    let mut backup = bed.open().await.prepare(bed.order("rp1")).await.unwrap();
    bed.control("stop", serde_json::Value::Null).await;
    let reference = bed.reference();
    backup.snapshot(true).await.unwrap();
    bed.control("cont", serde_json::Value::Null).await;
    let load = bed.load();
    let hiccups = async {
        for _ in 0..8 {
            slow.freeze();
            tokio::time::sleep(Duration::from_millis(400)).await;
            slow.thaw();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let (copied, ()) = tokio::join!(copy(&mut backup), hiccups);
    copied.unwrap();
    let (rounds, longest) = load.stop().await;
    assert!(rounds > 50 && longest < LONGEST_WRITE, "{rounds} rounds, longest {longest:?}");
    assert_same(&reference[0], &backup.finish().await.unwrap().disks[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_vanishes_fails_the_backup_and_leaves_the_vm_clean() {
    let bed = Bed::start(&[Style::Blockdev]).await;
    let mut backup = bed.taken(bed.order("rp1")).await;
    let elsewhere = bed.dir.path().join("unplugged");
    std::fs::rename(&bed.repository, &elsewhere).unwrap();
    let error = copy(&mut backup).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Repository, "{error}");
    let report = backup.abandon().await.unwrap();
    assert_eq!(report.remaining.len(), 1, "{report:?}");
    assert!(report.remaining[0].contains("repo"), "the report names what it could not look at: {report:?}");
    std::fs::rename(&elsewhere, &bed.repository).unwrap();
    assert_eq!(bed.sweep(&[]).await.remaining, Vec::<String>::new());
    bed.assert_as_before().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_cancelled_by_somebody_else_is_no_success() {
    let bed = Bed::start(&[Style::Blockdev]).await;
    let mut order = bed.order("rp1");
    order.speed_bytes_per_s = Some(MIB);
    let mut backup = bed.taken(order).await;
    let meddle = async {
        tokio::time::sleep(Duration::from_millis(600)).await;
        bed.control("job-cancel", serde_json::json!({"id": "lull-rp1-0-job"})).await;
    };
    let (result, ()) = tokio::join!(copy(&mut backup), meddle);
    let error = result.unwrap_err();
    assert!(error.cause.contains("ended from outside"), "{error}");
    undone(&bed, backup).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_damaged_before_it_is_finished_is_no_restore_point() {
    let bed = Bed::start(&[Style::Blockdev]).await;
    let mut backup = bed.taken(bed.order("rp1")).await;
    copy(&mut backup).await.unwrap();
    let partial = files_in(&bed.repository).into_iter().find(|f| f.ends_with("disk0.qcow2.partial")).unwrap();
    let mut bytes = std::fs::read(&partial).unwrap();
    let table = usize::try_from(u64::from_be_bytes(bytes[48..56].try_into().unwrap())).unwrap();
    bytes[table..table + 8].fill(0);
    std::fs::write(&partial, bytes).unwrap();
    let error = backup.finish().await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Repository);
    assert!(error.cause.contains("damaged"), "{error}");
    undone(&bed, backup).await;
}

/// Wherever a task is cancelled, the VM is as before.
#[tokio::test(flavor = "multi_thread")]
async fn cancelled_at_every_stage() {
    let bed = Bed::start(&[Style::Blockdev, Style::Drive]).await;
    for after_ms in [0, 5, 20, 40, 60, 90, 120] {
        let vm = bed.open().await;
        let prepared = tokio::time::timeout(Duration::from_millis(after_ms), vm.prepare(bed.order("rp0"))).await;
        drop(vm);
        drop(prepared);
        settled(&bed).await;
    }
    let prepared = bed.open().await.prepare(bed.order("rp1")).await.unwrap();
    undone(&bed, prepared).await;
    undone(&bed, bed.taken(bed.order("rp2")).await).await;
    let mut order = bed.order("rp3");
    order.speed_bytes_per_s = Some(8 * MIB);
    let mut backup = bed.taken(order).await;
    let cancel = CancellationToken::new();
    let token = cancel.clone();
    let began = std::time::Instant::now();
    let error = backup
        .copy(
            move |p| {
                if p.copied_bytes > 0 {
                    token.cancel()
                }
            },
            cancel,
        )
        .await
        .unwrap_err();
    assert_eq!(error.class, ErrorClass::Cancelled);
    assert!(began.elapsed() < Duration::from_secs(4));
    undone(&bed, backup).await;
    let mut backup = bed.taken(bed.order("rp4")).await;
    copy(&mut backup).await.unwrap();
    undone(&bed, backup).await;
    drop(bed.taken(bed.order("rp5")).await);
    settled(&bed).await;
    bed.write(0, OLD, 0, 4096).await;
}

/// Waits for an undo in the background; it must come by itself.
async fn settled(bed: &Bed) {
    for _ in 0..100 {
        if bed.left_behind(&[]).await.is_empty() {
            return bed.assert_as_before().await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("still there: {:?}", bed.left_behind(&[]).await);
}

/// A finished restore point is not touched by a later backup that fails, nor is its bitmap.
#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_restore_point_survives_a_later_failure() {
    let bed = Bed::start(&[Style::Blockdev]).await;
    let mut backup = bed.taken(bed.order("rp1")).await;
    copy(&mut backup).await.unwrap();
    let first = backup.finish().await.unwrap();
    assert_eq!(backup.abandon().await.unwrap().removed, Vec::<String>::new(), "a finished backup is not undone");
    let before = std::fs::read(&first.disks[0]).unwrap();
    let later = bed.taken(bed.order("rp2")).await;
    assert_eq!(later.abandon().await.unwrap().remaining, Vec::<String>::new());
    assert_eq!(std::fs::read(&first.disks[0]).unwrap(), before);
    let swept = bed.sweep(&["lull-rp1"]).await;
    assert_eq!((swept.removed, swept.remaining), (vec![], vec![]));
    assert_eq!(bed.open().await.residue(&[]).await.unwrap(), ["bitmap lull-rp1 on disk0"]);
    assert_eq!(bed.sweep(&[]).await.removed, ["bitmap lull-rp1 on disk0"]);
    assert_eq!(files_in(&bed.repository).len(), 2);
}
