//! The middle of a task: freeze, snapshot (or the caller's, or none), thaw; and what follows where that did not go well.
//!
//! Knows what a freeze that failed means for the rest of the task; nothing of how it is done.

use super::{HoldWord, Run};
use crate::cancel::Cancel;
use crate::failure::{self, Stop};
use crate::guest_session::{Inside, Pulse};
use crate::order::Work;
use crate::reporter::{StepOutcome, counted, millis};
use lull_engine::consistency::SnapshotEvidence;
use lull_engine::failover::FailureClass;
use lull_engine::session::Hop;
use lull_engine::settings::ApplicationAware;
use lull_engine::timeline::Step;
use lull_guest_wire::{FreezeId, Frozen, RefusalKind};
use lull_hypervisor::{HypervisorError, SnapshotTaken};
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::task_event::Event;
use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Why the guest was not frozen or not thawed in order, and the component's word where it refused.
type Trouble = (Stop, Option<RefusalKind>);

/// When what began.
struct Times {
    began: Instant,
    snapshot_began: Option<Instant>,
    thaw_began: Option<Instant>,
}

impl Run<'_> {
    /// Freeze, snapshot (or hold, or nothing), thaw.
    pub(super) async fn rest_and_snapshot(&mut self) -> Result<(), Stop> {
        if !self.in_guest() {
            return self.snapshot_unfrozen().await;
        }
        let began = self.begin(Step::Freeze, "");
        let freeze = FreezeId(rand::random::<u64>() | 1);
        let (settings, lease) = (self.spec.settings.clone(), self.spec.lease());
        let Some(guest) = &mut self.guest else { return Ok(()) };
        let trouble = match guest.arm(freeze, lease, &settings.excluded_mount_points).await {
            Ok(()) => self.window(freeze, began).await?,
            Err((stop, refused)) => Some((stop, refused)),
        };
        let Some((stop, refused)) = trouble else { return Ok(()) };
        if refused.is_some() {
            // The component's own word that nothing stays frozen.
            self.progress.done.insert(Step::Thaw);
        }
        let somebody_else = refused == Some(RefusalKind::SomebodyElse);
        let taken = self.progress.done.contains(&Step::Snapshot);
        // A snapshot that was begun and failed is not tried a second time on what it may have left.
        let may_go_on = self.tries() && !somebody_else && (taken || !self.progress.begun.contains(&Step::Snapshot));
        let failure = match stop {
            Stop::Failed(failure) if may_go_on => failure,
            stop => return Err(stop),
        };
        if taken {
            let worth = "the restore point is no better than crash-consistent";
            self.reporter.warning(format!("{}; {worth}", failure.cause));
        } else {
            self.leave_alone(&failure);
        }
        if !self.progress.done.contains(&Step::Thaw) {
            self.undo_freeze().await?;
        }
        if taken { Ok(()) } else { self.snapshot_unfrozen().await }
    }

    /// The window itself. `Ok(None)`: everything as it should be.
    async fn window(&mut self, freeze: FreezeId, began: Instant) -> Result<Option<Trouble>, Stop> {
        let lease = self.spec.lease();
        let Run { guest, snapshotter, hold, reporter, cancel, spec, .. } = self;
        let Some(guest) = guest else { return Ok(None) };
        reporter.hold_back();
        let frozen_line = |frozen: &Frozen| {
            let slowest_us = frozen.superblocks.iter().map(|(_, us)| *us).max().unwrap_or(0);
            format!("{}, the slowest in {}", counted(frozen.superblocks.len(), "file system"), millis(slowest_us))
        };
        let told = reporter.clone();
        let (snapshot_began, thaw_began) = (OnceLock::new(), OnceLock::new());
        let (output, trouble, refused) = match &spec.work {
            Work::Backup(_) => {
                let snapshotter = snapshotter.as_mut();
                let inside = |frozen: &Frozen| {
                    told.ended(Step::Freeze, StepOutcome::Ok, frozen_line(frozen), began.elapsed());
                    let _ = snapshot_began.set(told.started(Step::Snapshot, ""));
                    let thaw_began = &thaw_began;
                    async move {
                        let taken = match snapshotter {
                            Some(snapshotter) => snapshotter.snapshot(true).await.map(Some),
                            None => Ok(None),
                        };
                        let _ = thaw_began.set(Instant::now());
                        taken
                    }
                };
                let Inside { output, trouble, refused } = guest.frozen(freeze, lease, Pulse::EverySecond, inside).await;
                (output.map(InsideOutput::Snapshot), trouble, refused)
            }
            Work::Hold => {
                let (pulse, beats) = mpsc::channel(4);
                let facts = HashMap::from([
                    ("LULL_VM".to_string(), spec.vm_name.clone()),
                    ("LULL_FREEZE_ID".to_string(), freeze.0.to_string()),
                ]);
                let inside = |frozen: &Frozen| {
                    told.ended(Step::Freeze, StepOutcome::Ok, frozen_line(frozen), began.elapsed());
                    let _ = snapshot_began.set(told.started(Step::Snapshot, "the caller's"));
                    told.tell(Event::HoldReady(v1::HoldReady { facts }));
                    let thaw_began = &thaw_began;
                    async move {
                        let word = await_hold(hold, pulse, Duration::from_millis(lease.lease_ms), cancel).await;
                        let _ = thaw_began.set(Instant::now());
                        word
                    }
                };
                let Inside { output, trouble, refused } =
                    guest.frozen(freeze, lease, Pulse::Relayed(beats), inside).await;
                (output.map(InsideOutput::Hold), trouble, refused)
            }
            Work::Rehearse => {
                let inside = |frozen: &Frozen| {
                    told.ended(Step::Freeze, StepOutcome::Ok, frozen_line(frozen), began.elapsed());
                    let _ = thaw_began.set(Instant::now());
                    std::future::ready(())
                };
                let Inside { trouble, refused, .. } = guest.frozen(freeze, lease, Pulse::EverySecond, inside).await;
                (None, trouble, refused)
            }
        };
        let thawed = guest.window.thawed.is_some();
        let reached = guest.window.frozen.is_some();
        let times = Times { began, snapshot_began: snapshot_began.into_inner(), thaw_began: thaw_began.into_inner() };
        self.after_window(output, times, (thawed, reached), trouble, refused)
    }

    /// Once the guest writes again: what the window came to is told and remembered.
    fn after_window(
        &mut self,
        output: Option<InsideOutput>,
        Times { began, snapshot_began, thaw_began }: Times,
        (thawed, reached): (bool, bool),
        trouble: Option<Stop>,
        refused: Option<RefusalKind>,
    ) -> Result<Option<Trouble>, Stop> {
        self.progress.begun.insert(Step::Freeze);
        let mut stop = None;
        if reached {
            self.progress.done.insert(Step::Freeze);
        } else if let Some(trouble) = &trouble {
            let told: Result<(), Stop> = Err(trouble.clone());
            let _ = self.end(Step::Freeze, began, told, |()| String::new());
        }
        if let (Some(output), Some(began), Some(ended)) = (output, snapshot_began, thaw_began) {
            self.progress.begun.insert(Step::Snapshot);
            let result = output.judge(&mut self.snapshot);
            stop = self.end_after(Step::Snapshot, ended - began, result, String::clone).err();
        }
        if let (true, Some(_), Some(guest)) = (thawed, thaw_began, &self.guest) {
            self.progress.begun.insert(Step::Thaw);
            self.reporter.started(Step::Thaw, "");
            guest.tell_thaw();
        }
        if thawed {
            self.progress.done.insert(Step::Thaw);
        }
        self.reporter.let_go();
        if let Some(trouble) = trouble {
            return Ok(Some((trouble, refused)));
        }
        if let Some(stop) = stop {
            return Err(stop);
        }
        let whole = self.guest.as_ref().is_some_and(|guest| guest.window.is_whole());
        if !whole && self.spec.settings.application_aware == ApplicationAware::RequireSuccess {
            let gaps = self.guest.as_ref().and_then(|guest| guest.window.thawed.as_ref());
            let gaps = gaps.map(|thawed| thawed.gaps.join("; ")).unwrap_or_default();
            let cause = format!("the guest was not frozen from the snapshot's beginning to its end: {gaps}");
            let remedy = "see what else freezes or thaws in the guest, or raise lease and budget";
            return Err(failure::of(Step::Thaw, Hop::FileSystem, FailureClass::FileSystem, cause, remedy).into());
        }
        Ok(None)
    }
}

/// What happened inside the window.
pub(super) enum InsideOutput {
    Snapshot(Result<Option<SnapshotTaken>, HypervisorError>),
    Hold(Result<String, Stop>),
}

impl InsideOutput {
    pub(super) fn judge(self, evidence: &mut SnapshotEvidence) -> Result<String, Stop> {
        match self {
            InsideOutput::Snapshot(Ok(Some(taken))) => {
                *evidence = SnapshotEvidence { taken: true, atomic: taken.atomic };
                let stopped = if taken.vm_was_stopped { ", the VM stood still for it" } else { "" };
                Ok(format!("{} in {}{stopped}", taken.disks.join(", "), millis(taken.window_us)))
            }
            InsideOutput::Snapshot(Ok(None)) => Ok("none".into()),
            InsideOutput::Snapshot(Err(e)) => Err(failure::of_hypervisor(Step::Snapshot, &e).into()),
            InsideOutput::Hold(word) => {
                let line = word?;
                // Of the caller's snapshot nothing is known but that it was taken.
                *evidence = SnapshotEvidence { taken: true, atomic: false };
                Ok(line)
            }
        }
    }
}

/// Waits for the caller's end, passing its renewals on. A caller that is silent for `lease` has lost its hold.
async fn await_hold(
    words: &mut mpsc::Receiver<HoldWord>,
    pulse: mpsc::Sender<()>,
    lease: Duration,
    cancel: &Cancel,
) -> Result<String, Stop> {
    loop {
        let word = tokio::select! {
            word = tokio::time::timeout(lease, words.recv()) => word,
            () = cancel.cancelled() => return Err(cancel.stop()),
        };
        let failed = |cause: String, remedy: &str| {
            Err(failure::of(Step::Snapshot, Hop::Caller, FailureClass::Caller, cause, remedy).into())
        };
        match word {
            // A full pulse means that a renewal is under way already.
            Ok(Some(HoldWord::Renew)) => drop(pulse.try_send(())),
            Ok(Some(HoldWord::End { succeeded: true, detail })) => return Ok(detail),
            Ok(Some(HoldWord::End { succeeded: false, detail })) => {
                return failed(format!("the caller's command failed: {detail}"), "see the command's own output");
            }
            Ok(None) => return failed("the caller is gone".into(), "run the command again"),
            Err(_) => {
                let cause = format!("the caller did not renew its hold for {} ms", lease.as_millis());
                return failed(cause, "see why the caller stopped, then run the command again");
            }
        }
    }
}
