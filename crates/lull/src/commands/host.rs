//! `lull host`: hypervisor hosts.

use super::removed;
use crate::calls;
use crate::exit::Exit;
use crate::render::infrastructure;
use crate::screen::Screen;
use crate::trouble::{Result, Trouble};
use clap::Subcommand;
use lull_api::Client;
use lull_api::infrastructure::{HostChange, NewHost};
use std::path::{Path, PathBuf};

/// What can be done with hosts.
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// Add a folder of QEMU sockets as a hypervisor host.
    ///
    /// Every `VM.qmp` in the folder (a QMP socket: `-qmp unix:DIR/VM.qmp,server=on,wait=off`) is a VM. Other
    /// files there are left alone, a guest agent's socket (`VM.qga`) too: no guest agent is needed.
    #[command(after_help = "Example:\n  lull host add here --qemu /run/vms --fleecing /var/tmp/fleecing")]
    Add {
        /// Name of the host, unique.
        name: String,
        /// Folder of sockets.
        #[arg(long, value_name = "DIR")]
        qemu: PathBuf,
        /// Local folder for fleecing images, which keep what the guest overwrites while it is being backed up; QEMU's
        /// user must be able to write there
        /// [default: fleecing in the server's state folder].
        #[arg(long, value_name = "DIR")]
        fleecing: Option<PathBuf>,
    },
    /// List the hosts.
    List,
    /// Show one host.
    Show {
        /// Name of the host.
        name: String,
    },
    /// Change a host.
    #[command(after_help = "Examples:\n  lull host set here --max-tasks 8\n  lull host set here --max-tasks unlimited")]
    Set {
        /// Name of the host.
        name: String,
        /// How many backups run at once on its VMs (4 unless set): each keeps a snapshot, which makes its guest's writes dearer, and
        /// they share the host's disks.
        #[arg(long, value_name = "N|unlimited", value_parser = limit)]
        max_tasks: u32,
    },
    /// Look again for the VMs of a host.
    Rescan {
        /// Name of the host.
        name: String,
    },
    /// Remove a host that no job needs any more.
    Remove {
        /// Name of the host.
        name: String,
    },
}

/// Runs it.
pub async fn run(client: Client, screen: &Screen, command: HostCommand) -> Result<Exit> {
    match command {
        HostCommand::Add { name, qemu, fleecing } => {
            let fleecing_dir = fleecing.as_deref().map(absolute).transpose()?;
            let host = NewHost { name, qemu_dir: absolute(&qemu)?, fleecing_dir };
            screen.show(&calls::add_host(&client, &host).await?, infrastructure::host)?;
        }
        HostCommand::List => {
            screen.show(&calls::hosts(&client).await?, |hosts, look| infrastructure::hosts(hosts, look))?
        }
        HostCommand::Set { name, max_tasks } => {
            let change = HostChange { max_tasks: Some(max_tasks) };
            screen.show(&calls::change_host(&client, &name, &change).await?, infrastructure::host)?;
        }
        HostCommand::Rescan { name } => {
            screen.show(&calls::rescan_host(&client, &name).await?, infrastructure::host)?;
        }
        HostCommand::Show { name } => {
            screen.show(&calls::host(&client, &name).await?, infrastructure::host)?;
        }
        HostCommand::Remove { name } => {
            calls::remove_host(&client, &name).await?;
            return removed(screen, "host", &name);
        }
    }
    Ok(Exit::Ok)
}

/// A number of tasks at once; 0 is what the interface takes for `unlimited`.
pub fn limit(text: &str) -> std::result::Result<u32, String> {
    match (text, text.parse::<u32>()) {
        ("unlimited", _) => Ok(0),
        (_, Ok(limit @ 1..)) => Ok(limit),
        _ => Err(format!("`{text}` is neither a number of tasks nor `unlimited`")),
    }
}

/// The server does not know where this command was called: paths leave here absolute.
pub fn absolute(path: &Path) -> Result<String> {
    let wrong = |why: String| Err(Trouble::usage(format!("`{}` cannot be used as a path", path.display())).why(why));
    match std::path::absolute(path) {
        Ok(path) => match path.into_os_string().into_string() {
            Ok(path) => Ok(path),
            Err(_) => wrong("it is not UTF-8".into()),
        },
        Err(error) => wrong(error.to_string()),
    }
}
