//! One task on one VM: the timeline forward, and then back whatever is still owed.
//!
//! ```text
//! connect → deploy → inventory → pre-script → quiesce → freeze → snapshot → thaw → release → post-script
//!         → [index ‖ copy → verify], then always: what the engine says is still to run, receipt last
//! ```
//!
//! What undoes what, and in which order, is [`lull_engine::timeline`]'s decision. Knows nothing of SSH or QMP.

mod alone;
mod awake;
mod back;
mod rest;

use crate::cancel::Cancel;
use crate::carried::Image;
use crate::evidence::{Facts, evidence};
use crate::failure::{self, Stop};
use crate::guest_session::{Connector, GuestSession};
use crate::order::TaskSpec;
use crate::reporter::{Reporter, StepOutcome};
use crate::snapshotter::Snapshotter;
use lull_engine::consistency::{Evidence, SnapshotEvidence};
use lull_engine::failover::FailureClass;
use lull_engine::session::Hop;
use lull_engine::settings::{ApplicationAware, ScriptMode};
use lull_engine::timeline::{Progress, Step};
use lull_guest_wire::ScriptStage;
use lull_proxy_wire::v1;
use rest::InsideOutput;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// What a caller says about the hold it waits in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HoldWord {
    /// It still waits for its snapshot.
    Renew,
    /// It is done.
    End {
        /// Whether its snapshot succeeded.
        succeeded: bool,
        /// In its own words.
        detail: String,
    },
}

/// Everything that one task works with.
pub struct Task<'a> {
    /// What to do.
    pub spec: TaskSpec,
    /// The way into the guest, where it is to be touched.
    pub connector: Option<&'a dyn Connector>,
    /// What is put there.
    pub image: &'a Image,
    /// The hypervisor, for backups.
    pub snapshotter: Option<&'a mut dyn Snapshotter>,
    /// Words of a caller who holds.
    pub hold: mpsc::Receiver<HoldWord>,
    /// Whom to tell.
    pub reporter: Reporter,
    /// Whether to stop.
    pub cancel: Cancel,
    /// Whether to list no more files.
    pub stop_index: Cancel,
}

/// A task under way.
struct Run<'a> {
    spec: TaskSpec,
    guest: Option<GuestSession<'a>>,
    snapshotter: Option<&'a mut dyn Snapshotter>,
    hold: mpsc::Receiver<HoldWord>,
    reporter: Reporter,
    cancel: Cancel,
    stop_index: Cancel,
    progress: Progress,
    snapshot: SnapshotEvidence,
    /// Why nothing more is done in the guest than undoing what was.
    left_alone: Option<String>,
}

/// Carries the task out, forward and back; whatever happens, this is how it ended.
pub async fn run(task: Task<'_>) -> v1::Finished {
    let Task { spec, connector, image, snapshotter, hold, reporter, cancel, stop_index } = task;
    let session = |connector| {
        GuestSession::new(connector, image, &spec.vm_name, reporter.clone(), cancel.clone()).of_fence(spec.fence)
    };
    let guest = connector.map(session);
    let left_alone = alone::from_the_beginning(&spec, guest.is_some());
    let mut run = Run {
        spec,
        guest,
        snapshotter,
        hold,
        reporter,
        cancel,
        stop_index,
        progress: Progress::default(),
        snapshot: SnapshotEvidence::default(),
        left_alone,
    };
    let result = run.forward().await;
    run.reporter.let_go();
    run.back(result).await
}

impl Run<'_> {
    async fn forward(&mut self) -> Result<(), Stop> {
        self.ask_hypervisor().await?;
        for step in [Step::Connect, Step::Deploy] {
            if self.in_guest() {
                let result = self.guest_step(step).await;
                self.or_leave_alone(result)?;
            }
        }
        self.inventory().await?;
        if self.in_guest() && self.has_script(ScriptStage::PreFreeze) {
            let result = self.guest_step(Step::PreScript).await;
            self.or_leave_alone(result)?;
        }
        if self.in_guest() {
            let result = self.quiesce().await;
            self.or_leave_alone(result)?;
        }
        self.cancel.check()?;
        self.rest_and_snapshot().await?;
        if self.progress.begun.contains(&Step::Quiesce) {
            let result = self.guest_step(Step::Release).await;
            self.or_warn(result)?;
        }
        let result = self.post_script().await;
        self.or_warn(result)?;
        self.cancel.check()?;
        self.copy_and_index().await
    }

    /// Nothing is begun with a VM that cannot be backed up now.
    async fn ask_hypervisor(&mut self) -> Result<(), Stop> {
        let Some(snapshotter) = &mut self.snapshotter else { return Ok(()) };
        self.cancel.enter().await?;
        let swept = self.cancel.or(snapshotter.may_begin()).await?;
        let swept = swept.map_err(|e| failure::of_hypervisor(Step::Connect, &e))?;
        for thing in swept {
            self.reporter.info(format!("no longer owed, removed from the hypervisor: {thing}"));
        }
        Ok(())
    }

    fn begin(&mut self, step: Step, detail: &str) -> Instant {
        self.progress.begun.insert(step);
        self.reporter.started(step, detail)
    }

    /// Tells how a step ended, and remembers it.
    fn end<T>(
        &mut self,
        step: Step,
        began: Instant,
        result: Result<T, Stop>,
        line: impl FnOnce(&T) -> String,
    ) -> Result<T, Stop> {
        self.end_after(step, began.elapsed(), result, line)
    }

    fn end_after<T>(
        &mut self,
        step: Step,
        took: Duration,
        result: Result<T, Stop>,
        line: impl FnOnce(&T) -> String,
    ) -> Result<T, Stop> {
        tell_end(&self.reporter, &mut self.progress, step, took, result, line)
    }

    async fn guest_step(&mut self, step: Step) -> Result<(), Stop> {
        let began = self.begin(step, "");
        let Some(guest) = &mut self.guest else { return Ok(()) };
        let result = match step {
            Step::Connect => guest.connect().await,
            Step::Deploy => guest.deploy().await,
            Step::PreScript => guest.script(ScriptStage::PreFreeze, &self.spec.settings).await,
            Step::Release => guest.release().await,
            Step::PostScript => guest.script(ScriptStage::PostThaw, &self.spec.settings).await,
            _ => guest.remove().await,
        };
        self.end(step, began, result, String::clone).map(drop)
    }

    fn has_script(&self, stage: ScriptStage) -> bool {
        let scripts = &self.spec.settings.scripts.linux;
        let body = match stage {
            ScriptStage::PreFreeze => &scripts.pre,
            ScriptStage::PostThaw => &scripts.post,
        };
        self.guest.is_some() && body.is_some() && scripts.mode != ScriptMode::Disabled
    }

    /// Where the component was lost on the way, a new one runs the script.
    async fn post_script(&mut self) -> Result<(), Stop> {
        let in_guest = self.in_guest() || self.progress.begun.contains(&Step::PreScript);
        if in_guest && self.has_script(ScriptStage::PostThaw) {
            if let Some(guest) = self.guest.as_mut().filter(|guest| !guest.has_component()) {
                guest.redeploy().await.map_err(|e| failure::of_channel(Step::PostScript, &e))?;
            }
            return self.guest_step(Step::PostScript).await;
        }
        // Nothing to run, and so nothing owed.
        self.progress.begun.insert(Step::PostScript);
        self.progress.done.insert(Step::PostScript);
        Ok(())
    }

    /// What the guest is, and everything of the hypervisor that can be done ahead; both at once.
    async fn inventory(&mut self) -> Result<(), Stop> {
        if !self.in_guest() && self.snapshotter.is_none() {
            return Ok(());
        }
        let began = self.begin(Step::Inventory, "");
        let in_guest = self.in_guest();
        let guest = async {
            match &mut self.guest {
                Some(guest) if in_guest => guest.take_inventory().await.map(Some),
                _ => Ok(None),
            }
        };
        let hypervisor = async {
            match &mut self.snapshotter {
                Some(snapshotter) => snapshotter.prepare().await.map(Some),
                None => Ok(None),
            }
        };
        // Both to their ends: what was prepared must be known to be undone.
        let (guest, hypervisor) = tokio::join!(guest, hypervisor);
        let hypervisor = hypervisor.map_err(|e| failure::of_hypervisor(Step::Inventory, &e).into());
        let guest = self.or_leave_alone(guest).map(Option::flatten);
        let result = guest.and_then(|guest| hypervisor.map(|hypervisor| [guest, hypervisor]));
        self.end(Step::Inventory, began, result, |lines| {
            lines.iter().flatten().cloned().collect::<Vec<_>>().join("; ")
        })?;
        if let Some(why) = self.snapshotter.as_ref().and_then(|snapshotter| snapshotter.full_because()) {
            self.reporter.info(format!("a full backup: {why}"));
        }
        Ok(())
    }

    async fn quiesce(&mut self) -> Result<(), Stop> {
        let aware = self.spec.settings.application_aware;
        let Some(guest) = &mut self.guest else { return Ok(()) };
        let known = guest.inventory.as_ref().is_some_and(|inventory| !inventory.applications.is_empty());
        if aware == ApplicationAware::Disabled || !known {
            let why = if known { "the settings leave applications alone" } else { "no known applications" };
            self.reporter.info(format!("nothing to quiesce: {why}"));
            if aware != ApplicationAware::Disabled {
                guest.quiesced = Some(Vec::new());
            }
            return Ok(());
        }
        let began = self.begin(Step::Quiesce, "");
        let Some(guest) = &mut self.guest else { return Ok(()) };
        let result = guest.quiesce(&self.spec.settings).await.and_then(|(line, failures)| {
            if aware == ApplicationAware::Try {
                failures.iter().for_each(|failure| self.reporter.warning(format!("not at rest: {failure}")));
                return Ok(line);
            }
            if failures.is_empty() {
                return Ok(line);
            }
            let remedy = "bring the application in order, or set application-aware processing to *try* for this VM";
            let cause = failures.join("; ");
            Err(failure::of(Step::Quiesce, Hop::Application, FailureClass::Application, cause, remedy).into())
        });
        self.end(Step::Quiesce, began, result, String::clone).map(drop)
    }

    async fn snapshot_unfrozen(&mut self) -> Result<(), Stop> {
        let began = self.begin(Step::Snapshot, "without a freeze");
        let Some(snapshotter) = &mut self.snapshotter else { return Ok(()) };
        let output = InsideOutput::Snapshot(snapshotter.snapshot(false).await.map(Some));
        let result = output.judge(&mut self.snapshot);
        self.end(Step::Snapshot, began, result, String::clone).map(drop)
    }

    fn evidence(&self) -> Evidence {
        let guest = self.guest.as_ref();
        evidence(&Facts {
            inventory: guest.and_then(|guest| guest.inventory.as_ref()),
            quiesced: guest.and_then(|guest| guest.quiesced.as_deref()),
            excluded: &self.spec.settings.excluded_mount_points,
            window: guest.map(|guest| &guest.window),
            snapshot: self.snapshot,
            left_alone: self.left_alone.as_deref(),
        })
    }
}

/// Tells how a step ended, and remembers it.
fn tell_end<T>(
    reporter: &Reporter,
    progress: &mut Progress,
    step: Step,
    took: Duration,
    result: Result<T, Stop>,
    line: impl FnOnce(&T) -> String,
) -> Result<T, Stop> {
    let (outcome, line) = match &result {
        Ok(value) => {
            progress.done.insert(step);
            (StepOutcome::Ok, line(value))
        }
        Err(Stop::Cancelled(reason)) => (StepOutcome::Cancelled, reason.clone()),
        Err(Stop::Failed(failure)) => (StepOutcome::Failed, format!("{}; {}", failure.cause, failure.remedy)),
    };
    reporter.ended(step, outcome, line, took);
    result
}
