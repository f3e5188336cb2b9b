//! What a fake says: receipts, evidence, files and failures.

use super::Script;
use lull_engine::failover::FailureClass;
use lull_engine::session::{Hop, TaskFailure};
use lull_engine::timeline::Step;
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::task_event::Event;

/// What comes with a step besides its beginning and end.
pub fn beside(step: Step, script: &Script) -> Option<Event> {
    match step {
        Step::Connect => Some(Event::HostKeySeen(v1::HostKeySeen {
            key: Some(v1::HostKey {
                algorithm: "ssh-ed25519".into(),
                fingerprint: script.host_key.clone(),
                public_key: format!("ssh-ed25519 {}", script.host_key),
            }),
            first_contact: true,
        })),
        Step::Freeze => Some(Event::Frozen(v1::Frozen { freeze_id: 1, superblocks: 2 })),
        Step::Thaw => Some(Event::Thawed(v1::Thawed { freeze_id: 1, no_gap: true, window_us: 12_345 })),
        _ => None,
    }
}

pub fn clean() -> v1::Receipt {
    v1::Receipt { guest_checked: true, hypervisor_checked: true, thaw_confirmed: true, ..Default::default() }
}

/// What a backup left in the repository.
pub fn files(backup: &v1::BackupWork, falls_back: Option<&str>) -> v1::RestorePointFiles {
    let full = backup.parent.is_none() || falls_back.is_some();
    v1::RestorePointFiles {
        directory: format!("{}/db/{}", backup.repository_dir, backup.restore_point_id),
        bytes: 1_000,
        disk_bytes: 2_000,
        disks: vec!["disk0.qcow2".into()],
        bitmap: format!("lull-{}", backup.restore_point_id),
        atomic: true,
        kind: if full { "full" } else { "incremental" }.into(),
        full_because: falls_back.map_or_else(|| backup.full_because.clone(), str::to_string),
        read_bytes: 2_000,
    }
}

/// Everything was frozen inside the window.
pub fn evidence() -> String {
    serde_json::json!({
        "file_systems": [{
            "mount_points": ["/"], "superblock": "8:1", "fs_type": "ext4",
            "role": {"kind": "root", "applications": []}, "writable": true, "freezable": true, "excluded": false,
            "frozen": {"kind": "attempted", "freeze": {"result": "ok"}, "thaw": {"result": "ok"}},
            "on_snapshot": true
        }],
        "applications": [{"name": "PostgreSQL 15 main", "superblocks": ["8:1"], "quiesce": {"kind": "quiesced"}}],
        "applications_searched": true,
        "window": {"frozen_id": 1, "acknowledged_before_snapshot": true,
            "snapshot_returned_before_thaw": true, "thawed_id": 1, "no_gap": true},
        "snapshot": {"taken": true, "atomic": true}
    })
    .to_string()
}

pub fn failed(step: Step, class: FailureClass) -> v1::Finished {
    let failure = TaskFailure {
        step: Some(step),
        hop: Hop::ProxyToGuest,
        cause: format!("the script says so at {step}"),
        remedy: "change the script".into(),
        class,
    };
    v1::Finished {
        outcome: "failed".into(),
        failure_json: serde_json::to_string(&failure).unwrap(),
        receipt: Some(clean()),
        ..Default::default()
    }
}

/// Why a fake says nothing more.
pub enum Gone {
    Dead,
    Silent,
}

pub fn sent(was_sent: bool) -> Result<(), Gone> {
    if was_sent { Ok(()) } else { Err(Gone::Silent) }
}
