//! Thaws everything at once and repeatedly: one thread per superblock, created before the first freeze.
//!
//! Used by the watchdog, and by main where there is no time for order. `FITHAW` can block for seconds behind an
//! unfinished `FIFREEZE`, so no superblock may wait for another's thread; and `EINVAL` proves nothing while a freeze is in flight, so
//! each thread goes on until the freezer is back from its ioctl (or dead) and one more `FITHAW` has returned.
//!
//! Knows neither lease nor process; who calls [`ThawPool::start`] has ended the lease before.

use crate::kernel::{self, Errno};
use crate::shared::{Shared, Slot};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Pause between two tries on one superblock, in milliseconds.
const RETRY_EVERY_MS: u64 = 5;
/// A `FITHAW` that keeps failing (an IO error, not `EINVAL`) is given up after this time, in milliseconds.
const GIVE_UP_AFTER_MS: u64 = 60_000;
/// Small, since every page of every stack is locked.
const STACK_BYTES: usize = 64 * 1024;

struct Orders {
    round: u32,
    quit: bool,
}

struct Pool {
    shared: Arc<Shared>,
    fds: Arc<[OwnedFd]>,
    orders: Mutex<Orders>,
    ordered: Condvar,
    started: AtomicUsize,
    unsettled: AtomicUsize,
    freezer_dead: AtomicBool,
    bell: Arc<kernel::Bell>,
}

/// The threads and how far they are.
pub struct ThawPool {
    pool: Arc<Pool>,
    threads: Vec<JoinHandle<()>>,
}

impl ThawPool {
    /// Creates the threads; they wait. `bell` rings whenever a round is over.
    pub fn new(shared: Arc<Shared>, fds: Arc<[OwnedFd]>, bell: Arc<kernel::Bell>) -> io::Result<ThawPool> {
        let pool = Arc::new(Pool {
            shared,
            fds,
            orders: Mutex::new(Orders { round: 0, quit: false }),
            ordered: Condvar::new(),
            started: AtomicUsize::new(0),
            unsettled: AtomicUsize::new(0),
            freezer_dead: AtomicBool::new(false),
            bell,
        });
        let mut this = ThawPool { pool: pool.clone(), threads: Vec::with_capacity(pool.fds.len()) };
        for index in 0..pool.fds.len() {
            let pool = pool.clone();
            let thread = std::thread::Builder::new().name("lull-thaw".into()).stack_size(STACK_BYTES);
            this.threads.push(thread.spawn(move || pool.serve(index))?);
        }
        // A thread maps memory as it starts; that must be over before anything is frozen.
        while pool.started.load(SeqCst) < pool.fds.len() {
            kernel::sleep_ms(1);
        }
        Ok(this)
    }

    /// Lets every thread thaw its superblock until that is settled. Returns at once.
    pub fn start(&self) {
        let mut orders = self.pool.lock();
        if self.pool.unsettled.load(SeqCst) == 0 {
            self.pool.unsettled.store(self.pool.fds.len(), SeqCst);
            orders.round += 1;
            self.pool.ordered.notify_all();
        }
        drop(orders);
        if self.pool.fds.is_empty() {
            self.pool.bell.ring();
        }
    }

    /// True once every thread of the last round is done.
    pub fn settled(&self) -> bool {
        self.pool.unsettled.load(SeqCst) == 0
    }

    /// Says that nobody can be inside `FIFREEZE` any more: the process that froze is gone with all its threads.
    pub fn freezer_died(&self) {
        self.pool.freezer_dead.store(true, SeqCst);
    }
}

impl Drop for ThawPool {
    fn drop(&mut self) {
        self.pool.lock().quit = true;
        self.pool.ordered.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, index: usize) {
        self.started.fetch_add(1, SeqCst);
        let mut served = 0;
        loop {
            {
                let mut orders = self.lock();
                while orders.round == served && !orders.quit {
                    orders = self.ordered.wait(orders).unwrap_or_else(PoisonError::into_inner);
                }
                if orders.round == served {
                    return;
                }
                served = orders.round;
            }
            let freezer_dead = || self.freezer_dead.load(SeqCst);
            thaw_until_settled(&self.shared.slots()[index], freezer_dead, || kernel::thaw(self.fds[index].as_fd()));
            if self.unsettled.fetch_sub(1, SeqCst) == 1 {
                self.bell.ring();
            }
        }
    }
}

/// Thaws one superblock until nobody can freeze it any more and one more `FITHAW` has returned. The lease has ended before.
/// `freezer_dead`: the process that froze is gone. `thaw`: one `FITHAW`.
pub fn thaw_until_settled(slot: &Slot, freezer_dead: impl Fn() -> bool, mut thaw: impl FnMut() -> Result<(), Errno>) {
    let give_up_ms = kernel::now_ms() + GIVE_UP_AFTER_MS;
    loop {
        // Looked at before the ioctl: only a FITHAW that began after the freezer was back settles anything.
        let freezer_back = freezer_dead() || !slot.in_ioctl();
        let mut thawed = true;
        if slot.attempted() {
            let result = thaw();
            slot.thaw_returned(result, kernel::now_us());
            thawed = matches!(result, Ok(()) | Err(libc::EINVAL));
        }
        if freezer_back && (thawed || kernel::now_ms() >= give_up_ms) {
            return;
        }
        kernel::sleep_ms(RETRY_EVERY_MS);
    }
}
