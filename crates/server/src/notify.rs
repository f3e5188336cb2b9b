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
//! cut off is not started again. Whatever becomes of it, the session's result stays. Decides nothing about sessions.

use crate::instant::us;
use crate::server::Server;
use crate::store::StoreError;
use crate::store::notifications::{Notification, NotifyKind};
use jiff::Timestamp;
use lull_api::session::EventKind;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

pub mod command;
mod report;
pub mod webhook;

/// Longest sleep between two looks.
const LOOK_MS_MAX: u64 = 30_000;
/// Attempts at one time.
const AT_ONCE_MAX: usize = 16;

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
    let mut under_way = BTreeSet::new();
    let mut attempts = JoinSet::new();
    loop {
        let sleep_ms = match look(server, &mut under_way, &mut attempts).await {
            Ok(sleep_ms) => sleep_ms,
            Err(error) => {
                tracing::error!(%error, "whom to tell of sessions cannot be looked up");
                LOOK_MS_MAX
            }
        };
        tokio::select! {
            () = server.notify_wake.notified() => {}
            Some(Ok(id)) = attempts.join_next() => drop(under_way.remove(&id)),
            () = tokio::time::sleep(Duration::from_millis(sleep_ms)) => {}
            () = server.stopped.cancelled() => return,
        }
    }
}

/// Begins the attempts that are due; answers how long the next look can wait.
async fn look(
    server: &Arc<Server>,
    under_way: &mut BTreeSet<i64>,
    attempts: &mut JoinSet<i64>,
) -> Result<u64, StoreError> {
    let now_us = us(Timestamp::now());
    let mut sleep_ms = LOOK_MS_MAX;
    if server.stopping.is_cancelled() {
        // It would be cut off: the next start sees to it.
        return Ok(sleep_ms);
    }
    for owed in server.store.notifications().await? {
        if under_way.contains(&owed.id) || under_way.len() >= AT_ONCE_MAX {
            continue;
        }
        match u64::try_from(owed.due_us - now_us) {
            Ok(wait_us @ 1..) => sleep_ms = sleep_ms.min(wait_us.div_ceil(1_000)),
            _ => {
                under_way.insert(owed.id);
                let server = server.clone();
                attempts.spawn(async move {
                    let id = owed.id;
                    if let Err(error) = attempt(&server, owed).await {
                        tracing::error!(%error, "whether somebody was told of a session cannot be recorded");
                    }
                    id
                });
            }
        }
    }
    Ok(sleep_ms)
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
        let why = "the backup server was stopped meanwhile, and it is not tried again".to_string();
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
