//! Whom a job tells of its sessions, as flags.

use crate::secrets::{self, Source};
use crate::trouble::{Result, Trouble};
use clap::Args;
use lull_api::notify::NotifySettings;
use std::path::PathBuf;

/// Whom to tell when a session of the job ends.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Notification")]
pub struct NotifyArgs {
    /// Post a summary of each session, as JSON, to the address in this file's first line; https, or http on the backup server itself.
    ///
    /// An address often holds a token, so it is kept as a secret: scheme and host are shown.
    #[arg(long, value_name = "FILE")]
    pub notify_url_file: Option<PathBuf>,
    /// Read that address from stdin (its first line).
    #[arg(long, conflicts_with = "notify_url_file")]
    pub notify_url_stdin: bool,
    /// Refused, with the reason.
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "")]
    notify_url: Option<String>,
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
    #[arg(long, conflicts_with_all = ["notify_url_file", "notify_url_stdin", "notify_secret_file"])]
    pub no_notify_url: bool,
    /// Sign nothing any more.
    #[arg(long, conflicts_with = "notify_secret_file")]
    pub no_notify_secret: bool,
    /// Run no program any more.
    #[arg(long, conflicts_with = "notify_command")]
    pub no_notify_command: bool,
}

impl NotifyArgs {
    /// What was given. Files are read here: the server never sees this machine's.
    ///
    /// # Errors
    /// A file cannot be read, or the address is an argument.
    pub fn settings(&self) -> Result<NotifySettings> {
        if self.notify_url.is_some() {
            return Err(Trouble::usage("the address cannot be given as the value of --notify-url")
                .why("it often holds a token, and every user of this machine can read the arguments of a program")
                .remedy(
                    "give it with --notify-url-file FILE or --notify-url-stdin; a new token, where this one had one",
                ));
        }
        let file = |file: &PathBuf| Source::File(file.clone());
        let url = self.notify_url_stdin.then_some(Source::Stdin).or(self.notify_url_file.as_ref().map(file));
        let secret = self.notify_secret_file.as_ref().map(file);
        Ok(NotifySettings {
            url: url.map(|from| secrets::read(&from, "address", "notify-url")).transpose()?,
            secret: secret.map(|from| secrets::read(&from, "secret", "notify-secret")).transpose()?,
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
