//! What every part of a running server shares, and how its background work is started and ended.

use crate::ProxyPace;
use crate::catalog::FileCatalog;
use crate::clock::Clock;
use crate::hub::Hub;
use crate::licence::LicenceBook;
use crate::metrics::Metrics;
use crate::notify::NotifyPace;
use crate::proxies::Proxies;
use crate::removal::Uses;
use crate::resolver::Resolver;
use crate::retention::RetentionQueue;
use crate::runner::book::Book;
use crate::secrets::Secrets;
use crate::store::Store;
use crate::trust::Authority;
use jiff::Timestamp;
use secrecy::SecretString;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A running server.
pub struct Server {
    /// What is remembered.
    pub store: Store,
    /// Seals and opens secrets.
    pub secrets: Secrets,
    /// Makes the proxies' certificates.
    pub authority: Authority,
    /// The files of the guests.
    pub catalog: FileCatalog,
    /// What is licensed.
    pub licence: LicenceBook,
    /// DNS names of guests.
    pub resolver: Resolver,
    /// What is counted for monitoring.
    pub metrics: Arc<Metrics>,
    /// What time it is for schedules.
    pub clock: Clock,
    /// Jobs whose restore points are looked through.
    pub retention: RetentionQueue,
    /// Restore points that are read or removed.
    pub uses: Arc<Uses>,
    /// Live events.
    pub hub: Arc<Hub>,
    /// Open sessions and tasks.
    pub book: Book,
    /// The proxies.
    pub proxies: Proxies,
    /// Where proxies on other machines call.
    pub proxy_address: Option<SocketAddr>,
    /// What a caller must present.
    pub token: SecretString,
    /// The state folder.
    pub state_dir: PathBuf,
    /// When this server started.
    pub started: Timestamp,
    /// Hosts that are being looked at.
    pub looking: Mutex<BTreeSet<Uuid>>,
    /// Machines that are being changed.
    pub managing: Mutex<BTreeSet<String>>,
    /// Proxies that get no tasks while their machines are worked on.
    pub drained: Mutex<BTreeSet<Uuid>>,
    /// Wakes the dispatcher.
    pub wake: Notify,
    /// How long the return of a proxy is waited for.
    pub pace: ProxyPace,
    /// How long and how often it is tried to tell somebody of a session.
    pub notify: NotifyPace,
    /// Wakes whoever tells of sessions.
    pub notify_wake: Notify,
    /// Set once no new work is taken.
    pub stopping: CancellationToken,
    /// Set once the last task is over, so that whoever follows events is let go.
    pub stopped: CancellationToken,
    /// Set once everything must end at once.
    pub killed: CancellationToken,
}

impl Server {
    /// Runs work in the background; it ends at once when the server is dropped.
    pub fn spawn(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        let killed = self.killed.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = killed.cancelled() => {}
                () = work => {}
            }
        });
    }
}
