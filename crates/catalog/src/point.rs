//! A restore point that was indexed, and how its walk went. Pure.
//!
//! A restore point without an index is simply not among a table's points: it leaves a gap in the intervals and ends none.

use crate::version::Interval;
use lull_guest_wire::listing::{EXAMPLES_MAX, IndexSummary, cut};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Longest text that is kept from a guest's summary, in bytes.
pub const TEXT_BYTES_MAX: usize = 4_096;

/// One indexed restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// The restore point.
    pub id: Uuid,
    /// Its number within the VM: grows, is never used again. It alone gives the order; clocks do not.
    pub number: u32,
    /// When its snapshot was taken, in microseconds since 1970 of the server's clock.
    pub taken_at_us: i64,
    /// How its walk went.
    pub walk: Walk,
}

/// How a walk went.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Walk {
    /// When it began, in microseconds since 1970 of the guest's clock.
    pub began_us: i64,
    /// When it ended, likewise.
    pub ended_us: i64,
    /// Entries that came in.
    pub entries: u64,
    /// Folders that the guest could not read; what lies below them is unknown.
    pub unreadable_folders: u64,
    /// Entries that the guest could not read.
    pub unreadable_entries: u64,
    /// Entries that went while the walk looked at them.
    pub vanished: u64,
    /// Everything that was asked for was walked and came in.
    pub complete: bool,
    /// Why not, where not.
    pub stopped_because: Option<String>,
    /// Some unreadable paths with their errors.
    pub examples: Vec<String>,
}

impl Walk {
    /// What a guest reported, with every text and list cut to its bound.
    pub fn from_summary(summary: &IndexSummary) -> Walk {
        Walk {
            began_us: summary.began_us,
            ended_us: summary.ended_us,
            entries: summary.entries,
            unreadable_folders: summary.unreadable_folders,
            unreadable_entries: summary.unreadable_entries,
            vanished: summary.vanished,
            complete: summary.complete,
            stopped_because: summary.stopped_because.as_deref().map(short),
            examples: summary.examples.iter().take(EXAMPLES_MAX).map(|text| short(text)).collect(),
        }
    }
}

fn short(text: &str) -> String {
    cut(text, TEXT_BYTES_MAX).to_string()
}

/// One restore point in which a version existed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// The restore point.
    pub id: Uuid,
    /// Its number.
    pub number: u32,
    /// When its snapshot was taken, in microseconds since 1970 of the server's clock.
    pub taken_at_us: i64,
    /// False where the walk of this point did not look there (an unreadable folder, a walk that ended early, another scope): an earlier
    /// walk saw this version, and no later one says otherwise for this point.
    pub known: bool,
}

/// The points of `points` (ordered by number) that lie in `interval`.
pub fn presence(points: &[Point], interval: Interval) -> Vec<Presence> {
    let from = points.partition_point(|point| point.number < interval.first);
    let within = points[from..].iter().take_while(|point| point.number <= interval.last);
    within
        .map(|point| Presence {
            id: point.id,
            number: point.number,
            taken_at_us: point.taken_at_us,
            known: point.number <= interval.seen,
        })
        .collect()
}

/// Whether any point of `points` (ordered by number) lies in `interval`.
pub fn is_alive(points: &[Point], interval: Interval) -> bool {
    let from = points.partition_point(|point| point.number < interval.first);
    points.get(from).is_some_and(|point| point.number <= interval.last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_says_is_cut_to_its_bound() {
        let long = "ä".repeat(TEXT_BYTES_MAX);
        let summary = IndexSummary {
            stopped_because: Some(format!("x{long}")),
            examples: vec![long; EXAMPLES_MAX + 1],
            ..IndexSummary::default()
        };
        let walk = Walk::from_summary(&summary);
        assert_eq!(walk.stopped_because.map(|text| text.len()), Some(TEXT_BYTES_MAX - 1));
        assert_eq!((walk.examples.len(), walk.examples[0].len()), (EXAMPLES_MAX, TEXT_BYTES_MAX));
    }

    #[test]
    fn a_gap_between_points_is_no_presence() {
        let point =
            |number| Point { id: Uuid::from_u128(number as u128), number, taken_at_us: 0, walk: Walk::default() };
        let points = [point(1), point(4), point(6)];
        let numbers = |first, last, seen| -> Vec<(u32, bool)> {
            presence(&points, Interval { first, last, seen }).iter().map(|p| (p.number, p.known)).collect()
        };
        assert_eq!(numbers(1, 6, 4), [(1, true), (4, true), (6, false)]);
        assert_eq!(numbers(2, 3, 2), []);
        assert!(!is_alive(&points, Interval { first: 2, last: 3, seen: 2 }));
        assert!(is_alive(&points, Interval { first: 2, last: 4, seen: 2 }));
    }
}
