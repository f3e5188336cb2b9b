//! Removing what is ours: after an error, after a cancel, after a crash.
//!
//! One routine serves all three. It looks afresh ([`crate::residue`]), removes in an order that QEMU accepts, ignores single refusals, and
//! looks again: what is still there is reported, never assumed away. Idempotent. Only names that [`crate::names`] recognises are touched.
//!
//! **A job that does not end keeps its filters.** While the repository hangs, a job with a write under way cannot end, and to take a filter
//! away QEMU would wait for that write with the whole VM held. So the graph is left alone until the jobs have ended, and the VM runs on. For the same
//! reason an image in the repository is closed only while the repository answers: closing it writes its last tables.
//!
//! Knows nothing of who owes which bitmap: the caller says.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::backup::Ground;
use crate::error::{ErrorClass, HypervisorError, Step};
use crate::files::{self, FolderFault, Which};
use crate::host::{QemuHost, QemuVm};
use crate::names::Role;
use crate::qmp::{QmpClient, QmpError};
use crate::residue::{self, Residue};

/// How long a cancelled job may take to end, in ms.
const JOBS_END_MS: u64 = 20_000;
/// How often a cancelled job is looked at, in ms.
const JOBS_POLL_MS: u64 = 50;
/// How long a lost connection is tried again, in ms.
const RECONNECT_MS: u64 = 10_000;
/// How long it is tried while nobody listens at all, in ms: QEMU listens as long as it lives.
const RECONNECT_UNREACHABLE_MS: u64 = 1_000;
/// Pause between two tries, in ms.
const RECONNECT_PAUSE_MS: u64 = 200;
/// Time for removing files, in ms.
const FILES_MS: u64 = 15_000;

/// What a sweep after a crash covers.
#[derive(Debug, Clone)]
pub struct SweepOrder {
    /// The bitmaps (by name, see [`crate::bitmap_name`]) of recorded restore points: they stay.
    pub bitmaps_owed: Vec<String>,
    /// The folder of fleecing images; each host has its own.
    pub fleecing_dir: PathBuf,
    /// The repository. Folders without `restore-point.json` are unfinished and go, unless their maker lives.
    pub repository_dir: PathBuf,
    /// A restore point that nobody recorded: it goes although it is finished, unless its maker lives.
    pub unrecorded: Option<String>,
}

/// What a sweep found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepReport {
    /// One line per thing removed, for instance `node lull-ab12-0-cbw`.
    pub removed: Vec<String>,
    /// One line per thing of ours that is still there. Empty: nothing stays behind.
    pub remaining: Vec<String>,
    /// The VM stood still because of us and was continued.
    pub continued: bool,
    /// The VM could not be reached, so only files were swept: why. A VM that is off holds nothing of ours but, perhaps, bitmaps in its images.
    pub vm_gone: Option<String>,
}

/// Sweeps a VM over a fresh connection.
///
/// # Errors
/// [`ErrorClass::Busy`] if somebody else is connected to the VM (then nothing was touched), [`ErrorClass::Gone`] if the connection broke on the way.
pub async fn sweep(host: &QemuHost, vm: &str, order: &SweepOrder) -> Result<SweepReport, HypervisorError> {
    let mut report = SweepReport::default();
    let opened = host.open(vm).await;
    match opened {
        Ok(opened) => {
            let scope = Scope {
                only: None,
                owed: &order.bitmaps_owed,
                continue_io_error: false,
                repository: &order.repository_dir,
            };
            let result = sweep_vm(&opened.client, &scope, &mut report).await;
            result.map_err(|e| HypervisorError::qmp(Step::Sweep, vm, &e))?;
        }
        Err(error) if error.class == ErrorClass::Busy => return Err(error),
        Err(error) => report.vm_gone = Some(error.to_string()),
    }
    let which = Which { unrecorded: order.unrecorded.clone(), ..Which::default() };
    sweep_files(vm, &order.repository_dir, &order.fleecing_dir, which, &mut report).await;
    Ok(report)
}

/// Removes everything of one restore point that was not finished, over the backup's own connection or, if that broke, a new one.
pub(crate) async fn undo(ground: Ground) -> Result<SweepReport, HypervisorError> {
    let mut report = SweepReport::default();
    let only = Some(ground.order.restore_point.as_str());
    let scope = Scope { only, owed: &[], continue_io_error: true, repository: &ground.order.repository_dir };
    let mut result = sweep_vm(&ground.vm.client, &scope, &mut report).await;
    if matches!(result, Err(QmpError::Gone { .. } | QmpError::Protocol { .. })) {
        result = match reconnect(&ground.vm).await {
            Ok(vm) => sweep_vm(&vm.client, &scope, &mut report).await,
            Err(error) => Err(error),
        };
    }
    // Also when the VM cannot be reached: QEMU may keep them open, but nobody finds them any more.
    let which = Which { only: only.map(str::to_owned), ..Which::default() };
    sweep_files(&ground.vm.name, &ground.order.repository_dir, &ground.order.fleecing_dir, which, &mut report).await;
    result.map(|()| report).map_err(|e| ground.qmp(Step::Sweep, &e))
}

/// Continues the VM if it stands still because of us; `true` if it did.
pub(crate) async fn continue_vm(ground: &Ground) -> Result<bool, QmpError> {
    let only = Some(ground.order.restore_point.as_str());
    let vm = match residue::read(&ground.vm.client, only).await {
        Ok(residue) => return continue_if_ours(&ground.vm.client, &residue).await,
        Err(QmpError::Gone { .. } | QmpError::Protocol { .. }) => reconnect(&ground.vm).await?,
        Err(error) => return Err(error),
    };
    let continued = continue_if_ours(&vm.client, &residue::read(&vm.client, only).await?).await;
    vm.client.close().await;
    continued
}

async fn continue_if_ours(client: &QmpClient, residue: &Residue) -> Result<bool, QmpError> {
    if residue.stopped_by_us() {
        client.execute("cont", Value::Null).await?;
    }
    Ok(residue.stopped_by_us())
}

async fn reconnect(vm: &QemuVm) -> Result<QemuVm, QmpError> {
    let began = Instant::now();
    loop {
        let result = vm.reopened().await;
        let limit_ms = match &result {
            Ok(_) => return result,
            Err(QmpError::Unreachable { .. }) => RECONNECT_UNREACHABLE_MS,
            Err(_) => RECONNECT_MS,
        };
        if began.elapsed() >= Duration::from_millis(limit_ms) {
            return result;
        }
        sleep(Duration::from_millis(RECONNECT_PAUSE_MS)).await;
    }
}

/// What of ours a sweep may touch.
struct Scope<'a> {
    /// One restore point, or all.
    only: Option<&'a str>,
    /// Bitmaps that stay.
    owed: &'a [String],
    /// The VM ran when the backup began: an io-error came since.
    continue_io_error: bool,
    repository: &'a Path,
}

async fn sweep_vm(client: &QmpClient, scope: &Scope<'_>, report: &mut SweepReport) -> Result<(), QmpError> {
    let Scope { only, owed, .. } = *scope;
    let found = residue::read(client, only).await?;
    // First of all: a VM that stands still is the worst that can be left behind.
    report.continued |= continue_if_ours(client, &found).await?;
    if end_jobs(client, only, &found).await? {
        remove_nodes(client, &found, scope.repository).await?;
        for bitmap in found.bitmaps.iter().filter(|b| !owed.contains(&b.name)) {
            accept_refusal(
                client.execute("block-dirty-bitmap-remove", json!({"node": bitmap.node, "name": bitmap.name})).await,
            )?;
        }
        // It ran when the backup began: whatever stopped it meanwhile, our filters are out of its way now. A real fault of its disk stops it again.
        if scope.continue_io_error && found.run_state == "io-error" {
            client.execute("cont", Value::Null).await?;
            report.continued = true;
        }
    }
    for marker in &found.stop_markers {
        accept_refusal(client.execute("object-del", json!({"id": marker})).await)?;
    }
    let left = residue::read(client, only).await?.describe(owed);
    report.removed.extend(found.describe(owed).into_iter().filter(|line| !left.contains(line)));
    report.remaining.extend(left);
    Ok(())
}

/// Cancels our jobs and sees them off; `false` if one does not end.
async fn end_jobs(client: &QmpClient, only: Option<&str>, found: &Residue) -> Result<bool, QmpError> {
    for job in found.jobs.iter().filter(|j| j.status != "concluded") {
        accept_refusal(client.execute("job-cancel", json!({"id": job.id})).await)?;
    }
    let deadline = Instant::now() + Duration::from_millis(JOBS_END_MS);
    let mut jobs = found.jobs.clone();
    loop {
        for job in jobs.iter().filter(|j| j.status == "concluded") {
            accept_refusal(client.execute("job-dismiss", json!({"id": job.id})).await)?;
        }
        if jobs.iter().all(|j| j.status == "concluded") {
            return Ok(true);
        }
        if Instant::now() > deadline {
            return Ok(false);
        }
        sleep(Duration::from_millis(JOBS_POLL_MS)).await;
        jobs = residue::read(client, only).await?.jobs;
    }
}

/// Nodes go from the top down; a filter only after the device writes past it again.
async fn remove_nodes(client: &QmpClient, found: &Residue, repository: &Path) -> Result<(), QmpError> {
    delete(client, found.nodes_of(Role::Snapshot)).await?;
    for swapped in &found.swapped {
        if let Some(original) = &swapped.original {
            let put_back = json!({"path": swapped.qdev, "property": "drive", "value": original});
            accept_refusal(client.execute("qom-set", put_back).await)?;
        }
    }
    delete(client, found.nodes_of(Role::Filter)).await?;
    delete(client, found.nodes_of(Role::Fleece)).await?;
    let targets = found.nodes_of(Role::Target).next().is_some();
    if targets && matches!(files::probe(repository).await, Err(FolderFault::Silent { .. })) {
        return Ok(());
    }
    delete(client, found.nodes_of(Role::Target)).await
}

async fn delete(client: &QmpClient, nodes: impl Iterator<Item = &str>) -> Result<(), QmpError> {
    for node in nodes {
        accept_refusal(client.execute("blockdev-del", json!({"node-name": node})).await)?;
    }
    Ok(())
}

/// A refusal is no reason to stop: the second look shows what it left.
fn accept_refusal(result: Result<Value, QmpError>) -> Result<(), QmpError> {
    match result {
        Ok(_) => Ok(()),
        Err(error @ QmpError::Refused { .. }) => {
            tracing::debug!(%error, "while sweeping");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

async fn sweep_files(vm: &str, repository: &Path, fleecing: &Path, which: Which, report: &mut SweepReport) {
    let (repository_dir, fleecing_dir, vm) = (repository.to_owned(), fleecing.to_owned(), vm.to_owned());
    let work = move || files::sweep_files(&repository_dir, &fleecing_dir, &vm, &which);
    match files::on_a_thread(FILES_MS, work).await {
        Some(swept) => {
            report.removed.extend(swept.removed);
            report.remaining.extend(swept.remaining);
        }
        None => report.remaining.push(format!(
            "whatever lies in {} and {} (no answer within {FILES_MS} ms)",
            repository.display(),
            fleecing.display()
        )),
    }
}
