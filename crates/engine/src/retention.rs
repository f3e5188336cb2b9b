//! Which restore points are kept, and which chains of them may go. Knows no repository: points come as facts, `now` is an argument.
//!
//! A point is kept while any rule asks for it; the newest of a VM always is. Points are removed by whole chains, and only once nobody asks
//! for any point of the chain: an increment is worth nothing without the points before it, and chains are never merged.

use crate::ids::RestorePointId;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, Zoned};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The most of each rule: a hundred years of days.
pub const COUNT_MAX: u32 = 36_500;

/// How long restore points are kept. Without any rule they are kept for good: nothing is deleted that nobody asked to delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// The newest so many.
    pub last: Option<u32>,
    /// Everything younger than so many days.
    pub days: Option<u32>,
    /// The newest of each of the last so many weeks that have one; weeks begin on Monday.
    pub weekly: Option<u32>,
    /// The newest of each of the last so many months that have one.
    pub monthly: Option<u32>,
}

impl Retention {
    /// Whether every point is kept for good.
    pub fn keeps_everything(&self) -> bool {
        *self == Self::default()
    }

    /// What is out of bounds, one sentence each.
    pub fn validate(&self) -> Vec<String> {
        let rules = [("last", self.last), ("days", self.days), ("weekly", self.weekly), ("monthly", self.monthly)];
        let wrong = rules.into_iter().filter(|(_, count)| count.is_some_and(|count| count == 0 || count > COUNT_MAX));
        wrong.map(|(rule, _)| format!("retention: {rule} must be 1 to {COUNT_MAX}, or absent")).collect()
    }
}

/// A recorded restore point of one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// Its id.
    pub id: RestorePointId,
    /// When its snapshot was taken.
    pub taken_at: Timestamp,
    /// The point whose changes it continues; `None` for a full one.
    pub parent: Option<RestorePointId>,
}

/// A rule that asks for a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// The newest always stays.
    Newest,
    /// One of the last N.
    Last,
    /// Young enough.
    Days,
    /// The newest of its week.
    Weekly,
    /// The newest of its month.
    Monthly,
    /// No rule at all: everything stays.
    Everything,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rule::Newest => "the newest",
            Rule::Last => "one of the last",
            Rule::Days => "young enough",
            Rule::Weekly => "the newest of its week",
            Rule::Monthly => "the newest of its month",
            Rule::Everything => "no retention is set",
        })
    }
}

/// Which rules ask for each point of one VM. A point that is not in the answer is expired.
pub fn kept(
    points: &[Point],
    retention: &Retention,
    now: Timestamp,
    zone: &TimeZone,
) -> BTreeMap<RestorePointId, BTreeSet<Rule>> {
    let mut asked: BTreeMap<RestorePointId, BTreeSet<Rule>> = BTreeMap::new();
    let mut ask = |point: &Point, rule| {
        asked.entry(point.id).or_default().insert(rule);
    };
    let newest_first = newest_first(points);
    for point in newest_first.iter().take(1) {
        ask(point, Rule::Newest);
    }
    if retention.keeps_everything() {
        newest_first.iter().for_each(|point| ask(point, Rule::Everything));
    }
    for point in newest_first.iter().take(retention.last.unwrap_or(0) as usize) {
        ask(point, Rule::Last);
    }
    if let Some(days) = retention.days {
        let age_max = SignedDuration::from_hours(24 * i64::from(days));
        // A point from the future (the clock was set back since) is young.
        for point in newest_first.iter().filter(|point| now.duration_since(point.taken_at) < age_max) {
            ask(point, Rule::Days);
        }
    }
    let week = |at: &Zoned| {
        let week = at.date().iso_week_date();
        (week.year(), week.week())
    };
    let month = |at: &Zoned| (at.year(), at.month());
    for point in newest_of_each(&newest_first, retention.weekly, zone, week) {
        ask(point, Rule::Weekly);
    }
    for point in newest_of_each(&newest_first, retention.monthly, zone, month) {
        ask(point, Rule::Monthly);
    }
    asked
}

/// Chains of which no point is kept, oldest first; in each the newest point first, which is the order of removal: what is interrupted
/// leaves a shorter chain, never one with a hole. A point whose parent is gone begins a chain.
pub fn chains_to_remove(points: &[Point], kept: &BTreeMap<RestorePointId, BTreeSet<Rule>>) -> Vec<Vec<RestorePointId>> {
    let mut chains: Vec<Vec<&Point>> = chains(points);
    chains.retain(|chain| !chain.iter().any(|point| kept.contains_key(&point.id)));
    chains.sort_by_key(|chain| chain.iter().map(|point| point.taken_at).min());
    let ids = |chain: Vec<&Point>| newest_first_of(chain).into_iter().map(|point| point.id).collect();
    chains.into_iter().map(ids).collect()
}

/// Every point that needs this one, itself first: what must go with it.
pub fn dependents(points: &[Point], of: RestorePointId) -> Vec<RestorePointId> {
    let mut found = vec![of];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        let children = points.iter().filter(|point| point.parent == Some(parent) && !found.contains(&point.id));
        let children: Vec<RestorePointId> = children.map(|point| point.id).collect();
        found.extend(children);
        next += 1;
    }
    found
}

/// How many points the chain that ends in `newest` has; 0 where it is unknown or broken.
pub fn chain_length(points: &[Point], newest: RestorePointId) -> u32 {
    let mut length = 0;
    let mut at = Some(newest);
    while let Some(id) = at {
        let Some(point) = points.iter().find(|point| point.id == id) else { return 0 };
        length += 1;
        if length as usize > points.len() {
            return 0;
        }
        at = point.parent;
    }
    length
}

fn chains(points: &[Point]) -> Vec<Vec<&Point>> {
    let known: BTreeSet<RestorePointId> = points.iter().map(|point| point.id).collect();
    let begins = |point: &&Point| point.parent.is_none_or(|parent| !known.contains(&parent));
    let members = |first: &Point| {
        let ids = dependents(points, first.id);
        points.iter().filter(|point| ids.contains(&point.id)).collect()
    };
    points.iter().filter(begins).map(members).collect()
}

fn newest_first(points: &[Point]) -> Vec<&Point> {
    newest_first_of(points.iter().collect())
}

fn newest_first_of(mut points: Vec<&Point>) -> Vec<&Point> {
    points.sort_by_key(|point| std::cmp::Reverse((point.taken_at, point.id)));
    points
}

fn newest_of_each<'a, K: PartialEq>(
    newest_first: &[&'a Point],
    count: Option<u32>,
    zone: &TimeZone,
    period: impl Fn(&Zoned) -> K,
) -> Vec<&'a Point> {
    let mut found: Vec<&Point> = Vec::new();
    let mut last = None;
    for point in newest_first {
        let of = period(&point.taken_at.to_zoned(zone.clone()));
        if last.as_ref() != Some(&of) {
            found.push(point);
            last = Some(of);
        }
    }
    found.truncate(count.unwrap_or(0) as usize);
    found
}
