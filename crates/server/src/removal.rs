//! Removing a restore point: its row says so, then go its files, what the catalog knows of it, the row. From the first on nothing counts on it, and
//! whatever breaks off is gone on with ([`go_on`]), also after a restart. A person's wish and retention come here alike. Knows no rules of retention.
//!
//! Nobody reads what is being removed, and nobody removes what is being read ([`Uses`]): a verification says what it reads; a backup is an open task
//! before it names its parent, and names none that is being removed.

use crate::catalog::sentence;
use crate::server::Server;
use crate::store::StoreError;
use crate::store::restore_points::RestorePointRow;
use crate::store::sessions::BackupPlan;
use lull_engine::chain::dependents;
use lull_engine::ids::RestorePointId;
use lull_hypervisor::remove;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;
use uuid::Uuid;

/// Most restore points named in a sentence.
const NAMED_MAX: usize = 10;

/// Restore points that are being read, and those that are being removed.
#[derive(Debug, Default)]
pub struct Uses {
    now: Mutex<InUse>,
    /// Something is not in use any more.
    pub over: Notify,
}

#[derive(Debug, Default)]
struct InUse {
    /// How many read each.
    read: BTreeMap<Uuid, u32>,
    removed: BTreeSet<Uuid>,
}

/// While it lives, nobody removes what is read.
#[derive(Debug)]
pub struct Reading {
    uses: Arc<Uses>,
    points: Vec<Uuid>,
}

/// While it lives, nobody begins to read the point.
#[derive(Debug)]
struct Removing {
    uses: Arc<Uses>,
    point: Uuid,
}

impl Uses {
    /// Reads these restore points from now on.
    ///
    /// # Errors
    /// One of them is being removed: which.
    pub fn read(self: &Arc<Self>, points: Vec<Uuid>) -> Result<Reading, Uuid> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(removed) = points.iter().find(|point| now.removed.contains(point)) {
            return Err(*removed);
        }
        for point in &points {
            *now.read.entry(*point).or_default() += 1;
        }
        Ok(Reading { uses: self.clone(), points })
    }

    /// Whether it is being removed.
    pub fn is_being_removed(&self, point: Uuid) -> bool {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).removed.contains(&point)
    }

    fn remove(self: &Arc<Self>, point: Uuid) -> Result<Removing, &'static str> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if now.read.contains_key(&point) {
            return Err("it is being verified, or a restore point that builds on it is");
        }
        if !now.removed.insert(point) {
            return Err("it is being removed already");
        }
        Ok(Removing { uses: self.clone(), point })
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut now = self.uses.now.lock().unwrap_or_else(PoisonError::into_inner);
        for point in &self.points {
            if let Some(readers) = now.read.get_mut(point) {
                *readers -= 1;
                if *readers == 0 {
                    now.read.remove(point);
                }
            }
        }
        self.uses.over.notify_one();
    }
}

impl Drop for Removing {
    fn drop(&mut self) {
        self.uses.now.lock().unwrap_or_else(PoisonError::into_inner).removed.remove(&self.point);
    }
}

/// Why a restore point stays.
#[derive(Debug, thiserror::Error)]
pub enum NotRemoved {
    /// Somebody needs it.
    #[error("{why}")]
    InUse {
        /// For what, in a few words.
        what: &'static str,
        /// Who and what for.
        why: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Its files cannot be got at; all of them are there.
    #[error("{why}")]
    Failed {
        /// Why.
        why: String,
    },
    /// Its files or its part of the catalog could not be removed; the rest is gone, or will be.
    #[error("{why}")]
    Unfinished {
        /// Why.
        why: String,
    },
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Removes a restore point, unless somebody needs it.
///
/// # Errors
/// Why it stays; what was removed of it until then stays removed, and the next attempt goes on from there.
pub async fn remove(server: &Arc<Server>, point: &RestorePointRow) -> Result<(), NotRemoved> {
    // First this, then the look at open tasks: a backup that begins in between sees it (see `order`).
    let removing = server.uses.remove(point.id).map_err(|why| NotRemoved::InUse {
        what: "it is in use",
        why: why.into(),
        remedy: "delete it when that is over",
    })?;
    may_go(server, point).await?;
    let repositories = server.store.repositories().await?;
    let folder = repositories.into_iter().find(|r| r.id == point.repository).map(|r| r.path).unwrap_or_default();
    let (row, place) = (point.clone(), folder);
    let looking = move || remove::in_reach(Path::new(&place), Path::new(&row.directory));
    let in_reach = tokio::task::spawn_blocking(looking).await;
    in_reach.unwrap_or_else(|error| Err(error.to_string())).map_err(|why| NotRemoved::Failed { why })?;
    server.store.begin_removal(point.id).await?;
    let row = point.clone();
    // What deletes files holds the point, also when whoever asked for it has gone.
    let delete = move || (remove::remove_files(Path::new(&row.directory), &row.disks), removing);
    let deleted = tokio::task::spawn_blocking(delete).await;
    let (deleted, removing) = deleted.map_err(|error| NotRemoved::Unfinished { why: error.to_string() })?;
    deleted.map_err(|why| NotRemoved::Unfinished { why })?;
    let (vm, id) = (point.vm, point.id);
    let forgotten = server.catalog.ask(move |tables| tables.forget(vm, &[id])).await;
    forgotten.map_err(|error| NotRemoved::Unfinished {
        why: format!("its files could not be taken out of the catalog: {}", sentence(&error)),
    })?;
    server.store.remove_restore_point(point.id).await?;
    drop(removing);
    Ok(())
}

/// Goes on with removals that broke off; answers what of them is still not done, and why.
pub async fn go_on(server: &Arc<Server>) -> Result<Vec<(RestorePointRow, NotRemoved)>, StoreError> {
    let mut left = Vec::new();
    // The newest first: children go before what they build on.
    for point in server.store.restore_points(None).await?.into_iter().filter(|point| point.removing) {
        // Somebody is at it.
        if server.uses.is_being_removed(point.id) {
            continue;
        }
        match remove(server, &point).await {
            Ok(()) => {
                tracing::info!(vm = point.vm_name, restore_point = %point.id, "its removal, which had broken off, is done")
            }
            Err(NotRemoved::Store(StoreError::Missing { .. })) => {}
            Err(NotRemoved::Store(error)) => return Err(error),
            Err(error) => left.push((point, error)),
        }
    }
    Ok(left)
}

/// Whether nothing builds on a restore point, and nothing is about to.
async fn may_go(server: &Server, point: &RestorePointRow) -> Result<(), NotRemoved> {
    let others = server.store.restore_points(Some(point.vm)).await?;
    let links = others.iter().map(|other| (RestorePointId(other.id), other.parent.map(RestorePointId)));
    let lost = dependents(RestorePointId(point.id), links);
    if !lost.is_empty() {
        let named: Vec<String> = lost.iter().take(NAMED_MAX).map(RestorePointId::to_string).collect();
        let more = lost.len() - named.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        return Err(NotRemoved::InUse {
            what: "others build on it",
            why: format!("without it these could not be restored: {}{more}", named.join(", ")),
            remedy: "delete those first, the newest before the others, or keep it",
        });
    }
    // An order names its parent before there is a child that the database knows.
    let open = server.book.open_tasks().await;
    let backup = |backup: &BackupPlan| backup.repository.0 == point.repository;
    let making = open.iter().find(|t| t.row.vm == point.vm && t.row.work.backup.as_ref().is_some_and(backup));
    making.map_or(Ok(()), |task| {
        Err(NotRemoved::InUse {
            what: "a backup may be building on it",
            why: format!("session {} is backing {} up to the same repository", task.row.session, point.vm_name),
            remedy: "delete it when that session is over",
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_and_who_removes_exclude_each_other() {
        let uses = Arc::new(Uses::default());
        let [one, two] = [1, 2].map(Uuid::from_u128);
        let first = uses.read(vec![one, two]).unwrap();
        let second = uses.read(vec![one]).unwrap();
        drop(first);
        assert!(uses.remove(one).unwrap_err().contains("verified"), "one still reads it");
        let removing = uses.remove(two).unwrap();
        assert!(uses.is_being_removed(two) && !uses.is_being_removed(one));
        assert!(uses.remove(two).unwrap_err().contains("removed already"));
        assert_eq!(uses.read(vec![one, two]).unwrap_err(), two);
        drop((second, removing));
        drop(uses.remove(one).unwrap());
        assert!(uses.read(vec![one, two]).is_ok(), "whoever was refused left nothing behind");
    }
}
