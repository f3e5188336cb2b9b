//! What is still to be told of sessions that ended. Enqueued together with the session's end: see [`super::writes`].

use super::{Store, StoreError};
use serde::{Deserialize, Serialize};
use sqlx::{Row, Sqlite, Transaction};
use uuid::Uuid;

/// Whom a job tells of its sessions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Notify {
    /// Address to which summaries are posted.
    pub webhook: Option<Webhook>,
    /// The secret under which they are signed, sealed for the job.
    pub secret: Option<Vec<u8>>,
    /// Only of sessions that did not end in success.
    pub only_problems: bool,
    /// Program in the folder `commands/`.
    pub command: Option<String>,
}

/// An address to which summaries are posted. It often holds a token, so it is kept like one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Webhook {
    /// Scheme and host: what people see of it.
    pub shown: String,
    /// All of it, sealed for the job.
    pub address: Vec<u8>,
}

/// How somebody is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotifyKind {
    /// The summary is posted.
    Webhook,
    /// A program gets it.
    Command,
}

/// One that is owed.
#[derive(Debug, Clone, PartialEq)]
pub struct Notification {
    /// Number; the receiver knows a repetition by it.
    pub id: i64,
    /// Of which session.
    pub session: i64,
    /// How.
    pub kind: NotifyKind,
    /// The job.
    pub job: Uuid,
    /// For people: scheme and host of the address, or the program's name.
    pub target: String,
    /// Of a webhook, sealed.
    pub address: Option<Vec<u8>>,
    /// Under which it is signed, sealed.
    pub secret: Option<Vec<u8>>,
    /// Attempts that were begun.
    pub attempts: u32,
    /// When the next one is due, in microseconds since 1970.
    pub due_us: i64,
}

impl Store {
    /// A session ended: whoever its job tells is owed a word from now on.
    pub(super) async fn enqueue_notifications(
        &self,
        tx: &mut Transaction<'static, Sqlite>,
        session: i64,
        succeeded: bool,
        now_us: i64,
    ) -> Result<(), StoreError> {
        for (kind, member) in [("webhook", "$.notify.webhook.shown"), ("command", "$.notify.command")] {
            let sql = "INSERT INTO notifications (session, kind, job, target, address, secret, attempts, due_us) \
                       SELECT sessions.id, $2, jobs.id, json_extract(jobs.doc, $3), \
                              CASE $2 WHEN 'webhook' THEN json_extract(jobs.doc, '$.notify.webhook.address') END, \
                              json_extract(jobs.doc, '$.notify.secret'), 0, $5 \
                       FROM sessions JOIN jobs ON jobs.id = sessions.job \
                       WHERE sessions.id = $1 AND json_extract(jobs.doc, $3) IS NOT NULL \
                         AND NOT ($4 AND json_extract(jobs.doc, '$.notify.only_problems'))";
            let query = sqlx::query(sql).bind(session).bind(kind).bind(member).bind(succeeded).bind(now_us);
            query.execute(&mut **tx).await.map_err(|e| self.failed("recording whom to tell of a session", e))?;
        }
        Ok(())
    }

    /// All that is owed, the oldest first.
    pub async fn notifications(&self) -> Result<Vec<Notification>, StoreError> {
        let sql =
            "SELECT id, session, kind, job, target, address, secret, attempts, due_us FROM notifications ORDER BY id";
        let rows = sqlx::query(sql).fetch_all(&self.readers).await;
        let rows = rows.map_err(|e| self.failed("reading whom to tell of sessions", e))?;
        rows.iter()
            .map(|row| {
                let sealed = |column: usize| {
                    let text = row.get::<Option<&str>, _>(column);
                    text.map(|text| self.document("what is sealed of a notification", text)).transpose()
                };
                Ok(Notification {
                    id: row.get(0),
                    session: row.get(1),
                    kind: if row.get::<&str, _>(2) == "webhook" { NotifyKind::Webhook } else { NotifyKind::Command },
                    job: self.id(row, 3)?,
                    target: row.get(4),
                    address: sealed(5)?,
                    secret: sealed(6)?,
                    attempts: row.get::<i64, _>(7).try_into().unwrap_or(u32::MAX),
                    due_us: row.get(8),
                })
            })
            .collect()
    }

    /// An attempt begins; where it is cut off, the next one is due then.
    pub async fn notification_begun(&self, id: i64, due_us: i64) -> Result<(), StoreError> {
        let sql = "UPDATE notifications SET attempts = attempts + 1, due_us = $2 WHERE id = $1";
        let done = sqlx::query(sql).bind(id).bind(due_us).execute(&self.writer).await;
        done.map(drop).map_err(|e| self.failed("recording that somebody is being told", e))
    }

    /// An attempt failed.
    pub async fn notification_postponed(&self, id: i64, due_us: i64) -> Result<(), StoreError> {
        let sql = "UPDATE notifications SET due_us = $2 WHERE id = $1";
        let done = sqlx::query(sql).bind(id).bind(due_us).execute(&self.writer).await;
        done.map(drop).map_err(|e| self.failed("recording that somebody could not be told", e))
    }

    /// It is told, or given up.
    pub async fn notification_over(&self, id: i64) -> Result<(), StoreError> {
        let done = sqlx::query("DELETE FROM notifications WHERE id = $1").bind(id).execute(&self.writer).await;
        done.map(drop).map_err(|e| self.failed("recording that somebody was told", e))
    }
}
