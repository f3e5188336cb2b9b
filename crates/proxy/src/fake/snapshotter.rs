//! A hypervisor in memory, with failure knobs. Keeps account of what of ours it holds.

use crate::snapshotter::{ProgressSink, Proved, Snapshotter};
use async_trait::async_trait;
use lull_hypervisor::{ErrorClass, HypervisorError, SnapshotTaken, Step, SweepReport};
use lull_proxy_wire::v1;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What goes wrong at the hypervisor, and how long things take.
#[derive(Debug, Clone, Default)]
pub struct FakeSnapshotter {
    /// This step fails: `prepare`, `snapshot`, `copy`, `finish` or `abandon`.
    pub fails_at: Option<&'static str>,
    /// The snapshot takes so long.
    pub snapshot_takes: Duration,
    /// The copy takes so long, unless it is cancelled.
    pub copy_takes: Duration,
    /// Steps that were begun, in order.
    pub begun: Vec<&'static str>,
    /// Whether the guest was said to be frozen at the snapshot.
    pub snapshot_of_frozen: Option<bool>,
    /// Nodes, filters and files are there.
    pub holds_something: bool,
    /// A restore point is there.
    pub finished: bool,
    /// The backup is full, and why.
    pub full_because: Option<String>,
    /// The restore point's folder.
    pub directory: String,
}

impl FakeSnapshotter {
    fn begin(&mut self, name: &'static str, step: Step) -> Result<(), HypervisorError> {
        self.begun.push(name);
        match self.fails_at == Some(name) {
            true => Err(error(step, ErrorClass::Gone, "as the knob says")),
            false => Ok(()),
        }
    }
}

fn error(step: Step, class: ErrorClass, cause: &str) -> HypervisorError {
    HypervisorError { step, vm: "fake".into(), class, cause: cause.into(), remedy: "none: it is a test".into() }
}

#[async_trait]
impl Snapshotter for FakeSnapshotter {
    async fn prepare(&mut self) -> Result<String, HypervisorError> {
        self.begin("prepare", Step::Prepare)?;
        self.holds_something = true;
        Ok("a fake".into())
    }

    fn full_because(&self) -> Option<String> {
        self.full_because.clone()
    }

    async fn snapshot(&mut self, guest_is_frozen: bool) -> Result<SnapshotTaken, HypervisorError> {
        self.snapshot_of_frozen = Some(guest_is_frozen);
        self.begin("snapshot", Step::Snapshot)?;
        tokio::time::sleep(self.snapshot_takes).await;
        Ok(SnapshotTaken {
            disks: vec!["vd0".into()],
            atomic: true,
            vm_was_stopped: false,
            window_us: 1,
            taken_at: Default::default(),
            bitmap: "lull-fake".into(),
        })
    }

    async fn copy(&mut self, progress: ProgressSink<'_>, cancel: CancellationToken) -> Result<String, HypervisorError> {
        self.begin("copy", Step::Copy)?;
        tokio::select! {
            () = tokio::time::sleep(self.copy_takes) => {}
            () = cancel.cancelled() => return Err(error(Step::Copy, ErrorClass::Cancelled, "it was cancelled")),
        }
        progress(1, 1);
        Ok("1 MiB".into())
    }

    async fn finish(&mut self, _: &Proved) -> Result<v1::RestorePointFiles, HypervisorError> {
        self.begin("finish", Step::Finish)?;
        (self.finished, self.holds_something) = (true, false);
        Ok(v1::RestorePointFiles { directory: self.directory.clone(), atomic: true, ..Default::default() })
    }

    async fn abandon(&mut self) -> Result<SweepReport, HypervisorError> {
        self.begin("abandon", Step::Sweep)?;
        self.holds_something = false;
        Ok(SweepReport::default())
    }

    async fn left(&mut self) -> Result<Vec<String>, HypervisorError> {
        Ok(if self.holds_something { vec!["node lull-fake".into()] } else { vec![] })
    }
}
