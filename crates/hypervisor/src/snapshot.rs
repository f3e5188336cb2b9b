//! The snapshot: the only thing that happens inside the freeze window.
//!
//! All commands go out in one write and QEMU executes them in order:
//! ```text
//! [marker, stop]   only for a guest that is not frozen and has more than one disk
//! bitmap on every disk, one transaction
//! filter in front of each disk
//! [cont, marker removed]
//! ```
//! **The bitmap comes first**: a write between bitmap and filter is in both (copied once more by the next increment, harmless);
//! the other way round it would be in neither, and lost to every later increment.
//!
//! **`cont` is guaranteed**: it is on its way before `stop` is answered, and if the connection breaks in between, the marker object tells
//! whoever connects next (this function tries at once) that the stop was ours.
//!
//! One disk needs no stop: its filter is put in between two requests, which is one instant. Knows nothing of how a guest freezes.

use std::time::Instant;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::backup::{PlannedDisk, PreparedBackup, Stage};
use crate::error::{ErrorClass, HypervisorError, Step};
use crate::names::{Role, bitmap_name, name, stop_marker};
use crate::qmp::{Command, QmpError};
use crate::sweep;

/// A snapshot over all disks of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotTaken {
    /// The disks it covers, by name.
    pub disks: Vec<String>,
    /// No write of the guest can have come between the disks, whatever it did: the VM was stopped, or has one disk. Where
    /// the guest was frozen instead, its own word on the end of that freeze decides, which is not known here.
    pub atomic: bool,
    /// The VM was stopped for it, and continued.
    pub vm_was_stopped: bool,
    /// From the first command sent to the last answer, in µs.
    pub window_us: u64,
    /// When the last answer came, by this machine's clock.
    pub taken_at: Timestamp,
    /// The dirty bitmap that records what changes from now on.
    pub bitmap: String,
}

impl PreparedBackup {
    /// Takes the snapshot. `guest_is_frozen`: the caller holds the guest frozen until this returns.
    ///
    /// # Errors
    /// Whatever QEMU says or does not say; the snapshot then does not count, also if only its answer was lost. A VM that was stopped for it is
    /// continued before the error is returned, and if it could not be, the error says so. Thaw the guest, then
    /// [`PreparedBackup::abandon`].
    pub async fn snapshot(&mut self, guest_is_frozen: bool) -> Result<SnapshotTaken, HypervisorError> {
        self.expect(Stage::Prepared, Step::Snapshot)?;
        let stop = !guest_is_frozen && self.disks.len() > 1;
        let ground = &self.ground;
        if stop && ground.vm.client.stopped_seen() {
            // `cont` would then undo somebody else's pause.
            let remedy = "resume the VM and run the job again";
            return Err(ground.fail(Step::Snapshot, ErrorClass::Busy, "the VM was paused in the meantime", remedy));
        }
        let commands = commands(&ground.order.restore_point, &self.disks, stop);
        self.stage = Stage::Ended;
        let began = Instant::now();
        let answers = ground.vm.client.pipeline(&commands, ground.order.snapshot_timeout_ms).await;
        let window_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let taken_at = Timestamp::now();
        if let Some(error) = worst(answers) {
            return Err(self.failed(&error, stop).await);
        }
        self.stage = Stage::Taken;
        self.taken_at = Some(taken_at);
        self.atomic = stop || self.disks.len() == 1;
        Ok(SnapshotTaken {
            disks: self.disks.iter().map(|d| d.disk.name.clone()).collect(),
            atomic: self.atomic,
            vm_was_stopped: stop,
            window_us,
            taken_at,
            bitmap: bitmap_name(&self.ground.order.restore_point),
        })
    }

    async fn failed(&self, error: &QmpError, stop: bool) -> HypervisorError {
        let mut failure = self.ground.qmp(Step::Snapshot, error);
        // A refused command leaves the others in force, `cont` among them. Without an answer nobody knows.
        if stop && !matches!(error, QmpError::Refused { .. }) {
            match sweep::continue_vm(&self.ground).await {
                Ok(true) => failure.cause.push_str("; the VM stood still and was continued"),
                Ok(false) => {}
                Err(e) => {
                    failure.cause.push_str(&format!("; whether the VM runs is unknown ({e})"));
                    failure.remedy = format!("see that VM {} runs, and `cont` it if not", self.ground.vm.name);
                }
            }
        }
        failure
    }
}

/// The first error, a lost connection before a refusal: it leaves more unknown.
fn worst(answers: Vec<Result<Value, QmpError>>) -> Option<QmpError> {
    let errors: Vec<QmpError> = answers.into_iter().filter_map(Result::err).collect();
    let lost = errors.iter().find(|e| !matches!(e, QmpError::Refused { .. }));
    lost.or(errors.first()).cloned()
}

fn commands(restore_point: &str, disks: &[PlannedDisk], stop: bool) -> Vec<Command> {
    let marker = stop_marker(restore_point);
    let mut commands: Vec<Command> = Vec::with_capacity(disks.len() + 5);
    if stop {
        // Any object would do; this one costs nothing and does nothing.
        commands.push(("object-add", json!({"qom-type": "throttle-group", "id": marker})));
        commands.push(("stop", Value::Null));
    }
    let bitmap = bitmap_name(restore_point);
    let add_bitmap = |d: &PlannedDisk| {
        json!({"type": "block-dirty-bitmap-add",
               "data": {"node": d.node_name, "name": bitmap, "persistent": d.disk.bitmap_persistent}})
    };
    commands.push(("transaction", json!({"actions": disks.iter().map(add_bitmap).collect::<Vec<_>>()})));
    for d in disks {
        let filter = name(restore_point, d.index, Role::Filter);
        commands.push(("qom-set", json!({"path": d.disk.qdev, "property": "drive", "value": filter})));
    }
    if stop {
        commands.push(("cont", Value::Null));
        commands.push(("object-del", json!({"id": marker})));
    }
    commands
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Disk;

    fn disk(index: usize) -> PlannedDisk {
        let disk = Disk {
            name: format!("vd{index}"),
            qdev: format!("/machine/peripheral/vd{index}/virtio-backend"),
            node_name: Some(format!("disk{index}")),
            device: String::new(),
            virtual_bytes: 1 << 20,
            format: "qcow2".into(),
            file: "/d".into(),
            read_only: false,
            removable: false,
            bitmap_persistent: true,
            skip: None,
        };
        PlannedDisk { index, node_name: format!("disk{index}"), disk }
    }

    fn names_of(stop: bool) -> Vec<&'static str> {
        commands("ab", &[disk(0), disk(1)], stop).iter().map(|(c, _)| *c).collect()
    }

    #[test]
    fn the_bitmaps_are_there_before_the_first_filter() {
        assert_eq!(names_of(false), ["transaction", "qom-set", "qom-set"]);
        let all = commands("ab", &[disk(0), disk(1)], false);
        assert_eq!(all[0].1["actions"].as_array().unwrap().len(), 2);
        assert_eq!(all[2].1["value"], "lull-ab-1-cbw");
    }

    #[test]
    fn a_stop_is_marked_before_and_always_followed_by_its_cont() {
        assert_eq!(names_of(true), ["object-add", "stop", "transaction", "qom-set", "qom-set", "cont", "object-del"]);
    }

    #[test]
    fn a_lost_connection_counts_more_than_a_refusal() {
        let refused = QmpError::Refused { command: "a".into(), class: "c".into(), desc: "d".into() };
        let gone = QmpError::Gone { command: "b".into(), cause: "c".into() };
        assert_eq!(worst(vec![Ok(Value::Null)]), None);
        assert_eq!(worst(vec![Err(refused.clone()), Ok(Value::Null)]), Some(refused.clone()));
        assert_eq!(worst(vec![Err(refused), Err(gone.clone())]), Some(gone));
    }
}
