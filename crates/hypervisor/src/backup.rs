//! One backup of one VM, from prepared to finished or undone.
//!
//! ```text
//! QemuVm::prepare ─▶ Prepared ─ snapshot() ─▶ Taken ─ copy() ─▶ Copied ─ finish() ─▶ Finished
//!                       └────────────┴───────────┴──────┬─────────┘
//!                                     abandon(), or dropping it: everything of ours is removed
//! ```
//! [`QemuVm::prepare`] does everything that is slow, so that [`PreparedBackup::snapshot`], the only step inside the freeze window,
//! sends a handful of commands in one write. After an error of any step the caller thaws the guest and calls
//! [`PreparedBackup::abandon`], which looks afresh at what is there (see [`crate::sweep`]) and says what it removed; dropping the value does
//! the same in the background.
//!
//! Knows nothing of guests; that one is frozen is the caller's word.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::chain::{self, BrokenLink};
use crate::error::{ErrorClass, HypervisorError, Step};
use crate::facts::{Disk, VmFacts};
use crate::files::{self, Claim, FolderFault, Layout};
use crate::host::QemuVm;
use crate::image;
use crate::increment::{self, FullBecause};
use crate::metadata::RestorePointMetadata;
use crate::names::{DISKS_MAX, Role, name};
use crate::order::{BackupOrder, Base};
use crate::qmp::QmpError;
use crate::sweep::{self, SweepReport};

/// Time for reading a chain's descriptions and headers, in ms.
const CHAIN_MS: u64 = 30_000;

/// How far a backup is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Prepared,
    Taken,
    Copied,
    Finished,
    /// A step failed or the undo ran: nothing more can be done but to undo.
    Ended,
}

/// One disk of a backup.
#[derive(Debug, Clone)]
pub(crate) struct PlannedDisk {
    pub index: usize,
    pub disk: Disk,
    pub node_name: String,
    /// The parent's image that this one lies over, relative to its folder; `None` in a full backup.
    pub backing: Option<String>,
}

/// What an increment builds on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parent {
    pub restore_point: String,
    pub bitmap: String,
}

/// What an undo needs to know; outlives the backup itself.
#[derive(Clone)]
pub(crate) struct Ground {
    pub vm: QemuVm,
    pub order: Arc<BackupOrder>,
    pub layout: Layout,
}

impl Ground {
    pub fn name(&self, disk: usize, role: Role) -> String {
        name(&self.order.restore_point, disk, role)
    }

    pub fn fail(
        &self,
        step: Step,
        class: ErrorClass,
        cause: impl Into<String>,
        remedy: impl Into<String>,
    ) -> HypervisorError {
        HypervisorError::new(step, &self.vm.name, class, cause, remedy)
    }

    pub fn qmp(&self, step: Step, error: &QmpError) -> HypervisorError {
        HypervisorError::qmp(step, &self.vm.name, error)
    }
}

/// A backup that is under way. See the module for its stages.
pub struct PreparedBackup {
    pub(crate) ground: Ground,
    pub(crate) facts: VmFacts,
    pub(crate) disks: Vec<PlannedDisk>,
    /// `None`: a full backup.
    pub(crate) parent: Option<Parent>,
    full_because: Option<FullBecause>,
    pub(crate) stage: Stage,
    pub(crate) taken_at: Option<Timestamp>,
    pub(crate) atomic: bool,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) level: Option<(String, Vec<String>)>,
    /// Held for its lock: it tells sweeps elsewhere that this restore point's maker lives.
    pub(crate) claim: Option<File>,
    free_repository_bytes: u64,
    free_fleecing_bytes: u64,
}

impl QemuVm {
    /// Prepares a backup: checks the VM and the folders, decides whether it can be incremental, creates all images, adds all nodes
    /// and filters. The guest does not notice; nothing is in front of its disks yet.
    ///
    /// A backup that cannot be incremental is full, and [`PreparedBackup::full_because`] says why: that is no error.
    ///
    /// # Errors
    /// [`ErrorClass::Busy`] naming what the VM is doing (nothing was started), [`ErrorClass::Repository`] or [`ErrorClass::Fleecing`] naming the
    /// folder, [`ErrorClass::Refused`] for an order that makes no sense or a VM without a disk, [`ErrorClass::Gone`] for a lost connection. What had
    /// been created is removed again before the error is returned, as far as the VM can be reached.
    pub async fn prepare(&self, order: BackupOrder) -> Result<PreparedBackup, HypervisorError> {
        let fail =
            |class, cause: String, remedy: &str| HypervisorError::new(Step::Prepare, &self.name, class, cause, remedy);
        if let Some((cause, remedy)) = order.fault() {
            return Err(fail(ErrorClass::Refused, cause, &remedy));
        }
        let facts = self.facts().await?;
        if let Some(busy) = &facts.busy {
            return Err(fail(ErrorClass::Busy, busy.to_string(), busy.remedy()));
        }
        let mut disks = planned_disks(&facts);
        if disks.is_empty() || disks.len() > DISKS_MAX {
            let cause = format!("it has {} disks that can be backed up", disks.len());
            return Err(fail(ErrorClass::Refused, cause, "a backup needs 1 to 100 writable disks"));
        }
        let (free_repository_bytes, free_fleecing_bytes) = check_folders(self, &order, &disks).await?;
        let layout = Layout::new(
            &order.repository_dir,
            &order.fleecing_dir,
            &self.name,
            facts.uuid.as_deref(),
            &order.restore_point,
        );
        let base = build_on(&order.base, &layout.vm_dir, &self.name, &facts).await;
        let (parent, full_because) = match base {
            Ok((parent, backing)) => {
                disks.iter_mut().zip(backing).for_each(|(disk, backing)| disk.backing = Some(backing));
                (Some(parent), None)
            }
            Err(because) => (None, Some(because)),
        };
        let claim = Claim {
            vm: self.name.clone(),
            restore_point: order.restore_point.clone(),
            task: order.task.clone(),
            epoch: order.epoch,
        };
        let claim = files::claim(&layout, &claim).map_err(|e| {
            let cause = format!("{} cannot be created ({e})", layout.point_dir.display());
            fail(ErrorClass::Repository, cause, "choose another restore point id, or make the repository writable")
        })?;
        // From here on the value itself undoes what was created, also when this future is dropped half-way.
        let mut backup = PreparedBackup {
            ground: Ground { vm: self.clone(), order: Arc::new(order), layout },
            facts,
            disks,
            parent,
            full_because,
            stage: Stage::Prepared,
            taken_at: None,
            atomic: false,
            annotations: BTreeMap::new(),
            level: None,
            claim: Some(claim),
            free_repository_bytes,
            free_fleecing_bytes,
        };
        match backup.add_nodes().await {
            Ok(()) => Ok(backup),
            Err(error) => {
                // The error that began it is the one to report; what cannot be undone now is seen by the next sweep.
                let _ = backup.undo().await;
                Err(error)
            }
        }
    }
}

fn planned_disks(facts: &VmFacts) -> Vec<PlannedDisk> {
    let with_node = facts.disks_to_back_up().filter_map(|d| Some((d.clone(), d.node_name.clone()?)));
    let planned = |(index, (disk, node_name))| PlannedDisk { index, disk, node_name, backing: None };
    with_node.enumerate().map(planned).collect()
}

/// The parent, and for each disk the image to lie over.
async fn build_on(base: &Base, vm_dir: &Path, vm: &str, facts: &VmFacts) -> Result<(Parent, Vec<String>), FullBecause> {
    let (id, dir) = match base {
        Base::Full { because } => return Err(FullBecause::Ordered(because.clone())),
        Base::Parent { restore_point, dir } => (restore_point, dir.clone()),
    };
    // Its images are named relative to the new one's folder.
    if dir != vm_dir.join(id) {
        return Err(FullBecause::ParentElsewhere { parent: id.clone() });
    }
    let chain = match files::on_a_thread(CHAIN_MS, move || chain::read_chain(&dir)).await {
        Some(chain) => chain.map(|mut points| points.swap_remove(0).metadata),
        None => Err(BrokenLink { restore_point: id.clone(), why: format!("it was not read within {CHAIN_MS} ms") }),
    };
    let disks: Vec<&Disk> = facts.disks_to_back_up().filter(|d| d.node_name.is_some()).collect();
    let vm = increment::Vm { name: vm, uuid: facts.uuid.as_deref(), disks: &disks };
    let backing = increment::decide(id, chain.as_ref(), vm)?;
    let bitmap = chain.map_or_else(|_| String::new(), |parent: RestorePointMetadata| parent.bitmap);
    Ok((Parent { restore_point: id.clone(), bitmap }, backing))
}

/// Free bytes of repository and fleecing folder, once both are known to be good.
async fn check_folders(vm: &QemuVm, order: &BackupOrder, disks: &[PlannedDisk]) -> Result<(u64, u64), HypervisorError> {
    let fault = |class, fault: FolderFault, what: &str| {
        let remedy = format!("nothing was started; make sure the {what} is mounted, writable and not full");
        HypervisorError::new(Step::Prepare, &vm.name, class, format!("{what} {fault}"), remedy)
    };
    let (repository, fleecing) = tokio::join!(files::probe(&order.repository_dir), files::probe(&order.fleecing_dir));
    let repository = repository.map_err(|f| fault(ErrorClass::Repository, f, "repository"))?;
    let fleecing = fleecing.map_err(|f| fault(ErrorClass::Fleecing, f, "fleecing folder"))?;
    let needed = order.fleecing_bytes_needed(disks.iter().map(|d| d.disk.virtual_bytes).sum());
    if fleecing < needed {
        let cause = format!(
            "the fleecing folder {} has {} MiB free, {} MiB are asked for",
            order.fleecing_dir.display(),
            fleecing >> 20,
            needed >> 20
        );
        let remedy = "nothing was started; free space there or choose another fleecing folder";
        return Err(HypervisorError::new(Step::Prepare, &vm.name, ErrorClass::Fleecing, cause, remedy));
    }
    Ok((repository, fleecing))
}

impl PreparedBackup {
    /// What the VM was when the backup was prepared.
    pub fn facts(&self) -> &VmFacts {
        &self.facts
    }

    /// Free bytes of the repository when the backup was prepared.
    pub fn free_repository_bytes(&self) -> u64 {
        self.free_repository_bytes
    }

    /// Free bytes of the fleecing folder when the backup was prepared.
    pub fn free_fleecing_bytes(&self) -> u64 {
        self.free_fleecing_bytes
    }

    /// The restore point that this one builds on; `None`: it is full.
    pub fn parent(&self) -> Option<&str> {
        self.parent.as_ref().map(|parent| parent.restore_point.as_str())
    }

    /// Why the backup is full; `None`: it is incremental.
    pub fn full_because(&self) -> Option<&FullBecause> {
        self.full_because.as_ref()
    }

    /// Notes the consistency level that was proved, and why it is not better.
    pub fn set_level(&mut self, level: impl Into<String>, reasons: Vec<String>) {
        self.level = Some((level.into(), reasons));
    }

    /// Notes something that is written into the restore point's metadata, for instance its consistency level.
    pub fn annotate(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.annotations.insert(key.into(), value.into());
    }

    async fn add_nodes(&mut self) -> Result<(), HypervisorError> {
        for planned in &self.disks {
            let bytes = planned.disk.virtual_bytes;
            let images = [
                (Role::Fleece, self.ground.layout.fleece(planned.index), ErrorClass::Fleecing, None),
                (
                    Role::Target,
                    self.ground.layout.partial(planned.index),
                    ErrorClass::Repository,
                    planned.backing.as_deref(),
                ),
            ];
            for (role, path, class, backing) in images {
                image::create(&path, bytes, backing).await.map_err(|cause| {
                    let cause = format!("{} cannot be created ({cause})", path.display());
                    self.ground.fail(Step::Prepare, class, cause, "make room there, or correct the folder")
                })?;
                let Some(filename) = path.to_str() else {
                    let cause = format!("{} is not UTF-8, as QMP needs it", path.display());
                    return Err(self.ground.fail(Step::Prepare, class, cause, "rename the folder"));
                };
                let mut node = json!({
                    "driver": "qcow2",
                    "node-name": self.ground.name(planned.index, role),
                    "discard": "unmap",
                    "detect-zeroes": "unmap",
                    // QEMU flushes with its main loop held: a slow disk would stop the VM for that long. The target is made durable by
                    // this program before the node is closed; a fleecing image need never be.
                    "cache": {"direct": false, "no-flush": true},
                    "file": {"driver": "file", "filename": filename},
                });
                if backing.is_some() {
                    // QEMU only ever writes whole clusters there: the VM's process need not open the chain, nor wait for it.
                    node["backing"] = Value::Null;
                }
                self.ground.vm.client.execute("blockdev-add", node).await.map_err(|e| match e {
                    QmpError::Refused { desc, .. } => {
                        let cause = format!("QEMU cannot open {} ({desc})", path.display());
                        let remedy = "let the user that QEMU runs as write to that folder";
                        self.ground.fail(Step::Prepare, class, cause, remedy)
                    }
                    other => self.ground.qmp(Step::Prepare, &other),
                })?;
            }
            let filter = json!({
                "driver": "copy-before-write",
                "node-name": self.ground.name(planned.index, Role::Filter),
                "file": planned.node_name,
                "target": self.ground.name(planned.index, Role::Fleece),
                "on-cbw-error": "break-snapshot",
                "cbw-timeout": self.ground.order.cbw_timeout_s,
            });
            let added = self.ground.vm.client.execute("blockdev-add", filter).await;
            added.map_err(|e| self.ground.qmp(Step::Prepare, &e))?;
        }
        Ok(())
    }

    /// Undoes everything: jobs, filters, nodes, this restore point's bitmaps, its files; a VM that we stopped runs again.
    /// After [`PreparedBackup::finish`] it does nothing.
    ///
    /// # Errors
    /// [`ErrorClass::Gone`] or [`ErrorClass::Busy`] if the VM cannot be reached any more (a new connection is tried for 10 s, or 1 s if nobody listens); its files are gone all
    /// the same, and a [`sweep::sweep`] does the rest once the VM answers. What could be reached but not removed is in the report's
    /// `remaining`.
    pub async fn abandon(mut self) -> Result<SweepReport, HypervisorError> {
        self.undo().await
    }

    async fn undo(&mut self) -> Result<SweepReport, HypervisorError> {
        let undo = self.begin_undo();
        match undo {
            Some(ground) => sweep::undo(ground).await,
            None => Ok(SweepReport::default()),
        }
    }

    /// What to undo, once.
    fn begin_undo(&mut self) -> Option<Ground> {
        let stage = std::mem::replace(&mut self.stage, Stage::Ended);
        if matches!(stage, Stage::Finished) {
            self.stage = Stage::Finished;
            return None;
        }
        self.claim.take().map(|_| self.ground.clone())
    }

    pub(crate) fn expect(&self, stage: Stage, step: Step) -> Result<(), HypervisorError> {
        if self.stage == stage {
            return Ok(());
        }
        let cause = format!("the backup is {:?}, not {stage:?}", self.stage);
        Err(self.ground.fail(
            step,
            ErrorClass::Refused,
            cause,
            "call the steps in their order, and abandon the backup after an error",
        ))
    }
}

impl Drop for PreparedBackup {
    fn drop(&mut self) {
        let Some(ground) = self.begin_undo() else { return };
        // Without a runtime (the program is ending) the next sweep does it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let vm = ground.vm.name.clone();
                match sweep::undo(ground).await {
                    Ok(report) if report.remaining.is_empty() => {}
                    Ok(report) => {
                        tracing::warn!(vm, remaining = ?report.remaining, "a dropped backup left something behind")
                    }
                    Err(error) => tracing::warn!(vm, %error, "a dropped backup could not be undone"),
                }
            });
        }
    }
}
