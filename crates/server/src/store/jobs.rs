//! Jobs. The scope stands in a table of its own too, so that a VM in scope cannot vanish.

use super::notifications::Notify;
use super::{Store, StoreError, json};
use jiff::Timestamp;
use lull_engine::chain::POINTS_PER_CHAIN;
use lull_engine::job::{BackupAction, Job};
use lull_engine::retention::Retention;
use lull_engine::schedule::{Retries, Schedule};
use serde::{Deserialize, Serialize};
use sqlx::{Row, Sqlite, Transaction};
use uuid::Uuid;

/// A job with what the engine does not know of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredJob {
    /// The job.
    pub job: Job,
    /// Its repository.
    pub repository: Uuid,
    /// Limit of the copy, in bytes per second; 0 for none.
    pub copy_limit_bytes_per_s: u64,
    /// When it runs by itself; without one only when somebody runs it.
    #[serde(default)]
    pub schedule: Option<Schedule>,
    /// What is done about tasks that failed in a session that the schedule began.
    #[serde(default)]
    pub retries: Retries,
    /// How long its restore points are kept.
    #[serde(default)]
    pub retention: Retention,
    /// Whom it tells of its sessions.
    #[serde(default)]
    pub notify: Notify,
}

impl StoredJob {
    /// A new full backup every so many restore points.
    pub fn full_every(&self) -> u32 {
        match &self.job.action {
            BackupAction::Backup { full_every, .. } => *full_every,
            BackupAction::Command { .. } => POINTS_PER_CHAIN,
        }
    }
}

impl Store {
    /// Adds a job. Its schedule begins at `now`.
    pub async fn add_job(&self, job: &StoredJob, now: Timestamp) -> Result<(), StoreError> {
        let doing = "storing a job";
        let mut tx = self.begin(doing).await?;
        let sql = "INSERT INTO jobs (id, name, repository, doc) VALUES ($1, $2, $3, $4)";
        self.write_job(&mut tx, sql, job).await?;
        self.start_clock(&mut tx, job.job.id.0, now).await?;
        self.commit_tx(tx, doing).await
    }

    /// Stores a changed job; where its schedule is another one, that begins at `schedule_from`.
    pub async fn update_job(&self, job: &StoredJob, schedule_from: Option<Timestamp>) -> Result<(), StoreError> {
        let doing = "storing a job";
        let mut tx = self.begin(doing).await?;
        let sql = "UPDATE jobs SET name = $2, repository = $3, doc = $4 WHERE id = $1";
        self.write_job(&mut tx, sql, job).await?;
        if let Some(now) = schedule_from {
            self.start_clock(&mut tx, job.job.id.0, now).await?;
        }
        self.commit_tx(tx, doing).await
    }

    /// All jobs, by name.
    pub async fn jobs(&self) -> Result<Vec<StoredJob>, StoreError> {
        let rows = sqlx::query("SELECT name, doc FROM jobs ORDER BY name").fetch_all(&self.readers).await;
        let rows = rows.map_err(|e| self.failed("reading jobs", e))?;
        rows.iter().map(|row| self.document(&format!("job {}", row.get::<&str, _>(0)), row.get(1))).collect()
    }

    /// Removes a job; its sessions and restore points stay.
    pub async fn remove_job(&self, job: Uuid) -> Result<(), StoreError> {
        let done = sqlx::query("DELETE FROM jobs WHERE id = $1").bind(job.to_string()).execute(&self.writer).await;
        self.removed("job", done)
    }

    async fn write_job(
        &self,
        tx: &mut Transaction<'static, Sqlite>,
        sql: &'static str,
        job: &StoredJob,
    ) -> Result<(), StoreError> {
        let doing = "storing a job";
        let id = job.job.id.to_string();
        let done = sqlx::query(sql)
            .bind(&id)
            .bind(&job.job.name)
            .bind(job.repository.to_string())
            .bind(json(job))
            .execute(&mut **tx)
            .await;
        self.removed("job", done)?;
        sqlx::query("DELETE FROM job_vms WHERE job = $1")
            .bind(&id)
            .execute(&mut **tx)
            .await
            .map_err(|e| self.failed(doing, e))?;
        for vm in &job.job.vms {
            sqlx::query("INSERT INTO job_vms (job, vm) VALUES ($1, $2) ON CONFLICT DO NOTHING")
                .bind(&id)
                .bind(vm.to_string())
                .execute(&mut **tx)
                .await
                .map_err(|e| self.refused("VM", doing, e))?;
        }
        Ok(())
    }
}
