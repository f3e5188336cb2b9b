//! The clock of the server: it begins what schedules and retries ask for, each at its time. What is due is decided by `engine::schedule`; what was
//! seen to stands in the store, together with the session that it began, so that nothing runs twice and nothing is forgotten.
//!
//! It sleeps until the next time that it knows of and looks again at the latest every [`LOOK_MS_MAX`], since a machine's clock can jump. Whoever
//! saves a job or ends a session wakes it.

use crate::server::Server;
use crate::store::StoreError;
use jiff::{SignedDuration, Timestamp};
use lull_engine::session::TaskState;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use uuid::Uuid;

mod retries;
mod schedules;

/// Longest sleep between two looks.
const LOOK_MS_MAX: u64 = 15_000;
/// Pause after a failed look.
const AGAIN_MS: u64 = 5_000;

/// What time it is for schedules, retries, restore points and their retention: the machine's clock, or one that was set for a test. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    ahead_ms: Arc<AtomicI64>,
    wake: Arc<Notify>,
    jumped: Arc<Notify>,
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Clock {
        Clock::default()
    }

    /// The time now.
    pub fn now(&self) -> Timestamp {
        let ahead = SignedDuration::from_millis(self.ahead_ms.load(Ordering::SeqCst));
        Timestamp::now().saturating_add(ahead).unwrap_or(Timestamp::MAX)
    }

    /// Sets it, as an administrator sets the clock of a machine; it goes on from there.
    pub fn set(&self, now: Timestamp) {
        let ahead = now.duration_since(Timestamp::now()).as_millis();
        self.ahead_ms.store(i64::try_from(ahead).unwrap_or_default(), Ordering::SeqCst);
        self.wake();
        self.jumped.notify_one();
    }

    /// Returns once it was set, for who looks less often than schedules do.
    pub(crate) async fn jumped(&self) {
        self.jumped.notified().await;
    }

    /// Something changed: look again.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }
}

/// The name of the time zone that schedules have unless they name one: this machine's, or UTC where it has none that a job could name.
pub fn default_zone() -> String {
    let zone = jiff::tz::TimeZone::system();
    let named = zone.iana_name().filter(|name| *name != "Etc/Unknown" && jiff::tz::TimeZone::get(name).is_ok());
    named.unwrap_or("UTC").to_string()
}

/// Looks at the clock until the server takes no more work.
pub async fn run(server: &Arc<Server>) {
    while !server.stopping.is_cancelled() {
        let sleep_ms = look(server).await;
        tokio::select! {
            () = server.clock.wake.notified() => {}
            () = server.stopping.cancelled() => {}
            () = tokio::time::sleep(Duration::from_millis(sleep_ms)) => {}
        }
    }
}

/// One look; answers how long the next one can wait, in milliseconds. What cannot be read keeps nothing else from its time.
async fn look(server: &Arc<Server>) -> u64 {
    let failed = |what: &str, error: StoreError| tracing::error!(error = &error as &dyn std::error::Error, "{what}");
    let settled = retries::settle(server).await;
    let now = server.clock.now();
    let runs = schedules::see_to(server, now).await;
    let retries = retries::begin_due(server, now).await;
    let longest_ms = if settled.is_ok() && runs.is_ok() && retries.is_ok() { LOOK_MS_MAX } else { AGAIN_MS };
    settled.unwrap_or_else(|error| failed("what follows from sessions cannot be decided", error));
    let mut next = Vec::new();
    for (due, what) in [(runs, "schedules cannot be looked at"), (retries, "what is tried again cannot be looked at")] {
        match due {
            Ok(due) => next.extend(due),
            Err(error) => failed(what, error),
        }
    }
    next.into_iter().min().map_or(longest_ms, |at| {
        let ms = at.duration_since(now).as_millis().clamp(1, i128::from(longest_ms));
        u64::try_from(ms).unwrap_or(longest_ms)
    })
}

/// The session in which a job runs, where it does. A VM whose guest is still being recovered, and what waits for that, keeps nobody from backing up
/// the others.
async fn running(server: &Server, job: Uuid) -> Option<i64> {
    let open = server.book.open_tasks().await;
    let is_recovering = |state: &TaskState| matches!(state, TaskState::Recovering { .. });
    let recovering: BTreeSet<Uuid> =
        open.iter().filter(|task| is_recovering(&task.row.state)).map(|task| task.row.vm).collect();
    let works = |state: &TaskState, vm: Uuid| match state {
        TaskState::Recovering { .. } => false,
        TaskState::Waiting { .. } => !recovering.contains(&vm),
        _ => true,
    };
    let of_job = open.iter().filter(|task| task.row.work.job.0 == job && works(&task.row.state, task.row.vm));
    of_job.map(|task| task.row.session).max()
}
