//! The listings that wait, taken in one after another, those of a VM in the order of its sessions: while an earlier one is yet to be
//! tried again, the later ones wait. So a table's numbers grow with time.
//!
//! Knows nothing of how a listing came, nor of what is in it.

use super::{Pending, sentence, spool::Spooled};
use crate::server::Server;
use crate::store::StoreError;
use crate::store::restore_points::RestorePointRow;
use lull_catalog::{CatalogError, IngestOutcome, IngestReport, NewPoint};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

/// A queue that could not be looked at is looked at again after this time.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Takes in what comes, until the server stops.
pub async fn run(server: &Arc<Server>) {
    loop {
        let next = match take_in(server).await {
            Ok(next) => next,
            Err(error) => {
                tracing::error!(%error, "the listings that came in cannot be looked at");
                Some(Instant::now() + LOOK_AGAIN)
            }
        };
        let again = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
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

/// One look at the queue; answers when something is to be tried again.
async fn take_in(server: &Arc<Server>) -> Result<Option<Instant>, QueueError> {
    let catalog = &server.catalog;
    // In this order: a task that closes in between has recorded its restore point before.
    let waiting = catalog.pending()?;
    let given_up = catalog.given_up();
    if waiting.is_empty() && given_up.is_empty() {
        return Ok(None);
    }
    let open = server.book.open_tasks().await;
    let backups = open.iter().filter_map(|task| task.row.work.backup.as_ref());
    let being_made: BTreeSet<Uuid> = backups.map(|backup| backup.restore_point.0).collect();
    let here = waiting.iter().map(|pending| pending.restore_point).chain(given_up.iter().map(|(id, _)| *id));
    let recorded = server.store.restore_points_beside(here).await?;
    let by_id: BTreeMap<Uuid, &RestorePointRow> = recorded.iter().map(|point| (point.id, point)).collect();
    for (id, _) in given_up {
        if !by_id.contains_key(&id) {
            catalog.remove(id)?;
        }
    }
    let mut ready: Vec<&RestorePointRow> = Vec::new();
    for Pending { restore_point: id, .. } in waiting {
        // A restore point is recorded while its listing may still be coming.
        if being_made.contains(&id) {
            continue;
        }
        match by_id.get(&id) {
            Some(point) => ready.push(point),
            None => catalog.remove(id)?,
        }
    }
    // Sessions are counted; clocks may be set back.
    ready.sort_by_key(|point| (point.session, point.created_us, point.id));
    let mut first_of_vm: BTreeMap<Uuid, Uuid> = BTreeMap::new();
    let mut next: Option<Instant> = None;
    for point in ready {
        if let Some(first) = first_of_vm.get(&point.vm) {
            catalog.waits_for(point.id, *first);
            continue;
        }
        let again = match catalog.due(point.id) {
            Some(due) if due > Instant::now() => Some(due),
            _ => attempt(server, point, &recorded).await,
        };
        if let Some(again) = again {
            first_of_vm.insert(point.vm, point.id);
            next = Some(next.map_or(again, |next| next.min(again)));
        }
    }
    Ok(next)
}

/// Tries to take in one listing; answers when it is tried again, if it is.
async fn attempt(server: &Arc<Server>, point: &RestorePointRow, recorded: &[RestorePointRow]) -> Option<Instant> {
    let (catalog, id, vm) = (&server.catalog, point.id, &point.vm_name);
    let failed = match catalog.begin_attempt(id) {
        Err(why) => Err(why),
        Ok(()) => match ingest(server, point, recorded).await {
            Ok(Taken::In(report)) => {
                catalog.is_taken_in(id);
                report.into_iter().for_each(|report| tell(point, *report));
                return None;
            }
            Ok(Taken::TooLate(why)) => Err(catalog.give_up(id, why)),
            Err(error) => catalog.attempt_failed(id, sentence(&error)),
        },
    };
    match failed {
        Ok((again, why)) => {
            let after_s = again.as_secs();
            tracing::error!(vm, restore_point = %id, why, after_s, "the files of a restore point cannot be taken in yet");
            Some(Instant::now() + again)
        }
        Err(why) => {
            tracing::error!(vm, restore_point = %id, why, "the files of a restore point will not be in the catalog");
            None
        }
    }
}

/// What became of a listing.
enum Taken {
    /// It is in the table; since now where there is a report.
    In(Option<Box<IngestReport>>),
    /// The table is further on: why.
    TooLate(String),
}

async fn ingest(
    server: &Arc<Server>,
    point: &RestorePointRow,
    recorded: &[RestorePointRow],
) -> Result<Taken, CatalogError> {
    let (id, vm, taken_at_us) = (point.id, point.vm, point.created_us);
    let listing = server.catalog.listing(id);
    let is_later = |other: &&RestorePointRow| {
        other.vm == vm && other.session > point.session && other.created_us > point.created_us
    };
    let later: BTreeSet<Uuid> = recorded.iter().filter(is_later).map(|other| other.id).collect();
    let ingested = server.catalog.ask(move |tables| {
        let points = match tables.points(vm) {
            // An ingest sets it aside and begins anew.
            Err(CatalogError::Damaged { .. }) => Vec::new(),
            points => points?,
        };
        let is_there = points.iter().any(|point| point.id == id);
        if let Some(passed) = points.iter().find(|point| !is_there && later.contains(&point.id)) {
            return Ok(Taken::TooLate(format!("restore point {}, which is newer, was taken in before", passed.id)));
        }
        let (mut frames, summary) = Spooled::open(&listing).map_err(CatalogError::Listing)?;
        let number = tables.number_next(vm)?;
        Ok(match tables.ingest(vm, &NewPoint { id, number, taken_at_us }, &mut frames, &summary)? {
            IngestOutcome::Ingested(report) => Taken::In(Some(report)),
            IngestOutcome::AlreadyThere => Taken::In(None),
        })
    });
    let taken = ingested.await?;
    // Who removed the restore point meanwhile may have had it forgotten before it was in the table.
    if is_gone(server, point).await {
        server.catalog.ask(move |tables| tables.forget(vm, &[id])).await?;
    }
    Ok(taken)
}

fn tell(point: &RestorePointRow, report: IngestReport) {
    let (vm, id, files) = (&point.vm_name, point.id, report.point.walk.entries);
    tracing::info!(vm, restore_point = %id, files, "the files of a restore point are in the catalog");
    if let Some(aside) = report.set_aside {
        let table = aside.path.display();
        tracing::error!(vm, %table, reason = aside.reason, "a damaged table was set aside; it begins anew");
    }
}

/// Whether the restore point was removed, or is being removed now. In this order: a removal ends only when the row is gone.
async fn is_gone(server: &Server, point: &RestorePointRow) -> bool {
    server.uses.is_being_removed(point.id)
        || server.store.restore_points(Some(point.vm)).await.is_ok_and(|rows| rows.iter().all(|row| row.id != point.id))
}
