//! The proxies: how each is reached, what it says of itself, and whether its heartbeat arrives. Chooses none.
//!
//! A proxy serves `proxy-wire` on a stream and the server is its HTTP/2 client. A connection that broke is opened again
//! by the next call. Every [`HEARTBEAT_MS`] a proxy is asked to describe itself; one that did not answer for
//! [`SILENT_AFTER_MS`] is offline, and whoever waits for it is told so.

use crate::LocalProxy;
use crate::store::infrastructure::ServerRow;
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use jiff::Timestamp;
use lull_engine::ids::ServerId;
use lull_engine::infrastructure::{ChannelKind, ManagedServer, Platform, SILENT_AFTER_MS, ServerState};
use lull_proxy_wire::v1::proxy_client::ProxyClient;
use lull_proxy_wire::v1::{DescribeRequest, ProxyDescription};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::io::DuplexStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint, Uri};
use uuid::Uuid;

/// From one heartbeat to the next.
pub const HEARTBEAT_MS: u64 = 2_000;
/// Longest wait for one answer to a heartbeat.
const HEARTBEAT_TIMEOUT_MS: u64 = 5_000;
/// A proxy is offline only after so many unanswered heartbeats, whatever the clock says: this process may have been
/// stopped meanwhile.
const MISSED_MIN: u32 = 2;
/// Buffer of the in-memory stream, each way.
const STREAM_BYTES: usize = 1 << 20;
/// Largest message from a proxy: an inventory and evidence of many file systems.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// What is known of a proxy now.
#[derive(Debug, Clone)]
pub struct Health {
    /// What it said of itself last; nothing before its first answer.
    pub description: Option<ProxyDescription>,
    /// When it last answered, or when it was added.
    pub last_heard: Timestamp,
    /// Whether it counts as online.
    pub online: bool,
}

/// One proxy.
pub struct ProxyLink {
    /// Its managed server.
    pub server: ServerRow,
    channel: Channel,
    health: watch::Sender<Health>,
}

impl ProxyLink {
    /// To call it.
    pub fn client(&self) -> ProxyClient<Channel> {
        ProxyClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
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

    /// Asks for heartbeats until the future is dropped; `changed` is called when it comes or goes.
    pub async fn watch(&self, changed: impl Fn()) {
        let mut missed = 0;
        let mut heard = Instant::now();
        loop {
            let asked = Duration::from_millis(HEARTBEAT_TIMEOUT_MS);
            let mut client = self.client();
            let was_online = self.health.borrow().online;
            match tokio::time::timeout(asked, client.describe(DescribeRequest {})).await {
                Ok(Ok(answer)) => {
                    (missed, heard) = (0, Instant::now());
                    let description = Some(answer.into_inner());
                    let last_heard = Timestamp::now();
                    self.health.send_replace(Health { description, last_heard, online: true });
                    if !was_online {
                        changed();
                    }
                }
                failed => {
                    missed += 1;
                    let silent = heard.elapsed() > Duration::from_millis(SILENT_AFTER_MS);
                    if was_online && missed >= MISSED_MIN && silent {
                        let why = failed.map_or_else(|_| "no answer".to_string(), |r| format!("{r:?}"));
                        tracing::warn!(proxy = %self.server.name, why, "the proxy is offline");
                        self.health.send_modify(|health| health.online = false);
                        changed();
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(HEARTBEAT_MS)).await;
        }
    }
}

/// Every proxy, by the id of its managed server.
pub struct Proxies {
    links: BTreeMap<Uuid, ProxyLink>,
    /// Tasks that each works on.
    running: Mutex<BTreeMap<Uuid, u32>>,
}

impl Proxies {
    /// Proxies in this process; nothing is connected yet.
    pub fn new(local: Vec<(ServerRow, LocalProxy)>, now: Timestamp) -> Self {
        let link = |(server, proxy): (ServerRow, LocalProxy)| {
            let connector = tower::service_fn(move |_: Uri| {
                let (ours, theirs) = tokio::io::duplex(STREAM_BYTES);
                tokio::spawn((proxy.serve)(theirs));
                std::future::ready(Ok::<TokioIo<DuplexStream>, std::io::Error>(TokioIo::new(ours)))
            });
            // The name is never resolved: the connector has the stream.
            let channel = Endpoint::from_static("http://proxy.invalid")
                .http2_keep_alive_interval(Duration::from_millis(SILENT_AFTER_MS / 2))
                .keep_alive_timeout(Duration::from_millis(SILENT_AFTER_MS))
                .connect_with_connector_lazy(connector);
            let health = watch::Sender::new(Health { description: None, last_heard: now, online: false });
            (server.id, ProxyLink { server, channel, health })
        };
        Proxies { links: local.into_iter().map(link).collect(), running: Mutex::default() }
    }

    /// All of them, by id.
    pub fn all(&self) -> impl Iterator<Item = &ProxyLink> {
        self.links.values()
    }

    /// The proxy of a managed server.
    pub fn get(&self, server: ServerId) -> Option<&ProxyLink> {
        self.links.get(&server.0)
    }

    /// The backup server's own.
    pub fn backup_server(&self) -> Option<&ProxyLink> {
        self.links.values().find(|link| link.server.is_backup_server)
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
        self.links.values().map(|link| managed_server(link, self.running(link.server.id))).collect()
    }
}

fn managed_server(link: &ProxyLink, running_tasks: u32) -> ManagedServer {
    let health = link.health();
    let state = if health.online { ServerState::Online } else { ServerState::Offline { since: health.last_heard } };
    let description = health.description.unwrap_or_default();
    ManagedServer {
        id: ServerId(link.server.id),
        name: link.server.name.clone(),
        platform: if description.platform == "windows" { Platform::Windows } else { Platform::Linux },
        is_backup_server: link.server.is_backup_server,
        role_enabled: link.server.role_enabled,
        state,
        // What does not read as a network is no network of the VM's; the proxy's own list shows it as it is.
        networks: description.networks.iter().filter_map(|net| net.parse::<IpNet>().ok()).collect(),
        channels: description.channels.iter().filter_map(|name| channel(name)).collect(),
        network_less_hosts: Vec::new(),
        slots: description.slots,
        running_tasks,
    }
}

/// Channels of a newer proxy that this server does not know are none that it could choose.
fn channel(name: &str) -> Option<ChannelKind> {
    serde_json::from_value(serde_json::Value::from(name)).ok()
}
