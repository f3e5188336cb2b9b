//! Restore points. Names are kept beside ids: a restore point outlives its VM and its job.

use super::{Store, StoreError, json};
use lull_engine::chain::ChainPoint;
use lull_engine::ids::RestorePointId;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

/// How [`RestorePointRow::verified`] ends after a verification that found something wrong with the point itself.
pub const DAMAGED: &str = ": damaged";

/// A restore point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestorePointRow {
    /// Id.
    pub id: Uuid,
    /// The VM.
    pub vm: Uuid,
    /// The VM's name.
    pub vm_name: String,
    /// The job that made it, where that is known.
    pub job: Option<Uuid>,
    /// The job's name.
    pub job_name: Option<String>,
    /// The session.
    pub session: i64,
    /// The task.
    pub task: Uuid,
    /// The repository.
    pub repository: Uuid,
    /// When it was recorded.
    pub created_us: i64,
    /// `full` or `incremental`.
    pub kind: String,
    /// The restore point that an incremental one builds on.
    pub parent: Option<Uuid>,
    /// Why a full one is full.
    pub full_because: Option<String>,
    /// `application`, `file-system`, `crash` or `none`.
    pub level: String,
    /// Why the level is not better.
    pub level_reasons: Vec<String>,
    /// Folder with its files.
    pub directory: String,
    /// Its disk images' file names.
    pub disks: Vec<String>,
    /// Bytes on disk.
    pub bytes: u64,
    /// Name of the dirty bitmap that the next incremental backup needs.
    pub bitmap: String,
    /// When it was verified last, and the outcome.
    pub verified: Option<String>,
    /// Its removal has begun: nothing counts on it any more.
    pub removing: bool,
}

const COLUMNS: &str = "SELECT id, vm, vm_name, job_name, session, task, repository, created_us, kind, level, \
                       level_reasons, directory, disks, bytes, bitmap, verified, parent, full_because, job, removing FROM restore_points";

impl Store {
    /// Restore points, newest first; of one VM where one is given.
    pub async fn restore_points(&self, vm: Option<Uuid>) -> Result<Vec<RestorePointRow>, StoreError> {
        let sql = format!("{COLUMNS} WHERE $1 IS NULL OR vm = $1 ORDER BY created_us DESC, id DESC");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(vm.map(|id| id.to_string()))
            .fetch_all(&self.readers)
            .await
            .map_err(|e| self.failed("reading restore points", e))?;
        rows.iter().map(|row| self.restore_point_row(row)).collect()
    }

    /// These restore points, and all others of their VMs.
    pub async fn restore_points_beside(
        &self,
        these: impl Iterator<Item = Uuid>,
    ) -> Result<Vec<RestorePointRow>, StoreError> {
        let sql = format!(
            "{COLUMNS} WHERE vm IN (SELECT vm FROM restore_points WHERE id IN (SELECT value FROM json_each($1)))"
        );
        let ids: Vec<String> = these.map(|id| id.to_string()).collect();
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(json(&ids)).fetch_all(&self.readers).await;
        let rows = rows.map_err(|e| self.failed("reading restore points", e))?;
        rows.iter().map(|row| self.restore_point_row(row)).collect()
    }

    /// Records what a verification said of each restore point, all or none. One that is gone has no outcome.
    pub async fn set_verified(&self, outcomes: &[(Uuid, String)]) -> Result<(), StoreError> {
        let doing = "recording a verification";
        let mut tx = self.begin(doing).await?;
        for (restore_point, verified) in outcomes {
            let sql = "UPDATE restore_points SET verified = $2 WHERE id = $1";
            let done = sqlx::query(sql).bind(restore_point.to_string()).bind(verified).execute(&mut *tx).await;
            done.map_err(|e| self.failed(doing, e))?;
        }
        self.commit_tx(tx, doing).await
    }

    /// Records restore points that were found in a repository, all or none.
    pub async fn record_found(&self, points: &[RestorePointRow]) -> Result<(), StoreError> {
        let doing = "recording restore points that were found";
        let mut tx = self.begin(doing).await?;
        for point in points {
            point.insert().execute(&mut *tx).await.map_err(|e| self.refused("restore point", doing, e))?;
        }
        self.commit_tx(tx, doing).await
    }

    /// From now on the restore point is only ever removed.
    pub async fn begin_removal(&self, restore_point: Uuid) -> Result<(), StoreError> {
        let sql = "UPDATE restore_points SET removing = 1 WHERE id = $1";
        let done = sqlx::query(sql).bind(restore_point.to_string()).execute(&self.writer).await;
        self.removed("restore point", done)
    }

    /// Forgets a restore point, whose files are gone.
    pub async fn remove_restore_point(&self, restore_point: Uuid) -> Result<(), StoreError> {
        let sql = "DELETE FROM restore_points WHERE id = $1";
        let done = sqlx::query(sql).bind(restore_point.to_string()).execute(&self.writer).await;
        self.removed("restore point", done)
    }

    fn restore_point_row(&self, row: &SqliteRow) -> Result<RestorePointRow, StoreError> {
        let id = self.id(row, 0)?;
        let what = format!("restore point {id}");
        Ok(RestorePointRow {
            id,
            vm: self.id(row, 1)?,
            vm_name: row.get(2),
            job_name: row.get(3),
            session: row.get(4),
            task: self.id(row, 5)?,
            repository: self.id(row, 6)?,
            created_us: row.get(7),
            kind: row.get(8),
            level: row.get(9),
            level_reasons: self.document(&what, row.get(10))?,
            directory: row.get(11),
            disks: self.document(&what, row.get(12))?,
            bytes: row.get::<i64, _>(13).unsigned_abs(),
            bitmap: row.get(14),
            verified: row.get(15),
            parent: row.get::<Option<&str>, _>(16).map(|id| self.word(&what, id)).transpose()?,
            full_because: row.get(17),
            job: row.get::<Option<&str>, _>(18).map(|id| self.word(&what, id)).transpose()?,
            removing: row.get(19),
        })
    }
}

impl RestorePointRow {
    /// The statement that records it. One that is recorded already, by a scan or by its own task, stays as it is.
    pub(super) fn insert(&self) -> sqlx::query::Query<'_, sqlx::Sqlite, sqlx::sqlite::SqliteArguments> {
        let sql = "INSERT INTO restore_points (id, vm, vm_name, job_name, session, task, repository, created_us, \
                   kind, level, level_reasons, directory, disks, bytes, bitmap, parent, full_because, job) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18) \
                   ON CONFLICT (id) DO NOTHING";
        sqlx::query(sql)
            .bind(self.id.to_string())
            .bind(self.vm.to_string())
            .bind(&self.vm_name)
            .bind(&self.job_name)
            .bind(self.session)
            .bind(self.task.to_string())
            .bind(self.repository.to_string())
            .bind(self.created_us)
            .bind(&self.kind)
            .bind(&self.level)
            .bind(json(&self.level_reasons))
            .bind(&self.directory)
            .bind(json(&self.disks))
            .bind(i64::try_from(self.bytes).unwrap_or(i64::MAX))
            .bind(&self.bitmap)
            .bind(self.parent.map(|id| id.to_string()))
            .bind(&self.full_because)
            .bind(self.job.map(|id| id.to_string()))
    }

    /// What chains are made of.
    pub fn chain_point(&self) -> ChainPoint {
        ChainPoint {
            id: RestorePointId(self.id),
            parent: self.parent.map(RestorePointId),
            has_bitmap: !self.bitmap.is_empty(),
            damaged: self.verified.as_deref().is_some_and(|verdict| verdict.ends_with(DAMAGED)),
        }
    }
}
