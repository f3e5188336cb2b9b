//! The proxies: how each is reached, what it said of itself last, and whether its heartbeat arrives. Chooses none.
//!
//! A proxy serves `proxy-wire` on a [`Line`] and the server is its HTTP/2 client: the embedded one on a stream in memory, which
//! is opened again by the next call, a remote one on the connection it dialled last. [`gate`] takes those connections,
//! [`joining`] makes a proxy of a machine with a token, [`arrival`] admits it, [`heartbeat`] keeps asking.

use crate::LocalProxy;
use crate::store::infrastructure::ServerRow;
use crate::store::proxies::{JoinedRow, LastKnown};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use jiff::Timestamp;
use line::Line;
use lull_engine::ids::{HostId, ServerId};
use lull_engine::infrastructure::{ChannelKind, ManagedServer, Platform, SILENT_AFTER_MS, ServerState};
use lull_proxy_wire::v1::HostProbe;
use lull_proxy_wire::v1::proxy_client::ProxyClient;
use lull_proxy_wire::{GENERATION, fits};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::io::DuplexStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};
use uuid::Uuid;

pub mod arrival;
pub mod gate;
pub mod heartbeat;
pub mod joining;
pub mod line;

/// Buffer of the in-memory stream, each way.
const STREAM_BYTES: usize = 1 << 20;
/// Largest message from a proxy: an inventory and evidence of many file systems.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// What is known of a proxy now.
#[derive(Debug, Clone)]
pub struct Health {
    /// What it said of itself last, in this life of the server or an earlier one.
    pub last_known: LastKnown,
    /// The process that said it; empty before its first answer.
    pub incarnation: String,
    /// When it last answered in this life of the server.
    pub last_heard: Option<Timestamp>,
    /// Whether it counts as online.
    pub online: bool,
    /// Why it gets no tasks although it may be there, with what to do.
    pub trouble: Option<String>,
    /// It was revoked.
    pub revoked: bool,
}

impl Health {
    /// It never said anything of itself, in no life of the server.
    pub fn never_connected(&self) -> bool {
        self.last_known == LastKnown::default()
    }

    /// What an administrator should know of it: why it gets no tasks although it may be there, or that it never will as it is.
    pub fn problem(&self) -> Option<String> {
        let revoked = || "it was revoked: to be used again it has to join anew, with a new token".to_string();
        self.trouble.clone().or_else(|| self.revoked.then(revoked))
    }
}

/// One proxy.
pub struct ProxyLink {
    /// Its managed server.
    pub server: ServerRow,
    line: watch::Sender<Option<Line>>,
    health: watch::Sender<Health>,
    /// Set when it is no longer in the infrastructure.
    gone: CancellationToken,
    /// It lives in this process.
    pub in_process: bool,
}

impl ProxyLink {
    fn new(server: ServerRow, line: Option<Line>, known: Option<LastKnown>, revoked: bool) -> Arc<Self> {
        let health = Health {
            last_known: known.unwrap_or_default(),
            incarnation: String::new(),
            last_heard: None,
            online: false,
            trouble: None,
            revoked,
        };
        let in_process = line.is_some();
        let (line, health) = (watch::Sender::new(line), watch::Sender::new(health));
        Arc::new(ProxyLink { server, line, health, gone: CancellationToken::new(), in_process })
    }

    /// To call it.
    ///
    /// # Errors
    /// `UNAVAILABLE` while it is not connected.
    pub fn client(&self) -> Result<ProxyClient<Channel>, Status> {
        match &*self.line.borrow() {
            Some(line) => Ok(client(line.channel.clone())),
            None => Err(Status::unavailable(format!("{} is not connected", self.server.name))),
        }
    }

    /// What is known of it now.
    pub fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    /// Returns once it is offline.
    pub async fn offline(&self) {
        let mut health = self.health.subscribe();
        // The sender lives in `self`, so the wait can only end with the proxy offline.
        let _ = health.wait_for(|health| !health.online).await;
    }

    /// Returns once it answered a heartbeat.
    pub async fn online(&self) {
        let mut health = self.health.subscribe();
        let _ = health.wait_for(|health| health.online).await;
    }

    /// Returns once it answers a heartbeat that is younger than this call: the process that does.
    pub async fn answers_again(&self) -> String {
        let (called, mut health) = (Timestamp::now(), self.health.subscribe());
        let heard = health.wait_for(|health| health.online && health.last_heard >= Some(called)).await;
        heard.map(|health| health.incarnation.clone()).unwrap_or_default()
    }

    /// Returns once it is revoked or removed.
    pub async fn revoked(&self) {
        let mut health = self.health.subscribe();
        let _ = health.wait_for(|health| health.revoked).await;
    }

    /// Returns once it reaches this hypervisor host.
    pub async fn reaches(&self, host: Uuid) {
        let mut health = self.health.subscribe();
        let _ = health.wait_for(|health| health.last_known.hosts_reached.contains(&host)).await;
    }

    /// It is cut off at once: what it is asked breaks off, and it is not admitted again.
    pub fn revoke(&self) {
        self.health.send_modify(|health| (health.online, health.revoked) = (false, true));
        self.cut();
    }

    fn cut(&self) {
        if let Some(line) = self.line.send_replace(None) {
            line.cut.cancel();
        }
    }
}

fn client(channel: Channel) -> ProxyClient<Channel> {
    ProxyClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// HTTP/2 to a proxy. The name is never resolved: the connector has the stream.
fn endpoint() -> Endpoint {
    Endpoint::from_static("http://proxy.invalid")
        .http2_keep_alive_interval(Duration::from_millis(SILENT_AFTER_MS / 2))
        .keep_alive_timeout(Duration::from_millis(2 * SILENT_AFTER_MS))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20)
}

/// Every proxy, by the id of its managed server.
pub struct Proxies {
    links: RwLock<BTreeMap<Uuid, Arc<ProxyLink>>>,
    /// Tasks that each works on.
    running: Mutex<BTreeMap<Uuid, u32>>,
    /// Hypervisor hosts that proxies are asked about.
    probes: watch::Sender<Arc<Vec<HostProbe>>>,
}

impl Proxies {
    /// Proxies in this process, and those that joined before; nothing is connected yet.
    pub fn new(local: Vec<(ServerRow, LocalProxy)>, joined: Vec<JoinedRow>) -> Self {
        let mut links = BTreeMap::new();
        for (server, proxy) in local {
            let connector = tower::service_fn(move |_: Uri| {
                let (ours, theirs) = tokio::io::duplex(STREAM_BYTES);
                tokio::spawn((proxy.serve)(theirs));
                std::future::ready(Ok::<TokioIo<DuplexStream>, std::io::Error>(TokioIo::new(ours)))
            });
            let line = Line::in_memory(endpoint().connect_with_connector_lazy(connector));
            links.insert(server.id, ProxyLink::new(server, Some(line), None, false));
        }
        let remote = joined.into_iter().filter(|row| !row.keys.is_empty() || row.revoked_us.is_some());
        for JoinedRow { server, last_known, revoked_us, .. } in remote {
            let revoked = revoked_us.is_some();
            links.entry(server.id).or_insert_with(|| ProxyLink::new(server, None, last_known, revoked));
        }
        Proxies { links: RwLock::new(links), running: Mutex::default(), probes: watch::Sender::default() }
    }

    /// All of them, by id.
    pub fn all(&self) -> Vec<Arc<ProxyLink>> {
        self.links.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The proxy of a managed server.
    pub fn get(&self, server: ServerId) -> Option<Arc<ProxyLink>> {
        self.links.read().unwrap_or_else(PoisonError::into_inner).get(&server.0).cloned()
    }

    /// The backup server's own.
    pub fn backup_server(&self) -> Option<Arc<ProxyLink>> {
        self.all().into_iter().find(|link| link.server.is_backup_server)
    }

    /// A machine joined, or joined again. What was known of it under this id ends.
    fn add(&self, server: ServerRow) -> Arc<ProxyLink> {
        let link = ProxyLink::new(server, None, None, false);
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = links.insert(link.server.id, link.clone()) {
            old.gone.cancel();
            old.revoke();
        }
        link
    }

    /// It is no longer in the backup infrastructure.
    pub fn remove(&self, server: Uuid) {
        if let Some(link) = self.links.write().unwrap_or_else(PoisonError::into_inner).remove(&server) {
            link.gone.cancel();
            link.revoke();
        }
    }

    /// A slot is taken or given back.
    pub fn count_running(&self, server: ServerId, delta: i32) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let count = running.entry(server.0).or_default();
        *count = count.saturating_add_signed(delta);
    }

    /// Tasks that it works on.
    pub fn running(&self, server: Uuid) -> u32 {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).get(&server).copied().unwrap_or(0)
    }

    /// As the rules of selection see them.
    pub fn managed_servers(&self) -> Vec<ManagedServer> {
        self.all().iter().map(|link| managed_server(link, self.running(link.server.id))).collect()
    }

    /// From now on proxies are asked about these hypervisor hosts, and at once.
    pub fn ask_about(&self, probes: Vec<HostProbe>) {
        self.probes.send_replace(Arc::new(probes));
    }
}

fn managed_server(link: &ProxyLink, running_tasks: u32) -> ManagedServer {
    let health = link.health();
    let state = match (&health, health.last_known.generation.max(1)) {
        (Health { revoked: true, .. }, _) => ServerState::Revoked,
        (Health { online: true, .. }, _) => ServerState::Online,
        (Health { trouble: Some(_), .. }, theirs) if !fits(GENERATION, theirs) => ServerState::Incompatible {
            version: health.last_known.version.clone(),
            server_version: env!("CARGO_PKG_VERSION").into(),
            newer: theirs > GENERATION,
        },
        (health, _) if health.never_connected() => ServerState::NeverConnected,
        _ => ServerState::Offline { since: health.last_heard },
    };
    let known = health.last_known;
    ManagedServer {
        id: ServerId(link.server.id),
        name: link.server.name.clone(),
        platform: if known.platform == "windows" { Platform::Windows } else { Platform::Linux },
        is_backup_server: link.server.is_backup_server,
        role_enabled: link.server.role_enabled,
        state,
        // What does not read as a network is no network of the VM's; the proxy's own list shows it as it is.
        networks: known.networks.iter().filter_map(|net| net.parse::<IpNet>().ok()).collect(),
        channels: known.channels.iter().filter_map(|name| channel(name)).collect(),
        network_less_hosts: Vec::new(),
        hosts_reached: known.hosts_reached.iter().map(|id| HostId(*id)).collect(),
        slots: known.slots,
        running_tasks,
    }
}

/// Channels of a newer proxy that this server does not know are none that it could choose.
fn channel(name: &str) -> Option<ChannelKind> {
    serde_json::from_value(serde_json::Value::from(name)).ok()
}
