//! Guest processing settings as flags: of jobs, of rehearsals and of `quiesce`.

use crate::exit::Exit;
use crate::render::units::{parse_bytes, parse_duration_ms, parse_duration_s};
use crate::trouble::{Result, Trouble};
use clap::Args;
use lull_api::job::GuestSettings;
use std::path::{Path, PathBuf};

/// Guest processing settings. What is not given keeps its value (in a new job: its default).
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Guest processing")]
pub struct GuestArgs {
    /// Whether applications must come to rest: fail without (default), fall back to a lower consistency level, or no
    /// guest processing at all.
    #[arg(long, value_name = "MODE", value_parser = ["require-success", "try", "disabled"])]
    pub application_aware: Option<String>,
    /// Script to run in the guest before the freeze.
    #[arg(long, value_name = "FILE")]
    pub pre_freeze_script: Option<PathBuf>,
    /// Script to run in the guest after the thaw; it runs whenever the pre-freeze script ran.
    #[arg(long, value_name = "FILE")]
    pub post_thaw_script: Option<PathBuf>,
    /// What a script's failure means: the task fails (default), or goes on; or scripts do not run.
    #[arg(long, value_name = "MODE", value_parser = ["require-success", "ignore-failures", "disabled"])]
    pub scripts: Option<String>,
    /// Longest run of a script, as in 10m (default).
    #[arg(long, value_name = "TIME", value_parser = parse_duration_s)]
    pub script_timeout: Option<u64>,
    /// Have databases write a checkpoint before the freeze (default); it shortens their recovery.
    #[arg(long)]
    pub checkpoint: bool,
    /// Freeze without a checkpoint before.
    #[arg(long, conflicts_with = "checkpoint")]
    pub no_checkpoint: bool,
    /// Longest checkpoint, as in 30s (default).
    #[arg(long, value_name = "TIME", value_parser = parse_duration_s)]
    pub checkpoint_timeout: Option<u64>,
    /// The guest thaws by itself when nobody renewed for so long, as in 5s (default).
    #[arg(long, value_name = "TIME", value_parser = parse_duration_ms)]
    pub lease: Option<u64>,
    /// Longest freeze, whoever renews, as in 30s (default); at most 60s.
    #[arg(long, value_name = "TIME", value_parser = parse_duration_ms)]
    pub freeze_budget: Option<u64>,
    /// Mount points that are not frozen; they get a consistency level of their own.
    #[arg(long, value_name = "MOUNT", value_delimiter = ',')]
    pub exclude: Vec<String>,
    /// Which of the guest's files go into the catalog: everything but system, cache and virtual file systems
    /// (default), everything, only what --index-path names, or none.
    #[arg(long, value_name = "MODE", value_parser = ["everything-except-noise", "everything", "only", "disabled"])]
    pub indexing: Option<String>,
    /// With --indexing only: folders whose files go into the catalog.
    #[arg(long, value_name = "PATH")]
    pub index_path: Vec<String>,
    /// Choose the guest interaction proxy among all (default).
    #[arg(long, value_name = "automatic", value_parser = ["automatic"], conflicts_with = "prefer")]
    pub guest_interaction_proxy: Option<String>,
    /// Use these managed servers only as guest interaction proxies.
    #[arg(long, value_name = "SERVER", value_delimiter = ',')]
    pub prefer: Vec<String>,
    /// Who serves a VM that none of the preferred servers can: the backup server (default) or none. Without --prefer: for the servers
    /// that are preferred already.
    #[arg(long, value_name = "WHO", value_parser = ["backup-server", "none"], conflicts_with = "guest_interaction_proxy")]
    pub fallback: Option<String>,
}

/// What can be taken out of a job again.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Take out of the job")]
pub struct RemovalArgs {
    /// Take the pre-freeze script out of the job.
    #[arg(long, conflicts_with = "pre_freeze_script")]
    pub no_pre_freeze_script: bool,
    /// Take the post-thaw script out of the job.
    #[arg(long, conflicts_with = "post_thaw_script")]
    pub no_post_thaw_script: bool,
    /// Freeze every file system that can be frozen.
    #[arg(long, conflicts_with = "exclude")]
    pub exclude_nothing: bool,
}

/// Settings that only a job has.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Backup")]
pub struct BackupArgs {
    /// Limit of the copy per second, as in 100MiB; 0 for none (default).
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub copy_limit: Option<u64>,
}

impl GuestArgs {
    /// The settings that were given. Scripts are read here: the server never sees this machine's files.
    pub fn settings(&self) -> Result<GuestSettings> {
        let preferred = (!self.prefer.is_empty()).then(|| self.prefer.clone());
        // Servers that are named anew come with the default, whatever was said for those before.
        let fallback = self.fallback.clone().or_else(|| preferred.as_ref().map(|_| "backup-server".to_string()));
        let proxy = preferred.as_ref().map(|_| "prefer".to_string()).or_else(|| self.guest_interaction_proxy.clone());
        Ok(GuestSettings {
            application_aware: self.application_aware.clone(),
            pre_freeze_script: self.pre_freeze_script.as_deref().map(script).transpose()?,
            post_thaw_script: self.post_thaw_script.as_deref().map(script).transpose()?,
            scripts: self.scripts.clone(),
            script_timeout_s: self.script_timeout,
            checkpoint: switch(self.checkpoint, self.no_checkpoint),
            checkpoint_timeout_s: self.checkpoint_timeout,
            lease_ms: self.lease,
            freeze_budget_ms: self.freeze_budget,
            exclude_mount_points: (!self.exclude.is_empty()).then(|| self.exclude.clone()),
            indexing: self.indexing.clone(),
            index_paths: (!self.index_path.is_empty()).then(|| self.index_path.clone()),
            guest_interaction_proxy: proxy,
            preferred_servers: preferred,
            fallback,
            copy_limit_bytes_per_s: None,
        })
    }
}

impl RemovalArgs {
    /// The settings with what is taken out: an empty script and an empty list remove.
    pub fn apply(&self, settings: &mut GuestSettings) {
        if self.no_pre_freeze_script {
            settings.pre_freeze_script = Some(String::new());
        }
        if self.no_post_thaw_script {
            settings.post_thaw_script = Some(String::new());
        }
        if self.exclude_nothing {
            settings.exclude_mount_points = Some(vec![]);
        }
    }
}

fn switch(on: bool, off: bool) -> Option<bool> {
    if on {
        Some(true)
    } else if off {
        Some(false)
    } else {
        None
    }
}

fn script(file: &Path) -> Result<String> {
    let text = std::fs::read_to_string(file).map_err(|e| {
        Trouble::local(Exit::Failed, "script-unreadable", format!("the script {} could not be read", file.display()))
            .why(e.to_string())
    })?;
    if !text.starts_with("#!") {
        return Err(Trouble::usage(format!("{} does not say what runs it", file.display()))
            .why("its first line does not begin with `#!`")
            .remedy("begin it with a line like `#!/bin/sh`"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Probe {
        #[command(flatten)]
        guest: GuestArgs,
        #[command(flatten)]
        removal: RemovalArgs,
    }

    fn settings(args: &[&str]) -> Result<GuestSettings> {
        let probe = Probe::try_parse_from(["probe"].iter().chain(args)).expect("the flags are right");
        let mut settings = probe.guest.settings()?;
        probe.removal.apply(&mut settings);
        Ok(settings)
    }

    #[test]
    fn what_is_not_given_stays_unchanged() {
        assert_eq!(settings(&[]).unwrap(), GuestSettings::default());
    }

    #[test]
    fn flags_become_settings_with_their_units() {
        let given = settings(&[
            "--no-checkpoint",
            "--lease=3s",
            "--freeze-budget=1m",
            "--script-timeout=2m",
            "--exclude=/data,/srv",
            "--prefer=a,b",
            "--fallback=none",
            "--no-post-thaw-script",
            "--indexing=only",
            "--index-path=/srv",
            "--index-path=/a,b",
        ]);
        assert_eq!(
            given.unwrap(),
            GuestSettings {
                checkpoint: Some(false),
                lease_ms: Some(3_000),
                freeze_budget_ms: Some(60_000),
                script_timeout_s: Some(120),
                exclude_mount_points: Some(vec!["/data".into(), "/srv".into()]),
                guest_interaction_proxy: Some("prefer".into()),
                preferred_servers: Some(vec!["a".into(), "b".into()]),
                fallback: Some("none".into()),
                post_thaw_script: Some(String::new()),
                indexing: Some("only".into()),
                index_paths: Some(vec!["/srv".into(), "/a,b".into()]),
                ..GuestSettings::default()
            }
        );
    }

    #[test]
    fn servers_that_are_named_anew_have_the_default_fallback_and_a_fallback_alone_changes_nothing_else() {
        let anew = settings(&["--prefer=pf"]).unwrap();
        assert_eq!(anew.fallback.as_deref(), Some("backup-server"));
        let alone = settings(&["--fallback=none"]).unwrap();
        assert_eq!(alone, GuestSettings { fallback: Some("none".into()), ..GuestSettings::default() });
    }

    #[test]
    fn contradictions_are_refused() {
        for args in [
            &["--checkpoint", "--no-checkpoint"][..],
            &["--prefer=a", "--guest-interaction-proxy=automatic"],
            &["--fallback=none", "--guest-interaction-proxy=automatic"],
            &["--lease=5"],
            &["--application-aware=perhaps"],
            &["--indexing=all"],
        ] {
            assert!(Probe::try_parse_from(["probe"].iter().chain(args)).is_err(), "{args:?}");
        }
    }

    #[test]
    fn a_script_must_say_what_runs_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pre");
        let flag = format!("--pre-freeze-script={}", file.display());
        assert_eq!(settings(&[&flag]).unwrap_err().exit, Exit::Failed);
        std::fs::write(&file, "echo hello\n").unwrap();
        assert_eq!(settings(&[&flag]).unwrap_err().exit, Exit::Usage);
        std::fs::write(&file, "#!/bin/sh\n").unwrap();
        assert_eq!(settings(&[&flag]).unwrap().pre_freeze_script.as_deref(), Some("#!/bin/sh\n"));
    }
}
