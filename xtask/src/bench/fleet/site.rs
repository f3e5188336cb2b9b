//! What the fleet's proxies stand on: guests and hypervisors in memory, and a network for each site.
//!
//! Knows nothing of servers and figures.

use ipnet::IpNet;
use lull_proxy::access::GuestAccess;
use lull_proxy::carried::{Image, NotCarried};
use lull_proxy::fake::FakeConnector;
use lull_proxy::fake::guest::{Behaviour, FakeGuest};
use lull_proxy::fake::snapshotter::FakeSnapshotter;
use lull_proxy::ground::Ground;
use lull_proxy::guest_session::Connector;
use lull_proxy::order::{BackupSpec, QemuSpec};
use lull_proxy::snapshotter::Snapshotter;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const COMPONENT: &[u8] = b"a component in memory";

/// How long the guests' work takes, for all sites: the copy of each backup, shortest and longest.
#[derive(Debug, Default)]
pub struct Pace {
    shortest_ms: AtomicU64,
    longest_ms: AtomicU64,
}

impl Pace {
    /// From now on.
    pub fn set(&self, shortest: Duration, longest: Duration) {
        self.shortest_ms.store(shortest.as_millis() as u64, Ordering::Relaxed);
        self.longest_ms.store(longest.as_millis() as u64, Ordering::Relaxed);
    }

    /// For this task: the same for the same task.
    fn of(&self, task: &str) -> Duration {
        let (shortest, longest) = (self.shortest_ms.load(Ordering::Relaxed), self.longest_ms.load(Ordering::Relaxed));
        let sum = task.bytes().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        Duration::from_millis(shortest + sum % (longest - shortest + 1))
    }
}

/// One site's ground.
pub struct Site {
    /// Its network.
    pub network: IpNet,
    /// Of all sites.
    pub pace: Arc<Pace>,
}

impl Ground for Site {
    fn connector(&self, _: GuestAccess) -> Box<dyn Connector> {
        Box::new(FakeConnector::new(FakeGuest::new(COMPONENT.len(), Behaviour::default())))
    }

    fn snapshotter(&self, _: QemuSpec, _: BackupSpec, task: &str, epoch: u64) -> Box<dyn Snapshotter> {
        let directory = format!("/fleet/{task}.{epoch}");
        Box::new(FakeSnapshotter { copy_takes: self.pace.of(task), directory, ..FakeSnapshotter::default() })
    }

    fn image(&self) -> Result<Image, NotCarried> {
        Ok(Image::new(COMPONENT))
    }

    fn networks(&self) -> io::Result<Vec<IpNet>> {
        Ok(vec![self.network])
    }
}
