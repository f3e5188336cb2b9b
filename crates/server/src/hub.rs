//! Live events: handed to whoever follows a session. Knows no store: a follower that fell behind or sees a gap reads
//! what it missed there (see [`crate::rest::events`]).

use lull_api::session::SessionEvent;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use tokio::sync::broadcast;
use uuid::Uuid;

/// Events that a slow follower may be behind before it has to read the store.
const BEHIND_MAX: usize = 256;

/// Bytes done and in all of the step under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepProgress {
    /// The step.
    pub step: String,
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
}

/// Followers by session, and the progress of running tasks.
#[derive(Default)]
pub struct Hub {
    followers: Mutex<HashMap<i64, broadcast::Sender<SessionEvent>>>,
    progress: Mutex<HashMap<Uuid, StepProgress>>,
}

impl Hub {
    /// From now on, every event of the session.
    pub fn follow(&self, session: i64) -> broadcast::Receiver<SessionEvent> {
        let mut followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever follows a session looks after those whose followers left.
        followers.retain(|_, sender| sender.receiver_count() > 0);
        followers.entry(session).or_insert_with(|| broadcast::channel(BEHIND_MAX).0).subscribe()
    }

    /// Hands out events that are in the store already, or progress.
    pub fn publish(&self, session: i64, events: &[SessionEvent]) {
        let followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = followers.get(&session) {
            for event in events {
                // An error means that nobody follows just now.
                let _ = sender.send(event.clone());
            }
        }
    }

    /// Remembers how far a task's step is.
    pub fn set_progress(&self, task: Uuid, progress: StepProgress) {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).insert(task, progress);
    }

    /// How far a task's step is.
    pub fn progress(&self, task: Uuid) -> Option<StepProgress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).get(&task).cloned()
    }

    /// The task is over.
    pub fn forget_progress(&self, task: Uuid) {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).remove(&task);
    }
}
