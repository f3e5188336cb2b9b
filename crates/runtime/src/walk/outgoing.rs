//! Frames on their way from the walkers to the control loop: a few at a time, so that whoever reads slowly slows the walk down
//! instead of filling the guest's memory. Also the one place that says whether the walk was stopped, and why.
//!
//! Knows nothing of what is in a frame.

use crate::kernel::Bell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

/// Frames that wait at most; each has at most 256 KiB.
const FRAMES_MAX: usize = 8;

/// The walk was stopped; [`Outgoing::stopped_because`] says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

/// The queue.
pub struct Outgoing {
    frames: Mutex<VecDeque<Vec<u8>>>,
    room: Condvar,
    bell: Arc<Bell>,
    stopped: AtomicBool,
    because: OnceLock<String>,
    was_full: AtomicBool,
}

impl Outgoing {
    /// `bell` rings when there is a frame.
    pub fn new(bell: Arc<Bell>) -> Outgoing {
        Outgoing {
            frames: Mutex::default(),
            room: Condvar::new(),
            bell,
            stopped: AtomicBool::new(false),
            because: OnceLock::new(),
            was_full: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Vec<u8>>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a frame, as soon as there is room.
    pub fn push(&self, frame: Vec<u8>) -> Result<(), Stopped> {
        let mut frames = self.lock();
        while frames.len() >= FRAMES_MAX && !self.is_stopped() {
            self.was_full.store(true, Relaxed);
            frames = self.room.wait(frames).unwrap_or_else(PoisonError::into_inner);
        }
        if self.is_stopped() {
            return Err(Stopped);
        }
        frames.push_back(frame);
        drop(frames);
        self.bell.ring();
        Ok(())
    }

    /// The oldest frame. None of a walk that was stopped.
    pub fn take(&self) -> Option<Vec<u8>> {
        let frame = self.lock().pop_front().filter(|_| !self.is_stopped());
        self.room.notify_one();
        frame
    }

    /// Ends the walk at once; the first reason stands.
    pub fn stop(&self, because: impl Into<String>) {
        let _ = self.because.set(because.into());
        // Under the lock, so that nobody who looked before begins to wait after.
        let mut frames = self.lock();
        self.stopped.store(true, Relaxed);
        frames.clear();
        drop(frames);
        self.room.notify_all();
    }

    /// Whether it was stopped.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Relaxed)
    }

    /// Why it was stopped.
    pub fn stopped_because(&self) -> Option<String> {
        self.because.get().cloned()
    }

    /// Whether a walker had to wait for room since the last time.
    pub fn was_full(&self) -> bool {
        self.was_full.swap(false, Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_reader_that_does_not_read_holds_the_walkers_and_a_stop_lets_them_go() {
        let outgoing = Arc::new(Outgoing::new(Arc::new(Bell::new().unwrap())));
        let walker = std::thread::spawn({
            let outgoing = outgoing.clone();
            move || (0u8..).map(|frame| outgoing.push(vec![frame])).take_while(Result::is_ok).count()
        });
        while !outgoing.was_full() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(outgoing.take(), Some(vec![0]));
        while !outgoing.was_full() {
            std::thread::sleep(Duration::from_millis(1));
        }
        outgoing.stop("it was cancelled");
        outgoing.stop("too late");
        assert_eq!(walker.join().unwrap(), FRAMES_MAX + 1);
        assert_eq!((outgoing.take(), outgoing.stopped_because().as_deref()), (None, Some("it was cancelled")));
    }
}
