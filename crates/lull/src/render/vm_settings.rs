//! The settings in force for one VM of a job, with where each comes from.

use super::Look;
use super::job;
use super::table::{or_dash, table};
use lull_api::vm_settings::VmSettings;

/// One line for each setting.
pub fn settings(shown: &VmSettings, look: &Look) -> String {
    let credential = [("credential", or_dash(shown.credential.as_deref()))];
    let all = job::settings(&shown.guest).into_iter().chain(credential);
    let rows = all.filter(|(_, value)| !value.is_empty()).map(|(name, value)| {
        let from = shown.from.get(setting_of(name)).map(String::as_str);
        let from = match from {
            Some("override") => "this VM in this job",
            Some("vm") => "this VM",
            other => other.unwrap_or_default(),
        };
        vec![name.to_string(), value.lines().map(str::trim).collect::<Vec<_>>().join(", "), from.to_string()]
    });
    let head = format!("VM {} in job {}\n", shown.vm, shown.job);
    head + &table(look, &["setting", "value", "from"], rows.collect(), "It has no settings.")
}

/// What belongs together is overridden together, under one name.
fn setting_of(line: &str) -> &str {
    match line {
        "checkpoint timeout" => "checkpoint",
        "pre-freeze script" | "post-thaw script" | "script timeout" => "scripts",
        "freeze budget" => "freeze-budget",
        "not frozen" => "exclude",
        "proxy" => "guest-interaction-proxy",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lull_api::job::GuestSettings;

    #[test]
    fn every_setting_says_where_it_comes_from() {
        let from = [
            ("application-aware", "override"),
            ("scripts", "override"),
            ("lease", "job"),
            ("indexing", "override"),
            ("guest-interaction-proxy", "job"),
            ("credential", "vm"),
        ];
        let shown = VmSettings {
            job: "nightly".into(),
            vm: "db".into(),
            guest: GuestSettings {
                application_aware: Some("try".into()),
                scripts: Some("ignore-failures".into()),
                script_timeout_s: Some(60),
                lease_ms: Some(5_000),
                indexing: Some("only".into()),
                index_paths: Some(vec!["/srv".into(), "/home".into()]),
                guest_interaction_proxy: Some("automatic".into()),
                ..GuestSettings::default()
            },
            credential: Some("root-key".into()),
            from: from.into_iter().map(|(name, from)| (name.to_string(), from.to_string())).collect(),
        };
        assert_eq!(
            settings(&shown, &Look::plain(None)),
            "\
VM db in job nightly
SETTING            VALUE             FROM
application-aware  try               this VM in this job
scripts            ignore-failures   this VM in this job
script timeout     1 min 00 s        this VM in this job
lease              5.0 s             job
indexing           only /srv, /home  this VM in this job
proxy              automatic         job
credential         root-key          this VM
"
        );
    }
}
