//! When a job runs by itself, what is tried again, and how long restore points are kept, as flags.

use crate::render::units::parse_duration_s;
use clap::Args;
use lull_api::timing::{RetentionSettings, RetrySettings, ScheduleSettings};

/// Schedule, retries and retention. What is not given keeps its value (in a new job: its default).
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Schedule and retention")]
pub struct TimingArgs {
    /// When the job runs by itself: minute, hour, day of month, month, day of week, as in '0 2 * * *' for every night at two.
    #[arg(long, value_name = "CRON")]
    pub schedule: Option<String>,
    /// Time zone of the schedule, as in Europe/Berlin (default: the backup server's own).
    #[arg(long, value_name = "ZONE")]
    pub time_zone: Option<String>,
    /// Whether a run is made up for that was missed because the server was down: yes (default) or no.
    #[arg(long, value_name = "WHETHER", value_parser = ["yes", "no"])]
    pub run_missed: Option<String>,
    /// How often failed tasks of a scheduled run are tried again; 0 for never (default: 3).
    #[arg(long, value_name = "TIMES")]
    pub retries: Option<u32>,
    /// Pause before failed tasks are tried again, as in 10m (default).
    #[arg(long, value_name = "TIME", value_parser = parse_pause)]
    pub retry_pause: Option<u32>,
    /// Keep the newest N restore points of each VM; 0 takes the rule away. A restore point stays while any rule asks for it.
    #[arg(long, value_name = "N")]
    pub keep_last: Option<u32>,
    /// Keep every restore point younger than N days.
    #[arg(long, value_name = "N")]
    pub keep_days: Option<u32>,
    /// Keep the newest restore point of each of the last N weeks.
    #[arg(long, value_name = "N")]
    pub keep_weekly: Option<u32>,
    /// Keep the newest restore point of each of the last N months.
    #[arg(long, value_name = "N")]
    pub keep_monthly: Option<u32>,
    /// Keep every restore point for good (default).
    #[arg(long, conflicts_with_all = ["keep_last", "keep_days", "keep_weekly", "keep_monthly"])]
    pub keep_all: bool,
    /// Make a new full backup every N restore points; 14 unless told.
    #[arg(long, value_name = "N")]
    pub full_every: Option<u32>,
}

/// What of it can be taken out of a job again.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Take out of the job")]
pub struct TimingRemovalArgs {
    /// Run the job only when somebody runs it.
    #[arg(long, conflicts_with_all = ["schedule", "time_zone", "run_missed"])]
    pub no_schedule: bool,
}

impl TimingArgs {
    /// What was given of a schedule.
    pub fn scheduled(&self) -> Option<ScheduleSettings> {
        given(ScheduleSettings {
            cron: self.schedule.clone(),
            time_zone: self.time_zone.clone(),
            run_missed: self.run_missed.as_deref().map(|whether| whether == "yes"),
        })
    }

    /// What was given of retries.
    pub fn retried(&self) -> Option<RetrySettings> {
        given(RetrySettings { times: self.retries, pause_s: self.retry_pause })
    }

    /// What was given of retention; `Some(None)` for everything.
    pub fn retained(&self) -> Option<Option<RetentionSettings>> {
        let rules = RetentionSettings {
            last: self.keep_last,
            days: self.keep_days,
            weekly: self.keep_weekly,
            monthly: self.keep_monthly,
        };
        if self.keep_all { Some(None) } else { given(rules).map(Some) }
    }
}

impl TimingRemovalArgs {
    /// The schedule of a change: taken out, or what was given of it.
    pub fn apply(&self, scheduled: Option<ScheduleSettings>) -> Option<Option<ScheduleSettings>> {
        if self.no_schedule { Some(None) } else { scheduled.map(Some) }
    }
}

fn given<T: Default + PartialEq>(settings: T) -> Option<T> {
    (settings != T::default()).then_some(settings)
}

fn parse_pause(text: &str) -> Result<u32, String> {
    u32::try_from(parse_duration_s(text)?).map_err(|_| format!("`{text}` is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Probe {
        #[command(flatten)]
        timing: TimingArgs,
        #[command(flatten)]
        removal: TimingRemovalArgs,
    }

    fn parsed(args: &[&str]) -> Probe {
        Probe::try_parse_from(["probe"].iter().chain(args)).expect("the flags are right")
    }

    #[test]
    fn flags_become_settings_and_what_is_not_given_stays() {
        let nothing = parsed(&[]);
        assert_eq!(
            (nothing.timing.scheduled(), nothing.timing.retried(), nothing.timing.retained()),
            (None, None, None)
        );
        assert_eq!(nothing.removal.apply(None), None);
        let probe = parsed(&[
            "--schedule=0 2 * * *",
            "--run-missed=no",
            "--retry-pause=2m",
            "--keep-last=7",
            "--keep-weekly=0",
        ]);
        let schedule = probe.timing.scheduled().unwrap();
        assert_eq!(
            (schedule.cron.as_deref(), schedule.time_zone, schedule.run_missed),
            (Some("0 2 * * *"), None, Some(false))
        );
        assert_eq!(probe.timing.retried(), Some(RetrySettings { times: None, pause_s: Some(120) }));
        let rules = RetentionSettings { last: Some(7), weekly: Some(0), ..Default::default() };
        assert_eq!(probe.timing.retained(), Some(Some(rules)));
        assert_eq!(parsed(&["--keep-all"]).timing.retained(), Some(None));
        assert_eq!(parsed(&["--no-schedule"]).removal.apply(None), Some(None));
    }

    #[test]
    fn contradictions_are_refused() {
        for args in [
            &["--no-schedule", "--schedule=0 2 * * *"][..],
            &["--no-schedule", "--time-zone=UTC"],
            &["--keep-all", "--keep-days=3"],
            &["--run-missed=perhaps"],
            &["--retry-pause=10"],
            &["--keep-last=-1"],
        ] {
            assert!(Probe::try_parse_from(["probe"].iter().chain(args)).is_err(), "{args:?}");
        }
    }
}
