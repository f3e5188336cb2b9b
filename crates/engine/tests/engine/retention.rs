//! Which restore points stay, and which chains go.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use lull_engine::ids::RestorePointId;
use lull_engine::retention::{Point, Retention, Rule, Wish, chains_to_remove, kept, kept_by_all};
use proptest::prelude::*;
use std::collections::BTreeSet;
use uuid::Uuid;

fn id(n: u128) -> RestorePointId {
    RestorePointId(Uuid::from_u128(n))
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// One point a day at 02:00 UTC from 1 June 2026 on (a Monday), number 1 the first, a full one every `full_every`.
fn daily(days: u32, full_every: u32) -> Vec<Point> {
    let first = at("2026-06-01T02:00:00Z");
    (0..days)
        .map(|n| Point {
            id: id(u128::from(n) + 1),
            taken_at: first + SignedDuration::from_hours(24 * i64::from(n)),
            parent: (n % full_every != 0).then(|| id(u128::from(n))),
            damaged: false,
        })
        .collect()
}

fn numbers(points: &[Point], retention: Retention, now: &str) -> Vec<u128> {
    let kept = kept(points, &retention, at(now), &TimeZone::UTC);
    points.iter().filter(|point| kept.contains_key(&point.id)).map(|point| point.id.0.as_u128()).collect()
}

fn removed(points: &[Point], retention: Retention, now: &str) -> Vec<Vec<u128>> {
    let kept = kept(points, &retention, at(now), &TimeZone::UTC);
    let chains = chains_to_remove(points, &kept);
    chains.iter().map(|chain| chain.iter().map(|id| id.0.as_u128()).collect()).collect()
}

#[test]
fn without_a_rule_everything_stays() {
    assert_eq!(numbers(&daily(3, 14), Retention::default(), "2036-01-01T00:00:00Z"), [1, 2, 3]);
    assert!(removed(&daily(40, 14), Retention::default(), "2036-01-01T00:00:00Z").is_empty());
}

#[test]
fn each_rule_asks_for_its_own_points() {
    let points = daily(45, 14);
    let now = "2026-07-15T12:00:00Z";
    assert_eq!(numbers(&points, Retention { last: Some(2), ..Default::default() }, now), [44, 45]);
    assert_eq!(numbers(&points, Retention { days: Some(3), ..Default::default() }, now), [43, 44, 45]);
    // Sundays, and the last day there is: weeks begin on Monday.
    assert_eq!(numbers(&points, Retention { weekly: Some(3), ..Default::default() }, now), [35, 42, 45]);
    // 30 June is number 30.
    assert_eq!(numbers(&points, Retention { monthly: Some(2), ..Default::default() }, now), [30, 45]);
    assert_eq!(numbers(&points, Retention { monthly: Some(12), ..Default::default() }, now), [30, 45]);
}

#[test]
fn the_zone_decides_to_which_month_a_point_belongs() {
    let points = [
        Point { id: id(1), taken_at: at("2026-06-30T22:30:00Z"), parent: None, damaged: false },
        Point { id: id(2), taken_at: at("2026-07-15T22:30:00Z"), parent: None, damaged: false },
    ];
    let monthly = Retention { monthly: Some(1), ..Default::default() };
    let both = Retention { monthly: Some(2), ..Default::default() };
    let kept_in = |zone: &str, retention| {
        let zone = TimeZone::get(zone).unwrap();
        kept(&points, &retention, at("2026-07-16T00:00:00Z"), &zone).len()
    };
    assert_eq!((kept_in("UTC", both), kept_in("Europe/Berlin", both), kept_in("UTC", monthly)), (2, 1, 1));
}

/// Sunday 22:30 UTC is Monday in Berlin, and a week of its own begins.
#[test]
fn the_zone_decides_when_a_week_begins() {
    let points = [
        Point { id: id(1), taken_at: at("2026-06-07T12:00:00Z"), parent: None, damaged: false },
        Point { id: id(2), taken_at: at("2026-06-07T22:30:00Z"), parent: None, damaged: false },
        Point { id: id(3), taken_at: at("2026-06-09T12:00:00Z"), parent: None, damaged: false },
    ];
    let kept_in = |zone: &str| {
        let retention = Retention { weekly: Some(2), ..Default::default() };
        let kept = kept(&points, &retention, at("2026-06-10T00:00:00Z"), &TimeZone::get(zone).unwrap());
        kept.keys().map(|id| id.0.as_u128()).collect::<Vec<_>>()
    };
    assert_eq!((kept_in("UTC"), kept_in("Europe/Berlin")), (vec![2, 3], vec![1, 3]));
}

#[test]
fn a_chain_goes_as_a_whole_and_only_when_nobody_asks_for_any_of_it() {
    let points = daily(9, 4);
    let last = |n| Retention { last: Some(n), ..Default::default() };
    let now = "2026-07-01T00:00:00Z";
    assert_eq!(removed(&points, last(6), now), Vec::<Vec<u128>>::new(), "number 4 is asked for");
    assert_eq!(removed(&points, last(5), now), [[4, 3, 2, 1]]);
    assert_eq!(removed(&points, last(1), now), [[4, 3, 2, 1], [8, 7, 6, 5]]);
}

#[test]
fn the_newest_stays_however_old_it_is() {
    assert_eq!(numbers(&daily(3, 1), Retention { days: Some(1), ..Default::default() }, "2030-01-01T00:00:00Z"), [3]);
    let asked = kept(&daily(1, 1), &Retention::default(), at("2030-01-01T00:00:00Z"), &TimeZone::UTC);
    assert_eq!(asked[&id(1)], BTreeSet::from([Rule::Newest, Rule::Everything]));
}

/// A clock that is a year ahead, or a year without a backup: age counts from the newest point, and from the newest that can be restored.
#[test]
fn age_counts_from_the_newest_point_and_not_from_the_clock() {
    let mut points = daily(30, 7);
    let days = Retention { days: Some(14), ..Default::default() };
    for now in ["2026-06-30T02:00:00Z", "2026-07-20T00:00:00Z", "2027-07-01T00:00:00Z"] {
        assert_eq!(numbers(&points, days, now), (17..=30).collect::<Vec<u128>>(), "{now}");
        assert_eq!(removed(&points, days, now), [[7, 6, 5, 4, 3, 2, 1], [14, 13, 12, 11, 10, 9, 8]], "{now}");
    }
    points[28].damaged = true;
    assert_eq!(numbers(&points, days, "2027-07-01T00:00:00Z"), (15..=29).collect::<Vec<u128>>());
}

/// The clock was a year ahead when number 3 was made, and is right again.
#[test]
fn a_point_from_the_future_stays_and_takes_no_others_place() {
    let mut points = daily(5, 1);
    points[2].taken_at = at("2027-06-03T02:00:00Z");
    let now = "2026-06-05T12:00:00Z";
    assert_eq!(numbers(&points, Retention { last: Some(1), ..Default::default() }, now), [3, 5]);
    assert_eq!(numbers(&points, Retention { days: Some(2), ..Default::default() }, now), [3, 4, 5]);
    assert_eq!(numbers(&points, Retention { monthly: Some(1), ..Default::default() }, now), [3, 5]);
    let asked = kept(&points, &Retention { last: Some(1), ..Default::default() }, at(now), &TimeZone::UTC);
    assert_eq!(asked[&id(3)], BTreeSet::from([Rule::Ahead]));
    // Once its time has come it is a point like others.
    assert_eq!(numbers(&points, Retention { last: Some(1), ..Default::default() }, "2027-06-04T00:00:00Z"), [3]);
}

#[test]
fn what_is_damaged_stands_for_nothing_and_waits_for_a_person() {
    let last = |n| Retention { last: Some(n), ..Default::default() };
    let now = "2026-07-01T00:00:00Z";
    let mut points = daily(9, 3);
    points[7].damaged = true;
    // Numbers 8 and 9 cannot be restored: the last two that can are 6 and 7. The damaged one keeps its chain.
    assert_eq!(numbers(&points, last(2), now), [6, 7, 8]);
    assert_eq!(removed(&points, last(2), now), [[3, 2, 1]]);
    points.iter_mut().for_each(|point| point.damaged = true);
    assert!(removed(&points, last(1), now).is_empty(), "as if nothing could be read: nothing goes");
}

/// What is damaged takes along whatever rests on it, and nothing of an older chain goes for its sake.
#[test]
fn increments_on_a_damaged_full_backup_fill_no_rule() {
    let mut points = daily(6, 3);
    points[3].damaged = true;
    for rule in [
        Retention { last: Some(2), ..Default::default() },
        Retention { days: Some(4), ..Default::default() },
        Retention { weekly: Some(1), ..Default::default() },
        Retention { monthly: Some(1), ..Default::default() },
    ] {
        assert!(removed(&points, rule, "2026-06-06T12:00:00Z").is_empty(), "{rule:?}");
    }
}

#[test]
fn each_job_asks_for_its_own_points_and_a_chain_stays_for_any_of_them() {
    // Two jobs take turns in chains of two; what number 5 belongs to is gone.
    let points = daily(9, 2);
    let wish = |last| Wish { retention: Retention { last: Some(last), ..Default::default() }, zone: TimeZone::UTC };
    let maker = |id: RestorePointId| match id.0.as_u128() {
        5 => None,
        n => Some(usize::from(n % 2 == 0)),
    };
    let now = at("2026-07-01T00:00:00Z");
    let stay = |odd, even| {
        let kept = kept_by_all(&points, maker, &[wish(odd), wish(even)], now);
        let gone: Vec<_> = chains_to_remove(&points, &kept).into_iter().flatten().collect();
        points.iter().map(|p| p.id).filter(|id| !gone.contains(id)).map(|id| id.0.as_u128()).collect::<Vec<_>>()
    };
    assert_eq!(stay(1, 1), [5, 6, 7, 8, 9], "the newest of each, and what nobody looks after");
    assert_eq!(stay(1, 4), [1, 2, 3, 4, 5, 6, 7, 8, 9], "the other job still asks for number 2");
    assert_eq!(stay(3, 1), [3, 4, 5, 6, 7, 8, 9]);
}

#[test]
fn zero_and_absurd_numbers_are_refused() {
    assert_eq!(Retention { last: Some(0), days: Some(40_000), ..Default::default() }.validate().len(), 2);
    assert!(Retention { weekly: Some(52), ..Default::default() }.validate().is_empty());
}

fn any_retention() -> impl Strategy<Value = Retention> {
    let rule = || prop::option::of(1u32..40);
    (rule(), rule(), rule(), rule()).prop_map(|(last, days, weekly, monthly)| Retention { last, days, weekly, monthly })
}

/// Points in no order, some at the same instant, some with parents that are gone.
fn any_points() -> impl Strategy<Value = Vec<Point>> {
    prop::collection::vec((0i64..200, prop::option::weighted(0.7, 0usize..60)), 1..60).prop_map(|drawn| {
        let first = at("2026-01-01T00:00:00Z");
        let point = |(n, (days, parent)): (usize, (i64, Option<usize>))| Point {
            id: id(n as u128),
            taken_at: first + SignedDuration::from_hours(24 * days),
            parent: parent.filter(|parent| *parent < n).map(|parent| id(parent as u128)),
            damaged: false,
        };
        drawn.into_iter().enumerate().map(point).collect()
    })
}

proptest! {
    #[test]
    fn nothing_that_is_asked_for_goes_nor_what_it_needs(
        points in any_points(),
        retention in any_retention(),
        days in 0i64..300,
    ) {
        let now = at("2026-01-01T00:00:00Z") + SignedDuration::from_hours(24 * days);
        let kept = kept(&points, &retention, now, &TimeZone::UTC);
        let gone: Vec<RestorePointId> = chains_to_remove(&points, &kept).into_iter().flatten().collect();
        let unique: BTreeSet<&RestorePointId> = gone.iter().collect();
        prop_assert_eq!(unique.len(), gone.len(), "none goes twice");
        let newest = points.iter().max_by_key(|point| (point.taken_at, point.id)).unwrap();
        prop_assert!(kept.contains_key(&newest.id));
        for point in points.iter().filter(|point| !gone.contains(&point.id)) {
            let parent = point.parent.filter(|parent| points.iter().any(|known| known.id == *parent));
            prop_assert!(parent.is_none_or(|parent| !gone.contains(&parent)), "{:?} lost its parent", point.id);
        }
        for point in &gone {
            prop_assert!(!kept.contains_key(point));
        }
    }

    /// With no new point nothing more expires, however far the clock runs ahead.
    #[test]
    fn no_clock_lets_anything_expire_by_itself(
        points in any_points(),
        retention in any_retention(),
        (days, ahead) in (0i64..30, 0i64..100_000),
    ) {
        let newest = points.iter().map(|point| point.taken_at).max().unwrap();
        let now = newest + SignedDuration::from_hours(24 * days);
        let before = kept(&points, &retention, now, &TimeZone::UTC);
        let later = kept(&points, &retention, now + SignedDuration::from_hours(24 * ahead), &TimeZone::UTC);
        prop_assert_eq!(before, later);
    }

    /// What a clock made that was ahead costs no other point its place.
    #[test]
    fn points_from_the_future_change_nothing_for_the_others(
        points in any_points(),
        retention in any_retention(),
        days in 0i64..200,
    ) {
        let now = at("2026-01-01T00:00:00Z") + SignedDuration::from_hours(24 * days);
        let (present, future): (Vec<Point>, Vec<Point>) = points.iter().cloned().partition(|point| point.taken_at <= now);
        let mut all = kept(&points, &retention, now, &TimeZone::UTC);
        for point in future {
            prop_assert!(all.remove(&point.id).is_some());
        }
        prop_assert_eq!(all, kept(&present, &retention, now, &TimeZone::UTC));
    }

    #[test]
    fn within_a_chain_children_go_before_their_parents(points in any_points()) {
        let gone = chains_to_remove(&points, &Default::default());
        prop_assert_eq!(gone.iter().flatten().count(), points.len());
        for chain in gone {
            let place = |id: RestorePointId| chain.iter().position(|known| *known == id);
            for point in points.iter().filter(|point| place(point.id).is_some()) {
                if let Some(parent) = point.parent.and_then(place) {
                    prop_assert!(place(point.id).unwrap() < parent, "whatever their clocks say");
                }
            }
        }
    }

    #[test]
    fn another_rule_never_removes_more(points in any_points(), retention in any_retention(), n in 1u32..40) {
        prop_assume!(retention.last.is_none() && !retention.keeps_everything());
        let now = at("2026-06-01T00:00:00Z");
        let less = kept(&points, &retention, now, &TimeZone::UTC);
        let more = kept(&points, &Retention { last: Some(n), ..retention }, now, &TimeZone::UTC);
        prop_assert!(less.keys().all(|id| more.contains_key(id)));
    }
}
