//! Everything that changes in a session, as a list of [`Write`]s that happen together or not at all: a state never
//! without the event that tells of it, a restore point never without its task knowing.

use super::dispatches::{FAILED, HANDED_ON};
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
use std::io;
use std::sync::{Mutex, PoisonError};
use tokio::sync::oneshot;
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
    /// Events of a proxy's up to this one are recorded.
    Heard {
        /// The task.
        task: Uuid,
        /// Number of the event within the task's last dispatch.
        seq: u64,
    },
    /// What came of a task so far.
    Outcome {
        /// The task.
        task: Uuid,
        /// What.
        outcome: Box<TaskOutcome>,
    },
    /// A task was given to a proxy.
    Dispatched {
        /// The task.
        task: Uuid,
        /// The number of the dispatch.
        epoch: u64,
        /// The proxy's managed server.
        server: Uuid,
        /// Its name.
        name: String,
        /// How near it is to the VM.
        tier: Option<u8>,
    },
    /// The proxy is done with it.
    DispatchEnded {
        /// The task.
        task: Uuid,
        /// The number of the dispatch.
        epoch: u64,
        /// How.
        end: String,
    },
    /// A proxy that failed with the task had it, and another one takes it over now.
    HandedOn {
        /// The task.
        task: Uuid,
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
type Answer = Result<Vec<SessionEvent>, StoreError>;

/// What one caller wants written together.
struct Wanted {
    session: i64,
    writes: Vec<Write>,
    now: Timestamp,
    answer: oneshot::Sender<Answer>,
}

/// What waits to be written. Whoever's turn it is writes all of it with one commit: many tasks share the disk's pace.
#[derive(Default)]
pub struct Queue {
    wanted: Mutex<Vec<Wanted>>,
    turn: tokio::sync::Mutex<()>,
}

const DOING: &str = "recording a session's progress";

impl Store {
    /// Writes all of it; when this returns it is on disk. Answers the events with their numbers. What is called one after another is written in
    /// that order.
    pub async fn write(&self, session: i64, writes: &[Write], now: Timestamp) -> Answer {
        let (answer, answered) = oneshot::channel();
        let wanted = Wanted { session, writes: writes.to_vec(), now, answer };
        self.queue.wanted.lock().unwrap_or_else(PoisonError::into_inner).push(wanted);
        // Beside the caller: one who goes away takes nobody's writes with him.
        let store = self.clone();
        tokio::spawn(async move { store.write_waiting().await });
        answered.await.unwrap_or_else(|_| Err(self.failed(DOING, sqlx::Error::WorkerCrashed)))
    }

    async fn write_waiting(&self) {
        let _turn = self.queue.turn.lock().await;
        let wanted = std::mem::take(&mut *self.queue.wanted.lock().unwrap_or_else(PoisonError::into_inner));
        if wanted.is_empty() {
            return;
        }
        let mut answers = Vec::with_capacity(wanted.len());
        let done = self.write_together(wanted, &mut answers).await;
        for (to, answer) in answers {
            // Who went away does not hear it.
            let _ = to.send(match &done {
                Ok(()) => answer,
                Err(error) => Err(self.said_again(error)),
            });
        }
    }

    /// In one transaction; what cannot be written of one leaves the others alone.
    async fn write_together(
        &self,
        wanted: Vec<Wanted>,
        answers: &mut Vec<(oneshot::Sender<Answer>, Answer)>,
    ) -> Result<(), StoreError> {
        let begun = self.begin(DOING).await;
        let mut tx = match begun {
            Ok(tx) => tx,
            Err(error) => {
                answers.extend(wanted.into_iter().map(|wanted| (wanted.answer, Ok(Vec::new()))));
                return Err(error);
            }
        };
        let mut savepoints = Ok(());
        for Wanted { session, writes, now, answer } in wanted {
            let mut written = Ok(Vec::new());
            if savepoints.is_ok() {
                savepoints = savepoint(&mut tx, "SAVEPOINT one").await;
                written = self.write_one(&mut tx, session, &writes, now).await;
                let end = if written.is_ok() { "RELEASE one" } else { "ROLLBACK TO one; RELEASE one" };
                savepoints = savepoints.and(savepoint(&mut tx, end).await);
            }
            answers.push((answer, written));
        }
        savepoints.map_err(|error| self.failed(DOING, error))?;
        self.commit_tx(tx, DOING).await
    }

    /// A failure of the whole transaction, for one of those who wrote in it.
    fn said_again(&self, error: &StoreError) -> StoreError {
        match error {
            StoreError::Damaged { path, what } => StoreError::Damaged { path: path.clone(), what: what.clone() },
            StoreError::Database { source, .. } => {
                self.failed(DOING, sqlx::Error::Io(io::Error::other(source.to_string())))
            }
            other => self.failed(DOING, sqlx::Error::Io(io::Error::other(other.to_string()))),
        }
    }

    async fn write_one(&self, tx: &mut Tx, session: i64, writes: &[Write], now: Timestamp) -> Answer {
        let last = sqlx::query_scalar::<_, i64>("SELECT last_event FROM sessions WHERE id = $1")
            .bind(session)
            .fetch_optional(&mut **tx)
            .await
            .map_err(|e| self.failed(DOING, e))?
            .ok_or(StoreError::Missing { kind: "session" })?;
        let mut events = Vec::new();
        for write in writes {
            if let Write::Event { task, event } = write {
                let seq = last.unsigned_abs() + events.len() as u64 + 1;
                let (task, vm) = task.clone().unzip();
                let event = SessionEvent { seq, at: rfc3339(now), task, vm, event: event.clone() };
                self.insert_event(tx, session, &event).await?;
                events.push(event);
            } else {
                self.apply(tx, session, write, now).await?;
            }
            if let Write::Session(SessionState::Finished { outcome, .. }) = write {
                let succeeded = *outcome == Outcome::Success;
                self.enqueue_notifications(tx, session, succeeded, us(now)).await?;
            }
        }
        sqlx::query("UPDATE sessions SET last_event = last_event + $2 WHERE id = $1")
            .bind(session)
            .bind(events.len() as i64)
            .execute(&mut **tx)
            .await
            .map_err(|e| self.failed(DOING, e))?;
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
            Write::Heard { task, seq } => {
                let sql = "UPDATE tasks SET heard = $2 WHERE id = $1";
                ("task", sqlx::query(sql).bind(task.to_string()).bind(i64::try_from(*seq).unwrap_or(i64::MAX)))
            }
            Write::Outcome { task, outcome } => {
                let sql = "UPDATE tasks SET outcome = $2 WHERE id = $1";
                ("task", sqlx::query(sql).bind(task.to_string()).bind(json(outcome)))
            }
            Write::Dispatched { task, epoch, server, name, tier } => {
                let sql = "INSERT INTO dispatches (task, epoch, server, server_name, tier, begun_us) \
                           VALUES ($1, $2, $3, $4, $5, $6)";
                let query = sqlx::query(sql).bind(task.to_string()).bind(i64::try_from(*epoch).unwrap_or(i64::MAX));
                ("dispatch", query.bind(server.to_string()).bind(name).bind(*tier).bind(us(now)))
            }
            Write::DispatchEnded { task, epoch, end } => {
                let sql = "UPDATE dispatches SET ended_us = $3, ended = $4 WHERE task = $1 AND epoch = $2";
                let query = sqlx::query(sql).bind(task.to_string()).bind(i64::try_from(*epoch).unwrap_or(i64::MAX));
                ("dispatch", query.bind(us(now)).bind(end))
            }
            Write::HandedOn { task } => {
                let sql = "UPDATE dispatches SET ended = $2 WHERE task = $1 AND ended = $3";
                ("dispatch", sqlx::query(sql).bind(task.to_string()).bind(HANDED_ON).bind(FAILED))
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
        query.execute(&mut **tx).await.map(drop).map_err(|e| self.refused(kind, DOING, e))
    }
}

async fn savepoint(tx: &mut Tx, sql: &'static str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(sql).execute(&mut **tx).await.map(drop)
}
