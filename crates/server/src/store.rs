//! What the server remembers, in one SQLite file: opened, checked and brought up to date here, its tables in the
//! modules below. Knows rows, not rules: what a state means and what follows from it is decided elsewhere.
//!
//! One connection writes, in `BEGIN IMMEDIATE` transactions with `synchronous = FULL`: what [`Store`] confirmed
//! survives a power cut. A few connections read beside it. All access goes through [`Store`]'s methods, which are the
//! seam for a second database.

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Row, Sqlite, Transaction};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub mod credentials;
pub mod dispatches;
pub mod duties;
pub mod infrastructure;
pub mod jobs;
pub mod machines;
pub mod notifications;
pub mod proxies;
pub mod restore_points;
pub mod sessions;
pub mod timing;
pub mod writes;

/// Each brings the schema from one version to the next; the first from an empty file to version 1. Only ever added to.
const MIGRATIONS: &[&str] = &[
    include_str!("../migrations/0001.sql"),
    include_str!("../migrations/0002.sql"),
    include_str!("../migrations/0003.sql"),
    include_str!("../migrations/0004.sql"),
    include_str!("../migrations/0005.sql"),
    include_str!("../migrations/0006.sql"),
    include_str!("../migrations/0007.sql"),
    include_str!("../migrations/0008.sql"),
    include_str!("../migrations/0009.sql"),
    include_str!("../migrations/0010.sql"),
];
/// `LULL`, in the header of the file.
const APPLICATION_ID: i32 = 0x4c55_4c4c;
const READERS_MAX: u32 = 4;

/// Why the database could not answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It was written by a newer version.
    #[error(
        "{path} has format {found}, and this version of Lull knows formats up to {known}: run the newer version that \
         wrote it, or put back the copy that was made before the upgrade"
    )]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The newest format known.
        known: usize,
    },
    /// It belongs to another program.
    #[error("{path} is a database of another program; give the server another --state-dir")]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
    /// Its content is not what was written.
    #[error(
        "{path} is damaged: {what}; stop the server, keep the file for examination, and put back a copy (lull.db \
         together with lull.db-wal), or start with a new --state-dir"
    )]
    Damaged {
        /// The file or the row.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// What may be there once is there already.
    #[error("there is a {kind} of this {what} already")]
    Taken {
        /// What kind of thing.
        kind: &'static str,
        /// What may be there once: `name`, `folder`, …
        what: &'static str,
    },
    /// Something else still refers to it.
    #[error("something else still refers to this {kind}")]
    InUse {
        /// What kind of thing.
        kind: &'static str,
    },
    /// It is not there.
    #[error("there is no such {kind}")]
    Missing {
        /// What kind of thing.
        kind: &'static str,
    },
    /// The database failed.
    #[error("the database failed at {doing}")]
    Database {
        /// What was tried.
        doing: &'static str,
        /// Cause.
        source: sqlx::Error,
    },
}

/// The open database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    path: PathBuf,
    writer: SqlitePool,
    readers: SqlitePool,
    queue: Arc<writes::Queue>,
    vms: Arc<Mutex<infrastructure::KnownVms>>,
}

impl Store {
    /// Opens the file, creates it where it is missing, and brings it up to this version's format.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        // SQLite would create it readable for everybody.
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| StoreError::Database { doing: "creating lull.db", source: sqlx::Error::Io(source) })?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10));
        let pool = |size| SqlitePoolOptions::new().max_connections(size).idle_timeout(None).max_lifetime(None);
        let failed = |doing| move |source| opening(path, doing, source);
        let writer = pool(1).connect_with(options.clone()).await.map_err(failed("opening lull.db"))?;
        let store = Store {
            path: path.to_path_buf(),
            writer,
            readers: pool(READERS_MAX).connect_lazy_with(options.read_only(true)),
            queue: Arc::default(),
            vms: Arc::default(),
        };
        store.check().await?;
        store.migrate().await?;
        Ok(store)
    }

    /// Closes the connections; everything was on disk before.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    /// Refuses a file that is not ours, too new, or damaged.
    async fn check(&self) -> Result<(), StoreError> {
        let id: i32 = self.pragma("PRAGMA application_id").await?;
        let tables: i64 = self.pragma("SELECT count(*) FROM sqlite_schema").await?;
        if id != APPLICATION_ID && (id != 0 || tables > 0) {
            return Err(StoreError::NotOurs { path: self.path.clone() });
        }
        let found: i64 = self.pragma("PRAGMA user_version").await?;
        if found > MIGRATIONS.len() as i64 {
            return Err(StoreError::TooNew { path: self.path.clone(), found, known: MIGRATIONS.len() });
        }
        let verdict: String = self.pragma("PRAGMA quick_check(1)").await?;
        if verdict != "ok" {
            return Err(StoreError::Damaged { path: self.path.clone(), what: verdict });
        }
        Ok(())
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        let found: i64 = self.pragma("PRAGMA user_version").await?;
        for (version, sql) in (1..).zip(MIGRATIONS).skip(found.max(0) as usize) {
            let failed = |source| opening(&self.path, "changing the format of lull.db", source);
            let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
            sqlx::raw_sql(*sql).execute(&mut *tx).await.map_err(failed)?;
            // Pragmas take no parameters; both values are ours.
            let header = format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {version}");
            sqlx::raw_sql(sqlx::AssertSqlSafe(header)).execute(&mut *tx).await.map_err(failed)?;
            tx.commit().await.map_err(failed)?;
            tracing::info!(version, "brought lull.db to this format");
        }
        Ok(())
    }

    async fn pragma<T>(&self, sql: &'static str) -> Result<T, StoreError>
    where
        T: for<'r> sqlx::Decode<'r, Sqlite> + sqlx::Type<Sqlite> + Send + Unpin,
    {
        sqlx::query_scalar(sql)
            .fetch_one(&self.writer)
            .await
            .map_err(|source| opening(&self.path, "examining lull.db", source))
    }

    /// A stored value of the server's own.
    pub async fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        sqlx::query("SELECT value FROM meta WHERE key = $1")
            .bind(key)
            .fetch_optional(&self.readers)
            .await
            .map(|row| row.map(|row| row.get(0)))
            .map_err(|source| self.failed("reading a setting", source))
    }

    /// Stores a value of the server's own.
    pub async fn set_meta(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = $2")
            .bind(key)
            .bind(value)
            .execute(&self.writer)
            .await
            .map(drop)
            .map_err(|source| self.failed("storing a setting", source))
    }

    /// Removes a value of the server's own; `false` where there was none.
    pub async fn remove_meta(&self, key: &str) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM meta WHERE key = $1").bind(key).execute(&self.writer).await;
        done.map(|done| done.rows_affected() > 0).map_err(|source| self.failed("removing a setting", source))
    }

    async fn begin(&self, doing: &'static str) -> Result<Transaction<'static, Sqlite>, StoreError> {
        self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(|source| self.failed(doing, source))
    }

    async fn commit_tx(&self, tx: Transaction<'static, Sqlite>, doing: &'static str) -> Result<(), StoreError> {
        tx.commit().await.map_err(|source| self.failed(doing, source))
    }

    /// A failure while working, told apart from a damaged file.
    fn failed(&self, doing: &'static str, source: sqlx::Error) -> StoreError {
        opening(&self.path, doing, source)
    }

    /// A failed write of one `kind` of thing: taken names and things in use are told apart from real failures.
    fn refused(&self, kind: &'static str, doing: &'static str, source: sqlx::Error) -> StoreError {
        match source.as_database_error() {
            // SQLite says `UNIQUE constraint failed: TABLE.COLUMN`.
            Some(error) if error.is_unique_violation() => {
                let what = match error.message().rsplit('.').next() {
                    Some("name") => "name",
                    Some("path" | "qemu_dir") => "folder",
                    _ => "name, folder or VM",
                };
                StoreError::Taken { kind, what }
            }
            // SQLite reports `ON DELETE RESTRICT` below a cascade as a trigger's refusal (SQLITE_CONSTRAINT_TRIGGER).
            Some(error) if error.is_foreign_key_violation() || error.code().as_deref() == Some("1811") => {
                StoreError::InUse { kind }
            }
            _ => self.failed(doing, source),
        }
    }

    /// A stored document that does not read.
    fn unreadable(&self, what: &str, error: impl std::fmt::Display) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), what: format!("{what} does not read: {error}") }
    }

    /// A stored JSON document.
    fn document<T: serde::de::DeserializeOwned>(&self, what: &str, text: &str) -> Result<T, StoreError> {
        serde_json::from_str(text).map_err(|error| self.unreadable(what, error))
    }

    /// A stored word or id.
    fn word<T: std::str::FromStr<Err: std::fmt::Display>>(&self, what: &str, text: &str) -> Result<T, StoreError> {
        text.parse().map_err(|error| self.unreadable(what, error))
    }
}

/// A document to store. Our own types have string keys and finite numbers, so this cannot fail.
pub(crate) fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| unreachable!("own type is no JSON: {error}"))
}

fn opening(path: &Path, doing: &'static str, source: sqlx::Error) -> StoreError {
    // SQLITE_CORRUPT and SQLITE_NOTADB, with their extended codes.
    let code = source.as_database_error().and_then(|e| e.code()).and_then(|code| code.parse::<i32>().ok());
    match code.map(|code| code & 0xff) {
        Some(11 | 26) => StoreError::Damaged { path: path.to_path_buf(), what: source.to_string() },
        _ => StoreError::Database { doing, source },
    }
}
