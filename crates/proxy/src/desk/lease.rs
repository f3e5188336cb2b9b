//! A task's lease as the proxy holds it: the engine's arithmetic on a clock that also counts the time in which this machine
//! slept. Knows no wire.

use lull_engine::task_lease::{Holder, May};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Who waits for a grant looks at the clock this often, which may have jumped.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// An ask that was just made is not made again.
const ASK_AGAIN_MS: u64 = 5_000;

/// A clock that never runs back, in milliseconds; clones are one.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Clock {
    /// The machine's, which counts while it is suspended: a lease that ended meanwhile has ended.
    pub fn of_the_machine() -> Clock {
        Clock::new(|| {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
            now.tv_sec as u64 * 1_000 + now.tv_nsec as u64 / 1_000_000
        })
    }

    /// Another one.
    pub fn new(now_ms: impl Fn() -> u64 + Send + Sync + 'static) -> Clock {
        Clock(Arc::new(now_ms))
    }

    /// Milliseconds since some moment.
    pub fn now_ms(&self) -> u64 {
        (self.0)()
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

/// One task's lease; clones are one.
#[derive(Debug, Clone)]
pub struct Lease {
    clock: Clock,
    holder: Arc<Mutex<Asked>>,
    wanted: Arc<Notify>,
    granted: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Asked {
    holder: Holder,
    last_ms: u64,
}

impl Lease {
    /// Nothing was asked yet.
    pub fn new(clock: Clock) -> Lease {
        Lease { clock, holder: Arc::default(), wanted: Arc::default(), granted: watch::Sender::new(()) }
    }

    fn lock(&self) -> MutexGuard<'_, Asked> {
        self.holder.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// It is asked for now; the number of the ask.
    pub fn ask(&self) -> u64 {
        let now_ms = self.clock.now_ms();
        let mut asked = self.lock();
        asked.last_ms = now_ms;
        asked.holder.ask(now_ms)
    }

    /// How long ago it was last asked for.
    pub fn asked_ms_ago(&self) -> u64 {
        self.clock.now_ms().saturating_sub(self.lock().last_ms)
    }

    /// The ask of this number was granted.
    pub fn granted(&self, number: u64, lease_ms: u64) {
        self.lock().holder.granted(number, lease_ms);
        self.granted.send_replace(());
    }

    /// Waits until it allows to work; for ever where nobody grants it.
    pub async fn allows_work(&self) {
        let mut granted = self.granted.subscribe();
        while self.may() != May::Work {
            // The sender is ours.
            let _ = granted.changed().await;
        }
    }

    /// Waits until somebody must ask at once.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Whether its holder may enter a guest or connect to a hypervisor now; where the last grant is too old, once a fresh one has come. False
    /// where the lease does not allow to work any more.
    pub async fn may_enter(&self) -> bool {
        let mut granted = self.granted.subscribe();
        loop {
            let now_ms = self.clock.now_ms();
            let (fresh, may) = {
                let asked = self.lock();
                (asked.holder.may_enter(now_ms), asked.holder.may(now_ms))
            };
            if fresh || may != May::Work {
                return fresh;
            }
            if self.asked_ms_ago() >= ASK_AGAIN_MS {
                self.wanted.notify_one();
            }
            let _ = tokio::time::timeout(LOOK_EVERY, granted.changed()).await;
        }
    }

    /// What its holder may do now.
    pub fn may(&self) -> May {
        let now_ms = self.clock.now_ms();
        self.lock().holder.may(now_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_clock_runs() {
        let clock = Clock::of_the_machine();
        let before_ms = clock.now_ms();
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!((20..10_000).contains(&(clock.now_ms() - before_ms)));
    }
}
