//! `lull job`: backup jobs and their runs.

use super::notify::{NotifyArgs, NotifyRemovalArgs};
use super::removed;
use super::settings::{BackupArgs, GuestArgs, RemovalArgs};
use super::timing::{TimingArgs, TimingRemovalArgs};
use super::vm_settings::{self, VmSettingsArgs};
use crate::calls;
use crate::exit::{self, Exit};
use crate::follow;
use crate::render::{job, proxy_tier, session};
use crate::screen::Screen;
use crate::trouble::{Result, Trouble};
use clap::{Args, Subcommand};
use lull_api::Client;
use lull_api::job::{GuestSettings, JobChange, NewJob, SavedJob};

const CREATE_EXAMPLES: &str = "\
Examples:
  lull job create nightly --vm shop --repository local
  lull job create nightly --vm shop --repository local --schedule '0 2 * * *' --keep-days 14 --keep-monthly 12
  lull job create web --vm web1,web2 --repository local --application-aware try --pre-freeze-script ./before.sh";

const VM_SETTINGS_EXAMPLES: &str = "\
Examples:
  lull job vm-settings nightly shop
  lull job vm-settings nightly shop --application-aware try --credential app
  lull job vm-settings nightly shop --clear scripts,lease";

/// What can be done with jobs.
#[derive(Debug, Subcommand)]
pub enum JobCommand {
    /// Make a backup job.
    #[command(after_help = CREATE_EXAMPLES)]
    Create(Box<CreateArgs>),
    /// Change a job; what is not given stays as it is.
    #[command(after_help = "Example:\n  lull job edit nightly --vm shop,web1 --lease 3s")]
    Edit(Box<EditArgs>),
    /// Show a job with every setting.
    Show {
        /// Name of the job.
        name: String,
    },
    /// Show or change what one VM has otherwise than the job.
    ///
    /// Without options the settings in force are shown, and where each comes from. What is given holds for this VM of this
    /// job from the next run on, whatever the job's own setting; --clear takes it back. Scripts with their mode and timeout,
    /// the checkpoint with its timeout, indexing with its paths, and the proxy with its servers are overridden together.
    #[command(after_help = VM_SETTINGS_EXAMPLES)]
    VmSettings(Box<VmSettingsArgs>),
    /// Which proxy would serve which VM if the job ran now and nothing else did.
    ///
    /// By the rules by which a run shares out its VMs. What begins at once is what would happen; the rest waits for a slot, and its
    /// turn counts as if all tasks took equally long. Nothing is run.
    Preview {
        /// Name of the job.
        name: String,
    },
    /// List the jobs with their last results.
    List,
    /// Run a job now, and show it until it is over.
    ///
    /// The exit code tells how it went: 0 success, 6 warning, 1 failed, 7 cancelled. Ctrl-C stops watching; the job
    /// goes on. With --json one document at the end: the session.
    Run {
        /// Name of the job.
        name: String,
        #[command(flatten)]
        watch: WatchArgs,
    },
    /// Show the newest session of a job while it runs.
    Follow {
        /// Name of the job.
        name: String,
    },
    /// Cancel the running session of a job; every guest returns to where it was.
    Cancel {
        /// Name of the job.
        name: String,
    },
    /// Remove a job; its restore points stay.
    Remove {
        /// Name of the job.
        name: String,
    },
}

/// How to watch what was started.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// With --json: every event as a line of JSON, as it happens (without --json events are always shown).
    #[arg(long)]
    pub follow: bool,
    /// Do not wait for the end.
    #[arg(long, short, conflicts_with = "follow")]
    pub detach: bool,
}

/// What `job create` takes.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name of the job, unique.
    name: String,
    /// VMs in scope, by name or HOST/VM.
    #[arg(long, value_name = "VM", required = true, value_delimiter = ',')]
    vm: Vec<String>,
    /// Repository to write to.
    #[arg(long, value_name = "NAME")]
    repository: String,
    #[command(flatten)]
    guest: GuestArgs,
    #[command(flatten)]
    backup: BackupArgs,
    #[command(flatten)]
    timing: TimingArgs,
    #[command(flatten)]
    notify: NotifyArgs,
}

/// What `job edit` takes.
#[derive(Debug, Args)]
pub struct EditArgs {
    /// Name of the job.
    name: String,
    /// New name.
    #[arg(long, value_name = "NAME")]
    rename: Option<String>,
    /// All VMs in scope, in place of those before.
    #[arg(long, value_name = "VM", value_delimiter = ',')]
    vm: Vec<String>,
    /// Repository to write to from now on.
    #[arg(long, value_name = "NAME")]
    repository: Option<String>,
    #[command(flatten)]
    guest: GuestArgs,
    #[command(flatten)]
    removal: RemovalArgs,
    #[command(flatten)]
    backup: BackupArgs,
    #[command(flatten)]
    timing: TimingArgs,
    #[command(flatten)]
    timing_removal: TimingRemovalArgs,
    #[command(flatten)]
    notify: NotifyArgs,
    #[command(flatten)]
    notify_removal: NotifyRemovalArgs,
}

/// Runs it.
pub async fn run(client: Client, screen: &Screen, command: JobCommand) -> Result<Exit> {
    match command {
        JobCommand::Create(args) => create(&client, screen, *args).await?,
        JobCommand::Edit(args) => edit(&client, screen, *args).await?,
        JobCommand::Show { name } => screen.show(&calls::job(&client, &name).await?, job::job)?,
        JobCommand::VmSettings(args) => vm_settings::run(&client, screen, *args).await?,
        JobCommand::Preview { name } => screen.show(&calls::preview_job(&client, &name).await?, proxy_tier::preview)?,
        JobCommand::List => screen.show(&calls::jobs(&client).await?, |jobs, look| job::list(jobs, look))?,
        JobCommand::Run { name, watch } => {
            let started = calls::run_job(&client, &name).await?;
            return follow::started(&client, screen, started, &watch).await;
        }
        JobCommand::Follow { name } => {
            let session = calls::session(&client, newest_session(&client, &name).await?).await?;
            return follow::to_the_end(&client, screen, session).await;
        }
        JobCommand::Cancel { name } => {
            let id = newest_session(&client, &name).await?;
            return cancel(&client, screen, id).await;
        }
        JobCommand::Remove { name } => {
            calls::remove_job(&client, &name).await?;
            return removed(screen, "job", &name);
        }
    }
    Ok(Exit::Ok)
}

async fn create(client: &Client, screen: &Screen, args: CreateArgs) -> Result<()> {
    let guest = GuestSettings { copy_limit_bytes_per_s: args.backup.copy_limit, ..args.guest.settings()? };
    let notify = args.notify.settings()?;
    let job = NewJob {
        name: args.name,
        vms: args.vm,
        repository: args.repository,
        guest,
        schedule: args.timing.scheduled(),
        retries: args.timing.retried(),
        retention: args.timing.retained().flatten(),
        full_every: args.timing.full_every,
        notify,
    };
    show_saved(screen, &calls::create_job(client, &job).await?)
}

async fn edit(client: &Client, screen: &Screen, args: EditArgs) -> Result<()> {
    let mut guest = GuestSettings { copy_limit_bytes_per_s: args.backup.copy_limit, ..args.guest.settings()? };
    args.removal.apply(&mut guest);
    let mut notify = args.notify.settings()?;
    args.notify_removal.apply(&mut notify);
    let change = JobChange {
        name: args.rename,
        vms: (!args.vm.is_empty()).then_some(args.vm),
        repository: args.repository,
        guest: (guest != GuestSettings::default()).then_some(guest),
        schedule: args.timing_removal.apply(args.timing.scheduled()),
        retries: args.timing.retried(),
        retention: args.timing.retained(),
        full_every: args.timing.full_every,
        notify: (!notify.is_empty()).then_some(notify),
    };
    if change == JobChange::default() {
        return Err(
            Trouble::usage("nothing to change was given").remedy("`lull help job edit` lists what can be changed")
        );
    }
    show_saved(screen, &calls::change_job(client, &args.name, &change).await?)
}

fn show_saved(screen: &Screen, saved: &SavedJob) -> Result<()> {
    for warning in &saved.warnings {
        screen.remark(&format!("warning: {}", crate::render::text::one_line(warning)));
    }
    screen.show(saved, job::saved)
}

async fn newest_session(client: &Client, job: &str) -> Result<i64> {
    let job = calls::job(client, job).await?;
    job.last_session.ok_or_else(|| {
        Trouble::local(Exit::Refused, "never-ran", format!("the job {} never ran", job.name))
            .remedy(format!("`lull job run {}` runs it", job.name))
    })
}

/// Cancels a session, and waits until every guest is back where it was.
pub async fn cancel(client: &Client, screen: &Screen, id: i64) -> Result<Exit> {
    let session = calls::cancel_session(client, id).await?;
    let session = follow::quietly(client, screen, session).await?;
    screen.show(&session, |session, look| session::tree(session, look, false))?;
    let result = session.summary.result.as_deref();
    // Cancelled is what was asked for.
    Ok(if result == Some("cancelled") { Exit::Ok } else { exit::of_result(result) })
}
