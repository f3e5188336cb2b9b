//! *Try, ignore failures*: when a backup goes on although the guest could not be brought to rest, and what then follows.
//!
//! ```text
//! application ── an application does not come to rest ──► file-system ── no way in, no component, no freeze ──► crash
//! ```
//!
//! Each fall is told with its cause, and the evidence keeps it. Scripts have a mode of their own: one that must succeed fails
//! the task in *try* mode too. Knows nothing of how a step is done.

use super::Run;
use crate::channel::FailureKind;
use crate::failure::Stop;
use crate::order::{TaskSpec, Work};
use lull_engine::failover::FailureClass;
use lull_engine::session::TaskFailure;
use lull_engine::settings::{ApplicationAware, ScriptMode};
use lull_engine::timeline::Step;
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::task_event::Event;

/// Why the guest is left alone before anything began, where it is.
pub(super) fn from_the_beginning(spec: &TaskSpec, has_guest: bool) -> Option<String> {
    let because = || spec.left_alone_because.clone().unwrap_or_else(|| "guest processing is disabled".into());
    (!has_guest && matches!(spec.work, Work::Backup(_))).then(because)
}

impl Run<'_> {
    /// Whether anything new may be done in the guest.
    pub(super) fn in_guest(&self) -> bool {
        self.guest.is_some() && self.left_alone.is_none()
    }

    /// What a step in the guest before the freeze came to. Where its failure does not end the task, the guest is left alone
    /// from here on.
    pub(super) fn or_leave_alone<T>(&mut self, result: Result<T, Stop>) -> Result<Option<T>, Stop> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(Stop::Failed(failure)) if self.goes_on_after(&failure) => {
                self.leave_alone(&failure);
                Ok(None)
            }
            Err(stop) => Err(stop),
        }
    }

    /// The snapshot is there: what fails in the guest now is a warning in *try* mode. What is owed to the guest still is.
    pub(super) fn or_warn(&mut self, result: Result<(), Stop>) -> Result<(), Stop> {
        match result {
            Err(Stop::Failed(failure)) if self.goes_on_after(&failure) => {
                self.reporter.warning(failure.to_string());
                Ok(())
            }
            result => result,
        }
    }

    /// Nothing new is done in the guest from here on.
    pub(super) fn leave_alone(&mut self, failure: &TaskFailure) {
        self.reporter.warning(format!("{}; the restore point will be crash-consistent", failure.cause));
        let refused = self.guest.as_ref().and_then(|guest| guest.refused());
        // Who was refused at the door put nothing there; where the answer stayed open, something may be.
        let at_the_door = refused.is_some_and(|refused| refused.kind == FailureKind::Refused);
        let untouched =
            !self.progress.begun.contains(&Step::Deploy) || at_the_door && !self.progress.done.contains(&Step::Deploy);
        let refused = refused.map(ToString::to_string).unwrap_or_default();
        self.reporter.tell(Event::GuestLeftAlone(v1::GuestLeftAlone { refused, untouched }));
        self.left_alone = Some(failure.cause.clone());
    }

    pub(super) fn tries(&self) -> bool {
        self.spec.settings.application_aware == ApplicationAware::Try && matches!(self.spec.work, Work::Backup(_))
    }

    fn goes_on_after(&self, failure: &TaskFailure) -> bool {
        let of_script = matches!(failure.step, Some(Step::PreScript | Step::PostScript));
        let must_succeed = of_script && self.spec.settings.scripts.linux.mode == ScriptMode::RequireSuccess;
        // Another proxy may reach what this one cannot: a better level than crash.
        let others_turn = failure.class == FailureClass::GuestUnreachable && !self.spec.last_proxy;
        self.tries() && !must_succeed && !others_turn
    }
}
