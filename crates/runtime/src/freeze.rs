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

use crate::kernel::{self, Bell, Errno};
use crate::shared::{End, Shared, Slot};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

const STACK_BYTES: usize = 64 * 1024;

/// Where the freezer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreezerState {
    /// Started, nothing done.
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
            state: AtomicU32::new(FreezerState::Working as u32),
            bell,
        });
        let thread = std::thread::Builder::new().name("lull-freeze".into()).stack_size(STACK_BYTES).spawn({
            let inner = inner.clone();
            move || inner.serve()
        })?;
        let freezer = Freezer { inner, thread: Some(thread) };
        // A thread maps memory as it starts; that must be over before anything is frozen.
        while freezer.state() != FreezerState::Waiting {
            kernel::sleep_ms(1);
        }
        Ok(freezer)
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
        self.state.store(FreezerState::Waiting as u32, SeqCst);
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
            if !freeze_one(&self.shared, slot, || kernel::freeze(fd.as_fd())) {
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

/// Freezes one superblock unless the freeze has ended. False when it was not frozen; a failure ends the freeze.
pub fn freeze_one(shared: &Shared, slot: &Slot, freeze: impl FnOnce() -> Result<(), Errno>) -> bool {
    if shared.check(kernel::now_ms()).is_some() {
        return false;
    }
    slot.begin();
    // After `begin`, not before: see the argument in shared.rs.
    if shared.ended().is_some() {
        slot.skip();
        return false;
    }
    let began_us = kernel::now_us();
    let result = freeze();
    slot.returned(result, kernel::now_us() - began_us);
    if result.is_err() {
        shared.end(End::FreezeFailed, kernel::now_ms());
    }
    result.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::thaw_pool::thaw_until_settled;
    use lull_guest_wire::Lease;
    use std::sync::Barrier;
    use std::sync::atomic::AtomicBool;

    /// What the kernel does, without a kernel.
    struct FileSystem(AtomicBool);

    impl FileSystem {
        fn freeze(&self) -> Result<(), Errno> {
            std::thread::yield_now();
            if self.0.swap(true, SeqCst) { Err(libc::EBUSY) } else { Ok(()) }
        }

        fn thaw(&self) -> Result<(), Errno> {
            if self.0.swap(false, SeqCst) { Ok(()) } else { Err(libc::EINVAL) }
        }
    }

    #[test]
    fn no_freeze_slips_past_a_thaw_whoever_is_first() {
        for round in 0..1_500 {
            let shared = Shared::new(1, Lease::default()).unwrap();
            shared.start(kernel::now_us());
            let (file_system, ready) = (FileSystem(AtomicBool::new(false)), Barrier::new(2));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    ready.wait();
                    (0..round % 7).for_each(|_| std::hint::spin_loop());
                    freeze_one(&shared, &shared.slots()[0], || file_system.freeze());
                });
                ready.wait();
                (0..round % 11).for_each(|_| std::hint::spin_loop());
                shared.end(End::Channel, kernel::now_ms());
                thaw_until_settled(&shared.slots()[0], || false, || file_system.thaw());
            });
            assert!(!file_system.0.load(SeqCst), "frozen for good in round {round}");
        }
    }

    #[test]
    fn a_slow_freeze_that_completes_right_after_a_thaw_is_thawed_again() {
        let shared = Shared::new(1, Lease::default()).unwrap();
        let slot = &shared.slots()[0];
        slot.begin();
        let (mut frozen, mut tries) = (false, 0);
        let thaw = || {
            tries += 1;
            if tries == 1 {
                // FITHAW found nothing frozen; before it is back, the slow FIFREEZE completes.
                frozen = true;
                slot.returned(Ok(()), 0);
                return Err(libc::EINVAL);
            }
            frozen = false;
            Ok(())
        };
        thaw_until_settled(slot, || false, thaw);
        assert!(!frozen, "EINVAL is no proof of a thaw while a freeze is in flight");
        assert_eq!(tries, 2);
    }

    #[test]
    fn somebody_elses_freeze_is_never_thawed() {
        let shared = Shared::new(1, Lease::default()).unwrap();
        shared.start(kernel::now_us());
        let file_system = FileSystem(AtomicBool::new(true));
        assert!(!freeze_one(&shared, &shared.slots()[0], || file_system.freeze()));
        assert_eq!(shared.ended(), Some(End::FreezeFailed));
        thaw_until_settled(&shared.slots()[0], || false, || file_system.thaw());
        assert!(file_system.0.load(SeqCst), "it must still be frozen");
    }

    #[test]
    fn nothing_is_frozen_after_the_end() {
        let shared = Shared::new(1, Lease::default()).unwrap();
        shared.start(kernel::now_us());
        shared.end(End::Ordered, kernel::now_ms());
        assert!(!freeze_one(&shared, &shared.slots()[0], || panic!("FIFREEZE after the end")));
        assert!(!shared.slots()[0].attempted() && !shared.slots()[0].in_ioctl());
    }
}
