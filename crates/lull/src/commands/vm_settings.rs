//! `lull job vm-settings`: what one VM of a job has otherwise than the job.

use super::settings::{GuestArgs, RemovalArgs};
use crate::calls;
use crate::render::vm_settings;
use crate::screen::Screen;
use crate::trouble::{Result, Trouble};
use clap::Args;
use lull_api::Client;
use lull_api::vm_settings::VmSettingsChange;

/// What `job vm-settings` takes.
#[derive(Debug, Args)]
pub struct VmSettingsArgs {
    /// Name of the job.
    job: String,
    /// VM in its scope, by name or HOST/VM.
    vm: String,
    /// Guest credential for this VM in this job.
    #[arg(long, value_name = "NAME")]
    credential: Option<String>,
    /// Settings that shall be the job's again: application-aware, scripts, checkpoint, lease, freeze-budget, exclude,
    /// indexing, guest-interaction-proxy, credential.
    #[arg(long, value_name = "SETTING", value_delimiter = ',')]
    clear: Vec<String>,
    /// All settings shall be the job's again.
    #[arg(long)]
    clear_all: bool,
    #[command(flatten)]
    guest: GuestArgs,
    #[command(flatten)]
    removal: RemovalArgs,
}

/// Shows the settings in force, or changes them first.
pub async fn run(client: &Client, screen: &Screen, args: VmSettingsArgs) -> Result<()> {
    let mut guest = args.guest.settings()?;
    args.removal.apply(&mut guest);
    let change = VmSettingsChange { guest, credential: args.credential, clear: args.clear };
    let nothing_given = change == VmSettingsChange::default();
    if args.clear_all && !nothing_given {
        return Err(Trouble::usage("--clear-all leaves nothing that could be set or cleared besides")
            .remedy("clear first, then set what this VM shall have otherwise"));
    }
    let saved = if args.clear_all {
        calls::clear_vm_settings(client, &args.job, &args.vm).await?
    } else if nothing_given {
        return screen.show(&calls::vm_settings(client, &args.job, &args.vm).await?, vm_settings::settings);
    } else {
        calls::change_vm_settings(client, &args.job, &args.vm, &change).await?
    };
    for warning in &saved.warnings {
        screen.remark(&format!("warning: {}", crate::render::text::one_line(warning)));
    }
    screen.show(&saved, |saved, look| vm_settings::settings(&saved.settings, look))
}
