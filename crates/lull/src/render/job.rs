//! Jobs and their settings.

use super::table::{facts, or_dash, table};
use super::text::list as sentence;
use super::{Look, units};
use lull_api::job::{GuestSettings, Job, SavedJob};
use lull_api::notify::Notify;
use lull_api::timing::RetentionSettings;

/// Jobs.
pub fn list(jobs: &[Job], look: &Look) -> String {
    let rows = jobs.iter().map(|job| {
        vec![
            job.name.clone(),
            sentence(&job.vms),
            job.repository.clone(),
            or_dash(job.guest.application_aware.as_deref()),
            job.next_run.as_deref().map_or("by hand".into(), |at| units::time(at, look)),
            kept(&job.retention),
            job.last_session.map_or("-".into(), |id| id.to_string()),
            or_dash(job.last_result.as_deref()),
        ]
    });
    let nothing = "There is no job yet; `lull job create NAME --vm VM --repository REPOSITORY` makes one.";
    let titles = ["job", "vms", "repository", "application-aware", "next run", "keeps", "last session", "result"];
    table(look, &titles, rows.collect(), nothing)
}

/// One job with every setting.
pub fn job(job: &Job, look: &Look) -> String {
    let mut sheet =
        vec![("job", job.name.clone()), ("vms", job.vms.join("\n")), ("repository", job.repository.clone())];
    sheet.extend(timing(job, look));
    sheet.extend(settings(&job.guest));
    sheet.extend(notify(&job.notify));
    let otherwise = job.overrides.iter().map(|vm| format!("{}: {}", vm.vm, vm.overrides.join(", ")));
    sheet.push(("otherwise", otherwise.collect::<Vec<_>>().join("\n")));
    if let Some(session) = job.last_session {
        let result = job.last_result.as_deref().unwrap_or("running");
        sheet.push(("last session", format!("{session}, {result}")));
    }
    facts(look, &sheet)
}

fn timing(job: &Job, look: &Look) -> Vec<(&'static str, String)> {
    let schedule = job.schedule.as_ref().map_or("only by hand".into(), |schedule| {
        let missed = if schedule.run_missed == Some(false) {
            "missed runs are not made up for"
        } else {
            "missed runs are made up for"
        };
        let zone = schedule.time_zone.as_deref().unwrap_or_default();
        format!("{} ({zone}), {missed}", schedule.cron.as_deref().unwrap_or_default())
    });
    let skipped = job.last_skipped.as_ref();
    let skipped = skipped.map(|run| format!("due {}: {}", units::time(&run.due_at, look), run.because));
    let retries = match (job.retries.times, job.retries.pause_s) {
        (Some(0), _) => "none".to_string(),
        (times, pause) => {
            let pause = units::duration(u64::from(pause.unwrap_or_default()) * 1_000_000);
            format!("up to {} of scheduled runs, each after {pause}", times.unwrap_or_default())
        }
    };
    vec![
        ("schedule", schedule),
        ("next run", job.next_run.as_deref().map(|at| units::time(at, look)).unwrap_or_default()),
        ("skipped run", skipped.unwrap_or_default()),
        ("retries", if job.schedule.is_some() { retries } else { String::new() }),
        ("keeps", kept(&job.retention)),
        ("full backup", format!("every {} restore points", job.full_every)),
    ]
}

/// `last 7, 30 days, 4 weeks, 12 months`.
fn kept(retention: &RetentionSettings) -> String {
    let RetentionSettings { last, days, weekly, monthly } = retention;
    let rule = |count: &Option<u32>, one: &str, many: &str| {
        count.map(|count| format!("{count} {}", if count == 1 { one } else { many }))
    };
    let rules = [
        last.map(|count| format!("last {count}")),
        rule(days, "day", "days"),
        rule(weekly, "week", "weeks"),
        rule(monthly, "month", "months"),
    ];
    let rules: Vec<String> = rules.into_iter().flatten().collect();
    if rules.is_empty() { "everything".into() } else { rules.join(", ") }
}

/// A job as it was saved. The warnings are said elsewhere, on stderr.
pub fn saved(saved: &SavedJob, look: &Look) -> String {
    job(&saved.job, look)
}

/// Every setting as a line; those that are not told have an empty value.
pub fn settings(guest: &GuestSettings) -> Vec<(&'static str, String)> {
    let script = |text: &Option<String>| match text.as_deref() {
        None | Some("") => String::new(),
        Some(text) => format!("{} lines, {}", text.lines().count(), units::bytes(text.len() as u64)),
    };
    let seconds = |s: Option<u64>| s.map(|s| units::duration(s.saturating_mul(1_000_000))).unwrap_or_default();
    let ms = |ms: Option<u64>| ms.map(|ms| units::duration(ms.saturating_mul(1_000))).unwrap_or_default();
    let proxy = match (guest.guest_interaction_proxy.as_deref(), &guest.preferred_servers) {
        (Some("prefer"), servers) => {
            let servers = servers.as_deref().unwrap_or_default().join(", ");
            format!("prefer {servers}; else {}", guest.fallback.as_deref().unwrap_or("backup-server"))
        }
        (other, _) => other.unwrap_or_default().to_string(),
    };
    let indexing = match (guest.indexing.as_deref(), &guest.index_paths) {
        (Some("only"), Some(paths)) => format!("only {}", paths.join("\n     ")),
        (mode, _) => mode.unwrap_or_default().to_string(),
    };
    let limit = match guest.copy_limit_bytes_per_s {
        None => String::new(),
        Some(0) => "none".to_string(),
        Some(limit) => format!("{}/s", units::bytes(limit)),
    };
    vec![
        ("application-aware", guest.application_aware.clone().unwrap_or_default()),
        ("checkpoint", guest.checkpoint.map(|on| if on { "yes" } else { "no" }.to_string()).unwrap_or_default()),
        ("checkpoint timeout", seconds(guest.checkpoint_timeout_s)),
        ("scripts", guest.scripts.clone().unwrap_or_default()),
        ("pre-freeze script", script(&guest.pre_freeze_script)),
        ("post-thaw script", script(&guest.post_thaw_script)),
        ("script timeout", seconds(guest.script_timeout_s)),
        ("lease", ms(guest.lease_ms)),
        ("freeze budget", ms(guest.freeze_budget_ms)),
        ("not frozen", guest.exclude_mount_points.clone().unwrap_or_default().join("\n")),
        ("indexing", indexing),
        ("proxy", proxy),
        ("copy limit", limit),
    ]
}

/// Nothing where nobody is told.
fn notify(notify: &Notify) -> Vec<(&'static str, String)> {
    if notify.url.is_none() && notify.command.is_none() {
        return vec![];
    }
    let signed = if notify.has_secret { ", signed" } else { "" };
    let url = notify.url.as_ref().map(|url| format!("{url}{signed}"));
    vec![
        ("notify url", url.unwrap_or_default()),
        ("notify command", notify.command.clone().unwrap_or_default()),
        ("notify on", notify.on.clone()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use lull_api::timing::{RetrySettings, ScheduleSettings, SkippedRun};
    use lull_api::vm_settings::JobVm;

    #[test]
    fn a_job_shows_the_settings_that_hold() {
        let job_shown = Job {
            id: uuid::Uuid::nil(),
            name: "nightly".into(),
            vms: vec!["pg".into()],
            repository: "disk".into(),
            guest: GuestSettings {
                application_aware: Some("try".into()),
                pre_freeze_script: Some("#!/bin/sh\ntrue\n".into()),
                script_timeout_s: Some(600),
                lease_ms: Some(5_000),
                indexing: Some("only".into()),
                index_paths: Some(vec!["/srv".into(), "/home".into()]),
                guest_interaction_proxy: Some("prefer".into()),
                preferred_servers: Some(vec!["a".into(), "b".into()]),
                fallback: Some("none".into()),
                copy_limit_bytes_per_s: Some(0),
                ..GuestSettings::default()
            },
            schedule: Some(ScheduleSettings {
                cron: Some("0 2 * * *".into()),
                time_zone: Some("Europe/Berlin".into()),
                run_missed: Some(true),
            }),
            next_run: Some("2026-03-02T01:00:00Z".into()),
            last_skipped: Some(SkippedRun { due_at: "2026-03-01T01:00:00Z".into(), because: "it still ran".into() }),
            retries: RetrySettings { times: Some(3), pause_s: Some(600) },
            retention: RetentionSettings { last: Some(7), monthly: Some(1), ..Default::default() },
            full_every: 14,
            notify: Notify {
                url: Some("https://monitor.example/".into()),
                has_secret: true,
                on: "problems".into(),
                command: Some("tell".into()),
            },
            overrides: vec![JobVm { vm: "pg".into(), overrides: vec!["lease".into(), "scripts".into()] }],
            last_session: Some(7),
            last_result: Some("success".into()),
        };
        assert_eq!(
            job(&job_shown, &Look::plain(None)),
            "\
job                nightly
vms                pg
repository         disk
schedule           0 2 * * * (Europe/Berlin), missed runs are made up for
next run           2026-03-02 01:00:00
skipped run        due 2026-03-01 01:00:00: it still ran
retries            up to 3 of scheduled runs, each after 10 min 00 s
keeps              last 7, 1 month
full backup        every 14 restore points
application-aware  try
pre-freeze script  2 lines, 15 B
script timeout     10 min 00 s
lease              5.0 s
indexing           only /srv
                        /home
proxy              prefer a, b; else none
copy limit         none
notify url         https://monitor.example/, signed
notify command     tell
notify on          problems
otherwise          pg: lease, scripts
last session       7, success
"
        );
    }
}
