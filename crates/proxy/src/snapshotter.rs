//! What a task needs of the hypervisor, from *prepared* to *nothing left*, and the one that there is: QEMU.
//!
//! Knows nothing of guests. `fake::FakeSnapshotter` stands in for it in tests.

use crate::cancel::Cancel;
use crate::failure::Stop;
use crate::order::{BackupSpec, QemuSpec};
use async_trait::async_trait;
use lull_hypervisor::{
    BackupOrder, Busy, ErrorClass, HypervisorError, PreparedBackup, QemuHost, QemuVm, SnapshotTaken, Step, SweepOrder,
    SweepReport, sweep,
};
use lull_proxy_wire::v1;
use tokio_util::sync::CancellationToken;

/// Called several times a second with bytes done and bytes in all.
pub type ProgressSink<'a> = &'a mut (dyn FnMut(u64, u64) + Send);

/// One backup of one VM, step by step in this order.
#[async_trait]
pub trait Snapshotter: Send {
    /// Whether the VM may be backed up now, before anything is begun with it or its guest: a paused VM's guest does not
    /// answer, and a guest must not come to rest for a backup that will be refused. Removes what an earlier task had to
    /// leave; one line for people for each such thing.
    async fn may_begin(&mut self) -> Result<Vec<String>, HypervisorError> {
        Ok(vec![])
    }
    /// Everything ahead of the freeze window. The result is one line for people.
    async fn prepare(&mut self) -> Result<String, HypervisorError>;
    /// Once it is prepared: why the backup is full, where it is.
    fn full_because(&self) -> Option<String> {
        None
    }
    /// The only step inside the window.
    async fn snapshot(&mut self, guest_is_frozen: bool) -> Result<SnapshotTaken, HypervisorError>;
    /// Copies to the repository while the guest writes on.
    async fn copy(&mut self, progress: ProgressSink<'_>, cancel: CancellationToken) -> Result<String, HypervisorError>;
    /// Checks the copy, makes it durable and final. What is proved of it is written into it.
    async fn finish(&mut self, proved: &Proved) -> Result<v1::RestorePointFiles, HypervisorError>;
    /// Undoes whatever was not finished. Idempotent, allowed at any time.
    async fn abandon(&mut self) -> Result<SweepReport, HypervisorError>;
    /// A fresh look: what of ours is there and not owed.
    async fn left(&mut self) -> Result<Vec<String>, HypervisorError>;
}

/// Another one's, forward only while the task may go on; undone and looked at whenever.
pub struct WhileAllowed(pub Box<dyn Snapshotter>, pub Cancel);

impl WhileAllowed {
    fn check(&self, step: Step) -> Result<(), HypervisorError> {
        let (vm, class) = (String::new(), ErrorClass::Cancelled);
        let error = |cause| HypervisorError { step, vm, class, cause, remedy: "run the job again".into() };
        self.1.check().map_err(|stop| match stop {
            Stop::Cancelled(reason) => error(reason),
            Stop::Failed(failure) => error(failure.cause),
        })
    }
}

#[async_trait]
impl Snapshotter for WhileAllowed {
    async fn may_begin(&mut self) -> Result<Vec<String>, HypervisorError> {
        self.check(Step::Facts)?;
        self.0.may_begin().await
    }
    async fn prepare(&mut self) -> Result<String, HypervisorError> {
        // It connects; where it may not, the check says so.
        let _ = self.1.enter().await;
        self.check(Step::Prepare)?;
        self.0.prepare().await
    }
    fn full_because(&self) -> Option<String> {
        self.0.full_because()
    }
    async fn snapshot(&mut self, guest_is_frozen: bool) -> Result<SnapshotTaken, HypervisorError> {
        self.check(Step::Snapshot)?;
        self.0.snapshot(guest_is_frozen).await
    }
    async fn copy(&mut self, progress: ProgressSink<'_>, cancel: CancellationToken) -> Result<String, HypervisorError> {
        self.check(Step::Copy)?;
        self.0.copy(progress, cancel).await
    }
    async fn finish(&mut self, proved: &Proved) -> Result<v1::RestorePointFiles, HypervisorError> {
        self.check(Step::Finish)?;
        self.0.finish(proved).await
    }
    async fn abandon(&mut self) -> Result<SweepReport, HypervisorError> {
        self.0.abandon().await
    }
    async fn left(&mut self) -> Result<Vec<String>, HypervisorError> {
        self.0.left().await
    }
}

/// What is known of a restore point once its guest has been let go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proved {
    /// The VM's name.
    pub vm_name: String,
    /// The level's name.
    pub level: String,
    /// Why it is not better.
    pub reasons: Vec<String>,
    /// All of it in one text.
    pub summary: String,
}

/// A backup by QMP.
pub struct QemuSnapshotter {
    qemu: QemuSpec,
    backup: BackupSpec,
    task: String,
    epoch: u64,
    vm: Option<QemuVm>,
    prepared: Option<PreparedBackup>,
    read_bytes: u64,
    finished: bool,
}

impl QemuSnapshotter {
    /// Nothing is opened yet.
    pub fn new(qemu: QemuSpec, backup: BackupSpec, task: &str, epoch: u64) -> Self {
        let task = task.into();
        QemuSnapshotter { qemu, backup, task, epoch, vm: None, prepared: None, read_bytes: 0, finished: false }
    }

    fn prepared(&mut self, step: Step) -> Result<&mut PreparedBackup, HypervisorError> {
        let vm = self.qemu.vm.clone();
        self.prepared.as_mut().ok_or_else(|| HypervisorError {
            step,
            vm,
            class: ErrorClass::Refused,
            cause: "nothing was prepared".into(),
            remedy: "report this".into(),
        })
    }

    async fn vm(&mut self) -> Result<&QemuVm, HypervisorError> {
        let open = match self.vm.take().filter(|vm| !vm.client().is_gone()) {
            Some(vm) => vm,
            None => QemuHost::new(&self.qemu.sockets_dir).open(&self.qemu.vm).await?,
        };
        Ok(self.vm.insert(open))
    }

    /// The bitmaps that a look must not complain of.
    fn owed(&self) -> Vec<String> {
        let own = self.finished.then(|| lull_hypervisor::bitmap_name(&self.backup.point));
        self.backup.bitmaps_owed.iter().cloned().chain(own).collect()
    }
}

#[async_trait]
impl Snapshotter for QemuSnapshotter {
    async fn may_begin(&mut self) -> Result<Vec<String>, HypervisorError> {
        let owed = self.owed();
        let vm = self.vm().await?;
        match vm.facts().await?.busy {
            // A bitmap is owed until a newer restore point is recorded; the one before that goes now.
            None if vm.residue(&owed).await?.is_empty() => Ok(vec![]),
            None | Some(Busy::Leftovers { .. }) => {
                // QEMU takes one client at a time, and the sweep brings its own connection.
                self.vm = None;
                let order = SweepOrder {
                    bitmaps_owed: owed,
                    fleecing_dir: self.qemu.fleecing_dir.clone(),
                    repository_dir: self.backup.repository_dir.clone(),
                    unrecorded: None,
                };
                Ok(sweep(&QemuHost::new(&self.qemu.sockets_dir), &self.qemu.vm, &order).await?.removed)
            }
            Some(busy) => Err(HypervisorError {
                step: Step::Facts,
                vm: self.qemu.vm.clone(),
                class: ErrorClass::Busy,
                cause: busy.to_string(),
                remedy: busy.remedy().into(),
            }),
        }
    }

    async fn prepare(&mut self) -> Result<String, HypervisorError> {
        let backup = self.backup.clone();
        let fleecing = self.qemu.fleecing_dir.clone();
        let mut order = BackupOrder::new(&backup.point, &self.task, backup.repository_dir, fleecing);
        order.epoch = self.epoch;
        order.base = backup.base;
        order.origin = backup.origin;
        order.speed_bytes_per_s = Some(backup.speed_limit_bytes_per_s).filter(|speed| *speed > 0);
        let prepared = self.vm().await?.prepare(order).await?;
        let disks: Vec<&str> = prepared.facts().disks_to_back_up().map(|disk| disk.name.as_str()).collect();
        let kind = match prepared.parent() {
            Some(parent) => format!("incremental on {parent}"),
            None => "full".into(),
        };
        let line = format!("QEMU {}, disks {}, {kind}", prepared.facts().qemu_version, disks.join(", "));
        self.prepared = Some(prepared);
        Ok(line)
    }

    fn full_because(&self) -> Option<String> {
        self.prepared.as_ref()?.full_because().map(ToString::to_string)
    }

    async fn snapshot(&mut self, guest_is_frozen: bool) -> Result<SnapshotTaken, HypervisorError> {
        self.prepared(Step::Snapshot)?.snapshot(guest_is_frozen).await
    }

    async fn copy(&mut self, progress: ProgressSink<'_>, cancel: CancellationToken) -> Result<String, HypervisorError> {
        let done = self.prepared(Step::Copy)?.copy(|p| progress(p.copied_bytes, p.total_bytes), cancel).await?;
        self.read_bytes = done.read_bytes;
        let [total, read, stored] = [done.total_bytes, done.read_bytes, done.stored_bytes].map(|bytes| bytes >> 20);
        Ok(format!("{read} of {total} MiB read, {stored} MiB stored"))
    }

    async fn finish(&mut self, proved: &Proved) -> Result<v1::RestorePointFiles, HypervisorError> {
        let read_bytes = self.read_bytes;
        let prepared = self.prepared(Step::Finish)?;
        prepared.annotate("vm", &proved.vm_name);
        prepared.annotate("consistency", &proved.summary);
        prepared.set_level(&proved.level, proved.reasons.clone());
        let files = prepared.finish().await?;
        self.finished = true;
        let name = |disk: &std::path::PathBuf| disk.file_name().map(|name| name.to_string_lossy().into_owned());
        Ok(v1::RestorePointFiles {
            directory: files.dir.display().to_string(),
            bytes: files.metadata.disks.iter().map(|disk| disk.file_bytes).sum(),
            disk_bytes: files.metadata.disks.iter().map(|disk| disk.virtual_bytes).sum(),
            disks: files.disks.iter().filter_map(name).collect(),
            bitmap: files.metadata.bitmap,
            atomic: files.metadata.atomic,
            kind: files.metadata.kind.to_string(),
            full_because: files.metadata.full_because.unwrap_or_default(),
            read_bytes,
        })
    }

    async fn abandon(&mut self) -> Result<SweepReport, HypervisorError> {
        match self.prepared.take() {
            Some(prepared) if !self.finished => prepared.abandon().await,
            _ => Ok(SweepReport::default()),
        }
    }

    async fn left(&mut self) -> Result<Vec<String>, HypervisorError> {
        let owed = self.owed();
        self.vm().await?.residue(&owed).await
    }
}
