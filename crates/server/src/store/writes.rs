//! Everything that changes in a session, as a list of [`Write`]s that happen together or not at all: a state never
//! without the event that tells of it, a restore point never without its task knowing.

use super::infrastructure::HostKeyRow;
use super::restore_points::RestorePointRow;
use super::sessions::{TaskOutcome, TaskWork};
use super::{Store, StoreError, json};
use crate::instant::{rfc3339, us};
use jiff::Timestamp;
use lull_api::session::{EventKind, SessionEvent};
use lull_engine::failover::{FailureMemory, Refusal, RememberedFailure};
use lull_engine::session::{Outcome, SessionState, TaskState};
use sqlx::{Row, Sqlite, Transaction};
use uuid::Uuid;

/// One thing to write.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// Something happened; numbered when it is written.
    Event {
        /// The task and its VM's name, where it is about one.
        task: Option<(Uuid, String)>,
        /// What.
        event: EventKind,
    },
    /// A task's next state.
    State {
        /// The task.
        task: Uuid,
        /// The state.
        state: Box<TaskState>,
    },
    /// What a task has to do, where that changed.
    Work {
        /// The task.
        task: Uuid,
        /// What.
        work: Box<TaskWork>,
    },
    /// What came of a task so far.
    Outcome {
        /// The task.
        task: Uuid,
        /// What.
        outcome: Box<TaskOutcome>,
    },
    /// The session's next state.
    Session(SessionState),
    /// A restore point.
    RestorePoint(Box<RestorePointRow>),
    /// A guest showed this host key: pinned at first contact, else refused.
    HostKey {
        /// The VM.
        vm: Uuid,
        /// Whether it is to be pinned.
        pin: bool,
        /// The key.
        key: HostKeyRow,
    },
    /// A guest showed its pinned host key: one that was refused before no longer waits for a person.
    HostKeyFits {
        /// The VM.
        vm: Uuid,
    },
    /// A guest refused a credential.
    Refused(Box<Refusal>),
    /// A proxy failed with a VM.
    ProxyFailed(Box<RememberedFailure>),
    /// It succeeded again.
    ProxyForgiven {
        /// The VM.
        vm: Uuid,
        /// The proxy.
        server: Uuid,
    },
}

type Tx = Transaction<'static, Sqlite>;

impl Store {
    /// Writes all of it; when this returns it is on disk. Answers the events with their numbers.
    pub async fn write(&self, session: i64, writes: &[Write], now: Timestamp) -> Result<Vec<SessionEvent>, StoreError> {
        let doing = "recording a session's progress";
        let mut tx = self.begin(doing).await?;
        let last = sqlx::query_scalar::<_, i64>("SELECT last_event FROM sessions WHERE id = $1")
            .bind(session)
            .fetch_optional(&mut *tx)
            .await
            .map_err(|e| self.failed(doing, e))?
            .ok_or(StoreError::Missing { kind: "session" })?;
        let mut events = Vec::new();
        for write in writes {
            if let Write::Event { task, event } = write {
                let seq = last.unsigned_abs() + events.len() as u64 + 1;
                let (task, vm) = task.clone().unzip();
                let event = SessionEvent { seq, at: rfc3339(now), task, vm, event: event.clone() };
                self.insert_event(&mut tx, session, &event).await?;
                events.push(event);
            } else {
                self.apply(&mut tx, session, write, now).await?;
            }
            if let Write::Session(SessionState::Finished { outcome, .. }) = write {
                let succeeded = *outcome == Outcome::Success;
                self.enqueue_notifications(&mut tx, session, succeeded, us(now)).await?;
            }
        }
        sqlx::query("UPDATE sessions SET last_event = last_event + $2 WHERE id = $1")
            .bind(session)
            .bind(events.len() as i64)
            .execute(&mut *tx)
            .await
            .map_err(|e| self.failed(doing, e))?;
        self.commit_tx(tx, doing).await?;
        Ok(events)
    }

    /// Remembered failures of proxies that still count at `now`.
    pub async fn failures(&self, now: Timestamp) -> Result<FailureMemory, StoreError> {
        let rows = sqlx::query("SELECT doc FROM proxy_failures").fetch_all(&self.readers).await;
        let mut memory = FailureMemory::default();
        for row in rows.map_err(|e| self.failed("reading failures of proxies", e))? {
            memory.remember(self.document("a failure of a proxy", row.get(0))?);
        }
        memory.expire(now);
        Ok(memory)
    }

    async fn insert_event(&self, tx: &mut Tx, session: i64, event: &SessionEvent) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO events (session, seq, doc) VALUES ($1, $2, $3)")
            .bind(session)
            .bind(i64::try_from(event.seq).unwrap_or(i64::MAX))
            .bind(json(event))
            .execute(&mut **tx)
            .await
            .map(drop)
            .map_err(|e| self.failed("recording an event", e))
    }

    async fn apply(&self, tx: &mut Tx, session: i64, write: &Write, now: Timestamp) -> Result<(), StoreError> {
        let (kind, query) = match write {
            Write::Event { .. } => return Ok(()),
            Write::State { task, state } => {
                let finished = matches!(**state, TaskState::Finished { .. });
                let held = !finished && !matches!(**state, TaskState::Waiting { .. });
                let query = sqlx::query("UPDATE tasks SET state = $2, open = $3, held = $4 WHERE id = $1")
                    .bind(task.to_string())
                    .bind(json(state))
                    .bind(!finished)
                    .bind(held);
                ("task on the VM", query)
            }
            Write::Work { task, work } => {
                let sql = "UPDATE tasks SET work = $2 WHERE id = $1";
                ("task", sqlx::query(sql).bind(task.to_string()).bind(json(work)))
            }
            Write::Outcome { task, outcome } => {
                let sql = "UPDATE tasks SET outcome = $2 WHERE id = $1";
                ("task", sqlx::query(sql).bind(task.to_string()).bind(json(outcome)))
            }
            Write::Session(state) => {
                let (ended, result) = match state {
                    SessionState::Finished { at, outcome, .. } => (Some(us(*at)), Some(outcome.to_string())),
                    SessionState::Running { .. } | SessionState::Cancelling { .. } => (None, None),
                };
                let sql = "UPDATE sessions SET state = $2, open = $3, result = $4, ended_us = $5 WHERE id = $1";
                let query = sqlx::query(sql).bind(session).bind(json(state));
                ("session", query.bind(ended.is_none()).bind(result).bind(ended))
            }
            Write::RestorePoint(point) => ("restore point", point.insert()),
            Write::HostKey { vm, pin, key } => {
                let sql = "INSERT INTO host_keys (vm, pinned, algorithm, fingerprint, public_key, seen_us) \
                           VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (vm, pinned) DO UPDATE SET algorithm = $3, \
                           fingerprint = $4, public_key = $5, seen_us = $6";
                let query = sqlx::query(sql).bind(vm.to_string()).bind(*pin).bind(&key.algorithm);
                ("host key", query.bind(&key.fingerprint).bind(&key.public_key).bind(us(now)))
            }
            Write::HostKeyFits { vm } => {
                let sql = "DELETE FROM host_keys WHERE vm = $1 AND pinned = 0";
                ("host key", sqlx::query(sql).bind(vm.to_string()))
            }
            Write::Refused(refusal) => {
                let sql = "INSERT INTO credential_rests (credential, vm, doc) VALUES ($1, $2, $3) \
                           ON CONFLICT (credential, vm) DO UPDATE SET doc = $3";
                let query = sqlx::query(sql).bind(refusal.credential.to_string()).bind(refusal.vm.to_string());
                ("refusal", query.bind(json(refusal)))
            }
            Write::ProxyFailed(failure) => {
                let sql = "INSERT INTO proxy_failures (vm, server, doc) VALUES ($1, $2, $3) \
                           ON CONFLICT (vm, server) DO UPDATE SET doc = $3";
                let query = sqlx::query(sql).bind(failure.vm.to_string()).bind(failure.server.to_string());
                ("failure of a proxy", query.bind(json(failure)))
            }
            Write::ProxyForgiven { vm, server } => {
                let sql = "DELETE FROM proxy_failures WHERE vm = $1 AND server = $2";
                ("failure of a proxy", sqlx::query(sql).bind(vm.to_string()).bind(server.to_string()))
            }
        };
        query.execute(&mut **tx).await.map(drop).map_err(|e| self.refused(kind, "recording a session's progress", e))
    }
}
