//! The way back: whatever is still owed, in the order that the engine says, and the account at the end.
//!
//! Nothing here is cancelled, and nothing here stops at a failure: what could not be undone is told and recorded.

use super::Run;
use crate::failure::{self, Stop};
use crate::receipt::GuestLook;
use crate::reporter::StepOutcome;
use lull_engine::consistency::Evidence;
use lull_engine::failover::FailureClass;
use lull_engine::session::Hop;
use lull_engine::timeline::{Step, Undo, still_to_run};
use lull_proxy_wire::v1;
use std::time::Duration;

/// A component that was told to go is waited for so long: the last user of an unlinked program on a frozen root hangs
/// until the thaw, and is gone right after.
const GONE_WITHIN: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(300);

impl Run<'_> {
    /// Undoes what is owed, looks, and says how the task ended.
    pub(super) async fn back(mut self, result: Result<(), Stop>) -> v1::Finished {
        let mut result = result;
        let mut receipt = v1::Receipt::default();
        let owed = still_to_run(&self.progress);
        for undo in owed.iter().filter(|undo| **undo != Undo::Receipt) {
            match undo {
                Undo::Thaw => {
                    if let Err(stop) = self.undo_freeze().await {
                        result = Err(stop);
                    }
                }
                Undo::Release => self.warn_if_failed(Step::Release).await,
                Undo::PostScript => self.undo_pre_script().await,
                Undo::SweepHypervisor => self.sweep_hypervisor(&mut receipt).await,
                // Abandoning the backup removes its files.
                Undo::DiscardPartialFile => {}
                Undo::Remove => self.warn_if_failed(Step::Remove).await,
                Undo::Receipt => {}
            }
        }
        // Who was refused at the door left nothing there; to make sure would be another attempt.
        let entered = self.progress.done.contains(&Step::Deploy);
        let refused = self.guest.as_ref().is_some_and(|guest| guest.refused().is_some());
        self.receipt(owed.contains(&Undo::Receipt) && (entered || !refused), &mut receipt).await;
        receipt.thaw_confirmed = !still_to_run(&self.progress).contains(&Undo::Thaw);
        receipt.hypervisor_untouched = !self.progress.begun.contains(&Step::Inventory);
        if let Some(guest) = &mut self.guest {
            guest.close().await;
        }
        self.account(result, receipt)
    }

    /// The ladder, told as the thaw that it is.
    pub(super) async fn undo_freeze(&mut self) -> Result<(), Stop> {
        let began = self.begin(Step::Thaw, "");
        let lease = self.spec.lease();
        let Some(guest) = &mut self.guest else { return Ok(()) };
        let result = guest.thaw_by_ladder(lease).await.map_err(|nobody| {
            let remedy = "run that command in the guest at once, or restart the guest";
            Stop::from(failure::of(Step::Thaw, Hop::FileSystem, FailureClass::FileSystem, nobody, remedy))
        });
        self.end(Step::Thaw, began, result, String::clone).map(drop)
    }

    async fn warn_if_failed(&mut self, step: Step) {
        if let Err(Stop::Failed(failure)) = self.guest_step(step).await {
            self.reporter.warning(failure.to_string());
        }
    }

    async fn undo_pre_script(&mut self) {
        if let Err(Stop::Failed(failure)) = self.post_script().await {
            self.reporter.warning(format!("the post-thaw script: {failure}"));
        }
    }

    async fn sweep_hypervisor(&mut self, receipt: &mut v1::Receipt) {
        let Some(snapshotter) = &mut self.snapshotter else { return };
        match snapshotter.abandon().await {
            Ok(report) => {
                if report.continued {
                    self.reporter.warning("the VM stood still because of this task and was continued");
                }
                receipt.left_in_hypervisor.extend(report.remaining);
            }
            Err(e) => self.reporter.warning(format!("the hypervisor was not swept: {}; {}", e.cause, e.remedy)),
        }
        self.progress.hypervisor_swept = true;
    }

    /// A fresh look into guest and hypervisor.
    async fn receipt(&mut self, look_into_guest: bool, receipt: &mut v1::Receipt) {
        let look_at_hypervisor = self.snapshotter.is_some() && self.progress.begun.contains(&Step::Inventory);
        if !look_into_guest && !look_at_hypervisor {
            return;
        }
        let began = self.begin(Step::Receipt, "");
        let mut troubles = Vec::new();
        if let (true, Some(guest)) = (look_into_guest, &mut self.guest) {
            let until = tokio::time::Instant::now() + GONE_WITHIN;
            let look = loop {
                let look = guest.look().await;
                let waits = matches!(&look, Ok(GuestLook { processes, .. }) if !processes.is_empty());
                if !waits || tokio::time::Instant::now() >= until {
                    break look;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            };
            match look {
                Ok(look) => {
                    receipt.guest_checked = true;
                    receipt.left_in_guest = look.left();
                }
                Err(e) => troubles.push(format!("no look into the guest: {e}")),
            }
            receipt.rightly_remains = guest.rightly_remains();
        }
        if let (true, Some(snapshotter)) = (look_at_hypervisor, &mut self.snapshotter) {
            match snapshotter.left().await {
                Ok(left) => {
                    receipt.hypervisor_checked = true;
                    receipt.left_in_hypervisor = left;
                }
                Err(e) => troubles.push(format!("no look at the hypervisor: {}", e.cause)),
            }
        }
        let left: Vec<&String> = receipt.left_in_guest.iter().chain(&receipt.left_in_hypervisor).collect();
        let clean = left.is_empty() && troubles.is_empty();
        let line = match (left.is_empty(), troubles.is_empty()) {
            (true, true) => "nothing of ours is left".to_string(),
            (true, false) => troubles.join("; "),
            _ => format!("left: {}", left.into_iter().cloned().chain(troubles).collect::<Vec<_>>().join(", ")),
        };
        if clean {
            self.progress.done.insert(Step::Receipt);
        } else {
            self.reporter.warning(&line);
        }
        self.reporter.ended(
            Step::Receipt,
            if clean { StepOutcome::Ok } else { StepOutcome::Warning },
            line,
            began.elapsed(),
        );
    }

    /// Empty where the guest was none of the task's business.
    pub(super) fn evidence_json(&self, evidence: &Evidence) -> String {
        if self.guest.is_some() || self.left_alone.is_some() { json(evidence) } else { String::new() }
    }

    fn account(mut self, result: Result<(), Stop>, receipt: v1::Receipt) -> v1::Finished {
        let evidence_json = self.evidence_json(&self.evidence());
        let inventory = self.guest.as_mut().and_then(|guest| guest.inventory.take());
        let refused =
            self.guest.as_ref().and_then(|guest| guest.refused()).map(ToString::to_string).unwrap_or_default();
        let (outcome, failure_json) = match &result {
            Ok(()) if self.reporter.has_warnings() => ("warning", String::new()),
            Ok(()) => ("success", String::new()),
            Err(Stop::Cancelled(_)) => ("cancelled", String::new()),
            Err(Stop::Failed(failure)) => ("failed", json(failure)),
        };
        v1::Finished {
            outcome: outcome.into(),
            failure_json,
            evidence_json,
            inventory_json: inventory.as_ref().map(json).unwrap_or_default(),
            receipt: Some(receipt),
            refused,
        }
    }
}

/// These types hold text keys and plain values only, which JSON always takes.
fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
