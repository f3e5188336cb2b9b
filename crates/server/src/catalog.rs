//! The catalog of the server: listings that come in, their ingest one after another, what is asked of it.
//!
//! The folder of listings that came in is the queue: whoever is killed finds it again. A listing is taken in once its restore point is
//! recorded, and removed once there will be none. Knows nothing of guests; what a table is, `lull-catalog` knows.

use crate::error::ServerError;
use crate::server::Server;
use crate::store::StoreError;
use crate::store::restore_points::RestorePointRow;
use lull_catalog::{Catalog, CatalogError, IngestOutcome, NewPoint};
use spool::{Spool, Spooled};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use uuid::Uuid;

pub mod spool;

/// A listing that could not be taken in is tried again after this time.
const AGAIN: Duration = Duration::from_secs(60);
/// Free space on the server's disk that no listing takes, in bytes.
const RESERVE_BYTES: u64 = 256 << 20;
const LISTING_SUFFIX: &str = ".listing";

/// The catalog with the listings that wait for it.
pub struct FileCatalog {
    /// The tables.
    pub tables: Arc<Catalog>,
    incoming: PathBuf,
    /// Wakes the ingest.
    pub wake: Notify,
    /// Why listings could not be taken in, by restore point.
    troubles: Mutex<BTreeMap<Uuid, String>>,
}

/// A listing that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Its restore point.
    pub restore_point: Uuid,
    /// Why it could not be taken in so far.
    pub trouble: Option<String>,
}

impl FileCatalog {
    /// Opens the catalog in the state folder.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(state_dir: &Path) -> Result<FileCatalog, ServerError> {
        let folder = state_dir.join("catalog");
        let tables = Arc::new(Catalog::open(&folder).map_err(ServerError::Catalog)?);
        let incoming = folder.join("incoming");
        std::fs::create_dir_all(&incoming).map_err(|source| {
            ServerError::Catalog(CatalogError::Io { action: "make", path: incoming.clone(), source })
        })?;
        Ok(FileCatalog { tables, incoming, wake: Notify::new(), troubles: Mutex::default() })
    }

    /// Begins the listing of a restore point; one that began before is begun anew.
    pub async fn begin(&self, restore_point: Uuid) -> io::Result<Spool> {
        Spool::begin(&self.listing(restore_point), RESERVE_BYTES).await
    }

    /// The listings that wait, or are being taken in.
    pub fn pending(&self) -> io::Result<Vec<Pending>> {
        let mut pending = Vec::new();
        for entry in std::fs::read_dir(&self.incoming)? {
            let name = entry?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(LISTING_SUFFIX)).and_then(|id| id.parse().ok());
            pending.extend(id.map(|id| Pending { restore_point: id, trouble: self.trouble(id) }));
        }
        Ok(pending)
    }

    /// Runs a question to the tables where it may take its time.
    ///
    /// # Errors
    /// The question's own.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Catalog) -> Result<T, CatalogError> + Send + 'static,
    ) -> Result<T, CatalogError> {
        let tables = self.tables.clone();
        match tokio::task::spawn_blocking(move || question(&tables)).await {
            Ok(answer) => answer,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    fn listing(&self, restore_point: Uuid) -> PathBuf {
        self.incoming.join(format!("{restore_point}{LISTING_SUFFIX}"))
    }

    fn trouble(&self, restore_point: Uuid) -> Option<String> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner).get(&restore_point).cloned()
    }

    /// Says whether this is new.
    fn set_trouble(&self, restore_point: Uuid, trouble: Option<String>) -> bool {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        match trouble {
            None => troubles.remove(&restore_point).is_some(),
            Some(trouble) => troubles.insert(restore_point, trouble.clone()) != Some(trouble),
        }
    }
}

/// Takes in what comes, until the server stops.
pub async fn run(server: &Arc<Server>) {
    loop {
        let all_taken_in = match take_in(server).await {
            Ok(all) => all,
            Err(error) => {
                tracing::error!(%error, "the listings that came in cannot be looked at");
                false
            }
        };
        let again = async { if all_taken_in { std::future::pending().await } else { tokio::time::sleep(AGAIN).await } };
        tokio::select! {
            () = server.catalog.wake.notified() => {}
            () = again => {}
            () = server.stopped.cancelled() => return,
        }
    }
}

/// Why the queue could not be looked at.
#[derive(Debug, thiserror::Error)]
enum QueueError {
    #[error("the folder of listings could not be read: {0}")]
    Folder(#[from] io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One look at the queue; answers whether nothing was left that has to be tried again.
async fn take_in(server: &Arc<Server>) -> Result<bool, QueueError> {
    let catalog = &server.catalog;
    // In this order: a task that closes in between has recorded its restore point before.
    let waiting = catalog.pending()?;
    if waiting.is_empty() {
        return Ok(true);
    }
    let open = server.book.open_tasks().await;
    let recorded = server.store.restore_points(None).await?;
    let mut ready: Vec<&RestorePointRow> = Vec::new();
    for Pending { restore_point: id, .. } in waiting {
        let is_made = |task: &crate::runner::book::OpenTask| {
            task.row.work.backup.as_ref().is_some_and(|backup| backup.restore_point.0 == id)
        };
        match recorded.iter().find(|point| point.id == id) {
            Some(point) => ready.push(point),
            None if open.iter().any(is_made) => {}
            None => std::fs::remove_file(catalog.listing(id))?,
        }
    }
    ready.sort_by_key(|point| (point.created_us, point.id));
    let mut all = true;
    for point in ready {
        all &= ingest(server, point).await;
    }
    Ok(all)
}

/// Takes in one listing; answers whether it need not be tried again.
async fn ingest(server: &Arc<Server>, point: &RestorePointRow) -> bool {
    let (id, vm, taken_at_us) = (point.id, point.vm, point.created_us);
    let path = server.catalog.listing(id);
    let listing = path.clone();
    let outcome = server.catalog.ask(move |tables| {
        let (mut frames, summary) = Spooled::open(&listing).map_err(CatalogError::Listing)?;
        let number = tables.number_next(vm)?;
        tables.ingest(vm, &NewPoint { id, number, taken_at_us }, &mut frames, &summary)
    });
    let outcome = outcome.await;
    // Who removed the restore point meanwhile may have had it forgotten before it was in the table.
    let outcome = match outcome {
        Ok(outcome) if is_gone(server, point).await => {
            server.catalog.ask(move |tables| tables.forget(vm, &[id])).await.map(|_| outcome)
        }
        outcome => outcome,
    };
    let outcome = outcome.and_then(|outcome| {
        std::fs::remove_file(&path).map_err(|source| CatalogError::Io { action: "remove", path, source })?;
        Ok(outcome)
    });
    match outcome {
        Ok(outcome) => {
            server.catalog.set_trouble(id, None);
            if let IngestOutcome::Ingested(report) = outcome {
                let files = report.point.walk.entries;
                tracing::info!(vm = point.vm_name, restore_point = %id, files, "the files of a restore point are in the catalog");
                if let Some(aside) = report.set_aside {
                    let table = aside.path.display();
                    tracing::error!(vm = point.vm_name, %table, reason = aside.reason, "a damaged table was set aside; it begins anew");
                }
            }
            true
        }
        Err(error) => {
            let why = sentence(&error);
            if server.catalog.set_trouble(id, Some(why.clone())) {
                tracing::error!(vm = point.vm_name, restore_point = %id, why, "the files of a restore point cannot be taken in yet");
            }
            false
        }
    }
}

/// Whether the restore point was removed, or is being removed now. In this order: a removal ends only when the row is gone.
async fn is_gone(server: &Server, point: &RestorePointRow) -> bool {
    server.uses.is_being_removed(point.id)
        || server.store.restore_points(Some(point.vm)).await.is_ok_and(|rows| rows.iter().all(|row| row.id != point.id))
}

/// An error with its causes, in one line.
pub fn sentence(error: &CatalogError) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
