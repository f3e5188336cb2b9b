//! Which proxy had which task from when to when. Written with the states that say so ([`super::writes`]), read here.

use super::{Store, StoreError};
use crate::instant::{from_us, us};
use jiff::Timestamp;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

/// One time that a task was given to a proxy.
#[derive(Debug, Clone, PartialEq)]
pub struct DispatchRow {
    /// The task.
    pub task: Uuid,
    /// Name of the proxy's managed server then.
    pub server_name: String,
    /// Its id.
    pub server: Uuid,
    /// How near it was to the VM, 1 to 4; nothing where no proxy was needed to reach the guest.
    pub tier: Option<u8>,
    /// When it was given.
    pub begun: Timestamp,
    /// When the proxy was done with it.
    pub ended: Option<Timestamp>,
    /// How: the task's outcome, [`HANDED_ON`] or [`NOT_BEGUN`].
    pub end: Option<String>,
}

/// Another proxy took the task over.
pub const HANDED_ON: &str = "handed-on";
/// The proxy failed with it, and nobody has taken it over.
pub const FAILED: &str = "failed";
/// The backup server stopped before the proxy began; the task waits again, and the proxy is not to blame.
pub const NOT_BEGUN: &str = "not-begun";

const DISPATCHES: &str = "SELECT task, server_name, server, tier, begun_us, ended_us, ended FROM dispatches";

impl Store {
    /// Every dispatch that was under way at some time between the two instants, in the order in which they began.
    pub async fn dispatches(&self, since: Timestamp, until: Timestamp) -> Result<Vec<DispatchRow>, StoreError> {
        let sql = format!("{DISPATCHES} WHERE (ended_us > $1 OR ended_us IS NULL) AND begun_us < $2 ORDER BY begun_us");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(us(since)).bind(us(until)).fetch_all(&self.readers).await;
        let rows = rows.map_err(|e| self.failed("reading what the proxies did", e))?;
        rows.iter().map(|row| self.dispatch_row(row)).collect()
    }

    /// The dispatches of a session's tasks, in the order in which they began.
    pub async fn dispatches_of(&self, session: i64) -> Result<Vec<DispatchRow>, StoreError> {
        let sql =
            format!("{DISPATCHES} WHERE task IN (SELECT id FROM tasks WHERE session = $1) ORDER BY begun_us, epoch");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(session).fetch_all(&self.readers).await;
        let rows = rows.map_err(|e| self.failed("reading which proxies had a session's tasks", e))?;
        rows.iter().map(|row| self.dispatch_row(row)).collect()
    }

    fn dispatch_row(&self, row: &SqliteRow) -> Result<DispatchRow, StoreError> {
        let at = |us: i64| from_us(us).map_err(|e| self.unreadable("a dispatch", e));
        Ok(DispatchRow {
            task: self.id(row, 0)?,
            server_name: row.get(1),
            server: self.id(row, 2)?,
            tier: row.get(3),
            begun: at(row.get(4))?,
            ended: row.get::<Option<i64>, _>(5).map(at).transpose()?,
            end: row.get(6),
        })
    }
}
