//! What an answer of the catalog cannot know: restore points without an index, or whose listing ended early. Finds no files.

use super::asked::Known;
use crate::catalog::FileCatalog;
use crate::store::restore_points::RestorePointRow;
use lull_catalog::{Catalog, Point};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use uuid::Uuid;

/// Restore points of a VM that are named in one sentence; of more the number.
const NAMED_MAX: usize = 3;

/// What is known of listings that are in no table.
pub struct Listings {
    /// Restore points whose listings wait, and why where that is known.
    waiting: BTreeMap<Uuid, Option<String>>,
    given_up: BTreeMap<Uuid, String>,
}

impl Listings {
    /// As it is now.
    pub fn look(catalog: &FileCatalog) -> io::Result<Listings> {
        let waiting = catalog.pending()?.into_iter().map(|waiting| (waiting.restore_point, waiting.trouble));
        Ok(Listings { waiting: waiting.collect(), given_up: catalog.given_up().into_iter().collect() })
    }

    /// Restore points whose listings wait.
    pub fn pending(&self) -> Vec<Uuid> {
        self.waiting.keys().copied().collect()
    }

    fn why_not(&self, point: &RestorePointRow) -> String {
        match (self.waiting.get(&point.id), self.given_up.get(&point.id)) {
            (Some(None), _) => "its listing is yet to be taken in".into(),
            (Some(Some(why)), _) | (None, Some(why)) => why.clone(),
            // One that a scan found, of another database.
            (None, None) if point.session == 0 => "this server has no listing of it".into(),
            (None, None) => format!("nothing was listed, see `lull session show {}`", point.session),
        }
    }
}

/// Why an answer about this one restore point lacks something, if it does.
pub fn of_point(tables: &Catalog, known: &Known, listings: &Listings, id: Uuid) -> Option<String> {
    let point = known.points.iter().find(|point| point.id == id)?;
    let vm = known.name(point.vm);
    // A table that cannot be read is told by whoever reads it.
    match tables.points(point.vm).ok()?.iter().find(|indexed| indexed.id == id) {
        None => Some(format!("restore point {id} of {vm} has no index: {}", listings.why_not(point))),
        Some(indexed) if !indexed.walk.complete => {
            Some(format!("the listing of restore point {id} of {vm} is not complete: {}", stopped(indexed)))
        }
        Some(_) => None,
    }
}

/// The same for an answer about all restore points of `vms`, or of every VM that has a table.
pub fn of_vms(tables: &Catalog, known: &Known, listings: &Listings, vms: Option<&[Uuid]>) -> Vec<String> {
    let vms: BTreeSet<Uuid> = match vms {
        Some(vms) => vms.iter().copied().collect(),
        None => tables.vms().unwrap_or_default().into_iter().collect(),
    };
    let mut gaps = Vec::new();
    for vm in vms {
        let Ok(indexed) = tables.points(vm) else { continue };
        let name = known.name(vm);
        let recorded = known.points.iter().filter(|point| point.vm == vm);
        // What waits is told as such.
        let without = recorded.filter(|point| {
            indexed.iter().all(|indexed| indexed.id != point.id) && !listings.waiting.contains_key(&point.id)
        });
        let without = without.map(|point| format!("{} ({})", point.id, listings.why_not(point)));
        gaps.extend(sentence(&name, "no index", without.collect()));
        let cut = indexed.iter().filter(|point| !point.walk.complete);
        let cut = cut.map(|point| format!("{} ({})", point.id, stopped(point)));
        gaps.extend(sentence(&name, "a listing that is not complete", cut.collect()));
    }
    gaps
}

fn stopped(point: &Point) -> &str {
    point.walk.stopped_because.as_deref().unwrap_or("it ended early")
}

fn sentence(vm: &str, has: &str, points: Vec<String>) -> Option<String> {
    let more = points.len().saturating_sub(NAMED_MAX);
    let named = points.iter().take(NAMED_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    match (points.len(), more) {
        (0, _) => None,
        (1, _) => Some(format!("{vm}: 1 restore point has {has}: {named}")),
        (all, 0) => Some(format!("{vm}: {all} restore points have {has}: {named}")),
        (all, more) => Some(format!("{vm}: {all} restore points have {has}: {named} and {more} more")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_restore_points_some_are_named() {
        let points = |n: usize| (1..=n).map(|n| format!("p{n} (why)")).collect();
        for (n, expect) in [
            (0, None),
            (1, Some("shop: 1 restore point has no index: p1 (why)")),
            (3, Some("shop: 3 restore points have no index: p1 (why), p2 (why), p3 (why)")),
            (5, Some("shop: 5 restore points have no index: p1 (why), p2 (why), p3 (why) and 2 more")),
        ] {
            assert_eq!(sentence("shop", "no index", points(n)).as_deref(), expect);
        }
    }
}
