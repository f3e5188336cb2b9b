//! The catalog of the server: listings that come in, their tables, what is asked of them.
//!
//! The folder of listings that came in is the queue: whoever is killed finds it again. A listing is taken in once its task is
//! over and left a restore point ([`queue`]), and removed where it left none. Knows nothing of guests; what a table is, `lull-catalog` knows.

use crate::error::ServerError;
use attempts::Attempts;
use lull_catalog::{Catalog, CatalogError, NoRoom, Room};
use spool::Spool;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use uuid::Uuid;

pub use attempts::CatalogPace;

mod attempts;
pub mod queue;
pub mod spool;

/// Searches and other long answers at once. Each may hold a page of hits and a row group of its table in memory.
pub const ANSWERS_MAX: usize = 4;
/// Another one waits so long for its turn.
const TURN_WAIT: Duration = Duration::from_secs(3);
const LISTING_SUFFIX: &str = ".listing";
const ATTEMPTS_SUFFIX: &str = ".attempts";

/// The catalog with the listings that wait for it.
pub struct FileCatalog {
    /// The tables.
    pub tables: Arc<Catalog>,
    incoming: PathBuf,
    pace: CatalogPace,
    /// Wakes the ingest.
    pub wake: Notify,
    turns: Arc<Semaphore>,
    /// Listings that are not in their tables although they were tried, or wait for another, by restore point.
    troubles: Mutex<BTreeMap<Uuid, Trouble>>,
}

/// Why a listing is not in its table.
#[derive(Debug, Default)]
struct Trouble {
    attempts: Attempts,
    /// Not before this time is it tried again.
    due: Option<Instant>,
    waits_for: Option<Uuid>,
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
    pub fn open(state_dir: &Path, pace: CatalogPace) -> Result<FileCatalog, ServerError> {
        let folder = state_dir.join("catalog");
        let kept_bytes = pace.reserve_bytes;
        let room = Room::new(move |folder, needed_bytes| match crate::disk::free_bytes(folder) {
            Some(free_bytes) if free_bytes < needed_bytes.saturating_add(kept_bytes) => {
                Err(NoRoom { free_bytes, kept_bytes })
            }
            _ => Ok(()),
        });
        let tables = Arc::new(Catalog::open(&folder).map_err(ServerError::Catalog)?.with_room(room));
        let incoming = folder.join("incoming");
        let cannot = |action, source| ServerError::Catalog(CatalogError::Io { action, path: incoming.clone(), source });
        std::fs::create_dir_all(&incoming).map_err(|error| cannot("make", error))?;
        let troubles = troubles(&incoming).map_err(|error| cannot("read", error))?;
        let (wake, turns) = (Notify::new(), Arc::new(Semaphore::new(ANSWERS_MAX)));
        Ok(FileCatalog { tables, incoming, pace, wake, turns, troubles: Mutex::new(troubles) })
    }

    /// Begins the listing of a restore point; one that began before is begun anew.
    pub async fn begin(&self, restore_point: Uuid) -> io::Result<Spool> {
        Spool::begin(&self.listing(restore_point), self.pace.reserve_bytes).await
    }

    /// Goes on with the listing that an earlier run of the server began; see [`Spool::resume`].
    pub async fn resume(&self, restore_point: Uuid) -> io::Result<Option<(Spool, u64)>> {
        Spool::resume(&self.listing(restore_point), self.pace.reserve_bytes).await
    }

    /// The listings that wait, or are being taken in.
    pub fn pending(&self) -> io::Result<Vec<Pending>> {
        let mut pending = Vec::new();
        for id in named(&self.incoming, LISTING_SUFFIX)? {
            let trouble = self.troubles().get(&id).and_then(Trouble::told);
            pending.push(Pending { restore_point: id, trouble });
        }
        Ok(pending)
    }

    /// Restore points whose listings were given up, and why.
    pub fn given_up(&self) -> Vec<(Uuid, String)> {
        let troubles = self.troubles();
        let given_up = troubles.iter().filter(|(_, trouble)| trouble.attempts.given_up);
        given_up.map(|(id, trouble)| (*id, trouble.attempts.why.clone().unwrap_or_default())).collect()
    }

    /// The turn of a long answer, held while it lasts; nothing where too many others last too long.
    pub async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        let turn = tokio::time::timeout(TURN_WAIT, self.turns.clone().acquire_owned()).await;
        // It is never closed.
        turn.ok()?.ok()
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

    fn troubles(&self) -> MutexGuard<'_, BTreeMap<Uuid, Trouble>> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes a listing and what is known of it.
    fn remove(&self, restore_point: Uuid) -> io::Result<()> {
        self.troubles().remove(&restore_point);
        for path in [self.listing(restore_point), self.attempts(restore_point)] {
            remove_if_there(&path)?;
        }
        Ok(())
    }

    fn attempts(&self, restore_point: Uuid) -> PathBuf {
        self.incoming.join(format!("{restore_point}{ATTEMPTS_SUFFIX}"))
    }

    /// When it may be tried again, where it failed.
    fn due(&self, restore_point: Uuid) -> Option<Instant> {
        self.troubles().get(&restore_point)?.due
    }

    /// It is not tried before another one is in its table, or given up.
    fn waits_for(&self, restore_point: Uuid, first: Uuid) {
        self.troubles().entry(restore_point).or_default().waits_for = Some(first);
    }

    /// Counts an attempt that begins.
    ///
    /// # Errors
    /// There were enough: why the listing is given up.
    fn begin_attempt(&self, restore_point: Uuid) -> Result<(), String> {
        let mut troubles = self.troubles();
        let trouble = troubles.entry(restore_point).or_default();
        trouble.waits_for = None;
        let begun = trouble.attempts.begin(&self.pace);
        self.note(restore_point, &trouble.attempts);
        begun
    }

    /// Answers after which pause it is tried again, and why it failed.
    ///
    /// # Errors
    /// It is not: why.
    fn attempt_failed(&self, restore_point: Uuid, why: String) -> Result<(Duration, String), String> {
        let mut troubles = self.troubles();
        let trouble = troubles.entry(restore_point).or_default();
        let pause = trouble.attempts.failed(why, &self.pace);
        trouble.due = pause.map(|pause| Instant::now() + pause);
        self.note(restore_point, &trouble.attempts);
        let why = trouble.attempts.why.clone().unwrap_or_default();
        pause.map(|pause| (pause, why.clone())).ok_or(why)
    }

    /// It will not be tried again. Answers why, in a sentence.
    fn give_up(&self, restore_point: Uuid, why: String) -> String {
        let mut troubles = self.troubles();
        let trouble = troubles.entry(restore_point).or_default();
        let why = trouble.attempts.give_up(why);
        self.note(restore_point, &trouble.attempts);
        why
    }

    /// It is in its table. The listing goes first: a count without one is swept, a listing without its count is tried once more and
    /// found to be there.
    fn is_taken_in(&self, restore_point: Uuid) {
        if let Err(error) = self.remove(restore_point) {
            tracing::warn!(%restore_point, %error, "a listing that was taken in cannot be removed; the next start tries it");
        }
    }

    /// Keeps the count for the next start. A listing that was given up goes: the reason stays.
    fn note(&self, restore_point: Uuid, attempts: &Attempts) {
        let kept = attempts.write(&self.attempts(restore_point));
        let kept =
            kept.and_then(|()| if attempts.given_up { remove_if_there(&self.listing(restore_point)) } else { Ok(()) });
        if let Err(error) = kept {
            tracing::warn!(%restore_point, %error, "the attempts to take a listing in are counted until the server stops");
        }
    }
}

impl Trouble {
    fn told(&self) -> Option<String> {
        match self.waits_for {
            Some(first) => Some(format!("it waits for restore point {first} of this VM, which comes before it")),
            None => self.attempts.why.clone().filter(|_| self.due.is_some()),
        }
    }
}

fn troubles(incoming: &Path) -> io::Result<BTreeMap<Uuid, Trouble>> {
    let mut troubles = BTreeMap::new();
    for id in named(incoming, ATTEMPTS_SUFFIX)? {
        let path = incoming.join(format!("{id}{ATTEMPTS_SUFFIX}"));
        let has_listing = incoming.join(format!("{id}{LISTING_SUFFIX}")).exists();
        match Attempts::read(&path)? {
            Some(attempts) if attempts.given_up || has_listing => {
                if attempts.given_up {
                    remove_if_there(&incoming.join(format!("{id}{LISTING_SUFFIX}")))?;
                }
                troubles.insert(id, Trouble { attempts, ..Trouble::default() });
            }
            _ => remove_if_there(&path)?,
        }
    }
    Ok(troubles)
}

/// The restore points after which files with this suffix are named.
fn named(folder: &Path, suffix: &str) -> io::Result<Vec<Uuid>> {
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        ids.extend(name.to_str().and_then(|name| name.strip_suffix(suffix)).and_then(|id| id.parse::<Uuid>().ok()));
    }
    Ok(ids)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// An error with its causes, in one line.
pub fn sentence(error: &CatalogError) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
