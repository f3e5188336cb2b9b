//! A wish to stop, with its reason, and a lease that ends a piece of work by itself. Knows nothing of what is stopped.

use crate::desk::Lease;
use crate::failure::Stop;
use lull_engine::task_lease::May;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use tokio_util::sync::CancellationToken;

/// Cancels one piece of work; clones are one.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    token: CancellationToken,
    reason: Arc<OnceLock<String>>,
    lease: Option<Lease>,
    evicted: Arc<AtomicBool>,
}

/// Why a task stops whose lease nobody renewed.
pub const LEASE_RAN_OUT: &str = "the task lease ran out: the backup server did not renew it";

/// Why a task stops whose guest a newer one took over.
pub const EVICTED: &str = "a newer task holds the guest";

impl Cancel {
    /// Nothing goes forward unless `lease` allows it, from the first step on.
    pub fn under(lease: Lease) -> Self {
        Cancel { lease: Some(lease), ..Cancel::default() }
    }

    /// Cancels where the lease does not allow to work: also after a sleep of the machine, when no timer has gone off yet.
    pub fn heed_lease(&self) {
        if self.lease.as_ref().is_some_and(|lease| lease.may() != May::Work) {
            self.cancel(LEASE_RAN_OUT);
        }
    }

    /// Cancels; the first reason stays.
    pub fn cancel(&self, reason: impl Into<String>) {
        let _ = self.reason.set(reason.into());
        self.token.cancel();
    }

    /// A newer task took the guest over: nothing more is done there, not even to undo, and nothing goes forward anywhere.
    pub fn evict(&self) {
        self.evicted.store(true, Ordering::SeqCst);
        self.cancel(EVICTED);
    }

    /// Whether the guest is another task's now.
    pub fn is_evicted(&self) -> bool {
        self.evicted.load(Ordering::SeqCst)
    }

    /// Whether the lease has ended: whoever has the task next may be in the guest.
    pub fn is_over(&self) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.may() == May::Nothing)
    }

    /// Whether it was cancelled for this reason.
    pub fn is_because_of(&self, reason: &str) -> bool {
        self.reason.get().is_some_and(|own| own == reason)
    }

    /// For those who take a token.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Resolves once it is cancelled.
    pub async fn cancelled(&self) {
        self.token.cancelled().await;
    }

    /// The reason, once it is cancelled.
    pub fn stop(&self) -> Stop {
        Stop::Cancelled(self.reason.get().cloned().unwrap_or_default())
    }

    /// An error once it is cancelled, or may not go on.
    pub fn check(&self) -> Result<(), Stop> {
        self.heed_lease();
        match self.token.is_cancelled() {
            true => Err(self.stop()),
            false => Ok(()),
        }
    }

    /// Before something is entered that is not held yet, a guest or a hypervisor: waits for a fresh grant where the last one is old, since who
    /// stood still may wake after another one was there. An error once it is cancelled, or may not go on.
    pub async fn enter(&self) -> Result<(), Stop> {
        if let Some(lease) = &self.lease {
            self.or(lease.may_enter()).await?;
        }
        self.check()
    }

    /// The future's output, unless it is cancelled first; then the future is dropped.
    pub async fn or<T>(&self, future: impl Future<Output = T>) -> Result<T, Stop> {
        self.heed_lease();
        tokio::select! {
            biased;
            () = self.token.cancelled() => Err(self.stop()),
            output = future => Ok(output),
        }
    }
}
