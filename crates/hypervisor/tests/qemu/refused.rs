//! A VM that is doing something else is left alone, and the error says what it is doing.

use lull_hypervisor::{BackupOrder, Busy, ErrorClass, QemuHost, QemuVm, QmpLimits};
use serde_json::{Value, json};

use crate::bed::{Bed, MIB, Style, files_in};

async fn refused(vm: &QemuVm, order: BackupOrder) -> lull_hypervisor::HypervisorError {
    match vm.prepare(order).await {
        Ok(_) => panic!("it was prepared"),
        Err(error) => error,
    }
}

/// Refused as busy with `says` in the error, and nothing was created anywhere.
async fn refused_as_busy(bed: &Bed, says: &str) {
    let vm = bed.open().await;
    let error = refused(&vm, bed.order("rp1")).await;
    assert_eq!(error.class, ErrorClass::Busy, "{error}");
    assert!(error.cause.contains(says) && error.remedy.contains("nothing was started"), "{error}");
    assert_eq!(vm.residue(&[]).await.unwrap(), Vec::<String>::new());
    assert_eq!((files_in(&bed.repository), files_in(&bed.fleecing)), (vec![], vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_vm_stays_paused() {
    let bed = Bed::start(&[Style::Blockdev]).await;
    bed.control("stop", Value::Null).await;
    refused_as_busy(&bed, "paused").await;
    assert!(!bed.sweep(&[]).await.continued, "a pause that is not ours is not undone");
    assert_eq!(bed.run_state().await, "paused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_paused_after_it_was_prepared_is_not_continued_by_us() {
    let bed = Bed::start(&[Style::Blockdev, Style::Blockdev]).await;
    let mut backup = bed.open().await.prepare(bed.order("rp1")).await.unwrap();
    bed.control("stop", Value::Null).await;
    // The event reaches the other monitor a moment after the command's answer.
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    let error = backup.snapshot(false).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Busy, "{error}");
    assert_eq!(backup.abandon().await.unwrap().remaining, Vec::<String>::new());
    assert_eq!(bed.run_state().await, "paused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migrating_vm_is_left_alone() {
    let bed = Bed::start(&[Style::Blockdev]).await;
    // Nobody reads, so it goes on until it is cancelled.
    bed.control("migrate", json!({"uri": "exec:sleep 20"})).await;
    refused_as_busy(&bed, "migrating").await;
    bed.control("migrate_cancel", Value::Null).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_is_arriving_is_left_alone() {
    let bed = Bed::start_sized(&[Style::Blockdev], 64 * MIB, &["-incoming", "defer"]).await;
    refused_as_busy(&bed, "arriving").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_in_another_backup_or_mirror_is_left_alone() {
    let bed = Bed::start(&[Style::Blockdev]).await;
    for command in ["drive-backup", "drive-mirror"] {
        let target = bed.dir.path().join(command);
        let job = json!({"job-id": "nightly", "device": "disk0", "target": target, "sync": "full", "format": "qcow2", "speed": 1});
        bed.control(command, job).await;
        refused_as_busy(&bed, "nightly").await;
        let busy = bed.open().await.facts().await.unwrap().busy.unwrap();
        assert_eq!(matches!(busy, Busy::OtherBackup { .. }), command == "drive-backup", "{busy:?}");
        bed.control("block-job-cancel", json!({"device": "nightly", "force": true})).await;
        while bed.control("query-jobs", Value::Null).await != json!([]) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_in_use_is_busy_and_free_again_afterwards() {
    let bed = Bed::start(&[Style::Blockdev]).await;
    let somebody_else = bed.open().await;
    let impatient = QemuHost::with_limits(bed.host.dir(), QmpLimits { greeting_ms: 300, ..QmpLimits::default() });
    let error = impatient.open("vm").await.map(|_| ()).unwrap_err();
    assert_eq!(error.class, ErrorClass::Busy, "{error}");
    drop(somebody_else);
    bed.open().await.facts().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_that_are_no_good_are_named_before_anything_starts() {
    let bed = Bed::start(&[Style::Blockdev]).await;
    let vm = bed.open().await;
    let mut order = bed.order("rp1");
    order.repository_dir = bed.dir.path().join("nowhere");
    let error = refused(&vm, order).await;
    assert_eq!((error.class, error.cause.contains("nowhere")), (ErrorClass::Repository, true), "{error}");
    let mut order = bed.order("rp1");
    order.fleecing_dir = "/proc".into();
    assert_eq!(refused(&vm, order).await.class, ErrorClass::Fleecing);
    let mut order = bed.order("rp1");
    order.min_free_fleecing_bytes = Some(u64::MAX);
    let error = refused(&vm, order).await;
    assert_eq!((error.class, error.cause.contains("MiB free")), (ErrorClass::Fleecing, true), "{error}");
    assert_eq!(refused(&vm, bed.order("not-an-id")).await.class, ErrorClass::Refused);
    assert_eq!(vm.residue(&[]).await.unwrap(), Vec::<String>::new());
    assert_eq!((files_in(&bed.repository), files_in(&bed.fleecing)), (vec![], vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn leftovers_are_named_and_a_sweep_makes_room() {
    let bed = Bed::start(&[Style::Blockdev]).await;
    bed.control("blockdev-add", json!({"driver": "null-co", "node-name": "lull-old-0-target"})).await;
    let error = refused(&bed.open().await, bed.order("rp1")).await;
    assert!(error.cause.contains("lull-old-0-target") && error.remedy.contains("sweep"), "{error}");
    assert_eq!(bed.sweep(&[]).await.removed, ["node lull-old-0-target"]);
    bed.open().await.prepare(bed.order("rp1")).await.unwrap().abandon().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_is_off_has_its_files_swept() {
    let mut bed = Bed::start(&[Style::Blockdev]).await;
    let backup = bed.taken(bed.order("rp1")).await;
    bed.shut_down().await;
    let error = backup.abandon().await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Gone, "{error}");
    assert_eq!((files_in(&bed.repository), files_in(&bed.fleecing)), (vec![], vec![]));
    let swept = bed.sweep(&[]).await;
    assert!(swept.vm_gone.is_some() && swept.remaining.is_empty(), "{swept:?}");
}
