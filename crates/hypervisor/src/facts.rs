//! What a VM is, which of its drives can be backed up, and whether it may be backed up now.
//!
//! [`facts_from`] and [`busy_with`] are pure over QEMU's answers. Knows nothing of how a snapshot is taken.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::names;
use crate::qmp::{Command, QemuVersion, QmpClient, QmpError};

/// Time for reading all facts, in ms.
const FACTS_MS: u64 = 30_000;
/// A VM without a UUID of its own has this one.
const NIL_UUID: &str = "00000000-0000-0000-0000-000000000000";

/// Why a drive is not part of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SkipReason {
    /// Removable, and nothing is in it.
    NoMedium,
    /// A CD, DVD, floppy or USB stick.
    Removable,
    /// The guest cannot write to it.
    ReadOnly,
    /// Firmware flash: code or variables of the firmware, not a disk.
    Firmware,
    /// Defined, but no device of the guest uses it.
    NotAttached,
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SkipReason::NoMedium => "no medium",
            SkipReason::Removable => "removable medium",
            SkipReason::ReadOnly => "read-only",
            SkipReason::Firmware => "firmware flash, not a disk",
            SkipReason::NotAttached => "not attached to a device of the guest",
        })
    }
}

/// A dirty bitmap on a drive's node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bitmap {
    /// Its name; also other tools' bitmaps are here.
    pub name: String,
    /// It records writes.
    pub recording: bool,
    /// A job or an export uses it.
    pub busy: bool,
    /// It was not stored when the VM's process ended, and lacks writes.
    pub inconsistent: bool,
    /// Bytes it calls changed.
    pub dirty_bytes: u64,
}

/// One drive of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// How an administrator knows it: the device's or drive's id, else its place.
    pub name: String,
    /// The guest device's path in QEMU's object tree; empty if no device uses the drive.
    pub qdev: String,
    /// The node that the device writes to; `None` without a medium.
    pub node_name: Option<String>,
    /// The drive's own id (`-drive id=`, or what QEMU made up), empty for `-blockdev`.
    pub device: String,
    /// Size the guest sees.
    pub virtual_bytes: u64,
    /// Image format, for instance `qcow2` or `raw`.
    pub format: String,
    /// The image's path.
    pub file: String,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// The medium can be changed.
    pub removable: bool,
    /// The image can keep a dirty bitmap over a restart of the VM's process.
    pub bitmap_persistent: bool,
    /// Dirty bitmaps on its node.
    #[serde(default)]
    pub bitmaps: Vec<Bitmap>,
    /// Why it is left out of a backup; `None`: it is part of it.
    pub skip: Option<SkipReason>,
}

/// What keeps a VM from being backed up now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "busy", rename_all = "kebab-case")]
pub enum Busy {
    /// It is migrating to another host (or into a file).
    Migrating {
        /// QEMU's word for how far it is.
        status: String,
    },
    /// It is arriving from another host.
    InMigrate,
    /// Somebody paused it.
    Paused,
    /// It does not run for another reason.
    NotRunning {
        /// QEMU's word for it, for instance `io-error`.
        run_state: String,
    },
    /// Another backup tool is copying it.
    OtherBackup {
        /// That job's id.
        job: String,
    },
    /// Its disks are being mirrored, committed or otherwise worked on.
    OtherBlockJob {
        /// That job's id.
        job: String,
        /// QEMU's word for its kind.
        kind: String,
    },
    /// An earlier backup of ours was not swept yet.
    Leftovers {
        /// What of it is there.
        names: Vec<String>,
    },
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Busy::Migrating { status } => write!(f, "the VM is migrating ({status})"),
            Busy::InMigrate => f.write_str("the VM is arriving by migration"),
            Busy::Paused => f.write_str("the VM is paused"),
            Busy::NotRunning { run_state } => write!(f, "the VM does not run ({run_state})"),
            Busy::OtherBackup { job } => write!(f, "the VM is in another backup (job {job})"),
            Busy::OtherBlockJob { job, kind } => write!(f, "the VM's disks are in a {kind} job ({job})"),
            Busy::Leftovers { names } => write!(f, "an earlier backup left {}", names.join(", ")),
        }
    }
}

impl Busy {
    /// What to do about it, in one sentence without a full stop.
    pub fn remedy(&self) -> &'static str {
        match self {
            Busy::Migrating { .. } | Busy::InMigrate => {
                "nothing was started; run the job again when the migration is over"
            }
            Busy::Paused => "nothing was started; resume the VM and run the job again",
            Busy::NotRunning { .. } => "nothing was started; bring the VM back to running and run the job again",
            Busy::OtherBackup { .. } | Busy::OtherBlockJob { .. } => {
                "nothing was started; run the job again when that job is over"
            }
            Busy::Leftovers { .. } => "nothing was started; sweep the VM first",
        }
    }
}

/// What a VM is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmFacts {
    /// The name QEMU was given, else the socket's name.
    pub name: String,
    /// Its UUID, if it was given one.
    pub uuid: Option<String>,
    /// For instance `10.0.2`.
    pub qemu_version: String,
    /// QEMU's word, for instance `running`.
    pub run_state: String,
    /// All drives, also those that a backup leaves out.
    pub disks: Vec<Disk>,
    /// What keeps it from being backed up now.
    pub busy: Option<Busy>,
}

impl VmFacts {
    /// The drives that a backup covers.
    pub fn disks_to_back_up(&self) -> impl Iterator<Item = &Disk> {
        self.disks.iter().filter(|d| d.skip.is_none())
    }
}

/// QEMU's answers that the facts follow from.
pub(crate) struct Answers {
    pub name: Value,
    pub uuid: Value,
    pub status: Value,
    pub block: Value,
    pub nodes: Value,
    pub jobs: Value,
    pub migrate: Value,
}

pub(crate) async fn read(client: &QmpClient, vm: &str) -> Result<VmFacts, QmpError> {
    // The migration is asked for before the run state: one that ends in between is seen in the latter.
    let commands: [Command; 7] = [
        ("query-migrate", Value::Null),
        ("query-name", Value::Null),
        ("query-uuid", Value::Null),
        ("query-status", Value::Null),
        ("query-block", Value::Null),
        ("query-named-block-nodes", json!({"flat": true})),
        ("query-jobs", Value::Null),
    ];
    let mut answers = client.pipeline(&commands, FACTS_MS).await.into_iter();
    let mut next = || answers.next().unwrap_or(Ok(Value::Null));
    let answers = Answers {
        migrate: next()?,
        name: next()?,
        uuid: next()?,
        status: next()?,
        block: next()?,
        nodes: next()?,
        jobs: next()?,
    };
    Ok(facts_from(vm, client.version(), &answers))
}

/// The facts that follow from QEMU's answers. `vm` is the socket's name.
pub(crate) fn facts_from(vm: &str, version: QemuVersion, answers: &Answers) -> VmFacts {
    let disks = items(&answers.block).map(|drive| disk_from(drive, &answers.nodes)).collect();
    VmFacts {
        name: text(&answers.name["name"]).filter(|n| !n.is_empty()).unwrap_or_else(|| vm.to_owned()),
        uuid: text(&answers.uuid["UUID"]).filter(|u| u != NIL_UUID),
        qemu_version: format!("{}.{}.{}", version.major, version.minor, version.micro),
        run_state: text(&answers.status["status"]).unwrap_or_default(),
        disks,
        busy: busy_with(answers),
    }
}

/// What keeps the VM from being backed up now. A migration also pauses: it is named first.
pub(crate) fn busy_with(answers: &Answers) -> Option<Busy> {
    const MIGRATION_OVER: [&str; 4] = ["none", "completed", "failed", "cancelled"];
    let run_state = answers.status["status"].as_str().unwrap_or("unknown");
    if run_state == "inmigrate" {
        return Some(Busy::InMigrate);
    }
    if let Some(status) = answers.migrate["status"].as_str().filter(|s| !MIGRATION_OVER.contains(s)) {
        return Some(Busy::Migrating { status: status.to_owned() });
    }
    let ours = items(&answers.jobs)
        .map(|j| &j["id"])
        .chain(items(&answers.nodes).map(|n| &n["node-name"]))
        .filter_map(Value::as_str)
        .filter(|n| names::parse(n).is_some());
    let ours: Vec<String> = ours.map(str::to_owned).collect();
    if !ours.is_empty() {
        return Some(Busy::Leftovers { names: ours });
    }
    // A concluded job does nothing any more; it only waits for its owner to read its result.
    let other = items(&answers.jobs).find(|j| !matches!(j["status"].as_str(), Some("concluded" | "null")));
    if let Some(job) = other {
        let (id, kind) = (text(&job["id"]).unwrap_or_default(), text(&job["type"]).unwrap_or_default());
        return Some(match kind.as_str() {
            "backup" => Busy::OtherBackup { job: id },
            _ => Busy::OtherBlockJob { job: id, kind },
        });
    }
    match run_state {
        "running" => None,
        "paused" => Some(Busy::Paused),
        other => Some(Busy::NotRunning { run_state: other.to_owned() }),
    }
}

fn disk_from(drive: &Value, nodes: &Value) -> Disk {
    let inserted = &drive["inserted"];
    let device = text(&drive["device"]).unwrap_or_default();
    // QEMU names a device by its id if it has one, else by its path.
    let qdev = match text(&drive["qdev"]) {
        Some(path) if path.starts_with('/') => path,
        Some(id) => format!("/machine/peripheral/{id}"),
        None => String::new(),
    };
    let node_name = text(&inserted["node-name"]);
    let node = items(nodes).find(|n| n["node-name"].as_str() == node_name.as_deref()).unwrap_or(inserted);
    let (read_only, removable) = (inserted["ro"] == true, drive["removable"] == true);
    let skip = if node_name.is_none() {
        Some(SkipReason::NoMedium)
    } else if qdev.is_empty() {
        Some(if device.starts_with("pflash") { SkipReason::Firmware } else { SkipReason::NotAttached })
    } else if qdev.contains(".flash") {
        Some(SkipReason::Firmware)
    } else if removable {
        Some(SkipReason::Removable)
    } else if read_only {
        Some(SkipReason::ReadOnly)
    } else {
        None
    };
    Disk {
        name: name_of(&qdev, &device),
        qdev,
        node_name,
        device,
        virtual_bytes: inserted["image"]["virtual-size"].as_u64().unwrap_or(0),
        format: text(&inserted["drv"]).unwrap_or_default(),
        file: text(&inserted["file"]).unwrap_or_default(),
        read_only,
        removable,
        bitmap_persistent: node["drv"] == "qcow2" && node["image"]["format-specific"]["data"]["compat"] == "1.1",
        bitmaps: bitmaps_of(node),
        skip,
    }
}

/// The dirty bitmaps of a node, as `query-named-block-nodes` shows it.
pub(crate) fn bitmaps_of(node: &Value) -> Vec<Bitmap> {
    let bitmap = |b: &Value| {
        Some(Bitmap {
            name: text(&b["name"])?,
            recording: b["recording"] == true,
            busy: b["busy"] == true,
            inconsistent: b["inconsistent"] == true,
            dirty_bytes: b["count"].as_u64().unwrap_or(0),
        })
    };
    items(&node["dirty-bitmaps"]).filter_map(bitmap).collect()
}

/// `vd0` for `/machine/peripheral/vd0/virtio-backend`; the drive's id where the device has none.
fn name_of(qdev: &str, device: &str) -> String {
    match qdev.strip_prefix("/machine/peripheral/").and_then(|rest| rest.split('/').next()) {
        Some(id) => id.to_owned(),
        None if !device.is_empty() => device.to_owned(),
        None => qdev.trim_start_matches("/machine/").to_owned(),
    }
}

pub(crate) fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

pub(crate) fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests;
