//! Schedule, retries and retention between the REST interface, where members may be absent, and the engine. Pure.

use super::answer::{Answer, bad_value};
use crate::clock::default_zone;
use crate::instant::rfc3339;
use crate::store::jobs::StoredJob;
use crate::store::timing::{JobClock, SkippedRun};
use jiff::Timestamp;
use lull_api::timing as api;
use lull_engine::retention::Retention;
use lull_engine::schedule::{Retries, Schedule, seen_to};

/// The schedule with what is given; what is absent stays as it was.
pub fn scheduled(known: Option<Schedule>, given: api::ScheduleSettings) -> Answer<Schedule> {
    let cron = given.cron.or_else(|| known.as_ref().map(|known| known.cron.clone()));
    let cron =
        cron.ok_or_else(|| bad_value("schedule.cron", "say when, as in \"0 2 * * *\" for every night at two"))?;
    Ok(Schedule {
        cron,
        time_zone: given
            .time_zone
            .or_else(|| known.as_ref().map(|known| known.time_zone.clone()))
            .unwrap_or_else(default_zone),
        run_missed: given.run_missed.or(known.map(|known| known.run_missed)).unwrap_or(true),
    })
}

/// The retries with what is given.
pub fn retried(known: Retries, given: &api::RetrySettings) -> Retries {
    Retries { times: given.times.unwrap_or(known.times), pause_s: given.pause_s.unwrap_or(known.pause_s) }
}

/// The retention with what is given; 0 takes a rule away.
pub fn retained(known: Retention, given: &api::RetentionSettings) -> Retention {
    let rule = |known: Option<u32>, given: Option<u32>| given.or(known).filter(|count| *count > 0);
    Retention {
        last: rule(known.last, given.last),
        days: rule(known.days, given.days),
        weekly: rule(known.weekly, given.weekly),
        monthly: rule(known.monthly, given.monthly),
    }
}

/// What is wrong with them, one sentence each.
pub fn errors(job: &StoredJob, now: Timestamp) -> Vec<String> {
    let mut errors = Vec::new();
    if let Some(schedule) = &job.schedule {
        match schedule.validate() {
            Err(error) => errors.push(error),
            Ok(()) if schedule.next_after(now).is_none() => {
                errors.push(format!("schedule {:?} never comes: there is no such day", schedule.cron));
            }
            Ok(()) => {}
        }
    }
    errors.extend(job.retries.validate());
    errors.extend(job.retention.validate());
    errors
}

/// When it runs next by itself; a run that is due and did not begin yet comes now.
pub fn next_run(job: &StoredJob, clock: Option<&JobClock>, now: Timestamp) -> Option<String> {
    let since = clock.map_or(now, |clock| seen_to(clock.seen, now));
    job.schedule.as_ref()?.next_after(since).map(|at| rfc3339(at.max(now)))
}

/// As people see it.
pub fn schedule_shown(schedule: &Schedule) -> api::ScheduleSettings {
    api::ScheduleSettings {
        cron: Some(schedule.cron.clone()),
        time_zone: Some(schedule.time_zone.clone()),
        run_missed: Some(schedule.run_missed),
    }
}

/// As people see it.
pub fn retries_shown(retries: Retries) -> api::RetrySettings {
    api::RetrySettings { times: Some(retries.times), pause_s: Some(retries.pause_s) }
}

/// As people see it.
pub fn retention_shown(retention: Retention) -> api::RetentionSettings {
    let Retention { last, days, weekly, monthly } = retention;
    api::RetentionSettings { last, days, weekly, monthly }
}

/// As people see it.
pub fn skipped_shown(skipped: SkippedRun) -> api::SkippedRun {
    api::SkippedRun { due_at: rfc3339(skipped.due), because: skipped.because }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings<T: serde::de::DeserializeOwned>(json: serde_json::Value) -> T {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn what_is_absent_stays_and_what_is_shown_applies_again() {
        let nightly = scheduled(None, settings(serde_json::json!({"cron": "0 2 * * *"}))).unwrap();
        assert_eq!((nightly.time_zone.as_str(), nightly.run_missed), (default_zone().as_str(), true));
        let there = settings(serde_json::json!({"time_zone": "Asia/Tokyo", "run_missed": false}));
        let there = scheduled(Some(nightly), there).unwrap();
        assert_eq!(
            (there.cron.as_str(), there.time_zone.as_str(), there.run_missed),
            ("0 2 * * *", "Asia/Tokyo", false)
        );
        assert_eq!(scheduled(None, schedule_shown(&there)).unwrap(), there);
        let without = scheduled(None, settings(serde_json::json!({"time_zone": "UTC"}))).unwrap_err();
        assert!(without.0.what.contains("say when"));

        let retention = retained(Retention::default(), &settings(serde_json::json!({"last": 7, "weekly": 4})));
        assert_eq!(
            retained(retention, &settings(serde_json::json!({"last": 0, "days": 30}))),
            Retention { weekly: Some(4), days: Some(30), ..Default::default() }
        );
        assert_eq!(retained(Retention::default(), &retention_shown(retention)), retention);
        let retries = retried(Retries::default(), &settings(serde_json::json!({"times": 1})));
        assert_eq!(retries, Retries { times: 1, pause_s: 600 });
        assert_eq!(retried(Retries::default(), &retries_shown(retries)), retries);
    }
}
