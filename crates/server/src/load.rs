//! What the proxies did over time, counted from the dispatches. Pure: reads no store.

use crate::instant::{rfc3339, us};
use crate::store::dispatches::{DispatchRow, HANDED_ON};
use jiff::Timestamp;
use lull_api::proxy_tier::{Load, LoadReport, ProxyLoad};
use std::collections::BTreeMap;

/// Length of an hour, in seconds.
pub const HOUR_S: u64 = 3_600;
/// Length of a day, in seconds.
pub const DAY_S: u64 = 86_400;

/// The time that is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// From here on, down to the beginning of a bucket.
    pub since: Timestamp,
    /// To here: what is under way counts up to now.
    pub until: Timestamp,
    /// Length of a bucket, in seconds.
    pub bucket_s: u64,
}

impl Span {
    fn bucket_us(&self) -> i64 {
        i64::try_from(self.bucket_s.max(1)).unwrap_or(i64::MAX).saturating_mul(1_000_000)
    }

    /// Where the first bucket begins, in microseconds.
    fn first_us(&self) -> i64 {
        us(self.since).div_euclid(self.bucket_us()) * self.bucket_us()
    }

    fn buckets(&self) -> usize {
        let length_us = us(self.until).saturating_sub(self.first_us()).max(1);
        usize::try_from((length_us + self.bucket_us() - 1) / self.bucket_us()).unwrap_or(0)
    }

    /// From when on dispatches count.
    pub fn first(&self) -> Timestamp {
        Timestamp::from_microsecond(self.first_us()).unwrap_or(self.since)
    }
}

/// The report about these dispatches. `known` are the servers that there are, so that one without work is seen too.
pub fn report(dispatches: &[DispatchRow], known: &[String], span: Span) -> LoadReport {
    let (first, length, count) = (span.first_us(), span.bucket_us(), span.buckets());
    let empty = || ProxyLoad { buckets: vec![Load::default(); count], ..ProxyLoad::default() };
    let mut proxies: BTreeMap<String, ProxyLoad> = known.iter().map(|name| (name.clone(), empty())).collect();
    for dispatch in dispatches {
        let proxy = proxies.entry(dispatch.server_name.clone()).or_insert_with(empty);
        let begun = us(dispatch.begun);
        let ended = dispatch.ended.map_or(us(span.until), us).min(us(span.until));
        // Counted where it began; one that began before is seen by its time alone.
        if let Some(bucket) = bucket(begun, first, length).and_then(|at| proxy.buckets.get_mut(at)) {
            let handed_on = dispatch.end.as_deref() == Some(HANDED_ON);
            for load in [bucket, &mut proxy.total] {
                load.tasks += 1;
                load.failovers += u32::from(handed_on);
                if let Some(tier) =
                    dispatch.tier.and_then(|tier| load.by_tier.get_mut(usize::from(tier).wrapping_sub(1)))
                {
                    *tier += 1;
                }
            }
        }
        let mut from = begun.max(first);
        while from < ended {
            let Some(at) = bucket(from, first, length) else { break };
            let Some(bucket) = proxy.buckets.get_mut(at) else { break };
            let to =
                ended.min(first + (i64::try_from(at).unwrap_or(i64::MAX).saturating_add(1)).saturating_mul(length));
            let busy = to.saturating_sub(from).unsigned_abs();
            bucket.busy_us += busy;
            proxy.total.busy_us += busy;
            from = to;
        }
    }
    let start = |n: usize| {
        let at = first.saturating_add(i64::try_from(n).unwrap_or(i64::MAX).saturating_mul(length));
        rfc3339(Timestamp::from_microsecond(at).unwrap_or(span.until))
    };
    LoadReport {
        since: rfc3339(span.first()),
        until: rfc3339(span.until),
        bucket_s: span.bucket_s,
        buckets: (0..count).map(start).collect(),
        proxies: proxies.into_iter().map(|(proxy, load)| ProxyLoad { proxy, ..load }).collect(),
    }
}

/// The number of the bucket in which an instant lies; `None` before the first one.
fn bucket(at_us: i64, first_us: i64, length_us: i64) -> Option<usize> {
    usize::try_from(at_us.checked_sub(first_us)?.div_euclid(length_us)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn at(minute: i64) -> Timestamp {
        "2026-03-01T10:00:00Z".parse::<Timestamp>().unwrap() + jiff::SignedDuration::from_mins(minute)
    }

    fn dispatch(proxy: &str, tier: Option<u8>, begun: i64, ended: Option<i64>, end: &str) -> DispatchRow {
        DispatchRow {
            task: Uuid::nil(),
            server_name: proxy.into(),
            server: Uuid::nil(),
            tier,
            begun: at(begun),
            ended: ended.map(at),
            end: ended.map(|_| end.to_string()),
        }
    }

    const MINUTE_US: u64 = 60_000_000;

    #[test]
    fn work_is_counted_where_it_began_and_its_time_where_it_passed() {
        let dispatches = [
            // Began before what is looked at, and reaches into it.
            dispatch("a", Some(1), -30, Some(10), "success"),
            dispatch("a", Some(1), 50, Some(70), "success"),
            dispatch("a", Some(3), 61, Some(62), HANDED_ON),
            // Is still under way.
            dispatch("gone", None, 100, None, ""),
        ];
        let span = Span { since: at(5), until: at(110), bucket_s: HOUR_S };
        let report = report(&dispatches, &["a".into(), "idle".into()], span);
        assert_eq!(report.buckets, ["2026-03-01T10:00:00Z", "2026-03-01T11:00:00Z"]);
        let names: Vec<&str> = report.proxies.iter().map(|proxy| proxy.proxy.as_str()).collect();
        assert_eq!(names, ["a", "gone", "idle"]);
        let a = &report.proxies[0];
        let first = Load { tasks: 1, busy_us: 20 * MINUTE_US, by_tier: [1, 0, 0, 0], failovers: 0 };
        let second = Load { tasks: 1, busy_us: 11 * MINUTE_US, by_tier: [0, 0, 1, 0], failovers: 1 };
        assert_eq!(a.buckets, [first, second]);
        assert_eq!(a.total, Load { tasks: 2, busy_us: 31 * MINUTE_US, by_tier: [1, 0, 1, 0], failovers: 1 });
        let gone = Load { tasks: 1, busy_us: 10 * MINUTE_US, ..Load::default() };
        assert_eq!(report.proxies[1].total, gone);
        assert_eq!(report.proxies[2].total, Load::default());
    }

    proptest! {
        #[test]
        fn buckets_add_up_to_the_whole(
            dispatches in prop::collection::vec((0u8..3, 1u8..5, -5_000i64..5_000, prop::option::of(0i64..4_000)), 0..40),
            since in -3_000i64..3_000,
            length in 1i64..5_000,
        ) {
            let rows: Vec<DispatchRow> = dispatches
                .into_iter()
                .map(|(proxy, tier, begun, took)| {
                    dispatch(&format!("p{proxy}"), Some(tier), begun, took.map(|took| begun + took), "success")
                })
                .collect();
            let span = Span { since: at(since), until: at(since + length), bucket_s: HOUR_S };
            let report = report(&rows, &[], span);
            for proxy in &report.proxies {
                let sum = |of: fn(&Load) -> u64| proxy.buckets.iter().map(of).sum::<u64>();
                prop_assert_eq!(sum(|load| load.busy_us), proxy.total.busy_us);
                prop_assert_eq!(sum(|load| load.tasks.into()), u64::from(proxy.total.tasks));
                prop_assert_eq!(proxy.total.by_tier.iter().sum::<u32>(), proxy.total.tasks);
                let in_time = |row: &&DispatchRow| row.server_name == proxy.proxy && row.begun < span.until;
                let whole: u64 = rows.iter().filter(in_time).map(|row| {
                    let end = row.ended.map_or(span.until, |end| end.min(span.until));
                    us(end).saturating_sub(us(row.begun.max(span.first()))).max(0).unsigned_abs()
                }).sum();
                prop_assert_eq!(proxy.total.busy_us, whole);
            }
        }
    }
}
