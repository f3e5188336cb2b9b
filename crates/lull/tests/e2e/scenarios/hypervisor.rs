//! The VM paused, in another backup, or its socket in somebody else's hands: refused, and nothing was started. What an
//! earlier backup of ours had to leave is swept.

use crate::told::assert_says;
use crate::world::{JOB, World, assert_clean_receipt, sentence, task};
use serde_json::json;

fn refused(world: &World, what: &str, says: &[&str]) {
    let session = world.run_job(JOB);
    assert_says(&sentence(&session), says);
    let task = task(&session);
    assert_eq!(
        (task.restore_point, task.freeze_window_us),
        (None, None),
        "{what}: something was started: {session:#?}"
    );
    assert!(!task.steps.iter().any(|step| step.step == "freeze"), "{what}: it was frozen: {session:#?}");
}

pub fn busy(world: &mut World) {
    // Paused: its guest cannot answer, so the hypervisor must be asked first.
    world.qmp().ask("stop", json!({}));
    refused(world, "paused", &["at the hypervisor", "paused", "nothing was started", "resume the VM"]);
    assert_eq!(world.qmp().run_state(), "paused", "a VM that somebody paused is not continued by us");
    world.qmp().ask("cont", json!({}));

    // Another tool copies the second disk, slowly enough to last.
    let mut qmp = world.qmp();
    let target = world.folder.join("other-tool.raw");
    std::fs::File::create(&target).unwrap().set_len(64 << 20).unwrap();
    let node = json!({"driver": "raw", "node-name": "other-target", "file": {"driver": "file", "filename": target}});
    qmp.ask("blockdev-add", node);
    let backup =
        json!({"job-id": "other-tool", "device": "disk1", "target": "other-target", "sync": "full", "speed": 65536});
    qmp.ask("blockdev-backup", backup);
    drop(qmp);
    refused(world, "in another backup", &["at the hypervisor", "another backup", "other-tool", "nothing was started"]);
    let mut qmp = world.qmp();
    let jobs = qmp.ask("query-jobs", json!({}));
    assert_eq!(jobs[0]["id"], "other-tool", "somebody else's job goes on: {jobs}");
    qmp.ask("job-cancel", json!({"id": "other-tool"}));
    crate::program::wait_for(30, "the other job ends", || {
        (qmp.ask("query-jobs", json!({})).as_array().unwrap().is_empty()).then_some(())
    });
    qmp.ask("blockdev-del", json!({"node-name": "other-target"}));

    // Somebody else sits on the socket: QEMU takes one client at a time.
    refused(
        world,
        "socket taken",
        &["at the hypervisor", "shop.qmp", "somebody else is connected", "close the other connection"],
    );
    drop(qmp);
}

/// A node and a bitmap with names of ours, as a server that was killed and never came back leaves them.
pub fn leftovers(world: &mut World) {
    let mut qmp = world.qmp();
    qmp.ask(
        "blockdev-add",
        json!({"driver": "null-co", "node-name": "lull-0123456789abcdef-0-fleece", "size": 1 << 20}),
    );
    qmp.ask("block-dirty-bitmap-add", json!({"node": "disk1", "name": "lull-0123456789abcdef"}));
    assert!(qmp.ours().len() >= 2);
    drop(qmp);
    let session = world.run_job(JOB);
    assert_eq!(session.summary.result.as_deref(), Some("success"), "{session:#?}");
    assert_says(&task(&session).notes.join(" "), &["lull-0123456789abcdef-0-fleece", "removed"]);
    assert_clean_receipt(&session);
}

/// Day after day: a bitmap is owed until a newer restore point is recorded, and is no reason for a warning afterwards.
pub fn backup_after_backup(world: &mut World) {
    for day in 1..=4 {
        let session = world.run_job(JOB);
        assert_eq!(session.summary.result.as_deref(), Some("success"), "day {day}: {session:#?}");
        assert_clean_receipt(&session);
        let bitmaps = world.qmp().ours();
        assert!(bitmaps.len() <= 2, "day {day}: the newest and the one before it at most: {bitmaps:?}");
    }
}
