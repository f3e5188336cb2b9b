//! The freezer: the one thread that calls `FIFREEZE`, and the orderly thaw.
//!
//! `FIFREEZE` can take seconds on a busy file system. It runs here, so that the control thread goes on to answer renew, status
//! and thaw. States of the freezer, written only by its thread:
//!
//! ```text
//! Waiting ──freeze──▶ Working ──▶ Frozen ──thaw──▶ Working ──▶ Thawed
//!                        └──▶ Failed (thawed again what it had frozen, in reverse)
//! ```
//!
//! Allocates nothing once created. Knows nothing of the proxy or the watchdog, except that the lease may end at any time.

use crate::kernel::{self, Bell};
use crate::shared::{End, Shared};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

const STACK_BYTES: usize = 64 * 1024;

/// Where the freezer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreezerState {
    /// Created, nothing done.
    Waiting = 0,
    /// Freezing or thawing.
    Working = 1,
    /// Every `FIFREEZE` returned 0.
    Frozen = 2,
    /// A `FIFREEZE` failed or the lease ended meanwhile; what was frozen got its `FITHAW`.
    Failed = 3,
    /// Every superblock got its `FITHAW`.
    Thawed = 4,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    None,
    Freeze,
    Thaw,
    Quit,
}

struct Inner {
    shared: Arc<Shared>,
    fds: Arc<[OwnedFd]>,
    order: Mutex<Order>,
    ordered: Condvar,
    state: AtomicU32,
    bell: Arc<Bell>,
}

/// Handle of the freezer's thread.
pub struct Freezer {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

impl Freezer {
    /// Creates the thread; it waits. `bell` rings whenever the state changes.
    pub fn new(shared: Arc<Shared>, fds: Arc<[OwnedFd]>, bell: Arc<Bell>) -> io::Result<Freezer> {
        let inner = Arc::new(Inner {
            shared,
            fds,
            order: Mutex::new(Order::None),
            ordered: Condvar::new(),
            state: AtomicU32::new(FreezerState::Waiting as u32),
            bell,
        });
        let thread = std::thread::Builder::new().name("lull-freeze".into()).stack_size(STACK_BYTES).spawn({
            let inner = inner.clone();
            move || inner.serve()
        })?;
        Ok(Freezer { inner, thread: Some(thread) })
    }

    /// Freezes everything in order. Returns at once.
    pub fn freeze(&self) {
        self.give(Order::Freeze);
    }

    /// Thaws everything in reverse order. Returns at once.
    pub fn thaw(&self) {
        self.give(Order::Thaw);
    }

    fn give(&self, order: Order) {
        if order != Order::Quit {
            self.inner.state.store(FreezerState::Working as u32, SeqCst);
        }
        *self.inner.order.lock().unwrap_or_else(PoisonError::into_inner) = order;
        self.inner.ordered.notify_one();
    }

    /// Where it stands.
    pub fn state(&self) -> FreezerState {
        match self.inner.state.load(SeqCst) {
            0 => FreezerState::Waiting,
            1 => FreezerState::Working,
            2 => FreezerState::Frozen,
            3 => FreezerState::Failed,
            _ => FreezerState::Thawed,
        }
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.give(Order::Quit);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Inner {
    fn serve(&self) {
        loop {
            let order = {
                let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
                while *order == Order::None {
                    order = self.ordered.wait(order).unwrap_or_else(PoisonError::into_inner);
                }
                std::mem::replace(&mut *order, Order::None)
            };
            let state = match order {
                Order::Freeze if self.freeze_all() => FreezerState::Frozen,
                Order::Freeze => {
                    self.thaw_all();
                    FreezerState::Failed
                }
                Order::Thaw => {
                    self.thaw_all();
                    FreezerState::Thawed
                }
                Order::None => continue,
                Order::Quit => return,
            };
            self.state.store(state as u32, SeqCst);
            self.bell.ring();
        }
    }

    /// True when everything is frozen and the lease still holds.
    fn freeze_all(&self) -> bool {
        for (slot, fd) in self.shared.slots().iter().zip(self.fds.iter()) {
            if self.shared.check(kernel::now_ms()).is_some() {
                return false;
            }
            slot.begin();
            // After `begin`, not before: see the argument in shared.rs.
            if self.shared.ended().is_some() {
                slot.skip();
                return false;
            }
            let began_us = kernel::now_us();
            let result = kernel::freeze(fd.as_fd());
            slot.returned(result, kernel::now_us() - began_us);
            if result.is_err() {
                self.shared.end(End::FreezeFailed, kernel::now_ms());
                return false;
            }
        }
        self.shared.check(kernel::now_ms()).is_none()
    }

    fn thaw_all(&self) {
        for (slot, fd) in self.shared.slots().iter().zip(self.fds.iter()).rev() {
            if slot.attempted() {
                let result = kernel::thaw(fd.as_fd());
                slot.thaw_returned(result, kernel::now_us());
            }
        }
    }
}
