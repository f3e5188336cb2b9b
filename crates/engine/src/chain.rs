//! Which restore point a backup builds on, and which others are lost with one.
//!
//! Restore points of one VM in one repository form chains: a full backup, and increments that each build on the one before. The newest is the only
//! one whose dirty bitmap still records, so only it can be built on. Knows nothing of files or hypervisors: whether the parent can really be built
//! on is seen there.

use std::fmt;

use crate::ids::RestorePointId;

/// Points of a chain before a new full backup begins the next one, unless set otherwise.
pub const POINTS_PER_CHAIN: u32 = 14;

/// A restore point, as far as chains go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainPoint {
    /// Its id.
    pub id: RestorePointId,
    /// What it builds on; `None`: a full backup.
    pub parent: Option<RestorePointId>,
    /// A dirty bitmap records what changed since.
    pub has_bitmap: bool,
    /// A verification found it damaged.
    pub damaged: bool,
}

/// Why a backup builds on nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoParent {
    /// There is none yet.
    First,
    /// The newest has no bitmap.
    NoBitmap,
    /// The chain is as long as it may be.
    ChainComplete {
        /// Its points.
        points: u32,
    },
    /// A verification found the newest, or one that it builds on, damaged.
    Damaged {
        /// Which.
        id: RestorePointId,
    },
    /// One that the newest builds on is no longer known.
    Incomplete {
        /// Which.
        id: RestorePointId,
    },
}

impl fmt::Display for NoParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoParent::First => f.write_str("the VM has no restore point in this repository yet"),
            NoParent::NoBitmap => f.write_str("nothing records what changed since the last restore point"),
            NoParent::ChainComplete { points } => {
                write!(f, "the chain before it is complete with {points} restore points")
            }
            NoParent::Damaged { id } => {
                write!(f, "a verification found restore point {id} damaged, which it would build on")
            }
            NoParent::Incomplete { id } => {
                write!(f, "restore point {id}, which it would build on, is no longer known")
            }
        }
    }
}

/// What the next backup builds on. `points`: all of the VM in the repository, newest first.
pub fn parent_for(points: &[ChainPoint], points_per_chain: u32) -> Result<RestorePointId, NoParent> {
    let newest = points.first().ok_or(NoParent::First)?;
    if !newest.has_bitmap {
        return Err(NoParent::NoBitmap);
    }
    let (mut length, mut at) = (0u32, newest);
    loop {
        if at.damaged {
            return Err(NoParent::Damaged { id: at.id });
        }
        length += 1;
        if length >= points_per_chain {
            return Err(NoParent::ChainComplete { points: length });
        }
        let Some(parent) = at.parent else { return Ok(newest.id) };
        at = points.iter().find(|p| p.id == parent).ok_or(NoParent::Incomplete { id: parent })?;
    }
}

/// The points that cannot be restored without `of`: its children first, then theirs, so that in reverse order each goes before what it
/// builds on. `links`: every point with the one that it builds on.
pub fn dependents(
    of: RestorePointId,
    links: impl IntoIterator<Item = (RestorePointId, Option<RestorePointId>)>,
) -> Vec<RestorePointId> {
    let links: Vec<_> = links.into_iter().collect();
    let mut found = vec![of];
    let mut next = 0;
    // Whatever the links say, also if they form a ring: nobody is found twice.
    while let Some(parent) = found.get(next).copied() {
        for (id, builds_on) in &links {
            if *builds_on == Some(parent) && !found.contains(id) {
                found.push(*id);
            }
        }
        next += 1;
    }
    found.remove(0);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn id(n: usize) -> RestorePointId {
        RestorePointId(Uuid::from_u128(n as u128 + 1))
    }

    /// Newest first: each builds on the one after it, but for the last.
    fn chain(length: usize) -> Vec<ChainPoint> {
        let point = |n: usize| ChainPoint {
            id: id(n),
            parent: (n + 1 < length).then(|| id(n + 1)),
            has_bitmap: true,
            damaged: false,
        };
        (0..length).map(point).collect()
    }

    fn links(points: &[ChainPoint]) -> impl Iterator<Item = (RestorePointId, Option<RestorePointId>)> {
        points.iter().map(|point| (point.id, point.parent))
    }

    #[test]
    fn a_chain_ends_when_it_is_complete_and_nothing_builds_on_what_is_damaged() {
        assert_eq!(parent_for(&[], 14), Err(NoParent::First));
        assert_eq!(parent_for(&chain(1), 14), Ok(id(0)));
        assert_eq!(parent_for(&chain(13), 14), Ok(id(0)));
        assert_eq!(parent_for(&chain(14), 14), Err(NoParent::ChainComplete { points: 14 }));
        assert_eq!(parent_for(&chain(1), 1), Err(NoParent::ChainComplete { points: 1 }), "every backup is full");
        let mut damaged = chain(4);
        damaged[2].damaged = true;
        assert_eq!(parent_for(&damaged, 14), Err(NoParent::Damaged { id: id(2) }));
        let mut incomplete = chain(4);
        incomplete.remove(2);
        assert_eq!(parent_for(&incomplete, 14), Err(NoParent::Incomplete { id: id(2) }));
        let mut without = chain(2);
        without[0].has_bitmap = false;
        assert_eq!(parent_for(&without, 14), Err(NoParent::NoBitmap));
    }

    #[test]
    fn everything_that_builds_on_a_point_is_lost_with_it() {
        let mut points = chain(4);
        // A second branch on the oldest, and a chain of its own.
        points.push(ChainPoint { id: id(8), parent: Some(id(3)), has_bitmap: true, damaged: false });
        points.push(ChainPoint { id: id(9), parent: None, has_bitmap: true, damaged: false });
        assert_eq!(dependents(id(1), links(&points)), [id(0)]);
        assert_eq!(dependents(id(3), links(&points)), [id(2), id(8), id(1), id(0)]);
        assert_eq!(dependents(id(9), links(&points)), []);
        assert_eq!(dependents(id(0), links(&points)), []);
    }

    proptest! {
        /// Whatever the rows say, also if they form a ring: it ends, and whoever is removed with all its dependents leaves nobody without a parent.
        #[test]
        fn removing_a_point_with_its_dependents_orphans_nobody(parents in proptest::collection::vec(0usize..10, 1..10), gone in 0usize..10) {
            let point = |(n, parent): (usize, &usize)| ChainPoint {
                id: id(n), parent: (*parent != n && *parent < parents.len()).then(|| id(*parent)), has_bitmap: true, damaged: false,
            };
            let points: Vec<ChainPoint> = parents.iter().enumerate().map(point).collect();
            let _ = parent_for(&points, POINTS_PER_CHAIN);
            let lost = dependents(id(gone), links(&points));
            let stays = |p: &&ChainPoint| p.id != id(gone) && !lost.contains(&p.id);
            for p in points.iter().filter(stays) {
                prop_assert!(p.parent.is_none_or(|parent| parent != id(gone) && !lost.contains(&parent)));
            }
        }
    }
}
