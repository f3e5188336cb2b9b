//! Copying the snapshot to the repository while the guest writes on.
//!
//! **One disk after the other.** Every change of QEMU's block graph (a job starts or ends, a node comes or goes) waits for all requests under way
//! in the VM's process, with the VM held. While another disk's job has a write under way to a repository that hangs, that wait does not end (measured:
//! the VM stood still). So the graph is changed only when no job of ours runs. As soon as a disk is copied its filter is taken away.
//!
//! **Few requests under way.** QEMU does all file IO of a VM in one pool of 64 threads, the guest's too. With QEMU's own default (64 requests per
//! job) a hanging repository takes them all, and even with a fast one guest writes waited for up to 2.6 s; with few it was 0.2 s, and the
//! copy was no slower.
//!
//! **An increment reads only what changed.** A copy of the parent's bitmap is made here, and so when every filter is in place and outside the freeze
//! window: what was written before the filters is in it, and what was written since is read as it was before, which only costs. When a disk's
//! turn comes the copy is merged into a bitmap on the view of the disk at the instant, and the job reads by it. The parent's own bitmap is not
//! touched: whatever becomes of this backup, the next increment can start from it. See docs/decisions/0006-how-an-increment-is-read.md.
//!
//! What ends a copy early: the repository (a write failed, or nothing moved for too long), the fleecing image (full or too slow: the snapshot
//! broke, the guest did not notice), somebody who cancelled a job, the caller. [`diagnose`] and [`Stall`] are pure.
//!
//! Does not undo anything: after an error the caller abandons the backup. Knows nothing of how the snapshot was taken.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::backup::{PlannedDisk, PreparedBackup, Stage};
use crate::error::{ErrorClass, HypervisorError, Step};
use crate::facts::{bitmaps_of, items, text};
use crate::files;
use crate::names::{Role, changed_bitmap_name};
use crate::qmp::{Command, QmpClient, QmpError, QmpEvent};

/// Requests to the repository under way at a time; each may take up to 8 of the 64 threads.
const WORKERS: u32 = 4;
/// How often the jobs are looked at when nothing happens, in ms.
const POLL_MS: u64 = 250;
/// One job moves in steps of about this much, in bytes: a speed limit below it looks like a stall in between.
const STEP_BYTES: u64 = 4 << 20;
/// Below this much free space the fleecing folder counts as full, in bytes.
const FULL_BELOW_BYTES: u64 = 4 << 20;
/// Making an image durable may take this many times the stall limit: whatever the system still holds back is written then.
const SYNC_STALLS: u64 = 10;

/// How far a copy is, over all disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyProgress {
    /// Bytes of the disks dealt with, holes included.
    pub copied_bytes: u64,
    /// Bytes to deal with: all disks together, or what of them changed since the parent.
    pub total_bytes: u64,
}

/// A copy that is complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyDone {
    /// Bytes of all disks together, as the guest sees them.
    pub total_bytes: u64,
    /// Bytes of them that were dealt with, holes included: all, or what changed since the parent.
    pub read_bytes: u64,
    /// Bytes that the images take in the repository.
    pub stored_bytes: u64,
    /// How long it took, in ms.
    pub took_ms: u64,
}

/// A job of ours as QEMU shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct JobView {
    status: String,
    copied_bytes: u64,
    total_bytes: u64,
    error: Option<String>,
}

/// Notices that nothing moves.
#[derive(Debug)]
struct Stall {
    limit_ms: u64,
    copied_bytes: u64,
    moved_at_ms: u64,
}

impl Stall {
    fn new(limit_ms: u64) -> Stall {
        Stall { limit_ms, copied_bytes: 0, moved_at_ms: 0 }
    }

    /// Whether nothing moved for longer than the limit.
    fn observe(&mut self, now_ms: u64, copied_bytes: u64) -> bool {
        if copied_bytes != self.copied_bytes {
            (self.copied_bytes, self.moved_at_ms) = (copied_bytes, now_ms);
        }
        now_ms.saturating_sub(self.moved_at_ms) > self.limit_ms
    }
}

/// The stall limit under a speed limit: twice the time that one step takes at that speed is no stall.
fn stall_limit_ms(stall_timeout_s: u32, speed_bytes_per_s: Option<u64>) -> u64 {
    let step_ms = speed_bytes_per_s.map_or(0, |speed| 2 * STEP_BYTES.saturating_mul(1000) / speed.max(1));
    (u64::from(stall_timeout_s) * 1000).max(step_ms)
}

/// Why a job failed, as (class, cause, remedy). `operation`: which side the job's last error event named.
fn diagnose(
    disk: &str,
    repository: &Path,
    error: &str,
    operation: Option<&str>,
    fleecing_free_bytes: Option<u64>,
    cbw_timeout_s: u32,
) -> (ErrorClass, String, String) {
    match operation {
        Some("write") => {
            let cause =
                format!("the repository {} did not take the data of disk {disk} ({error})", repository.display());
            (
                ErrorClass::Repository,
                cause,
                "the VM runs on; see to the repository's space and storage, then run the job again".into(),
            )
        }
        // A broken snapshot refuses every read.
        Some("read") if error.contains("Permission denied") => {
            let why = match fleecing_free_bytes {
                Some(free) if free < FULL_BELOW_BYTES => "its file system is full".to_owned(),
                _ => format!("a write to it failed or took longer than {cbw_timeout_s} s"),
            };
            let cause = format!("the fleecing image of disk {disk} could not keep up with the guest: {why}");
            let remedy =
                "the VM runs on; give the fleecing folder more or faster space, or back up when the guest writes less";
            (ErrorClass::Fleecing, cause, remedy.into())
        }
        Some("read") => {
            let cause = format!("disk {disk} of the VM could not be read ({error})");
            (ErrorClass::Refused, cause, "see to the storage of the VM's own disk".into())
        }
        _ => {
            let cause = format!("the copy of disk {disk} was ended from outside or failed ({error})");
            (ErrorClass::Refused, cause, "see who else works on this VM's jobs, then run the job again".into())
        }
    }
}

impl PreparedBackup {
    /// Copies all disks. Calls `progress` several times a second. The guest writes on.
    ///
    /// # Errors
    /// [`ErrorClass::Repository`], [`ErrorClass::Fleecing`], [`ErrorClass::Cancelled`], [`ErrorClass::Gone`]; in each case the VM runs on. Then
    /// [`PreparedBackup::abandon`].
    pub async fn copy(
        &mut self,
        mut progress: impl FnMut(CopyProgress),
        cancel: CancellationToken,
    ) -> Result<CopyDone, HypervisorError> {
        self.expect(Stage::Taken, Step::Copy)?;
        self.stage = Stage::Ended;
        let cancelled = {
            let ground = &self.ground;
            move || ground.fail(Step::Copy, ErrorClass::Cancelled, "it was cancelled", "nothing needs to be done")
        };
        let done = tokio::select! {
            done = self.copy_all(&mut progress) => done?,
            () = cancel.cancelled() => return Err(cancelled()),
        };
        self.stage = Stage::Copied;
        Ok(done)
    }

    async fn copy_all(&self, progress: &mut impl FnMut(CopyProgress)) -> Result<CopyDone, HypervisorError> {
        let began = Instant::now();
        if let Some(parent) = &self.parent {
            let (command, actions) = copy_of_bitmap(&parent.bitmap, &self.changed_bitmap(), &self.disks);
            self.client().execute(command, actions).await.map_err(|e| self.ground.qmp(Step::Copy, &e))?;
        }
        let to_read = self.bytes_to_read().await?;
        let total_bytes = to_read.iter().sum();
        let (mut done_bytes, mut read_bytes) = (0, 0);
        for (planned, bytes_here) in self.disks.iter().zip(to_read) {
            let tell = |bytes: u64| {
                progress(CopyProgress { copied_bytes: done_bytes + bytes.min(bytes_here), total_bytes });
            };
            read_bytes += self.copy_disk(planned, tell).await?;
            self.release(planned).await?;
            done_bytes += bytes_here;
            progress(CopyProgress { copied_bytes: done_bytes, total_bytes });
        }
        let total_bytes = self.disks.iter().map(|d| d.disk.virtual_bytes).sum();
        // QEMU counts whole clusters, also where the last one reaches beyond the disk.
        let read_bytes = read_bytes.min(total_bytes);
        Ok(CopyDone { total_bytes, read_bytes, stored_bytes: self.stored_bytes(), took_ms: ms_since(began) })
    }

    /// For each disk how much of it there is to read.
    async fn bytes_to_read(&self) -> Result<Vec<u64>, HypervisorError> {
        let whole = |d: &PlannedDisk| d.disk.virtual_bytes;
        if self.parent.is_none() {
            return Ok(self.disks.iter().map(whole).collect());
        }
        let nodes = self.client().execute("query-named-block-nodes", json!({"flat": true})).await;
        let nodes = nodes.map_err(|e| self.ground.qmp(Step::Copy, &e))?;
        let changed = self.changed_bitmap();
        let of = |d: &PlannedDisk| {
            let node = items(&nodes).find(|n| n["node-name"] == d.node_name.as_str())?;
            let bitmap = bitmaps_of(node).into_iter().find(|b| b.name == changed)?;
            Some(bitmap.dirty_bytes.min(whole(d)))
        };
        // A bitmap that somebody removed meanwhile fails the copy when it is merged.
        Ok(self.disks.iter().map(|d| of(d).unwrap_or_else(|| whole(d))).collect())
    }

    fn changed_bitmap(&self) -> String {
        changed_bitmap_name(&self.ground.order.restore_point)
    }

    /// Bytes that were dealt with.
    async fn copy_disk(&self, planned: &PlannedDisk, mut progress: impl FnMut(u64)) -> Result<u64, HypervisorError> {
        let order = &self.ground.order;
        let id = self.ground.name(planned.index, Role::Job);
        let mut events = self.client().events();
        let mut operation = None;
        let began = Instant::now();
        let mut stall = Stall::new(stall_limit_ms(order.stall_timeout_s, order.speed_bytes_per_s));
        self.start(planned).await?;
        loop {
            await_news(&mut events, &id, &mut operation).await;
            let job = job(self.client(), &id).await.map_err(|e| self.ground.qmp(Step::Copy, &e))?;
            // Whatever went wrong was announced before the job ended.
            while let Ok(event) = events.try_recv() {
                note(&event, &id, &mut operation);
            }
            let copied_bytes = job.as_ref().map_or(0, |j| j.copied_bytes);
            if self.has_succeeded(planned, job, operation.as_deref())? {
                return Ok(copied_bytes);
            }
            progress(copied_bytes);
            if stall.observe(ms_since(began), copied_bytes) {
                let cause =
                    format!("nothing was copied for {} s: the repository is too slow or gone", stall.limit_ms / 1000);
                let remedy = "the VM runs on; see to the repository's storage, then run the job again";
                return Err(self.ground.fail(Step::Copy, ErrorClass::Repository, cause, remedy));
            }
        }
    }

    fn client(&self) -> &QmpClient {
        &self.ground.vm.client
    }

    async fn start(&self, planned: &PlannedDisk) -> Result<(), HypervisorError> {
        let name = |role| self.ground.name(planned.index, role);
        let view = json!({"driver": "snapshot-access", "node-name": name(Role::Snapshot), "file": name(Role::Filter)});
        let mut commands = vec![("blockdev-add", view)];
        let mut job = json!({
            "job-id": name(Role::Job),
            "device": name(Role::Snapshot),
            "target": name(Role::Target),
            "sync": "full",
            "on-source-error": "report",
            "on-target-error": "report",
            // The job stays until its result is read: success and failure must not be told apart by a missed event.
            "auto-dismiss": false,
            "x-perf": {"max-workers": WORKERS},
        });
        if let Some(speed) = self.ground.order.speed_bytes_per_s {
            job["speed"] = speed.into();
        }
        if self.parent.is_some() {
            // A job takes a bitmap only of the very node it reads from.
            let (changed, view) = (self.changed_bitmap(), name(Role::Snapshot));
            let add = json!({"node": view, "name": changed, "persistent": false, "disabled": true});
            let from = json!([{"node": planned.node_name, "name": changed}]);
            commands.push(("block-dirty-bitmap-add", add));
            commands.push(("block-dirty-bitmap-merge", json!({"node": view, "target": changed, "bitmaps": from})));
            job["sync"] = "bitmap".into();
            job["bitmap"] = changed.into();
            job["bitmap-mode"] = "never".into();
        }
        commands.push(("blockdev-backup", job));
        for (command, arguments) in commands {
            self.client().execute(command, arguments).await.map_err(|e| self.ground.qmp(Step::Copy, &e))?;
        }
        Ok(())
    }

    /// `Ok(false)`: still running.
    fn has_succeeded(
        &self,
        planned: &PlannedDisk,
        job: Option<JobView>,
        operation: Option<&str>,
    ) -> Result<bool, HypervisorError> {
        let error = match job {
            Some(JobView { status, error: None, copied_bytes, total_bytes }) if status == "concluded" => {
                if copied_bytes == total_bytes {
                    return Ok(true);
                }
                format!("it ended after {copied_bytes} of {total_bytes} bytes")
            }
            Some(JobView { status, error: Some(error), .. }) if status == "concluded" => error,
            Some(_) => return Ok(false),
            None => "the job is no longer there".to_owned(),
        };
        let order = &self.ground.order;
        let free = files::free_bytes(&order.fleecing_dir).ok();
        let (class, cause, remedy) =
            diagnose(&planned.disk.name, &order.repository_dir, &error, operation, free, order.cbw_timeout_s);
        Err(self.ground.fail(Step::Copy, class, cause, remedy))
    }

    /// Takes a copied disk's filter away and closes its images.
    async fn release(&self, planned: &PlannedDisk) -> Result<(), HypervisorError> {
        let name = |role| self.ground.name(planned.index, role);
        let partial = self.ground.layout.partial(planned.index);
        // QEMU writes its last tables when it closes the image, with its main loop held: make sure first that the repository answers, and that
        // there is next to nothing left to write.
        let path = partial.clone();
        self.durably(move || files::sync_file(&path)).await.map_err(|cause| self.repository_fault(&partial, &cause))?;
        let put_back = json!({"path": planned.disk.qdev, "property": "drive", "value": planned.node_name});
        let mut commands = vec![
            ("job-dismiss", json!({"id": name(Role::Job)})),
            // With its bitmap.
            ("blockdev-del", json!({"node-name": name(Role::Snapshot)})),
            ("qom-set", put_back),
            ("blockdev-del", json!({"node-name": name(Role::Filter)})),
            ("blockdev-del", json!({"node-name": name(Role::Fleece)})),
            ("blockdev-del", json!({"node-name": name(Role::Target)})),
        ];
        if self.parent.is_some() {
            let working = json!({"node": planned.node_name, "name": self.changed_bitmap()});
            commands.push(("block-dirty-bitmap-remove", working));
        }
        for (command, arguments) in commands {
            self.client().execute(command, arguments).await.map_err(|e| self.ground.qmp(Step::Copy, &e))?;
        }
        let fleece = self.ground.layout.fleece(planned.index);
        std::fs::remove_file(&fleece).map_err(|e| {
            let cause = format!("the fleecing image {} cannot be removed ({e})", fleece.display());
            self.ground.fail(Step::Copy, ErrorClass::Fleecing, cause, "remove it by hand")
        })
    }

    /// Does file work in the repository without holding up the runtime, and not for ever.
    pub(crate) async fn durably<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, String> {
        let limit_ms = u64::from(self.ground.order.stall_timeout_s) * 1000 * SYNC_STALLS;
        match files::on_a_thread(limit_ms, work).await {
            Some(result) => result.map_err(|e| e.to_string()),
            None => Err(format!("no answer within {limit_ms} ms")),
        }
    }

    fn repository_fault(&self, path: &Path, cause: &str) -> HypervisorError {
        let cause = format!("{} cannot be made durable ({cause})", path.display());
        let remedy = "see to the repository's space and storage, then run the job again";
        self.ground.fail(Step::Copy, ErrorClass::Repository, cause, remedy)
    }

    fn stored_bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let of =
            |d: &PlannedDisk| std::fs::metadata(self.ground.layout.partial(d.index)).map_or(0, |m| m.blocks() * 512);
        self.disks.iter().map(of).sum()
    }
}

/// Copies a bitmap on every disk, all at once; the copy does not record.
fn copy_of_bitmap(from: &str, to: &str, disks: &[PlannedDisk]) -> Command {
    let copy = |d: &PlannedDisk| {
        [
            json!({"type": "block-dirty-bitmap-add",
                   "data": {"node": d.node_name, "name": to, "persistent": false, "disabled": true}}),
            json!({"type": "block-dirty-bitmap-merge",
                   "data": {"node": d.node_name, "target": to, "bitmaps": [from]}}),
        ]
    };
    ("transaction", json!({"actions": disks.iter().flat_map(copy).collect::<Vec<_>>()}))
}

/// Waits until the job ends, or a quarter of a second.
async fn await_news(events: &mut Receiver<QmpEvent>, id: &str, operation: &mut Option<String>) {
    let tick = sleep(Duration::from_millis(POLL_MS));
    tokio::pin!(tick);
    loop {
        tokio::select! {
            () = &mut tick => return,
            event = events.recv() => match event {
                Ok(event) => {
                    note(&event, id, operation);
                    if event.name == "JOB_STATUS_CHANGE" && event.data["id"] == id && event.data["status"] == "concluded" {
                        return;
                    }
                }
                Err(RecvError::Lagged(_)) => {}
                // The connection ended: the next command says how.
                Err(RecvError::Closed) => return tick.await,
            }
        }
    }
}

/// Remembers which side of the job failed.
fn note(event: &QmpEvent, id: &str, operation: &mut Option<String>) {
    if event.name == "BLOCK_JOB_ERROR" && event.data["device"] == id {
        *operation = text(&event.data["operation"]);
    }
}

async fn job(client: &QmpClient, id: &str) -> Result<Option<JobView>, QmpError> {
    let answer = client.execute("query-jobs", Value::Null).await?;
    let view = |job: &Value| {
        Some(JobView {
            status: text(&job["status"])?,
            copied_bytes: job["current-progress"].as_u64()?,
            total_bytes: job["total-progress"].as_u64()?,
            error: text(&job["error"]),
        })
    };
    Ok(items(&answer).find(|j| j["id"] == id).and_then(view))
}

fn ms_since(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
