//! How a server comes up and goes down: state folder, key, database, proxies, recovery, REST; and the way back.

use crate::accept;
use crate::catalog::FileCatalog;
use crate::clock;
use crate::error::ServerError;
use crate::hub::Hub;
use crate::licence::LicenceBook;
use crate::metrics::{self, Metrics, MetricsText};
use crate::proxies::{Proxies, gate, joining};
use crate::resolver::Resolver;
use crate::rest;
use crate::retention::{self, RetentionQueue};
use crate::runner::book::Book;
use crate::runner::{begin, dispatcher, recovery};
use crate::secrets::{SecretError, Secrets};
use crate::server::Server;
use crate::state_dir::StateDir;
use crate::store::Store;
use crate::trust::Authority;
use crate::{Ready, ServerConfig};
use jiff::Timestamp;
use lull_engine::session::TaskState;
use secrecy::SecretString;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The backup server's own proxy has so long to answer before requests are taken without it.
const PROXY_READY_MS_MAX: u64 = 10_000;
/// Running tasks have so long to come to their ends when the server stops.
const STOP_MS_MAX: u64 = 60_000;
/// Requests under way have so long to be answered.
const ANSWER_MS_MAX: u64 = 5_000;
/// How often it is looked whether the last task is over.
const STOP_LOOK_MS: u64 = 100;
/// Under this name the database knows whether a key is the one it was made with.
const KEY_CHECK: &str = "secret-key-check";
/// What is sealed under that name.
const KEY_CHECK_TEXT: &str = "this key fits";

/// See [`crate::run`].
pub async fn run(
    mut config: ServerConfig,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServerError> {
    let listen = config.listen;
    if !listen.ip().is_loopback() {
        return Err(ServerError::NeedsTls { listen });
    }
    let own = config.proxies.iter().filter(|proxy| proxy.is_backup_server).count();
    if own != 1 {
        return Err(ServerError::BackupServerProxy { found: own });
    }
    let state_dir = StateDir::open(&config.state_dir)?;
    let listener = TcpListener::bind(listen).await.map_err(|source| ServerError::Listen { listen, source })?;
    let address = listener.local_addr().map_err(|source| ServerError::Listen { listen, source })?;

    let monitored = match config.metrics_listen {
        None => None,
        Some(listen) => {
            let bound = TcpListener::bind(listen).await;
            Some(bound.map_err(|source| ServerError::ListenForMetrics { listen, source })?)
        }
    };
    let metrics_address = monitored.as_ref().and_then(|listener| listener.local_addr().ok());
    let proxy_listener = match config.proxy_listen {
        Some(listen) => Some(proxy_listener(listen).await?),
        None => None,
    };
    let proxy_address = proxy_listener.as_ref().and_then(|listener| listener.local_addr().ok());

    let store = Store::open(&state_dir.database()).await?;
    let secrets = key(&state_dir, &store).await?;
    let server = assemble(&mut config, &state_dir, store, secrets, proxy_address).await?;
    // However this function is left, what it started ends with it.
    let _killed = server.killed.clone().drop_guard();

    if let Some(listener) = proxy_listener {
        let config = gate::config(&server.authority, Timestamp::now())?;
        let taking = server.clone();
        server.spawn(async move { gate::run(&taking, listener, config).await });
    }
    crate::look::ask_proxies(&server).await?;
    joining::await_known(&server);
    if let Some(own) = server.proxies.backup_server() {
        let ready = tokio::time::timeout(Duration::from_millis(PROXY_READY_MS_MAX), own.online()).await;
        if ready.is_err() {
            tracing::error!("the backup server's own proxy does not answer; guests of no other proxy can be reached");
        }
    }
    let recovering_tasks = recovery::reopen(&server).await?;
    let cataloguing = server.clone();
    server.spawn(async move { crate::catalog::queue::run(&cataloguing).await });
    let telling = server.clone();
    server.spawn(async move { crate::notify::run(&telling).await });
    let dispatching = server.clone();
    server.spawn(async move { dispatcher::run(&dispatching).await });
    let looking = server.clone();
    server.spawn(async move { clock::run(&looking).await });
    let removing = server.clone();
    server.spawn(async move { retention::run(&removing).await });
    if let Some(listener) = monitored {
        let (asked, stopped) = (server.clone(), server.stopped.clone());
        let text: MetricsText = Arc::new(move || {
            let server = asked.clone();
            Box::pin(async move { metrics::text(&server).await.map_err(|error| error.to_string()) })
        });
        server.spawn(metrics::serve(listener, text, stopped));
    }
    if let Some(ready) = config.ready.take() {
        // Whoever asked to be told may have gone.
        let _ = ready.send(Ready {
            address,
            proxy_address,
            metrics: metrics_address,
            token_file: state_dir.token_file(),
            recovering_tasks,
        });
    }
    tracing::info!(%address, recovering_tasks, "the backup server is ready");
    serve(&server, listener, shutdown).await;
    server.store.close().await;
    Ok(())
}

/// The port for proxies. Where the system has no IPv6, *any address* is any IPv4 address.
async fn proxy_listener(listen: SocketAddr) -> Result<TcpListener, ServerError> {
    let failed = |source| ServerError::ListenForProxies { listen, source };
    match TcpListener::bind(listen).await {
        Err(error)
            if listen.ip() == Ipv6Addr::UNSPECIFIED
                && error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) =>
        {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, listen.port())).await.map_err(failed)
        }
        bound => bound.map_err(failed),
    }
}

async fn assemble(
    config: &mut ServerConfig,
    state_dir: &StateDir,
    store: Store,
    secrets: Secrets,
    proxy_address: Option<SocketAddr>,
) -> Result<Arc<Server>, ServerError> {
    let started = Timestamp::now();
    let mut local = Vec::new();
    for proxy in config.proxies.drain(..) {
        let row = store.ensure_server(&proxy.name, proxy.is_backup_server, crate::instant::us(started)).await?;
        local.push((row, proxy));
    }
    let joined = store.joined().await?;
    let hub = Arc::new(Hub::default());
    let metrics = Arc::new(Metrics::default());
    let licence = LicenceBook::open(&store, state_dir.path()).await?;
    Ok(Arc::new(Server {
        book: Book::new(store.clone(), hub.clone(), metrics.clone()),
        authority: Authority::open(&store, &secrets, started).await?,
        store,
        secrets,
        licence,
        resolver: Resolver::system(),
        metrics,
        catalog: FileCatalog::open(state_dir.path(), config.catalog.clone())?,
        clock: config.clock.clone(),
        retention: RetentionQueue::default(),
        uses: Arc::default(),
        hub,
        proxies: Proxies::new(local, joined, started),
        proxy_address,
        token: state_dir.token()?,
        state_dir: state_dir.path().to_path_buf(),
        started,
        looking: Mutex::default(),
        managing: Mutex::default(),
        wake: Notify::new(),
        pace: config.pace,
        notify: config.notify.clone(),
        notify_wake: Notify::new(),
        stopping: CancellationToken::new(),
        stopped: CancellationToken::new(),
        killed: CancellationToken::new(),
    }))
}

/// The key for stored secrets, checked against the database: a lost or exchanged key is noticed here and not in the
/// middle of a job.
async fn key(state_dir: &StateDir, store: &Store) -> Result<Secrets, ServerError> {
    let check = store.meta(KEY_CHECK).await?;
    let key = match (state_dir.secret_key()?, &check) {
        (Some(key), _) => key,
        (None, None) => state_dir.make_secret_key()?,
        (None, Some(_)) => {
            let state_dir = state_dir.path().display().to_string();
            return Err(SecretError::KeyMissing { state_dir }.into());
        }
    };
    let secrets = Secrets::new(&key);
    match check {
        Some(sealed) => drop(secrets.open(Uuid::nil(), KEY_CHECK, &sealed)?),
        None => {
            let text = SecretString::from(KEY_CHECK_TEXT);
            store.set_meta(KEY_CHECK, &secrets.seal(Uuid::nil(), KEY_CHECK, &text)?).await?;
        }
    }
    Ok(secrets)
}

/// Answers requests until told to stop, then brings the tasks to their ends.
async fn serve(server: &Arc<Server>, listener: TcpListener, shutdown: impl Future<Output = ()> + Send + 'static) {
    let serving = accept::serve(listener, rest::router(server.clone()), server.stopped.clone());
    let ending = async {
        shutdown.await;
        // Requests are answered while tasks come to their ends: people want to watch them.
        stop(server).await;
        server.stopped.cancel();
        tokio::time::sleep(Duration::from_millis(ANSWER_MS_MAX)).await;
    };
    tokio::select! {
        () = serving => {}
        () = ending => tracing::warn!("requests under way were broken off"),
    }
}

/// Takes no more work, cancels what runs and waits for it. What is still owed then stands in the store.
async fn stop(server: &Arc<Server>) {
    server.stopping.cancel();
    let mut sessions: Vec<i64> = server.book.open_tasks().await.iter().map(|task| task.row.session).collect();
    sessions.dedup();
    for session in sessions {
        tracing::info!(session, "cancelling, since the server stops");
        // Nobody wanted the session to end: what it did not come to is tried again where the schedule began it.
        let cut = async {
            server.store.cut_short(session).await?;
            begin::cancel(server, session).await
        };
        if let Err(error) = cut.await {
            tracing::error!(session, %error, "the cancellation cannot be recorded");
        }
    }
    let over = async {
        loop {
            let open = server.book.open_tasks().await;
            let held = |state: &TaskState| !matches!(state, TaskState::Waiting { .. });
            if !open.iter().any(|task| held(&task.row.state)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(STOP_LOOK_MS)).await;
        }
    };
    if tokio::time::timeout(Duration::from_millis(STOP_MS_MAX), over).await.is_err() {
        let open = server.book.open_tasks().await.len();
        tracing::warn!(open, "tasks are still open; the next start sees to their guests");
    }
}
