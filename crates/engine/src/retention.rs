//! Which restore points are kept, and which chains of them may go. Knows no repository: points come as facts, `now` is an argument.
//!
//! A point is kept while any rule asks for it; the newest that can be restored always is. Points are removed by whole chains, and only once nobody asks
//! for any point of the chain: an increment is worth nothing without the points before it, and chains are never merged.
//!
//! A clock may be wrong. Age counts back from the newest point and not from `now`: only a new point lets another one expire. `now` says which points
//! are from the future, made by a clock that was ahead: they stay, and fill no rule in another's place.

use crate::chain::dependents;
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
    /// Everything less than so many days older than the newest.
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
    /// A verification found it damaged.
    pub damaged: bool,
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
    /// A clock that was ahead made it: it stays until its time comes.
    Ahead,
    /// A verification found it damaged: what becomes of it a person decides.
    Damaged,
    /// No job looks after it.
    NoJob,
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
            Rule::Ahead => "made by a clock that was ahead",
            Rule::Damaged => "damaged, for a person to look at",
            Rule::NoJob => "no job looks after it",
            Rule::Everything => "no retention is set",
        })
    }
}

/// What one job asks for.
#[derive(Debug, Clone)]
pub struct Wish {
    /// How long it keeps its points.
    pub retention: Retention,
    /// Where its weeks and months begin.
    pub zone: TimeZone,
}

/// Which rules ask for each point of one VM, where every point was made by the same job. A point that is not in the answer is expired.
pub fn kept(
    points: &[Point],
    retention: &Retention,
    now: Timestamp,
    zone: &TimeZone,
) -> BTreeMap<RestorePointId, BTreeSet<Rule>> {
    let wish = Wish { retention: *retention, zone: zone.clone() };
    kept_by_all(points, |_| Some(0), &[wish], now)
}

/// The same where several jobs back one VM up: each asks for points that it made itself. `maker` says which of the `wishes` is the maker's; a point
/// without one stays.
pub fn kept_by_all(
    points: &[Point],
    maker: impl Fn(RestorePointId) -> Option<usize>,
    wishes: &[Wish],
    now: Timestamp,
) -> BTreeMap<RestorePointId, BTreeSet<Rule>> {
    let mut asked: BTreeMap<RestorePointId, BTreeSet<Rule>> = BTreeMap::new();
    for point in points.iter().filter(|point| point.damaged) {
        asked.entry(point.id).or_default().insert(Rule::Damaged);
    }
    for point in points.iter().filter(|point| maker(point.id).and_then(|wish| wishes.get(wish)).is_none()) {
        asked.entry(point.id).or_default().insert(Rule::NoJob);
    }
    let ahead = |point: &Point| point.taken_at > now;
    for point in points.iter().filter(|point| ahead(point)) {
        asked.entry(point.id).or_default().insert(Rule::Ahead);
    }
    let mut countable = countable(points);
    countable.retain(|point| !ahead(point));
    for (number, wish) in wishes.iter().enumerate() {
        let is_own = |point: &Point| maker(point.id) == Some(number);
        if wish.retention.keeps_everything() {
            for point in points.iter().filter(|point| is_own(point)) {
                asked.entry(point.id).or_default().insert(Rule::Everything);
            }
        }
        let own: Vec<&Point> = countable.iter().filter(|point| is_own(point)).copied().collect();
        ask(&own, wish, &mut asked);
    }
    asked
}

fn ask(newest_first: &[&Point], Wish { retention, zone }: &Wish, asked: &mut BTreeMap<RestorePointId, BTreeSet<Rule>>) {
    let mut ask = |point: &Point, rule| {
        asked.entry(point.id).or_default().insert(rule);
    };
    let Some(newest) = newest_first.first() else { return };
    ask(newest, Rule::Newest);
    for point in newest_first.iter().take(retention.last.unwrap_or(0) as usize) {
        ask(point, Rule::Last);
    }
    if let Some(days) = retention.days {
        let age_max = SignedDuration::from_hours(24 * i64::from(days));
        for point in newest_first.iter().filter(|point| newest.taken_at.duration_since(point.taken_at) < age_max) {
            ask(point, Rule::Days);
        }
    }
    let week = |at: &Zoned| {
        let week = at.date().iso_week_date();
        (week.year(), week.week())
    };
    let month = |at: &Zoned| (at.year(), at.month());
    for point in newest_of_each(newest_first, retention.weekly, zone, week) {
        ask(point, Rule::Weekly);
    }
    for point in newest_of_each(newest_first, retention.monthly, zone, month) {
        ask(point, Rule::Monthly);
    }
}

/// Chains of which no point is kept, oldest first; in each every point goes before the one that it builds on, whatever their clocks say: what
/// is interrupted leaves a shorter chain, never one with a hole. A point whose parent is gone begins a chain.
pub fn chains_to_remove(points: &[Point], kept: &BTreeMap<RestorePointId, BTreeSet<Rule>>) -> Vec<Vec<RestorePointId>> {
    let mut chains = chains(points);
    chains.retain(|chain| !chain.iter().any(|id| kept.contains_key(id)));
    let taken_at = |id: &RestorePointId| points.iter().find(|point| point.id == *id).map(|point| point.taken_at);
    chains.sort_by_key(|chain| chain.iter().filter_map(taken_at).min());
    chains.iter_mut().for_each(|chain| chain.reverse());
    chains
}

/// Every chain, each point after the one that it builds on.
fn chains(points: &[Point]) -> Vec<Vec<RestorePointId>> {
    let known: BTreeSet<RestorePointId> = points.iter().map(|point| point.id).collect();
    let begins = |point: &&Point| point.parent.is_none_or(|parent| !known.contains(&parent));
    let links = || points.iter().map(|point| (point.id, point.parent));
    let members = |first: &Point| [vec![first.id], dependents(first.id, links())].concat();
    points.iter().filter(begins).map(members).collect()
}

/// What the rules count: a point that cannot be restored, because it or one that it builds on is damaged, stands for nothing.
fn countable(points: &[Point]) -> Vec<&Point> {
    let links = || points.iter().map(|point| (point.id, point.parent));
    let damaged = points.iter().filter(|point| point.damaged).map(|point| point.id);
    let lost: BTreeSet<RestorePointId> = damaged.flat_map(|id| [vec![id], dependents(id, links())].concat()).collect();
    let mut points: Vec<&Point> = points.iter().filter(|point| !lost.contains(&point.id)).collect();
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
