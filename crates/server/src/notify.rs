//! Tells whoever a job names that one of its sessions ended: a webhook gets a post, a program of the backup server's own gets
//! it on its standard input.
//!
//! ```text
//! session ends ── owed, in the same transaction ──► attempt ──► told
//!                                                    │  ▲
//!                                     pause ◄────────┘  └─ and again, so often ──► given up: a warning
//! ```
//!
//! What is owed survives a restart. A post may so come twice, under one number; a program is started once, and one that was
//! cut off is not started again. An attempt that broke off by a fault of ours is one that failed. Whatever becomes of it, the session's result stays.
//! Decides nothing about sessions.

use crate::instant::us;
use crate::server::Server;
use crate::store::StoreError;
use crate::store::notifications::{Notification, NotifyKind};
use jiff::Timestamp;
use lull_api::session::EventKind;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{Id, JoinError, JoinSet};

pub mod command;
mod report;
pub mod webhook;

/// Longest sleep between two looks.
const LOOK_MS_MAX: u64 = 30_000;
/// Attempts at one time.
const AT_ONCE_MAX: usize = 16;
/// Pause after an attempt that broke off by a fault of ours.
const BROKEN_OFF_MS: u64 = 60_000;

/// How long and how often it is tried to tell somebody.
#[derive(Debug, Clone)]
pub struct NotifyPace {
    /// Longest attempt at a webhook, in milliseconds.
    pub webhook_ms: u64,
    /// Pause after each failed attempt at a webhook, in milliseconds; after one more it is given up.
    pub pauses_ms: Vec<u64>,
    /// Longest run of a command, in milliseconds.
    pub command_ms: u64,
}

impl Default for NotifyPace {
    fn default() -> Self {
        NotifyPace { webhook_ms: 10_000, pauses_ms: vec![5_000, 30_000, 120_000, 600_000], command_ms: 60_000 }
    }
}

/// Tells what is owed, until the server stops.
pub async fn run(server: &Arc<Server>) {
    let mut attempts = Attempts::default();
    loop {
        let sleep_ms = match look(server, &mut attempts).await {
            Ok(sleep_ms) => sleep_ms,
            Err(error) => {
                tracing::error!(%error, "whom to tell of sessions cannot be looked up");
                LOOK_MS_MAX
            }
        };
        tokio::select! {
            () = server.notify_wake.notified() => {}
            Some((id, ended)) = attempts.ended() => {
                if let Err(error) = ended {
                    broke_off(server, id, error).await;
                }
            }
            () = tokio::time::sleep(Duration::from_millis(sleep_ms)) => {}
            () = server.stopped.cancelled() => return,
        }
    }
}

/// Begins the attempts that are due; answers how long the next look can wait.
async fn look(server: &Arc<Server>, attempts: &mut Attempts) -> Result<u64, StoreError> {
    let now_us = us(Timestamp::now());
    let mut sleep_ms = LOOK_MS_MAX;
    if server.stopping.is_cancelled() {
        // It would be cut off: the next start sees to it.
        return Ok(sleep_ms);
    }
    for owed in server.store.notifications().await? {
        if attempts.is_under_way(owed.id) || attempts.count() >= AT_ONCE_MAX {
            continue;
        }
        match u64::try_from(owed.due_us - now_us) {
            Ok(wait_us @ 1..) => sleep_ms = sleep_ms.min(wait_us.div_ceil(1_000)),
            _ => {
                let server = server.clone();
                attempts.begin(owed.id, async move {
                    if let Err(error) = attempt(&server, owed).await {
                        tracing::error!(%error, "whether somebody was told of a session cannot be recorded");
                    }
                });
            }
        }
    }
    Ok(sleep_ms)
}

/// Attempts under way, by what is owed. Each ends for who looks, however it ends.
#[derive(Default)]
struct Attempts {
    tasks: JoinSet<()>,
    owed: BTreeMap<Id, i64>,
}

impl Attempts {
    fn begin(&mut self, owed: i64, attempt: impl Future<Output = ()> + Send + 'static) {
        self.owed.insert(self.tasks.spawn(attempt).id(), owed);
    }

    fn is_under_way(&self, owed: i64) -> bool {
        self.owed.values().any(|known| *known == owed)
    }

    fn count(&self) -> usize {
        self.owed.len()
    }

    /// The next that ends, and how; `None` where none is under way.
    async fn ended(&mut self) -> Option<(i64, Result<(), JoinError>)> {
        let (task, ended) = match self.tasks.join_next_with_id().await? {
            Ok((task, ())) => (task, Ok(())),
            Err(error) => (error.id(), Err(error)),
        };
        self.owed.remove(&task).map(|owed| (owed, ended))
    }
}

/// It counts as an attempt that failed: the next one comes later, and the last one is the end of it.
async fn broke_off(server: &Server, owed: i64, error: JoinError) {
    tracing::error!(%error, "telling somebody of a session broke off by a fault in the backup server; it is tried again");
    let due = us(Timestamp::now()).saturating_add(i64::try_from(BROKEN_OFF_MS * 1_000).unwrap_or(i64::MAX));
    if let Err(error) = server.store.notification_postponed(owed, due).await {
        tracing::error!(%error, "whether somebody was told of a session cannot be recorded");
    }
}

/// One attempt, from its record to what came of it.
async fn attempt(server: &Server, owed: Notification) -> Result<(), StoreError> {
    let pauses_ms: &[u64] = match owed.kind {
        NotifyKind::Webhook => &server.notify.pauses_ms,
        NotifyKind::Command => &[],
    };
    let whom = match owed.kind {
        NotifyKind::Webhook => owed.target.clone(),
        NotifyKind::Command => format!("command {}", owed.target),
    };
    let before = owed.attempts as usize;
    if before > pauses_ms.len() {
        let why = "the backup server was stopped meanwhile or failed at it, and it is not tried again".to_string();
        return give_up(server, &owed, &whom, why).await;
    }
    let pause_ms = pauses_ms.get(before).copied();
    let due =
        |ms: u64| us(Timestamp::now()).saturating_add(i64::try_from(ms.saturating_mul(1_000)).unwrap_or(i64::MAX));
    // Where the server is stopped in the attempt, this is when the next one is due.
    server.store.notification_begun(owed.id, due(pause_ms.unwrap_or(0))).await?;
    let told = match report::of(server, owed.session).await {
        Err(why) => Err(why),
        Ok(report) => match owed.kind {
            NotifyKind::Webhook => webhook::post(server, &owed, &report).await,
            NotifyKind::Command => command::run(server, &owed.target, &report).await,
        },
    };
    match (told, pause_ms) {
        (Ok(how), _) => {
            server.store.notification_over(owed.id).await?;
            note(server, owed.session, "info", format!("{whom} was told of this session: {how}")).await
        }
        (Err(why), Some(pause_ms)) => {
            tracing::warn!(
                session = owed.session,
                "{whom} could not be told of this session and is tried again: {why}"
            );
            server.store.notification_postponed(owed.id, due(pause_ms)).await
        }
        (Err(why), None) => give_up(server, &owed, &whom, why).await,
    }
}

async fn give_up(server: &Server, owed: &Notification, whom: &str, why: String) -> Result<(), StoreError> {
    server.store.notification_over(owed.id).await?;
    let text = format!("{whom} could not be told of this session: {why}");
    tracing::warn!(session = owed.session, "{text}");
    note(server, owed.session, "warning", text).await
}

async fn note(server: &Server, session: i64, level: &str, text: String) -> Result<(), StoreError> {
    let told = EventKind::Note { level: level.into(), text };
    server.book.tell(session, told, Timestamp::now()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_attempt_that_breaks_off_is_not_under_way_for_good() {
        let mut attempts = Attempts::default();
        attempts.begin(1, async { panic!("a fault of ours") });
        attempts.begin(2, async {});
        attempts.begin(3, std::future::pending());
        let mut ended: Vec<(i64, bool)> = Vec::new();
        for _ in 0..2 {
            let (owed, how) = attempts.ended().await.unwrap();
            ended.push((owed, how.is_ok()));
        }
        ended.sort_unstable();
        assert_eq!(ended, [(1, false), (2, true)]);
        assert_eq!([1, 2, 3].map(|owed| attempts.is_under_way(owed)), [false, false, true]);
        assert_eq!(attempts.count(), 1);
    }
}
