//! Sessions and their tasks: begun, listed, read. What changes in them afterwards goes through [`super::writes`].

use super::timing::BegunBy;
use super::{Store, StoreError, json};
use crate::instant::{from_us, us};
use jiff::Timestamp;
use lull_api::session::SessionEvent;
use lull_engine::chain::POINTS_PER_CHAIN;
use lull_engine::failover::FailureClass;
use lull_engine::ids::{CredentialId, JobId, RepositoryId, RestorePointId, TaskId};
use lull_engine::infrastructure::{CredentialKind, Platform};
use lull_engine::session::{Hop, Left, Owed, SessionState, TaskFailure, TaskState};
use lull_engine::settings::{ApplicationAware, GuestProcessing, ScriptMode};
use serde::{Deserialize, Serialize};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionKind {
    /// A run of a backup job.
    Backup,
    /// A hold for a command on the caller's side.
    Quiesce,
    /// Freeze and thaw without a snapshot.
    Rehearse,
    /// A look along every hop.
    Test,
}

impl fmt::Display for SessionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Backup => "backup",
            Self::Quiesce => "quiesce",
            Self::Rehearse => "rehearse",
            Self::Test => "test",
        })
    }
}

impl FromStr for SessionKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Backup, Self::Quiesce, Self::Rehearse, Self::Test]
            .into_iter()
            .find(|kind| kind.to_string() == text)
            .ok_or_else(|| format!("\"{text}\" is no kind of session"))
    }
}

/// Where a backup goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupPlan {
    /// The repository.
    pub repository: RepositoryId,
    /// Its folder when the session began.
    pub repository_dir: String,
    /// The restore point's id.
    pub restore_point: RestorePointId,
    /// Limit of the copy, in bytes per second; 0 for none.
    pub copy_limit_bytes_per_s: u64,
    /// A new full backup every so many restore points.
    #[serde(default = "points_per_chain")]
    pub full_every: u32,
    /// The restore point that the last order named to build on.
    #[serde(default)]
    pub parent: Option<Uuid>,
}

fn points_per_chain() -> u32 {
    POINTS_PER_CHAIN
}

impl BackupPlan {
    /// The restore point's id as proxies and hypervisors know it: the last 16 hexadecimal digits, all of them random,
    /// since names inside a hypervisor are short.
    pub fn short_id(&self) -> String {
        short_id(self.restore_point.0)
    }
}

/// See [`BackupPlan::short_id`].
pub fn short_id(restore_point: Uuid) -> String {
    let digits = restore_point.simple().to_string();
    digits[16..].to_string()
}

/// What a task has to do, fixed when its session begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskWork {
    /// What the session is for.
    pub kind: SessionKind,
    /// The job; without one, an id of the session's own, by which slots are shared out fairly.
    pub job: JobId,
    /// OS family of the guest, as far as known.
    pub guest_os: Option<Platform>,
    /// The guest credential.
    pub credential: Option<CredentialId>,
    /// Its kind.
    pub credential_kind: Option<CredentialKind>,
    /// The settings in force.
    pub settings: GuestProcessing,
    /// For a backup: where it goes.
    pub backup: Option<BackupPlan>,
    /// Why the guest is left alone, where it turned out that it must be: a backup in *try* mode goes on without.
    #[serde(default)]
    pub left_alone: Option<String>,
}

impl TaskWork {
    /// Whether the backup goes on where nothing can be done in the guest.
    pub fn may_leave_alone(&self) -> bool {
        self.kind == SessionKind::Backup && self.settings.application_aware == ApplicationAware::Try && self.in_guest()
    }

    /// Whether anything is to be done in the guest.
    pub fn in_guest(&self) -> bool {
        self.left_alone.is_none() && self.wants_guest()
    }

    fn wants_guest(&self) -> bool {
        self.settings.application_aware != ApplicationAware::Disabled || self.kind != SessionKind::Backup
    }

    /// The post-thaw script, where there is one to run.
    pub fn post_script(&self) -> Option<&str> {
        let scripts = &self.settings.scripts.linux;
        scripts.post.as_deref().filter(|_| self.in_guest() && scripts.mode != ScriptMode::Disabled)
    }
}

/// What came of a task, beyond its state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskOutcome {
    /// Consistency level reached.
    pub level: Option<String>,
    /// Why it is not better.
    pub level_reasons: Vec<String>,
    /// Proof that nothing stayed behind.
    pub receipt: Option<lull_api::session::Receipt>,
    /// What the guest is.
    pub inventory: Option<serde_json::Value>,
}

/// A task to begin.
#[derive(Debug, Clone, PartialEq)]
pub struct NewTask {
    /// Its id.
    pub id: Uuid,
    /// The VM.
    pub vm: Uuid,
    /// The VM's name.
    pub vm_name: String,
    /// What it has to do.
    pub work: TaskWork,
}

/// A session to begin.
#[derive(Debug, Clone, PartialEq)]
pub struct NewSession<'a> {
    /// What it is for.
    pub kind: SessionKind,
    /// Its job, with its name.
    pub job: Option<(Uuid, &'a str)>,
    /// Who begins it.
    pub by: BegunBy,
    /// What the clock of schedules says: runs of the job that were due up to here are seen to.
    pub seen: Timestamp,
    /// Its tasks.
    pub tasks: Vec<NewTask>,
}

/// A session.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionRow {
    /// Number.
    pub id: i64,
    /// What it is for.
    pub kind: SessionKind,
    /// Its job.
    pub job: Option<Uuid>,
    /// Its job's name when it began.
    pub job_name: Option<String>,
    /// Who began it.
    pub by: BegunBy,
    /// It was cancelled because the server stopped.
    pub cut_short: bool,
    /// Where it stands.
    pub state: SessionState,
    /// When it began.
    pub started: Timestamp,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// Number of its newest event.
    pub last_event: u64,
    /// Its VMs' names.
    pub vms: Vec<String>,
}

/// Everything of a session, as of one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct WholeSession {
    /// The session.
    pub row: SessionRow,
    /// Its tasks, in their order.
    pub tasks: Vec<TaskRow>,
    /// Its events, from the first on.
    pub events: Vec<SessionEvent>,
}

/// A task.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskRow {
    /// Id.
    pub id: Uuid,
    /// Its session.
    pub session: i64,
    /// The VM.
    pub vm: Uuid,
    /// The VM's name when it began.
    pub vm_name: String,
    /// What it has to do.
    pub work: TaskWork,
    /// Where it stands.
    pub state: TaskState,
    /// What came of it.
    pub outcome: TaskOutcome,
    /// Number of the last event of its proxy's that is recorded, within its last dispatch.
    pub heard: u64,
}

/// Why a session did not begin.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// Every one of its VMs is in another session.
    #[error("{}", .busy.iter().map(|(vm, session)| format!("{vm} is in session {session}")).collect::<Vec<_>>().join(", "))]
    Busy {
        /// VM's name and the other session's number.
        busy: Vec<(String, i64)>,
    },
    /// The job runs already.
    #[error("job {job} is running: session {session}")]
    Running {
        /// The job's name.
        job: String,
        /// The session that runs it.
        session: i64,
    },
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A session that began.
#[derive(Debug)]
pub struct Begun {
    /// Its number.
    pub session: i64,
    /// Tasks that can only fail, with the session that has their VM; the others wait for a proxy.
    pub busy: Vec<(NewTask, i64)>,
}

const SESSIONS: &str = "SELECT id, kind, job, job_name, state, started_us, ended_us, last_event, begun_by, cut_short, \
    (SELECT json_group_array(vm_name) FROM (SELECT vm_name FROM tasks WHERE session = sessions.id ORDER BY position)) \
    FROM sessions";
const TASKS: &str = "SELECT id, session, vm, vm_name, work, state, outcome, heard FROM tasks";

impl Store {
    /// Begins a session with its tasks, all waiting. A job that runs already is refused, whoever begins it: it never overlaps with itself.
    /// A VM that has an open task already is left out, unless that task is only being recovered: then the new one waits for it. Where none is left, a caller is refused; the clock begins the session even so,
    /// since nobody would hear the refusal.
    pub async fn begin_session(&self, new: NewSession<'_>, now: Timestamp) -> Result<Begun, BeginError> {
        let NewSession { kind, job, by, seen, tasks } = new;
        let doing = "beginning a session";
        let failed = |e| self.failed(doing, e);
        let mut tx = self.begin(doing).await?;
        if let Some((id, name)) = job {
            // As in `clock::running`: what is being recovered, and what waits for that, keeps nobody from backing up the others.
            let sql = "SELECT max(t.session) FROM tasks t JOIN sessions s ON s.id = t.session WHERE s.job = $1 AND t.open = 1 \
                       AND json_extract(t.state, '$.state') <> 'recovering' AND NOT (json_extract(t.state, '$.state') = 'waiting' \
                       AND EXISTS (SELECT 1 FROM tasks r WHERE r.vm = t.vm AND r.open = 1 AND json_extract(r.state, '$.state') = 'recovering'))";
            let running = sqlx::query_scalar::<_, Option<i64>>(sql).bind(id.to_string()).fetch_one(&mut *tx).await;
            if let Some(session) = running.map_err(failed)? {
                return Err(BeginError::Running { job: name.to_string(), session });
            }
        }
        let (mut free, mut busy) = (Vec::new(), Vec::new());
        for task in tasks {
            let sql = "SELECT session FROM tasks WHERE vm = $1 AND open = 1 AND json_extract(state, '$.state') \
                       <> 'recovering' LIMIT 1";
            let other = sqlx::query_scalar::<_, i64>(sql).bind(task.vm.to_string()).fetch_optional(&mut *tx).await;
            match other.map_err(failed)? {
                Some(session) => busy.push((task, session)),
                None => free.push(task),
            }
        }
        if free.is_empty() && !busy.is_empty() && by == BegunBy::Caller {
            let busy = busy.into_iter().map(|(task, session)| (task.vm_name, session)).collect();
            return Err(BeginError::Busy { busy });
        }
        let session = sqlx::query_scalar::<_, i64>(
            "INSERT INTO sessions (kind, job, job_name, state, open, started_us, last_event, begun_by, settled) \
             VALUES ($1, $2, $3, $4, 1, $5, 0, $6, $7) RETURNING id",
        )
        .bind(kind.to_string())
        .bind(job.map(|(id, _)| id.to_string()))
        .bind(job.map(|(_, name)| name))
        .bind(json(&SessionState::Running { since: now }))
        .bind(us(now))
        .bind((by != BegunBy::Caller).then(|| json(&by)))
        .bind(job.is_none())
        .fetch_one(&mut *tx)
        .await
        .map_err(failed)?;
        if let Some((job, _)) = job {
            self.begun(&mut tx, job, &by, seen).await?;
        }
        let waiting = free.iter().map(|task| (task, TaskState::new(now)));
        let all = waiting.chain(busy.iter().map(|(task, other)| (task, in_another(&task.vm_name, *other, now))));
        for (position, (task, state)) in (0i64..).zip(all) {
            sqlx::query(
                "INSERT INTO tasks (id, session, position, vm, vm_name, work, state, open, held) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, 1, 0)",
            )
            .bind(task.id.to_string())
            .bind(session)
            .bind(position)
            .bind(task.vm.to_string())
            .bind(&task.vm_name)
            .bind(json(&task.work))
            .bind(json(&state))
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        }
        self.commit_tx(tx, doing).await?;
        Ok(Begun { session, busy })
    }

    /// The newest sessions, newest first.
    pub async fn sessions(&self, job: Option<Uuid>, limit: u32) -> Result<Vec<SessionRow>, StoreError> {
        let sql = format!("{SESSIONS} WHERE $1 IS NULL OR job = $1 ORDER BY id DESC LIMIT $2");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(job.map(|id| id.to_string()))
            .bind(limit)
            .fetch_all(&self.readers)
            .await
            .map_err(|e| self.failed("reading sessions", e))?;
        rows.iter().map(|row| self.session_row(row)).collect()
    }

    /// One session.
    pub async fn session(&self, id: i64) -> Result<Option<SessionRow>, StoreError> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!("{SESSIONS} WHERE id = $1")))
            .bind(id)
            .fetch_optional(&self.readers)
            .await
            .map_err(|e| self.failed("reading a session", e))?;
        row.map(|row| self.session_row(&row)).transpose()
    }

    /// A session with its tasks and all its events as of one moment, so that none of them is ahead of the others.
    pub async fn whole_session(&self, id: i64) -> Result<Option<WholeSession>, StoreError> {
        let failed = |e| self.failed("reading a session", e);
        let mut moment = self.readers.begin().await.map_err(failed)?;
        let row = sqlx::query(sqlx::AssertSqlSafe(format!("{SESSIONS} WHERE id = $1")));
        let row = row.bind(id).fetch_optional(&mut *moment).await.map_err(failed)?;
        let tasks = sqlx::query(sqlx::AssertSqlSafe(format!("{TASKS} WHERE session = $1 ORDER BY position")));
        let tasks = tasks.bind(id).fetch_all(&mut *moment).await.map_err(failed)?;
        let events = sqlx::query("SELECT doc FROM events WHERE session = $1 ORDER BY seq");
        let events = events.bind(id).fetch_all(&mut *moment).await.map_err(failed)?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(WholeSession {
            row: self.session_row(&row)?,
            tasks: tasks.iter().map(|task| self.task_row(task)).collect::<Result<_, _>>()?,
            events: events.iter().map(|event| self.event(id, event)).collect::<Result<_, _>>()?,
        }))
    }

    /// Number of the newest session; 0 where there is none.
    pub async fn newest_session(&self) -> Result<i64, StoreError> {
        sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM sessions")
            .fetch_one(&self.readers)
            .await
            .map_err(|e| self.failed("reading sessions", e))
    }

    /// Sessions that are not over.
    pub async fn open_sessions(&self) -> Result<Vec<i64>, StoreError> {
        sqlx::query_scalar("SELECT id FROM sessions WHERE open = 1 ORDER BY id")
            .fetch_all(&self.readers)
            .await
            .map_err(|e| self.failed("reading open sessions", e))
    }

    /// The tasks of a session, in their order.
    pub async fn tasks(&self, session: i64) -> Result<Vec<TaskRow>, StoreError> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!("{TASKS} WHERE session = $1 ORDER BY position")))
            .bind(session)
            .fetch_all(&self.readers)
            .await
            .map_err(|e| self.failed("reading tasks", e))?;
        rows.iter().map(|row| self.task_row(row)).collect()
    }

    /// Every task that is not over, oldest session first.
    pub async fn open_tasks(&self) -> Result<Vec<TaskRow>, StoreError> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!("{TASKS} WHERE open = 1 ORDER BY session, position")))
            .fetch_all(&self.readers)
            .await
            .map_err(|e| self.failed("reading open tasks", e))?;
        rows.iter().map(|row| self.task_row(row)).collect()
    }

    /// One task.
    pub async fn task(&self, id: Uuid) -> Result<Option<TaskRow>, StoreError> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!("{TASKS} WHERE id = $1")))
            .bind(id.to_string())
            .fetch_optional(&self.readers)
            .await
            .map_err(|e| self.failed("reading a task", e))?;
        row.map(|row| self.task_row(&row)).transpose()
    }

    /// What the last task that worked in a VM's guest left there, as far as the next one must undo it first.
    pub async fn left_in_guest(&self, vm: Uuid) -> Result<Option<Left>, StoreError> {
        // The session that began last need not have ended last; few are open for one VM at a time.
        let sql = format!(
            "{TASKS} WHERE vm = $1 AND open = 0 AND json_extract(state, '$.epoch') > 0 \
             AND (json_extract(work, '$.kind') <> 'backup' OR json_extract(work, '$.settings.application_aware') <> 'disabled') \
             ORDER BY session DESC LIMIT 8"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(vm.to_string()).fetch_all(&self.readers).await;
        let rows = rows.map_err(|e| self.failed("reading a VM's last task", e))?;
        let mut last: Option<(Timestamp, TaskId, Owed)> = None;
        for row in &rows {
            let task = self.task_row(row)?;
            if let TaskState::Finished { at, still_owed, .. } = task.state
                && last.as_ref().is_none_or(|(latest, ..)| *latest < at)
            {
                last = Some((at, TaskId(task.id), still_owed));
            }
        }
        Ok(last.and_then(|(_, task, still_owed)| Left::of(task, &still_owed)))
    }

    /// Events of a session after number `after`, in order, at most `limit`.
    pub async fn events(&self, session: i64, after: u64, limit: u32) -> Result<Vec<SessionEvent>, StoreError> {
        let sql = "SELECT doc FROM events WHERE session = $1 AND seq > $2 ORDER BY seq LIMIT $3";
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        let rows = sqlx::query(sql).bind(session).bind(after).bind(limit).fetch_all(&self.readers).await;
        let rows = rows.map_err(|e| self.failed("reading events", e))?;
        rows.iter().map(|row| self.event(session, row)).collect()
    }

    fn event(&self, session: i64, row: &SqliteRow) -> Result<SessionEvent, StoreError> {
        self.document(&format!("an event of session {session}"), row.get(0))
    }

    fn session_row(&self, row: &SqliteRow) -> Result<SessionRow, StoreError> {
        let id: i64 = row.get(0);
        let what = format!("session {id}");
        let at = |us: i64| from_us(us).map_err(|e| self.unreadable(&what, e));
        Ok(SessionRow {
            id,
            kind: self.word(&what, row.get(1))?,
            job: row.get::<Option<&str>, _>(2).map(|job| self.word(&what, job)).transpose()?,
            job_name: row.get(3),
            state: self.document(&what, row.get(4))?,
            started: at(row.get(5))?,
            ended: row.get::<Option<i64>, _>(6).map(at).transpose()?,
            last_event: row.get::<i64, _>(7).unsigned_abs(),
            by: row.get::<Option<&str>, _>(8).map(|by| self.document(&what, by)).transpose()?.unwrap_or_default(),
            cut_short: row.get(9),
            vms: self.document(&what, row.get(10))?,
        })
    }

    fn task_row(&self, row: &SqliteRow) -> Result<TaskRow, StoreError> {
        let vm_name: String = row.get(3);
        let session: i64 = row.get(1);
        let what = format!("the task on {vm_name} in session {session}");
        let outcome = match row.get::<Option<&str>, _>(6) {
            Some(text) => self.document(&what, text)?,
            None => TaskOutcome::default(),
        };
        Ok(TaskRow {
            id: self.id(row, 0)?,
            session,
            vm: self.id(row, 2)?,
            work: self.document(&what, row.get(4))?,
            state: self.document(&what, row.get(5))?,
            outcome,
            heard: row.get::<i64, _>(7).unsigned_abs(),
            vm_name,
        })
    }
}

/// A task that cannot begin, and says why once it is closed.
fn in_another(vm: &str, other: i64, now: Timestamp) -> TaskState {
    let failure = TaskFailure {
        step: None,
        hop: Hop::BackupServer,
        cause: format!("{vm} is in session {other}, and nothing was started"),
        remedy: format!("run the job again when session {other} is over, or cancel that one"),
        class: FailureClass::VmBusy,
    };
    TaskState::Waiting { since: now, epoch: 0, tried: Vec::new(), last_failure: Some(failure), paid_for: None }
}
