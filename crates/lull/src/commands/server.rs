//! `lull server`: the backup server in the foreground, with a guest interaction proxy embedded.
//!
//! Knows how to put the two together and when to stop; what they do is theirs.

use crate::cli::Global;
use crate::connection;
use crate::exit::Exit;
use crate::screen::Screen;
use crate::trouble::{Result, Trouble};
use clap::Args;
use lull_proxy::desk::{Desk, ProxyConfig};
use lull_proxy::service;
use lull_server::{Ready, ServeProxy, ServerConfig, ServerError};
use serde_json::json;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tracing_subscriber::EnvFilter;

const NOTES: &str = "\
Runs in the foreground and logs to stderr. When it answers requests it prints one line on stdout that names its address. \
SIGTERM or Ctrl-C ends it: running tasks are cancelled and their guests return to where they were; a second one ends it at \
once, and the next start sees to what is still owed to guests.

Example:
  lull server --state-dir /var/lib/lull --listen 127.0.0.1:7420";

/// What `lull server` takes.
#[derive(Debug, Args)]
#[command(after_help = NOTES)]
pub struct ServerArgs {
    /// Address of the REST interface; loopback only. Port 0 takes any free port.
    #[arg(long, env = "LULL_LISTEN", value_name = "IP:PORT", default_value = "127.0.0.1:7420")]
    listen: SocketAddr,
    /// Address at which monitoring asks for metrics, at the path /metrics, without a token; off unless given. They name proxies, and no VMs.
    #[arg(long, env = "LULL_METRICS_LISTEN", value_name = "IP:PORT")]
    metrics_listen: Option<SocketAddr>,
    /// Address on which proxies on other machines call, over TLS with certificates of this server's; none: there are none.
    #[arg(long, env = "LULL_PROXY_LISTEN", value_name = "IP:PORT|none", default_value = "[::]:7421", value_parser = proxy_listen)]
    proxy_listen: ProxyListen,
    /// What to log: error, warn, info, debug, or filters as in `info,lull_proxy=debug`.
    #[arg(long, env = "LULL_LOG", value_name = "FILTER", default_value = "info", value_parser = filter)]
    log: String,
    /// Log as JSON lines.
    #[arg(long)]
    log_json: bool,
}

/// Runs the server until it is told to stop.
pub fn run(global: &Global, screen: &Screen, args: &ServerArgs) -> Result<u8> {
    start_log(&args.log, args.log_json);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|e| {
        Trouble::local(Exit::Failed, "no-runtime", "the server could not get what it needs from the system")
            .why(e.to_string())
    })?;
    runtime.block_on(serve(global, screen, args))
}

async fn serve(global: &Global, screen: &Screen, args: &ServerArgs) -> Result<u8> {
    let mut stops = Stops::listen()?;
    let (ready, is_ready) = oneshot::channel();
    let state_dir = connection::state_dir(global);
    let config = ServerConfig {
        ready: Some(ready),
        metrics_listen: args.metrics_listen,
        proxy_listen: args.proxy_listen.0,
        ..ServerConfig::new(state_dir, args.listen, embedded_proxy())
    };
    let (stop, stopped) = oneshot::channel();
    let mut stop = Some(stop);
    let mut is_ready = Some(is_ready);
    let server = lull_server::run(config, async {
        // An error means that nobody will ever ask to stop; then nothing may stop it.
        if stopped.await.is_err() {
            std::future::pending::<()>().await;
        }
    });
    let mut server = std::pin::pin!(server);
    loop {
        tokio::select! {
            result = &mut server => return result.map(|()| Exit::Ok as u8).map_err(|error| explain(&error)),
            ready = announced(&mut is_ready) => {
                is_ready = None;
                if let Some(ready) = ready {
                    announce(screen, &ready)?;
                }
            }
            name = stops.next() => match stop.take() {
                Some(stop) => {
                    tracing::info!("{name}: running tasks are cancelled, their guests return to where they were");
                    // The server may have come to its end by itself just now.
                    let _ = stop.send(());
                }
                None => {
                    tracing::warn!("{name} again: ending at once; the next start sees to what is owed to guests");
                    return Ok(Exit::Interrupted as u8);
                }
            },
        }
    }
}

/// The backup server's own proxy: the same service that a remote one serves, on a stream in memory.
fn embedded_proxy() -> ServeProxy {
    let desk = Desk::new(ProxyConfig::default());
    Arc::new(move |stream| {
        let desk = desk.clone();
        Box::pin(async move {
            if let Err(error) = service::serve(stream, &desk).await {
                tracing::warn!(%error, "the connection to the embedded proxy broke");
            }
        })
    })
}

fn announce(screen: &Screen, ready: &Ready) -> Result<()> {
    let url = format!("http://{}", ready.address);
    if screen.json {
        return screen.json_line(&json!({
            "url": url, "proxy_address": ready.proxy_address, "token_file": ready.token_file,
            "recovering_tasks": ready.recovering_tasks,
        }));
    }
    let recovering = match ready.recovering_tasks {
        0 => String::new(),
        1 => "; 1 task of an earlier run is being recovered".to_string(),
        n => format!("; {n} tasks of an earlier run are being recovered"),
    };
    let proxies = ready.proxy_address.map(|address| format!(", proxies on {address}")).unwrap_or_default();
    let token = ready.token_file.display();
    screen.text(&format!("lull server is ready on {url}{proxies}, token in {token}{recovering}\n"))
}

async fn announced(ready: &mut Option<oneshot::Receiver<Ready>>) -> Option<Ready> {
    match ready {
        Some(ready) => ready.await.ok(),
        None => std::future::pending().await,
    }
}

/// What failed and, from the chain below it, why.
fn explain(error: &ServerError) -> Trouble {
    let trouble = Trouble::local(Exit::Failed, "server-ended", error.to_string());
    let mut causes = Vec::new();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        causes.push(cause.to_string());
        source = cause.source();
    }
    if causes.is_empty() { trouble } else { trouble.why(causes.join(": ")) }
}

/// Where proxies call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ProxyListen(Option<SocketAddr>);

fn proxy_listen(text: &str) -> std::result::Result<ProxyListen, String> {
    match text {
        "none" => Ok(ProxyListen(None)),
        text => text.parse().map(|address| ProxyListen(Some(address))).map_err(|_| "give IP:PORT, or none".to_string()),
    }
}

/// A log filter as given.
pub fn filter(text: &str) -> std::result::Result<String, String> {
    EnvFilter::try_new(text).map(|_| text.to_string()).map_err(|e| e.to_string())
}

/// From now on the program logs to stderr.
pub fn start_log(filter: &str, json: bool) {
    let log = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && crate::terminal::wants_color());
    if json { log.json().init() } else { log.init() }
}

/// The signals that ask a daemon to stop.
pub struct Stops {
    interrupt: Signal,
    terminate: Signal,
}

impl Stops {
    /// Listens for them.
    pub fn listen() -> Result<Stops> {
        let listen = |kind| {
            signal(kind).map_err(|e| {
                Trouble::local(Exit::Failed, "no-signals", "the program could not listen for signals")
                    .why(e.to_string())
            })
        };
        Ok(Stops { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// The name of the next one.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}
