//! What the clock must not forget: up to when schedules were seen to, which runs did not begin, what is tried again. Decides nothing.

use super::{Store, StoreError, json};
use crate::instant::{from_us, us};
use jiff::Timestamp;
use lull_engine::ids::VmId;
use serde::{Deserialize, Serialize};
use sqlx::{Row, Sqlite, Transaction};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Who began a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub enum BegunBy {
    /// A person or a program.
    #[default]
    Caller,
    /// The job's schedule.
    Schedule {
        /// When the run was due.
        due: Timestamp,
    },
    /// What failed in an earlier session is tried again.
    Retry {
        /// The how manieth further attempt this is.
        attempt: u32,
        /// Of how many.
        times: u32,
        /// The session that the schedule began.
        of: i64,
    },
}

/// A run of a schedule that did not begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedRun {
    /// When it was due.
    pub due: Timestamp,
    /// Why it did not begin.
    pub because: String,
}

/// How far a job's schedule was seen to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobClock {
    /// Runs that were due up to here are over and done with.
    pub seen: Timestamp,
    /// The last one that did not begin.
    pub skipped: Option<SkippedRun>,
}

/// What is tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// When.
    pub due: Timestamp,
    /// The how manieth further attempt it will be.
    pub attempt: u32,
    /// Of how many.
    pub times: u32,
    /// The session that the schedule began.
    pub of: i64,
    /// The VMs.
    pub vms: Vec<VmId>,
}

impl Store {
    /// How far each job's schedule was seen to.
    pub async fn job_clocks(&self) -> Result<BTreeMap<Uuid, JobClock>, StoreError> {
        let rows = sqlx::query("SELECT job, seen_us, skipped FROM job_clocks").fetch_all(&self.readers).await;
        let rows = rows.map_err(|e| self.failed("reading the clocks of jobs", e))?;
        let read = |row: &sqlx::sqlite::SqliteRow| {
            let what = "the clock of a job";
            let skipped = row.get::<Option<&str>, _>(2).map(|text| self.document(what, text)).transpose()?;
            let seen = from_us(row.get(1)).map_err(|e| self.unreadable(what, e))?;
            Ok((self.id(row, 0)?, JobClock { seen, skipped }))
        };
        rows.iter().map(read).collect()
    }

    /// Runs of the job that were due up to `seen` are seen to; `skipped` did not begin.
    pub async fn see_to(&self, job: Uuid, seen: Timestamp, skipped: Option<&SkippedRun>) -> Result<(), StoreError> {
        let sql = "INSERT INTO job_clocks (job, seen_us, skipped) VALUES ($1, $2, $3) ON CONFLICT (job) DO UPDATE \
                   SET seen_us = $2, skipped = coalesce($3, skipped)";
        let done = sqlx::query(sql).bind(job.to_string()).bind(us(seen)).bind(skipped.map(json));
        let done = done.execute(&self.writer).await;
        done.map(drop).map_err(|e| self.refused("job", "storing the clock of a job", e))
    }

    /// The job's schedule is another one, which begins at `seen`; what was to be tried again is not, and what was skipped is forgotten.
    pub(super) async fn start_clock(
        &self,
        tx: &mut Transaction<'static, Sqlite>,
        job: Uuid,
        seen: Timestamp,
    ) -> Result<(), StoreError> {
        let sql = "INSERT INTO job_clocks (job, seen_us) VALUES ($1, $2) ON CONFLICT (job) DO UPDATE \
                   SET seen_us = $2, skipped = NULL";
        let done = sqlx::query(sql).bind(job.to_string()).bind(us(seen)).execute(&mut **tx).await;
        done.map_err(|e| self.failed("storing the clock of a job", e))?;
        self.drop_retry_in(tx, job).await
    }

    /// What a new session means for its job's clock: the run is seen to, and what was to be tried again is over, since this session does it.
    pub(super) async fn begun(
        &self,
        tx: &mut Transaction<'static, Sqlite>,
        job: Uuid,
        by: &BegunBy,
        seen: Timestamp,
    ) -> Result<(), StoreError> {
        match by {
            BegunBy::Caller => Ok(()),
            BegunBy::Schedule { .. } => {
                let sql = "INSERT INTO job_clocks (job, seen_us) VALUES ($1, $2) ON CONFLICT (job) DO UPDATE SET seen_us = $2";
                let done = sqlx::query(sql).bind(job.to_string()).bind(us(seen)).execute(&mut **tx).await;
                done.map_err(|e| self.refused("job", "storing the clock of a job", e))?;
                self.drop_retry_in(tx, job).await
            }
            BegunBy::Retry { .. } => self.drop_retry_in(tx, job).await,
        }
    }

    /// What is to be tried again, by job.
    pub async fn retries(&self) -> Result<Vec<(Uuid, Retry)>, StoreError> {
        let rows = sqlx::query("SELECT job, doc FROM retries ORDER BY job").fetch_all(&self.readers).await;
        let rows = rows.map_err(|e| self.failed("reading what is tried again", e))?;
        rows.iter().map(|row| Ok((self.id(row, 0)?, self.document("what is tried again", row.get(1))?))).collect()
    }

    /// It is not tried again.
    pub async fn drop_retry(&self, job: Uuid) -> Result<(), StoreError> {
        let doing = "forgetting what is tried again";
        let mut tx = self.begin(doing).await?;
        self.drop_retry_in(&mut tx, job).await?;
        self.commit_tx(tx, doing).await
    }

    async fn drop_retry_in(&self, tx: &mut Transaction<'static, Sqlite>, job: Uuid) -> Result<(), StoreError> {
        let done = sqlx::query("DELETE FROM retries WHERE job = $1").bind(job.to_string()).execute(&mut **tx).await;
        done.map(drop).map_err(|e| self.failed("forgetting what is tried again", e))
    }

    /// Sessions that are over, and of which it was not decided yet what follows; oldest first.
    pub async fn unsettled_sessions(&self) -> Result<Vec<i64>, StoreError> {
        sqlx::query_scalar("SELECT id FROM sessions WHERE settled = 0 AND open = 0 ORDER BY id")
            .fetch_all(&self.readers)
            .await
            .map_err(|e| self.failed("reading sessions", e))
    }

    /// The session is cancelled because the server stops.
    pub async fn cut_short(&self, session: i64) -> Result<(), StoreError> {
        let done = sqlx::query("UPDATE sessions SET cut_short = 1 WHERE id = $1").bind(session);
        let done = done.execute(&self.writer).await;
        done.map(drop).map_err(|e| self.failed("recording that a session is cut short", e))
    }

    /// A session with the others that are the same run: the one that the schedule began, and what is tried again of it.
    pub async fn attempts(&self, session: i64) -> Result<Vec<i64>, StoreError> {
        let sql = "WITH run AS (SELECT coalesce(json_extract(begun_by, '$.of'), id) AS first FROM sessions WHERE id = $1) \
                   SELECT sessions.id FROM sessions, run \
                   WHERE sessions.id = first OR json_extract(begun_by, '$.of') = first ORDER BY sessions.id";
        let found = sqlx::query_scalar(sql).bind(session).fetch_all(&self.readers).await;
        found.map_err(|e| self.failed("reading sessions", e))
    }

    /// Whether the clock began a session of the job after this one.
    pub async fn clock_began_later(&self, job: Uuid, session: i64) -> Result<bool, StoreError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM sessions WHERE job = $1 AND id > $2 AND begun_by IS NOT NULL)";
        let found = sqlx::query_scalar(sql).bind(job.to_string()).bind(session).fetch_one(&self.readers).await;
        found.map_err(|e| self.failed("reading sessions", e))
    }

    /// It is decided what follows from the end of a session.
    pub async fn settle(&self, session: i64, retry: Option<(Uuid, &Retry)>) -> Result<(), StoreError> {
        let doing = "storing what is tried again";
        let mut tx = self.begin(doing).await?;
        let settled =
            sqlx::query("UPDATE sessions SET settled = 1 WHERE id = $1").bind(session).execute(&mut *tx).await;
        settled.map_err(|e| self.failed(doing, e))?;
        if let Some((job, retry)) = retry {
            // A job that was removed meanwhile is not tried again.
            let sql = "INSERT INTO retries (job, doc) SELECT id, $2 FROM jobs WHERE id = $1 \
                       ON CONFLICT (job) DO UPDATE SET doc = $2";
            let stored = sqlx::query(sql).bind(job.to_string()).bind(json(retry)).execute(&mut *tx).await;
            stored.map_err(|e| self.failed(doing, e))?;
        }
        self.commit_tx(tx, doing).await
    }

    /// It is decided what follows from the end of a session that a person began: these VMs need not be tried again. Answers what of that was to be.
    pub async fn settle_by_hand(&self, session: i64, job: Uuid, done: &[VmId]) -> Result<Option<Retry>, StoreError> {
        let doing = "storing what is not tried again";
        let mut tx = self.begin(doing).await?;
        let settled =
            sqlx::query("UPDATE sessions SET settled = 1 WHERE id = $1").bind(session).execute(&mut *tx).await;
        settled.map_err(|e| self.failed(doing, e))?;
        let stored = sqlx::query_scalar::<_, String>("SELECT doc FROM retries WHERE job = $1").bind(job.to_string());
        let stored = stored.fetch_optional(&mut *tx).await.map_err(|e| self.failed(doing, e))?;
        let stored: Option<Retry> = stored.map(|doc| self.document("what is tried again", &doc)).transpose()?;
        let mut dropped = None;
        if let Some(retry) = stored {
            let (gone, left): (Vec<VmId>, Vec<VmId>) = retry.vms.iter().partition(|vm| done.contains(vm));
            if left.is_empty() {
                self.drop_retry_in(&mut tx, job).await?;
            } else if !gone.is_empty() {
                let doc = json(&Retry { vms: left, ..retry.clone() });
                let kept = sqlx::query("UPDATE retries SET doc = $2 WHERE job = $1").bind(job.to_string()).bind(doc);
                kept.execute(&mut *tx).await.map_err(|e| self.failed(doing, e))?;
            }
            dropped = (!gone.is_empty()).then_some(Retry { vms: gone, ..retry });
        }
        self.commit_tx(tx, doing).await?;
        Ok(dropped)
    }
}
