//! The backup server: it keeps the infrastructure, the jobs and the sessions, chooses proxies, has them work, and
//! answers the REST interface.
//!
//! Entry point: [`run`]. It knows how to speak to a proxy but not what a proxy does inside a guest; what follows from
//! an event is decided by `lull-engine` alone.

use futures::future::BoxFuture;
use std::{net::SocketAddr, path::PathBuf, sync::Arc};
use tokio::{io::DuplexStream, sync::oneshot};

mod accept;
mod addresses;
mod catalog;
mod clock;
mod disk;
mod error;
mod hub;
mod infrastructure;
mod instant;
mod licence;
mod load;
mod look;
pub mod managed;
pub mod metrics;
mod notify;
mod proxies;
mod removal;
mod resolver;
pub mod rest;
mod retention;
mod runner;
mod secrets;
mod server;
mod start;
mod state_dir;
mod store;
mod trust;
mod verification;

pub use catalog::CatalogPace;
pub use clock::Clock;
pub use error::ServerError;
pub use notify::NotifyPace;

/// Name of the backup server in the list of managed servers.
pub const BACKUP_SERVER_NAME: &str = "backup-server";

/// Serves `proxy-wire` on one in-memory stream until that stream closes. Called once for each connection: again after
/// a connection broke.
pub type ServeProxy = Arc<dyn Fn(DuplexStream) -> BoxFuture<'static, ()> + Send + Sync>;

/// A guest interaction proxy that lives in this process.
#[derive(Clone)]
pub struct LocalProxy {
    /// Name of its managed server.
    pub name: String,
    /// Whether it is the backup server's own.
    pub is_backup_server: bool,
    /// How it is reached.
    pub serve: ServeProxy,
}

impl LocalProxy {
    /// The backup server's own proxy.
    pub fn embedded(serve: ServeProxy) -> Self {
        LocalProxy { name: BACKUP_SERVER_NAME.to_string(), is_backup_server: true, serve }
    }
}

/// How long the return of a proxy is waited for.
#[derive(Debug, Clone, Copy)]
pub struct ProxyPace {
    /// A task whose proxy is not heard of for so long is taken away from it; it dials about ten times meanwhile.
    pub return_within_ms: u64,
    /// After a start of the server, waiting tasks are given to nobody for so long, while proxies that are known come back.
    pub gather_ms: u64,
    /// A proxy that was installed or restarted has so long to come online.
    pub come_ms: u64,
}

impl Default for ProxyPace {
    fn default() -> Self {
        ProxyPace { return_within_ms: 60_000, gather_ms: 15_000, come_ms: 90_000 }
    }
}

/// What a server needs to run.
pub struct ServerConfig {
    /// Folder that holds `lull.db`, `secret.key`, `admin-token`; created with mode 0700.
    pub state_dir: PathBuf,
    /// Address of the REST interface; port 0 takes any free one. Anything but loopback is refused, since it needs TLS.
    pub listen: SocketAddr,
    /// Address at which monitoring asks, with nobody's name; nothing: it cannot.
    pub metrics_listen: Option<SocketAddr>,
    /// Address on which proxies on other machines call; port 0 takes any free one. None: there are none.
    pub proxy_listen: Option<SocketAddr>,
    /// Proxies in this process; [`LocalProxy::embedded`] is one of them.
    pub proxies: Vec<LocalProxy>,
    /// What time it is for schedules, retries and retention.
    pub clock: Clock,
    /// How long and how often it is tried to tell somebody of a session.
    pub notify: NotifyPace,
    /// How long the return of a proxy is waited for.
    pub pace: ProxyPace,
    /// What the catalog may take of the disk, and how often it tries to take a listing in.
    pub catalog: CatalogPace,
    /// Told once, when the server answers requests.
    pub ready: Option<oneshot::Sender<Ready>>,
}

impl ServerConfig {
    /// A server with its embedded proxy alone.
    pub fn new(state_dir: PathBuf, listen: SocketAddr, embedded: ServeProxy) -> Self {
        let proxies = vec![LocalProxy::embedded(embedded)];
        let (clock, notify, catalog) = (Clock::system(), NotifyPace::default(), CatalogPace::default());
        ServerConfig {
            state_dir,
            listen,
            metrics_listen: None,
            proxy_listen: None,
            proxies,
            pace: ProxyPace::default(),
            clock,
            notify,
            catalog,
            ready: None,
        }
    }
}

/// Where a started server answers.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Address of the REST interface, with the port that was taken.
    pub address: SocketAddr,
    /// Where monitoring may ask.
    pub metrics: Option<SocketAddr>,
    /// Address for proxies, with the port that was taken.
    pub proxy_address: Option<SocketAddr>,
    /// File that holds the bearer token.
    pub token_file: PathBuf,
    /// Tasks that an earlier run left open and that are being recovered.
    pub recovering_tasks: u32,
}

/// Runs the server until `shutdown` resolves; then it takes no new work, cancels running tasks, waits (bounded) until
/// their guests are as before, and returns.
///
/// Dropping the future stops everything at once, like a kill: what is owed to guests stands in the store and the next
/// start sees to it. So a second signal is served by dropping it.
pub async fn run(config: ServerConfig, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<(), ServerError> {
    start::run(config, shutdown).await
}
