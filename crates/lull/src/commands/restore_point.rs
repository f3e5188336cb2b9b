//! `lull restore-point`: what the backups left.

use super::removed;
use crate::calls;
use crate::exit::Exit;
use crate::render::{session_list, text::printable, units};
use crate::screen::Screen;
use crate::terminal;
use crate::trouble::{Result, Trouble};
use clap::Subcommand;
use lull_api::Client;
use lull_api::infrastructure::RestorePoint;

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
    /// Check that every file of a restore point, and of those that it builds on, is there and sound.
    ///
    /// Names the link where a chain is broken, and what could not be checked. Ends with 0 if all is sound, with 1 if anything is damaged or was not
    /// checked; `verdict` says which.
    Verify {
        /// Id of the restore point.
        id: String,
    },
    /// Remove a restore point with its files, for good.
    ///
    /// Refused, with their ids, while other restore points build on it. Asks first; where there is no terminal to ask on, `--yes` is needed.
    Remove {
        /// Id of the restore point.
        id: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
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
        RestorePointCommand::Remove { id, yes } => {
            if !yes {
                ask_whether_to_remove(&calls::restore_point(&client, &id).await?)?;
            }
            calls::remove_restore_point(&client, &id).await?;
            return removed(screen, "restore point", &id);
        }
    }
    Ok(Exit::Ok)
}

/// A backup does not go without a person's word.
fn ask_whether_to_remove(point: &RestorePoint) -> Result<()> {
    let id = point.id;
    let question = format!(
        "Restore point {id}\n  of {}, taken {}, {}, {}\n  in {}\nRemove it with its files, for good? [yes/no]",
        printable(&point.vm),
        point.created_at,
        point.level,
        units::bytes(point.bytes),
        printable(&point.directory)
    );
    match terminal::ask_line(&question) {
        Ok(Some(answer)) if answer.trim() == "yes" => Ok(()),
        Ok(Some(_)) => Err(Trouble::local(Exit::Failed, "not-removed", format!("restore point {id} was not removed"))
            .why("only `yes` removes it")),
        Ok(None) | Err(_) => Err(Trouble::usage(format!("restore point {id} was not removed"))
            .why("there is no terminal to ask on whether it may go with its files")
            .remedy(format!("`lull restore-point remove {id} --yes`"))),
    }
}
