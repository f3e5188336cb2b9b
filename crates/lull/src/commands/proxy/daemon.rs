//! This machine as a proxy: `lull proxy join` and `lull proxy run`. Needs no REST interface and no administrator's token.
//!
//! Knows how the daemon is put together; what a proxy does is `lull-proxy`'s.

use crate::cli::Global;
use crate::commands::server::{Stops, filter, start_log};
use crate::connection;
use crate::exit::Exit;
use crate::screen::Screen;
use crate::secrets;
use crate::trouble::{Result, Trouble};
use clap::{Args, Subcommand};
use lull_proxy::desk::{Desk, ProxyConfig};
use lull_proxy::dial;
use lull_proxy::join::{self, JoinError, JoinToken, Name, NoToken};
use lull_proxy::membership::{self, Membership, MembershipError, NewKey};
use lull_proxy::service;
use lull_proxy::watcher::{self, Pace, SignsOfLife};
use lull_server::metrics::{self, MetricsText};
use serde_json::json;
use std::error::Error;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// What is done on this machine.
#[derive(Debug, Subcommand)]
pub enum Here {
    /// Make this machine a proxy of a backup server.
    #[command(
        after_help = "The token comes from `lull proxy token` on the backup server. Nothing is installed: run the proxy with `lull proxy run`.\n\n\
                            Example:\n  lull proxy join backup.example --token-file token.txt"
    )]
    Join(JoinArgs),
    /// Run this machine's proxy.
    #[command(
        after_help = "Runs in the foreground and logs to stderr. It dials the backup server and keeps dialling; nothing has to reach this \
                            machine. SIGTERM or Ctrl-C ends it: running tasks are cancelled and their guests return to where they were."
    )]
    Run(RunArgs),
    /// What `run` starts and watches.
    #[command(hide = true)]
    Worker(RunArgs),
    /// See whether this machine reaches a backup server. Nothing is changed.
    #[command(hide = true)]
    Probe(ProbeArgs),
}

/// What `lull proxy probe` takes.
#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// The backup server: HOST or HOST:PORT, as this machine reaches it.
    #[arg(value_name = "SERVER")]
    server_address: String,
    /// SHA-256 of its authority, hexadecimal.
    #[arg(long, value_name = "HEX")]
    authority: String,
}

/// What `lull proxy join` takes.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// The backup server: HOST or HOST:PORT, as this machine reaches it.
    #[arg(value_name = "SERVER", value_parser = server_address)]
    server_address: String,
    /// The token. Other users of this machine may see it among the processes for a moment; it is good only once.
    #[arg(long, value_name = "TOKEN", conflicts_with = "token_stdin")]
    token: Option<String>,
    /// Read the token from stdin.
    #[arg(long)]
    token_stdin: bool,
    /// Read the token from this file; without any of the three you are asked.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["token", "token_stdin"])]
    token_file: Option<PathBuf>,
    /// Name of the managed server to be [default: the token's, else this machine's name].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Give up an earlier identity.
    #[arg(long)]
    replace: bool,
}

/// What `lull proxy run` takes.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Tasks to work on at once [default: as many as there are processors, at least 2].
    #[arg(long, env = "LULL_SLOTS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    slots: Option<u32>,
    /// Address at which monitoring asks for metrics, at the path /metrics, without a token; off unless given. They name no VM.
    #[arg(long, env = "LULL_METRICS_LISTEN", value_name = "IP:PORT")]
    metrics_listen: Option<SocketAddr>,
    /// What to log: error, warn, info, debug, or filters as in `info,lull_proxy=debug`.
    #[arg(long, env = "LULL_LOG", value_name = "FILTER", default_value = "info", value_parser = filter)]
    log: String,
    /// Log as JSON lines.
    #[arg(long)]
    log_json: bool,
}

/// Does it.
pub fn run(global: &Global, screen: &Screen, command: Here) -> Result<u8> {
    match command {
        Here::Join(args) => runtime()?.block_on(join(global, screen, &args)),
        Here::Run(args) => watch(global, &args),
        Here::Probe(args) => runtime()?.block_on(probe(screen, &args)),
        Here::Worker(args) => {
            // First of all: nothing runs yet beside this thread.
            let signs = watcher::sign_of_life().map_err(|e| no_watcher(&e))?;
            runtime()?.block_on(serve(global, &args, signs))
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| {
        Trouble::local(Exit::Failed, "no-runtime", "the proxy could not get what it needs from the system")
            .why(e.to_string())
    })
}

fn no_watcher(error: &std::io::Error) -> Trouble {
    Trouble::local(Exit::Failed, "no-watcher", "the proxy and its watcher cannot be put together")
        .why(error.to_string())
}

/// Starts the worker with the same arguments, and starts it again whenever it stands still or dies.
fn watch(global: &Global, args: &RunArgs) -> Result<u8> {
    start_log(&args.log, args.log_json);
    let state_dir = connection::state_dir(global);
    // What no other start would mend is said at once.
    Membership::open(&state_dir).map_err(of_membership)?;
    if let Some(listen) = args.metrics_listen {
        std::net::TcpListener::bind(listen).map_err(|error| no_metrics(listen, &error))?;
    }
    let program = std::env::current_exe().map_err(|e| no_watcher(&e))?;
    let worker = || {
        let mut command = Command::new(&program);
        command.arg("--state-dir").arg(&state_dir).args(["proxy", "worker", "--log", &args.log]);
        if args.log_json {
            command.arg("--log-json");
        }
        if let Some(slots) = args.slots {
            command.args(["--slots", &slots.to_string()]);
        }
        if let Some(listen) = args.metrics_listen {
            command.args(["--metrics-listen", &listen.to_string()]);
        }
        command
    };
    watcher::run(worker, Pace::default()).map_err(|e| no_watcher(&e))
}

fn no_metrics(listen: SocketAddr, error: &std::io::Error) -> Trouble {
    Trouble::local(Exit::Failed, "cannot-listen", format!("metrics cannot be served on {listen}"))
        .why(error.to_string())
        .remedy("see which program holds the port, or choose another with --metrics-listen")
}

/// Tells monitoring of this proxy for as long as the program runs.
async fn serve_metrics(listen: Option<SocketAddr>, desk: &Desk) -> Result<()> {
    let Some(listen) = listen else { return Ok(()) };
    let listener = tokio::net::TcpListener::bind(listen).await.map_err(|error| no_metrics(listen, &error))?;
    let desk = desk.clone();
    let text: MetricsText = Arc::new(move || {
        let text = desk.metrics();
        Box::pin(async move { Ok(text) })
    });
    tokio::spawn(metrics::serve_for_good(listener, text));
    Ok(())
}

/// The way that `join` and `run` take, as far as TLS.
async fn probe(screen: &Screen, args: &ProbeArgs) -> Result<u8> {
    let reached = join::probe(&args.server_address, &args.authority).await;
    let server = reached
        .map_err(|error| Trouble::local(Exit::Unreachable, "server-unreachable", error.to_string()))?
        .ok_or_else(|| Trouble::usage("--authority: 64 hexadecimal digits are wanted"))?;
    screen.show(&json!({"reached": server}), |_, _| format!("{server} is that backup server.\n"))?;
    Ok(Exit::Ok as u8)
}

async fn join(global: &Global, screen: &Screen, args: &JoinArgs) -> Result<u8> {
    let state_dir = connection::state_dir(global);
    let token = token(args)?;
    membership::check_free(&state_dir, args.replace).map_err(of_membership)?;
    let name = match &args.name {
        Some(name) => Name::Given(name.clone()),
        None => Name::Machine(rustix::system::uname().nodename().to_string_lossy().into_owned()),
    };
    let key = NewKey::make().map_err(of_membership)?;
    let mut tried = join::join(&args.server_address, &token, &name, &key).await;
    if matches!(tried, Err(JoinError::NoAnswer { .. })) {
        // With the same key the server answers again.
        tried = join::join(&args.server_address, &token, &name, &key).await;
    }
    let identity = tried.map_err(|error| {
        let (exit, code) = match &error {
            JoinError::Refused { .. } => (Exit::Refused, "join-refused"),
            JoinError::Dial(_) | JoinError::NoAnswer { .. } => (Exit::Unreachable, "server-unreachable"),
            JoinError::Membership(_) => (Exit::Failed, "no-identity"),
        };
        with_causes(Trouble::local(exit, code, error.to_string()), &error)
    })?;
    let path = membership::save(&state_dir, &identity, args.replace).map_err(of_membership)?;
    let answer =
        json!({"name": identity.name, "server": identity.server, "server_id": identity.server_id, "identity": path});
    screen.show(&answer, |_, _| {
        format!(
            "This machine is now the proxy {} of {}.\nRun it with: {}\n",
            identity.name,
            identity.server,
            run_command(global.state_dir.as_deref())
        )
    })?;
    Ok(Exit::Ok as u8)
}

/// The command that runs the proxy whose identity lies in this folder; `None` where it is the folder that `run` takes by itself.
fn run_command(state_dir: Option<&Path>) -> String {
    let Some(folder) = state_dir else { return "lull proxy run".into() };
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf()).display().to_string();
    let plain = folder.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    let folder = if plain { folder } else { format!("'{}'", folder.replace('\'', "'\\''")) };
    format!("lull --state-dir {folder} proxy run")
}

fn server_address(text: &str) -> std::result::Result<String, String> {
    join::check_address(text).map(|()| text.to_string()).map_err(|error| error.to_string())
}

fn token(args: &JoinArgs) -> Result<JoinToken> {
    let text = match &args.token {
        Some(token) => token.clone(),
        None => secrets::read(&secrets::source(args.token_stdin, args.token_file.as_ref()), "join token", "token")?,
    };
    text.parse().map_err(|error: NoToken| match &args.token_file {
        Some(file) => Trouble::usage(format!("{} holds no join token", file.display())).why(error.to_string()),
        None => Trouble::usage(error.to_string()),
    })
}

fn of_membership(error: MembershipError) -> Trouble {
    with_causes(Trouble::local(Exit::Failed, "no-identity", error.to_string()), &error)
}

fn with_causes(trouble: Trouble, error: &dyn Error) -> Trouble {
    match error.source() {
        Some(source) => trouble.why(source.to_string()),
        None => trouble,
    }
}

async fn serve(global: &Global, args: &RunArgs, signs: SignsOfLife) -> Result<u8> {
    start_log(&args.log, args.log_json);
    let living = tokio::spawn(signs.give());
    let mut stops = Stops::listen()?;
    let membership = Arc::new(Membership::open(&connection::state_dir(global)).map_err(of_membership)?);
    let slots = args.slots.unwrap_or(ProxyConfig::default().slots);
    let desk = Desk::new(ProxyConfig { slots, membership: Some(membership.clone()) });
    serve_metrics(args.metrics_listen, &desk).await?;
    let connected = dial::stay_connected(&membership, |io| service::serve(io, &desk));
    tokio::select! {
        given = living => {
            let why = given.map_or_else(|e| e.to_string(), |given| given.err().map(|e| e.to_string()).unwrap_or_default());
            Err(no_watcher(&std::io::Error::other(why)))
        }
        dismissed = connected => {
            desk.end("the backup server does not want this proxy any more").await;
            let trouble = Trouble::local(Exit::NotAuthenticated, "dismissed", "the backup server does not want this proxy any more");
            Err(trouble.why(dismissed.why))
        }
        name = stops.next() => {
            tracing::info!("{name}: running tasks are cancelled, their guests return to where they were");
            tokio::select! {
                () = desk.end("the proxy was told to end") => Ok(Exit::Ok as u8),
                name = stops.next() => {
                    tracing::warn!("{name} again: ending at once; guests thaw by themselves");
                    Ok(Exit::Interrupted as u8)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_to_run_names_the_folder_that_was_used() {
        assert_eq!(run_command(None), "lull proxy run");
        assert_eq!(run_command(Some(Path::new("/srv/p1"))), "lull --state-dir /srv/p1 proxy run");
        assert_eq!(run_command(Some(Path::new("/srv/it's p"))), "lull --state-dir '/srv/it'\\''s p' proxy run");
    }
}
