//! `lull session`: what ran, and what runs.

use super::job::cancel;
use crate::calls;
use crate::exit::Exit;
use crate::follow;
use crate::render::{session, session_list};
use crate::screen::Screen;
use crate::trouble::Result;
use clap::Subcommand;
use lull_api::Client;

/// What can be done with sessions.
#[derive(Debug, Subcommand)]
pub enum SessionCommand {
    /// List the sessions, newest first.
    List {
        /// Only those of this job.
        #[arg(long, value_name = "JOB")]
        job: Option<String>,
        /// At most so many.
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Show a session as a tree with the time of each step.
    Show {
        /// Number of the session.
        #[arg(value_parser = clap::value_parser!(i64).range(1..))]
        session: i64,
        /// Every candidate of the proxy choice with its reason, and what was found in the guest.
        #[arg(long)]
        why: bool,
    },
    /// Show a session while it runs, to its end.
    ///
    /// With --json every event as a line of JSON, from the first on. The exit code tells how the session ended.
    Follow {
        /// Number of the session.
        #[arg(value_parser = clap::value_parser!(i64).range(1..))]
        session: i64,
    },
    /// Cancel a session; every guest returns to where it was. Waits until that is so.
    Cancel {
        /// Number of the session.
        #[arg(value_parser = clap::value_parser!(i64).range(1..))]
        session: i64,
    },
}

/// Runs it.
pub async fn run(client: Client, screen: &Screen, command: SessionCommand) -> Result<Exit> {
    match command {
        SessionCommand::List { job, limit } => {
            let sessions = calls::sessions(&client, job.as_deref(), limit).await?;
            screen.show(&sessions, |sessions, look| session_list::sessions(sessions, look))?;
        }
        SessionCommand::Show { session, why } => {
            let session = calls::session(&client, session).await?;
            screen.show(&session, |session, look| session::tree(session, look, why))?;
        }
        SessionCommand::Follow { session } => {
            let session = calls::session(&client, session).await?;
            return follow::to_the_end(&client, screen, session).await;
        }
        SessionCommand::Cancel { session } => return cancel(&client, screen, session).await,
    }
    Ok(Exit::Ok)
}
