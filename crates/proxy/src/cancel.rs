//! A wish to stop, with its reason. Knows nothing of what is stopped.

use crate::failure::Stop;
use std::future::Future;
use std::sync::{Arc, OnceLock};
use tokio_util::sync::CancellationToken;

/// Cancels one piece of work; clones are one.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    token: CancellationToken,
    reason: Arc<OnceLock<String>>,
}

impl Cancel {
    /// Cancels; the first reason stays.
    pub fn cancel(&self, reason: impl Into<String>) {
        let _ = self.reason.set(reason.into());
        self.token.cancel();
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

    /// An error once it is cancelled.
    pub fn check(&self) -> Result<(), Stop> {
        match self.token.is_cancelled() {
            true => Err(self.stop()),
            false => Ok(()),
        }
    }

    /// The future's output, unless it is cancelled first; then the future is dropped.
    pub async fn or<T>(&self, future: impl Future<Output = T>) -> Result<T, Stop> {
        tokio::select! {
            biased;
            () = self.token.cancelled() => Err(self.stop()),
            output = future => Ok(output),
        }
    }
}
