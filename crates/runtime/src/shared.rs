//! What the main process and its watchdog share: the lease, and what happened to each superblock.
//!
//! One anonymous shared mapping, made before the fork, locked by both. Every word is an atomic; there are no locks, so a
//! process that is stopped or killed at any instruction leaves nothing half-written.
//!
//! **The lease is one word**: deadline and the reason of its end. Renewing is a compare-and-swap from "holds until T" to
//! "holds until T2", ending one from "holds until T" to "ended because". So a renewal that was acknowledged happened
//! before the end, and a lease that ended can never be renewed, in either process, whatever is interleaved.
//!
//! **Why a freeze cannot slip past a thaw.** The freezer stores `in_ioctl`, then loads the lease word, then calls
//! `FIFREEZE`. Whoever thaws ends the lease first, then loads `in_ioctl`. All of it is sequentially consistent, so at least one
//! sees the other: either the freezer sees the end and does not call, or the thawer sees `in_ioctl` and goes on thawing
//! until the freezer is back and one more `FITHAW` has returned.
//!
//! Knows nothing of file descriptors or processes.

use crate::kernel::Errno;
use lull_guest_wire::Lease;
use std::io;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::SeqCst};

/// Why a freeze ended. The first reason stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum End {
    /// The proxy ordered the thaw.
    Ordered = 1,
    /// Not renewed in time.
    Lease = 2,
    /// The budget is used up.
    Budget = 3,
    /// The channel to the proxy closed.
    Channel = 4,
    /// The main process died.
    MainDied = 5,
    /// The watchdog died or stands still.
    WatchdogLost = 6,
    /// A `FIFREEZE` failed.
    FreezeFailed = 7,
    /// A newer task's component came.
    Evicted = 8,
}

impl End {
    fn from_code(code: u8) -> Option<End> {
        use End::*;
        let all = [Ordered, Lease, Budget, Channel, MainDied, WatchdogLost, FreezeFailed, Evicted];
        all.into_iter().find(|end| *end as u8 == code)
    }

    /// True where main itself thaws in order, and the others only help once the lease is over.
    pub fn is_orderly(self) -> bool {
        matches!(self, End::Ordered | End::FreezeFailed)
    }
}

/// Deadline before the first `FIFREEZE`: never.
const NEVER_MS: u64 = (1 << 56) - 1;

fn word(deadline_ms: u64, end: Option<End>) -> u64 {
    deadline_ms.min(NEVER_MS) << 8 | end.map_or(0, |end| u64::from(end as u8))
}

#[repr(C)]
struct Head {
    lease_word: AtomicU64,
    first_freeze_ms: AtomicU64,
    first_freeze_us: AtomicU64,
    watchdog_beats: AtomicU32,
    main_beats: AtomicU32,
    verdict: AtomicU32,
    lease_ms: u64,
    budget_ms: u64,
}

/// What became of one superblock.
#[repr(C)]
#[derive(Debug)]
pub struct Slot {
    attempted: AtomicU32,
    in_ioctl: AtomicU32,
    freeze: AtomicI32,
    freeze_us: AtomicU64,
    thaws: AtomicU32,
    thaw_error: AtomicI32,
    thawed_us: AtomicU64,
}

/// Value of `Slot::freeze` before `FIFREEZE` returned.
const NOT_TRIED: i32 = -1;

impl Slot {
    /// Marks the slot as about to be frozen. The caller must look at [`Shared::ended`] before it calls `FIFREEZE`.
    pub fn begin(&self) {
        self.attempted.store(1, SeqCst);
        self.in_ioctl.store(1, SeqCst);
    }

    /// Takes [`Slot::begin`] back: `FIFREEZE` was not called.
    pub fn skip(&self) {
        self.attempted.store(0, SeqCst);
        self.in_ioctl.store(0, SeqCst);
    }

    /// Records that `FIFREEZE` returned. `EBUSY` is somebody else's freeze: unmarked before anybody may thaw it.
    pub fn returned(&self, result: Result<(), Errno>, took_us: u64) {
        self.freeze.store(result.err().unwrap_or(0), SeqCst);
        self.freeze_us.store(took_us, SeqCst);
        if result == Err(libc::EBUSY) {
            self.attempted.store(0, SeqCst);
        }
        self.in_ioctl.store(0, SeqCst);
    }

    /// Records that a `FITHAW` of ours returned.
    pub fn thaw_returned(&self, result: Result<(), Errno>, now_us: u64) {
        match result {
            Ok(()) => {
                self.thaws.fetch_add(1, SeqCst);
                self.thawed_us.fetch_max(now_us, SeqCst);
            }
            Err(errno) => self.thaw_error.store(errno, SeqCst),
        }
    }

    /// True when it may be frozen by us.
    pub fn attempted(&self) -> bool {
        self.attempted.load(SeqCst) != 0
    }

    /// True while the freezer is between [`Slot::begin`] and [`Slot::returned`].
    pub fn in_ioctl(&self) -> bool {
        self.in_ioctl.load(SeqCst) != 0
    }

    /// What `FIFREEZE` returned, `None` before it did.
    pub fn freeze_result(&self) -> Option<Result<(), Errno>> {
        match self.freeze.load(SeqCst) {
            NOT_TRIED => None,
            0 => Some(Ok(())),
            errno => Some(Err(errno)),
        }
    }

    /// How long `FIFREEZE` took, in microseconds.
    pub fn freeze_us(&self) -> u64 {
        self.freeze_us.load(SeqCst)
    }

    /// How many `FITHAW` of ours returned 0, and the last error of those that did not.
    pub fn thaw_results(&self) -> (u32, Option<Errno>) {
        (self.thaws.load(SeqCst), Some(self.thaw_error.load(SeqCst)).filter(|errno| *errno != 0))
    }

    /// Whether it may still be frozen by us: no `FITHAW` of ours returned 0 or "was not frozen".
    pub fn may_be_frozen(&self) -> bool {
        let (thaws, error) = self.thaw_results();
        self.attempted() && thaws == 0 && error != Some(libc::EINVAL)
    }

    /// When the last `FITHAW` returned 0, in microseconds of `CLOCK_MONOTONIC`; 0 before.
    pub fn thawed_us(&self) -> u64 {
        self.thawed_us.load(SeqCst)
    }
}

/// Who cleans up after a freeze: decided once, by whoever is first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Main is well: it releases the lock, and the watchdog just ends.
    MainFinishes = 1,
    /// Main did not answer: the watchdog kills it and releases the lock.
    WatchdogKills = 2,
}

/// The shared mapping. The same address in both processes.
#[derive(Debug)]
pub struct Shared {
    head: *mut Head,
    slots: *mut Slot,
    count: usize,
    bytes: usize,
}

// SAFETY: everything behind the pointers is atomic, or written once before the mapping is shared.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Maps and fills one head and `count` slots, resident from the start.
    pub fn new(count: usize, lease: Lease) -> io::Result<Shared> {
        let bytes = size_of::<Head>() + count * size_of::<Slot>();
        // SAFETY: a fresh anonymous mapping; nothing else refers to it.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let head = base.cast::<Head>();
        // SAFETY: the mapping is page-aligned and long enough for the head and all slots; Head's size is a multiple of 8,
        // which is Slot's alignment.
        unsafe {
            head.write(Head {
                lease_word: AtomicU64::new(word(NEVER_MS, None)),
                first_freeze_ms: AtomicU64::new(0),
                first_freeze_us: AtomicU64::new(0),
                watchdog_beats: AtomicU32::new(0),
                main_beats: AtomicU32::new(0),
                verdict: AtomicU32::new(0),
                lease_ms: lease.lease_ms,
                budget_ms: lease.budget_ms,
            });
            let slots = head.add(1).cast::<Slot>();
            for index in 0..count {
                slots.add(index).write(Slot {
                    attempted: AtomicU32::new(0),
                    in_ioctl: AtomicU32::new(0),
                    freeze: AtomicI32::new(NOT_TRIED),
                    freeze_us: AtomicU64::new(0),
                    thaws: AtomicU32::new(0),
                    thaw_error: AtomicI32::new(0),
                    thawed_us: AtomicU64::new(0),
                });
            }
            Ok(Shared { head, slots, count, bytes })
        }
    }

    fn head(&self) -> &Head {
        // SAFETY: mapped and initialised by `new`, unmapped only by `drop`.
        unsafe { &*self.head }
    }

    /// One slot for each superblock, in the order of freezing.
    pub fn slots(&self) -> &[Slot] {
        // SAFETY: as for `head`.
        unsafe { std::slice::from_raw_parts(self.slots, self.count) }
    }

    fn lease(&self) -> Lease {
        Lease { lease_ms: self.head().lease_ms, budget_ms: self.head().budget_ms }
    }

    /// Starts lease and budget. Called once, right before the freezer gets its order.
    pub fn start(&self, now_us: u64) {
        let now_ms = now_us / 1_000;
        self.head().first_freeze_ms.store(now_ms, SeqCst);
        self.head().first_freeze_us.store(now_us, SeqCst);
        let deadline_ms = self.lease().deadline_ms(now_ms, Some(now_ms));
        let _ = self.head().lease_word.compare_exchange(word(NEVER_MS, None), word(deadline_ms, None), SeqCst, SeqCst);
    }

    /// When the first freeze began, in microseconds of `CLOCK_MONOTONIC`.
    pub fn first_freeze_us(&self) -> u64 {
        self.head().first_freeze_us.load(SeqCst)
    }

    /// The moment at which everything must be thawed, in milliseconds; `None` before [`Shared::start`]. Stays after an end.
    pub fn deadline_ms(&self) -> Option<u64> {
        Some(self.head().lease_word.load(SeqCst) >> 8).filter(|deadline| *deadline != NEVER_MS)
    }

    /// Why the freeze ended, `None` while the lease holds (or has not begun).
    pub fn ended(&self) -> Option<End> {
        End::from_code(self.head().lease_word.load(SeqCst) as u8)
    }

    /// Ends the lease if its deadline passed. Says why it ended, if it did.
    pub fn check(&self, now_ms: u64) -> Option<End> {
        let seen = self.head().lease_word.load(SeqCst);
        if let Some(end) = End::from_code(seen as u8) {
            return Some(end);
        }
        let deadline_ms = seen >> 8;
        if now_ms < deadline_ms {
            return None;
        }
        let budget_end_ms = self.head().first_freeze_ms.load(SeqCst).saturating_add(self.lease().budget_ms);
        let end = if deadline_ms >= budget_end_ms { End::Budget } else { End::Lease };
        match self.head().lease_word.compare_exchange(seen, word(deadline_ms, Some(end)), SeqCst, SeqCst) {
            Ok(_) => Some(end),
            // Renewed or ended in between: what stands now decides.
            Err(now) => End::from_code(now as u8),
        }
    }

    /// Another lease from `now_ms`, never past the budget: time left in milliseconds, or why it is too late.
    pub fn renew(&self, now_ms: u64) -> Result<u64, End> {
        if let Some(end) = self.check(now_ms) {
            return Err(end);
        }
        let seen = self.head().lease_word.load(SeqCst);
        let first_ms = self.head().first_freeze_ms.load(SeqCst);
        let deadline_ms = self.lease().deadline_ms(now_ms, Some(first_ms));
        if let Some(end) = End::from_code(seen as u8) {
            return Err(end);
        }
        match self.head().lease_word.compare_exchange(seen, word(deadline_ms, None), SeqCst, SeqCst) {
            Ok(_) => Ok(deadline_ms.saturating_sub(now_ms)),
            // Only main renews, so only an end can have come in between.
            Err(now) => Err(End::from_code(now as u8).unwrap_or(End::Lease)),
        }
    }

    /// Ends the freeze for `end`, unless it ended before or its time is up. Says which reason stands.
    pub fn end(&self, end: End, now_ms: u64) -> End {
        loop {
            if let Some(standing) = self.check(now_ms) {
                return standing;
            }
            let seen = self.head().lease_word.load(SeqCst);
            if let Some(standing) = End::from_code(seen as u8) {
                return standing;
            }
            let ended = word(seen >> 8, Some(end));
            if self.head().lease_word.compare_exchange(seen, ended, SeqCst, SeqCst).is_ok() {
                return end;
            }
        }
    }

    /// The watchdog shows that it runs.
    pub fn watchdog_beat(&self) {
        self.head().watchdog_beats.fetch_add(1, SeqCst);
    }

    /// Grows while the watchdog runs.
    pub fn watchdog_beats(&self) -> u32 {
        self.head().watchdog_beats.load(SeqCst)
    }

    /// Main's control thread shows that it runs.
    pub fn main_beat(&self) {
        self.head().main_beats.fetch_add(1, SeqCst);
    }

    /// Grows while main's control thread runs.
    pub fn main_beats(&self) -> u32 {
        self.head().main_beats.load(SeqCst)
    }

    /// Decides who cleans up, once. Says what stands.
    pub fn decide(&self, verdict: Verdict) -> Verdict {
        match self.head().verdict.compare_exchange(0, verdict as u32, SeqCst, SeqCst) {
            Ok(_) => verdict,
            Err(1) => Verdict::MainFinishes,
            Err(_) => Verdict::WatchdogKills,
        }
    }

    /// True once main said that it cleans up.
    pub fn main_finishes(&self) -> bool {
        self.head().verdict.load(SeqCst) == Verdict::MainFinishes as u32
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size; nobody holds a reference past the owner.
        unsafe { libc::munmap(self.head.cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lull_guest_wire::LeaseState;
    use proptest::prelude::*;

    const LEASE: Lease = Lease { lease_ms: 1_000, budget_ms: 2_500 };

    fn started() -> Shared {
        let shared = Shared::new(0, LEASE).unwrap();
        shared.start(10_000_000);
        shared
    }

    #[test]
    fn before_the_freeze_nothing_runs_out() {
        let shared = Shared::new(3, LEASE).unwrap();
        assert_eq!((shared.check(u64::MAX >> 9), shared.deadline_ms(), shared.slots().len()), (None, None, 3));
    }

    #[test]
    fn an_expired_lease_is_never_renewed() {
        let shared = started();
        assert_eq!(shared.renew(10_999), Ok(1_000));
        assert_eq!(shared.renew(11_999), Err(End::Lease));
        assert_eq!(shared.renew(10_500), Err(End::Lease), "not even by a clock that goes back");
        assert_eq!(shared.end(End::Ordered, 10_500), End::Lease);
    }

    #[test]
    fn renewals_end_with_the_budget() {
        let shared = started();
        assert_eq!(shared.renew(10_900), Ok(1_000));
        assert_eq!(shared.renew(11_800), Ok(700));
        assert_eq!(shared.renew(12_499), Ok(1));
        assert_eq!(shared.renew(12_500), Err(End::Budget));
    }

    #[test]
    fn an_order_that_comes_after_the_deadline_is_an_expiry() {
        let shared = started();
        assert_eq!(shared.end(End::Ordered, 11_000), End::Lease, "whether or not anybody noticed before");
    }

    #[test]
    fn one_cleans_up() {
        let shared = started();
        assert_eq!(shared.decide(Verdict::WatchdogKills), Verdict::WatchdogKills);
        assert_eq!(shared.decide(Verdict::MainFinishes), Verdict::WatchdogKills);
        assert!(!shared.main_finishes());
    }

    #[test]
    fn a_renewal_that_was_granted_came_before_the_end() {
        for _ in 0..2_000 {
            let shared = started();
            let ended = std::sync::atomic::AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    shared.end(End::Channel, 10_001);
                    ended.store(true, SeqCst);
                });
                let known_ended = ended.load(SeqCst);
                assert!(!(known_ended && shared.renew(10_002).is_ok()));
            });
            assert_eq!(shared.ended(), Some(End::Channel));
        }
    }

    proptest! {
        #[test]
        fn the_word_agrees_with_the_arithmetic_of_the_lease(steps in proptest::collection::vec((0u64..1_200, any::<bool>()), 1..12)) {
            let shared = started();
            let (mut now_ms, mut renewed_ms) = (10_000, 10_000);
            for (step, renew) in steps {
                now_ms += step;
                let expect = LEASE.state(now_ms, renewed_ms, Some(10_000));
                let held = if renew { shared.renew(now_ms).is_ok() } else { shared.check(now_ms).is_none() };
                prop_assert_eq!(held, matches!(expect, LeaseState::Holds { .. }));
                if !held {
                    let end = shared.ended().unwrap();
                    prop_assert!(end == End::Budget || end == End::Lease);
                    return Ok(());
                }
                if renew {
                    renewed_ms = now_ms;
                }
            }
        }
    }
}
