//! `lull restore-point`: what the backups left.

use super::removed;
use crate::calls;
use crate::exit::Exit;
use crate::render::session_list;
use crate::screen::Screen;
use crate::trouble::Result;
use clap::Subcommand;
use lull_api::Client;

/// What can be done with restore points.
#[derive(Debug, Subcommand)]
pub enum RestorePointCommand {
    /// List the restore points, newest first.
    List {
        /// Only those of this VM.
        #[arg(long, value_name = "VM")]
        vm: Option<String>,
    },
    /// Show one restore point with its consistency level and files.
    Show {
        /// Id of the restore point.
        id: String,
    },
    /// Check that every file of a restore point is there and sound.
    ///
    /// Ends with 0 if it is, with 1 if not.
    Verify {
        /// Id of the restore point.
        id: String,
    },
    /// Remove a restore point with its files.
    Remove {
        /// Id of the restore point.
        id: String,
    },
}

/// Runs it.
pub async fn run(client: Client, screen: &Screen, command: RestorePointCommand) -> Result<Exit> {
    match command {
        RestorePointCommand::List { vm } => {
            let points = calls::restore_points(&client, vm.as_deref()).await?;
            screen.show(&points, |points, look| session_list::restore_points(points, look))?;
        }
        RestorePointCommand::Show { id } => {
            screen.show(&calls::restore_point(&client, &id).await?, session_list::restore_point)?;
        }
        RestorePointCommand::Verify { id } => {
            let verification = calls::verify_restore_point(&client, &id).await?;
            screen.show(&verification, session_list::verification)?;
            return Ok(if verification.ok { Exit::Ok } else { Exit::Failed });
        }
        RestorePointCommand::Remove { id } => {
            calls::remove_restore_point(&client, &id).await?;
            return removed(screen, "restore point", &id);
        }
    }
    Ok(Exit::Ok)
}
