//! When a job runs by itself, and what is tried again.

use jiff::{SignedDuration, Timestamp};
use lull_engine::failover::FailureClass;
use lull_engine::ids::VmId;
use lull_engine::schedule::{Due, Retries, Schedule, seen_to};
use proptest::prelude::*;
use uuid::Uuid;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn schedule(cron: &str, zone: &str) -> Schedule {
    Schedule { cron: cron.into(), time_zone: zone.into(), run_missed: true }
}

#[test]
fn two_at_night_stays_two_at_night_when_the_clocks_change() {
    let nightly = schedule("0 2 * * *", "Europe/Berlin");
    let next = |after: &str| nightly.next_after(at(after)).unwrap();
    assert_eq!(next("2026-10-23T12:00:00Z"), at("2026-10-24T00:00:00Z"));
    assert_eq!(next("2026-10-25T12:00:00Z"), at("2026-10-26T01:00:00Z"));
    // On 29 March 2026 there is no two o'clock: the run is not lost, and not doubled.
    let spring = next("2026-03-28T12:00:00Z");
    assert!((at("2026-03-29T00:00:00Z")..=at("2026-03-29T01:00:00Z")).contains(&spring), "{spring}");
    assert_eq!(next("2026-03-29T01:30:00Z"), at("2026-03-30T00:00:00Z"));
}

/// When the clock is set back there are two times two o'clock in one night, and one run.
#[test]
fn the_hour_that_comes_twice_has_one_run() {
    let nightly = schedule("0 2 * * *", "Europe/Berlin");
    let first = at("2026-10-25T00:00:00Z");
    assert_eq!(nightly.next_after(at("2026-10-24T12:00:00Z")), Some(first), "the first of the two");
    for after in ["2026-10-25T00:00:00Z", "2026-10-25T00:30:00Z", "2026-10-25T01:00:00Z", "2026-10-25T01:30:00Z"] {
        assert_eq!(nightly.next_after(at(after)), Some(at("2026-10-26T01:00:00Z")), "{after}");
    }
    assert_eq!(nightly.due(first, at("2026-10-25T01:00:01Z")), Due::NotYet { next: Some(at("2026-10-26T01:00:00Z")) });
}

/// One minute and one hour are a time of day; a list, a range or a step is an interval, which knows only hours that come, as often as they come.
#[test]
fn an_interval_takes_the_hours_as_they_come() {
    let check = |cron: &str, after: &str, expect: &[&str]| {
        let schedule = schedule(cron, "Europe/Berlin");
        let mut last = at(after);
        for time in expect {
            last = schedule.next_after(last).unwrap();
            assert_eq!(last, at(time), "{cron}");
        }
    };
    // Spring: from 01:00Z on it is three o'clock.
    check("*/30 * * * *", "2026-03-29T00:15:00Z", &["2026-03-29T00:30:00Z", "2026-03-29T01:00:00Z"]);
    check("30 2 * * *", "2026-03-28T12:00:00Z", &["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]);
    check("0 2,14 * * *", "2026-03-28T14:00:00Z", &["2026-03-29T12:00:00Z", "2026-03-30T00:00:00Z"]);
    // Autumn: from 01:00Z on it is two o'clock again.
    check(
        "0 * * * *",
        "2026-10-24T23:30:00Z",
        &["2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z"],
    );
    check(
        "0 2,14 * * *",
        "2026-10-24T22:00:00Z",
        &["2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z", "2026-10-25T13:00:00Z"],
    );
}

/// Where both days are given either will do, as in every cron.
#[test]
fn the_day_of_the_month_or_the_day_of_the_week() {
    let schedule = schedule("0 2 15 * FRI", "UTC");
    let mut last = at("2026-06-06T00:00:00Z");
    for day in ["12", "15", "19", "26"] {
        last = schedule.next_after(last).unwrap();
        assert_eq!(last, at(&format!("2026-06-{day}T02:00:00Z")));
    }
}

#[test]
fn a_schedule_that_cannot_be_read_says_why() {
    let check = |cron: &str, zone: &str, says: &str| {
        let why = schedule(cron, zone).validate().unwrap_err();
        assert!(why.contains(says), "{why}");
    };
    check("0 2 * *", "UTC", "has 4 fields");
    check("0 2 * * * Europe/Berlin", "UTC", "has 6 fields");
    check("0 25 * * *", "UTC", "cannot be read");
    check("0 2 * * *", "Europe/Atlantis", "no time zone");
    schedule("*/15 8-18 * * MON-FRI", "UTC").validate().unwrap();
    assert_eq!(schedule("0 0 30 2 *", "UTC").next_after(at("2026-01-01T00:00:00Z")), None);
}

#[test]
fn a_run_is_due_once_and_a_missed_one_is_made_up_for_as_the_schedule_says() {
    let mut nightly = schedule("0 2 * * *", "UTC");
    let yesterday = at("2026-06-01T12:00:00Z");
    let two = at("2026-06-02T02:00:00Z");
    assert_eq!(nightly.due(yesterday, at("2026-06-02T01:59:59Z")), Due::NotYet { next: Some(two) });
    assert_eq!(nightly.due(yesterday, at("2026-06-02T02:00:03Z")), Due::Run { at: two, late: false });
    assert_eq!(
        nightly.due(at("2026-06-02T02:00:03Z"), at("2026-06-02T02:00:04Z")),
        Due::NotYet { next: Some(at("2026-06-03T02:00:00Z")) }
    );
    // The server was down for three nights: one run, not three.
    let back = at("2026-06-04T09:00:00Z");
    assert_eq!(nightly.due(yesterday, back), Due::Run { at: two, late: true });
    nightly.run_missed = false;
    assert_eq!(nightly.due(yesterday, back), Due::Skip { at: two });
    // It came back just in time for one.
    assert!(matches!(nightly.due(yesterday, at("2026-06-04T02:00:30Z")), Due::Run { late: false, .. }));
}

#[test]
fn a_clock_that_is_set_back_runs_nothing_twice_and_a_wrong_year_stops_nothing() {
    let nightly = schedule("0 2 * * *", "UTC");
    let ran = at("2026-06-02T02:00:01Z");
    for back in ["2026-06-02T01:59:00Z", "2026-06-01T03:00:00Z"] {
        let now = at(back);
        let tomorrow = Due::NotYet { next: Some(at("2026-06-03T02:00:00Z")) };
        assert_eq!(nightly.due(seen_to(ran, now), now), tomorrow, "{back}");
        assert_eq!(nightly.due(seen_to(ran, now), at("2026-06-02T02:00:01Z")), tomorrow, "two o'clock again");
    }
    let now = at("2026-06-02T01:00:00Z");
    let tonight = Due::NotYet { next: Some(at("2026-06-02T02:00:00Z")) };
    assert_eq!(nightly.due(seen_to(at("2040-01-01T00:00:00Z"), now), now), tonight);
}

#[test]
fn what_a_person_must_mend_is_not_tried_again() {
    let vm = |n| VmId(Uuid::from_u128(n));
    let ended = at("2026-06-01T03:00:00Z");
    let failures = [
        (vm(1), FailureClass::RefusedCredential),
        (vm(2), FailureClass::GuestUnreachable),
        (vm(3), FailureClass::Cancelled),
        (vm(4), FailureClass::Repository),
        (vm(5), FailureClass::ChangedHostKey),
    ];
    let retries = Retries { times: 2, pause_s: 60 };
    let when = at("2026-06-01T03:01:00Z");
    assert_eq!(retries.after(0, ended, &failures), Some((vec![vm(2), vm(4)], when)));
    assert_eq!(retries.after(1, ended, &failures), Some((vec![vm(2), vm(4)], when)));
    assert_eq!(retries.after(2, ended, &failures), None, "twice was enough");
    assert_eq!(retries.after(0, ended, &failures[..1]), None, "a refused credential never");
    assert_eq!(Retries { times: 0, pause_s: 0 }.after(0, ended, &failures), None);
    assert_eq!(Retries { times: 99, pause_s: 99_999 }.validate().len(), 2);
}

proptest! {
    #[test]
    fn however_often_one_looks_each_time_runs_once(steps in prop::collection::vec(1i64..40_000, 1..60)) {
        let hourly = schedule("0 * * * *", "UTC");
        let (mut since, mut now) = (at("2026-06-01T00:30:00Z"), at("2026-06-01T00:30:00Z"));
        let mut runs = Vec::new();
        for step in steps {
            now += SignedDuration::from_secs(step);
            let missed = hourly.next_after(since).is_some_and(|first| first <= now);
            let due = hourly.due(since, now);
            prop_assert_eq!(matches!(due, Due::Run { .. }), missed);
            if let Due::Run { at, .. } = due {
                prop_assert!(at > since && at <= now);
                prop_assert!(runs.last().is_none_or(|last| *last < at));
                runs.push(at);
                since = now;
            }
        }
    }
}
