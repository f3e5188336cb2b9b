//! Facts from QEMU's answers, as scenarios.

use super::*;

fn drive(json: Value) -> Disk {
    disk_from(&json, &json!([]))
}

fn answers(status: &str, jobs: Value, migrate: Value, nodes: Value) -> Answers {
    Answers {
        name: json!({"name": "pg1"}),
        uuid: json!({"UUID": NIL_UUID}),
        status: json!({"status": status}),
        block: json!([]),
        nodes,
        jobs,
        migrate,
    }
}

fn image(drv: &str) -> Value {
    json!({"node-name": "n", "drv": drv, "file": "/d", "ro": false, "image": {"virtual-size": 4096,
        "format-specific": {"type": "qcow2", "data": {"compat": "1.1"}}}})
}

#[test]
fn drives_of_every_style_are_named_and_found() {
    let blockdev = drive(
        json!({"device": "", "qdev": "/machine/peripheral/vd0/virtio-backend", "removable": false, "inserted": image("qcow2")}),
    );
    assert_eq!((blockdev.name.as_str(), blockdev.skip, blockdev.bitmap_persistent), ("vd0", None, true));
    let scsi = drive(json!({"device": "", "qdev": "sd2", "removable": false, "inserted": image("raw")}));
    assert_eq!(
        (scsi.qdev.as_str(), scsi.name.as_str(), scsi.bitmap_persistent),
        ("/machine/peripheral/sd2", "sd2", false)
    );
    let legacy = drive(
        json!({"device": "virtio0", "qdev": "/machine/peripheral-anon/device[1]/virtio-backend", "removable": false, "inserted": image("qcow2")}),
    );
    assert_eq!(legacy.name, "virtio0");
}

#[test]
fn a_drives_bitmaps_are_read_with_their_state() {
    let drive_json = json!({"device": "", "qdev": "/machine/peripheral/vd0/virtio-backend", "removable": false, "inserted": image("qcow2")});
    let node = json!([{"node-name": "n", "drv": "qcow2", "dirty-bitmaps": [
        {"name": "lull-ab", "count": 65536, "granularity": 65536, "recording": true, "busy": false, "persistent": true},
        {"name": "lull-cd", "count": 0, "granularity": 65536, "recording": false, "busy": false, "persistent": true, "inconsistent": true},
        {"granularity": 65536}]}]);
    let found = disk_from(&drive_json, &node).bitmaps;
    assert_eq!(found.iter().map(|b| b.name.as_str()).collect::<Vec<_>>(), ["lull-ab", "lull-cd"]);
    assert_eq!((found[0].recording, found[0].dirty_bytes, found[0].inconsistent), (true, 65536, false));
    assert!(found[1].inconsistent && !found[1].recording);
}

#[test]
fn what_is_no_disk_is_left_out_with_its_reason() {
    let skip = |json| drive(json).skip;
    assert_eq!(skip(json!({"device": "", "qdev": "cd0", "removable": true})), Some(SkipReason::NoMedium));
    assert_eq!(
        skip(json!({"device": "", "qdev": "cd0", "removable": true, "inserted": image("raw")})),
        Some(SkipReason::Removable)
    );
    assert_eq!(
        skip(json!({"device": "pflash0", "removable": false, "inserted": image("raw")})),
        Some(SkipReason::Firmware)
    );
    assert_eq!(
        skip(json!({"device": "", "qdev": "/machine/system.flash1", "removable": false, "inserted": image("raw")})),
        Some(SkipReason::Firmware)
    );
    assert_eq!(
        skip(json!({"device": "none0", "removable": false, "inserted": image("raw")})),
        Some(SkipReason::NotAttached)
    );
    let mut read_only = image("raw");
    read_only["ro"] = true.into();
    assert_eq!(
        skip(json!({"device": "", "qdev": "sd0", "removable": false, "inserted": read_only})),
        Some(SkipReason::ReadOnly)
    );
}

#[test]
fn whatever_keeps_a_vm_busy_is_named() {
    let (none, empty) = (json!({}), json!([]));
    let busy = |status, jobs, migrate, nodes| busy_with(&answers(status, jobs, migrate, nodes));
    assert_eq!(busy("running", empty.clone(), none.clone(), empty.clone()), None);
    assert_eq!(busy("running", empty.clone(), json!({"status": "completed"}), empty.clone()), None);
    assert_eq!(busy("paused", empty.clone(), none.clone(), empty.clone()), Some(Busy::Paused));
    assert_eq!(
        busy("io-error", empty.clone(), none.clone(), empty.clone()),
        Some(Busy::NotRunning { run_state: "io-error".into() })
    );
    assert_eq!(
        busy("paused", empty.clone(), json!({"status": "pre-switchover"}), empty.clone()),
        Some(Busy::Migrating { status: "pre-switchover".into() })
    );
    assert_eq!(busy("inmigrate", empty.clone(), json!({"status": "active"}), empty.clone()), Some(Busy::InMigrate));
    let job = |kind: &str, status: &str| json!([{"id": "j", "type": kind, "status": status}]);
    assert_eq!(
        busy("running", job("backup", "running"), none.clone(), empty.clone()),
        Some(Busy::OtherBackup { job: "j".into() })
    );
    assert_eq!(
        busy("running", job("mirror", "ready"), none.clone(), empty.clone()),
        Some(Busy::OtherBlockJob { job: "j".into(), kind: "mirror".into() })
    );
    assert_eq!(busy("running", job("backup", "concluded"), none.clone(), empty.clone()), None);
    assert_eq!(
        busy("running", empty, none, json!([{"node-name": "lull-ab-0-cbw"}, {"node-name": "disk0"}])),
        Some(Busy::Leftovers { names: vec!["lull-ab-0-cbw".into()] })
    );
}

#[test]
fn a_name_that_qemu_was_not_given_is_the_sockets() {
    let mut a = answers("running", json!([]), json!({}), json!([]));
    a.name = json!({});
    let facts = facts_from("socket-name", QemuVersion { major: 7, minor: 2, micro: 18 }, &a);
    assert_eq!((facts.name.as_str(), facts.uuid, facts.qemu_version.as_str()), ("socket-name", None, "7.2.18"));
}
