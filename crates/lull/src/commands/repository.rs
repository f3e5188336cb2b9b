//! `lull repository`: folders that backups are written to.

use super::host::{absolute, limit};
use super::removed;
use crate::calls;
use crate::exit::Exit;
use crate::render::infrastructure;
use crate::screen::Screen;
use crate::trouble::Result;
use clap::Subcommand;
use lull_api::Client;
use lull_api::infrastructure::{NewRepository, RepositoryChange};
use std::path::PathBuf;

/// What can be done with repositories.
#[derive(Debug, Subcommand)]
pub enum RepositoryCommand {
    /// Add a folder that the hypervisor can write to.
    #[command(after_help = "Example:\n  lull repository add local /srv/backup")]
    Add {
        /// Name of the repository, unique.
        name: String,
        /// The folder.
        path: PathBuf,
    },
    /// List the repositories with their free space.
    List,
    /// Show one repository with its free space.
    Show {
        /// Name of the repository.
        name: String,
    },
    /// Change a repository.
    #[command(after_help = "Example:\n  lull repository set local --max-tasks 4")]
    Set {
        /// Name of the repository.
        name: String,
        /// How many backups are written into it at once (16 unless set).
        #[arg(long, value_name = "N|unlimited", value_parser = limit)]
        max_tasks: u32,
    },
    /// Read what lies in a repository and make restore points known that are not, for instance after the server's state was lost.
    ///
    /// Add the hosts of their VMs first. Changes nothing in the repository. Ends with 6 if something was left out, is missing or broken.
    Scan {
        /// Name of the repository.
        name: String,
    },
    /// Remove a repository that no job needs any more; its files stay.
    Remove {
        /// Name of the repository.
        name: String,
    },
}

/// Runs it.
pub async fn run(client: Client, screen: &Screen, command: RepositoryCommand) -> Result<Exit> {
    match command {
        RepositoryCommand::Add { name, path } => {
            let repository = NewRepository { name, path: absolute(&path)? };
            screen.show(&calls::add_repository(&client, &repository).await?, infrastructure::repository)?;
        }
        RepositoryCommand::List => {
            screen.show(&calls::repositories(&client).await?, |all, look| infrastructure::repositories(all, look))?;
        }
        RepositoryCommand::Show { name } => {
            screen.show(&calls::repository(&client, &name).await?, infrastructure::repository)?;
        }
        RepositoryCommand::Set { name, max_tasks } => {
            let change = RepositoryChange { max_tasks: Some(max_tasks) };
            screen.show(&calls::change_repository(&client, &name, &change).await?, infrastructure::repository)?;
        }
        RepositoryCommand::Scan { name } => {
            let scan = calls::scan_repository(&client, &name).await?;
            screen.show(&scan, infrastructure::scan)?;
            let whole = scan.left_out.is_empty() && scan.missing.is_empty() && !scan.cut_short;
            return Ok(if whole { Exit::Ok } else { Exit::Warning });
        }
        RepositoryCommand::Remove { name } => {
            calls::remove_repository(&client, &name).await?;
            return removed(screen, "repository", &name);
        }
    }
    Ok(Exit::Ok)
}
