//! Whom a job tells of its sessions, as flags.

use crate::secrets::{self, Source};
use crate::trouble::Result;
use clap::Args;
use lull_api::notify::NotifySettings;
use std::path::PathBuf;

/// Whom to tell when a session of the job ends.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Notification")]
pub struct NotifyArgs {
    /// Post a summary of each session to this address, as JSON; https, or http on the backup server itself.
    #[arg(long, value_name = "URL")]
    pub notify_url: Option<String>,
    /// Sign what is posted under the secret in this file's first line: header X-Lull-Signature, HMAC-SHA256 of the body.
    #[arg(long, value_name = "FILE")]
    pub notify_secret_file: Option<PathBuf>,
    /// Tell of every session (default), or only of those that did not end in success.
    #[arg(long, value_name = "WHEN", value_parser = ["always", "problems"])]
    pub notify_on: Option<String>,
    /// Run this program of the backup server's folder `commands/` with the summary on its standard input.
    #[arg(long, value_name = "NAME")]
    pub notify_command: Option<String>,
}

/// Whom not to tell any more.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Take out of the job")]
pub struct NotifyRemovalArgs {
    /// Post nothing any more; the secret goes too.
    #[arg(long, conflicts_with_all = ["notify_url", "notify_secret_file"])]
    pub no_notify_url: bool,
    /// Sign nothing any more.
    #[arg(long, conflicts_with = "notify_secret_file")]
    pub no_notify_secret: bool,
    /// Run no program any more.
    #[arg(long, conflicts_with = "notify_command")]
    pub no_notify_command: bool,
}

impl NotifyArgs {
    /// What was given. The secret is read here: the server never sees this machine's files.
    pub fn settings(&self) -> Result<NotifySettings> {
        let read = |file: &PathBuf| secrets::read(&Source::File(file.clone()), "secret", "notify-secret");
        Ok(NotifySettings {
            url: self.notify_url.clone(),
            secret: self.notify_secret_file.as_ref().map(read).transpose()?,
            on: self.notify_on.clone(),
            command: self.notify_command.clone(),
        })
    }
}

impl NotifyRemovalArgs {
    /// With what is taken out: an empty string removes.
    pub fn apply(&self, settings: &mut NotifySettings) {
        let empty = || Some(String::new());
        if self.no_notify_url {
            settings.url = empty();
        }
        if self.no_notify_url || self.no_notify_secret {
            settings.secret = empty();
        }
        if self.no_notify_command {
            settings.command = empty();
        }
    }
}
