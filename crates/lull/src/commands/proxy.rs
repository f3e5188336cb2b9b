//! `lull proxy`: guest interaction proxies and the choice between them; and the daemon that is one.

pub mod daemon;

use super::proxy_duty::{self, DutyCommand};
use crate::calls;
use crate::exit::Exit;
use crate::render::units::parse_duration_s;
use crate::render::{proxy, proxy_tier};
use crate::screen::Screen;
use crate::trouble::Result;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use lull_api::Client;
use lull_api::infrastructure::NewJoinToken;

/// What can be asked about proxies, and of this machine.
#[derive(Debug, Subcommand)]
pub enum ProxyCommand {
    /// Asked of the backup server.
    #[command(flatten)]
    Server(ServerSide),
    /// Done on this machine.
    #[command(flatten)]
    Here(daemon::Here),
}

/// What can be asked about proxies.
#[derive(Debug, Subcommand)]
pub enum ServerSide {
    /// List the guest interaction proxies.
    List,
    /// Which proxy would serve a VM now, and what speaks for or against each.
    #[command(after_help = "Example:\n  lull proxy explain shop --job nightly")]
    Explain {
        /// The VM, by name or HOST/VM.
        vm: String,
        /// By the rules of this job [default: automatic selection].
        #[arg(long, value_name = "JOB")]
        job: Option<String>,
    },
    /// What the proxies did over time: tasks, busy time, tiers, and tasks that another proxy had to take over.
    #[command(after_help = "Examples:\n  lull proxy load\n  lull proxy load site-a --since 36h")]
    Load(LoadArgs),
    #[command(flatten)]
    Duty(DutyCommand),
    /// Make a token with which one machine joins as a proxy.
    #[command(after_help = "The token is shown this once, is good for one machine, and names this backup server.\n\n\
                            Example:\n  lull proxy token --name branch-1")]
    Token {
        /// Name of the managed server to be [default: the machine's own name].
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// For a managed server that joins again, as after a reinstallation: its old identity ends with the new join.
        #[arg(long, value_name = "NAME", conflicts_with = "name")]
        again: Option<String>,
        /// For how long it is good, as in 30m, 2h, 1d; at most a week.
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration_s)]
        valid_for: u64,
    },
    /// Cut a proxy off at once: its certificate does not count any more, its tasks go to others.
    Revoke {
        /// The proxy, by name.
        proxy: String,
    },
    /// Remove a proxy from the backup infrastructure. Nothing is changed on its machine.
    Remove {
        /// The proxy, by name.
        proxy: String,
    },
}

/// What `proxy load` takes.
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// Only this proxy, each hour or day with its figures; one that is gone serves too.
    name: Option<String>,
    /// How far to look back, as in 7d, 36h.
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = parse_duration_s)]
    since: u64,
    /// Show hours or days [default: hours up to two days].
    #[arg(long, value_name = "BUCKET", value_parser = ["hour", "day"])]
    by: Option<String>,
}

/// Asks the backup server.
pub async fn run(client: Client, screen: &Screen, command: ServerSide) -> Result<Exit> {
    match command {
        ServerSide::List => screen.show(&calls::proxies(&client).await?, |proxies, look| proxy::list(proxies, look))?,
        ServerSide::Explain { vm, job } => {
            let explanation = calls::explain_proxy(&client, &vm, job.as_deref()).await?;
            screen.show(&explanation, proxy::explanation)?;
        }
        ServerSide::Duty(command) => return proxy_duty::run(&client, screen, command).await,
        ServerSide::Load(args) => {
            let since = Timestamp::now().as_second().saturating_sub_unsigned(args.since);
            let since = Timestamp::from_second(since).unwrap_or(Timestamp::MIN).to_string();
            let report = calls::proxy_load(&client, args.name.as_deref(), &since, args.by.as_deref()).await?;
            screen.show(&report, |report, look| match (&args.name, report.proxies.as_slice()) {
                (Some(_), [one]) => proxy_tier::load_of_one(report, one, look),
                _ => proxy_tier::load(report, look),
            })?;
        }
        ServerSide::Token { name, again, valid_for } => {
            let new = NewJoinToken { name, again, valid_for_s: Some(valid_for) };
            screen.show(&calls::make_join_token(&client, &new).await?, proxy::token)?;
        }
        ServerSide::Revoke { proxy } => {
            let revoked = calls::revoke_proxy(&client, &proxy).await?;
            screen.show(&revoked, |revoked, _| proxy::revoked(revoked))?;
        }
        ServerSide::Remove { proxy } => {
            calls::remove_proxy(&client, &proxy).await?;
            return super::removed(screen, "proxy", &proxy);
        }
    }
    Ok(Exit::Ok)
}
