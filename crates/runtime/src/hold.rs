//! One freeze as main sees it, from arm to the last thaw.
//!
//! ```text
//! Armed ──freeze──▶ Freezing ──all frozen──▶ Frozen ──thaw──▶ Thawing ──▶ concluded
//!   └──thaw, loss──▶ concluded    └──failure, thaw, expiry, loss──▶ Thawing
//! ```
//!
//! The orderly thaw (ordered while everything was frozen) goes through the freezer, in reverse order. Every other end goes through the
//! pool, everything at once, because there something is already late or in flight. [`Hold::advance`] is the only writer of the
//! phase. Knows nothing of frames; answers leave through a function that the caller gives.

use crate::freeze::FreezerState;
use crate::guard::Guard;
use crate::kernel;
use crate::report;
use crate::shared::{End, Slot};
use crate::walk::moment::Moment;
use lull_guest_wire::{Answer, FreezeId, Frozen, Phase, Refusal, RefusalKind, Thawed};

/// Main looks this often whether the watchdog runs, in milliseconds.
pub const TICK_MS: u64 = 250;
/// A freeze begins only if the watchdog was seen running within this many ticks: one second.
const SILENT_TICKS_BEFORE_FREEZE: u32 = 4;
/// A watchdog silent for so many ticks of main is lost. Ticks, not time: where the whole guest stands still, main does not
/// count either.
const SILENT_TICKS_MAX: u32 = 5;

/// A reply: number of the command, and what to say.
pub type Reply = (u32, Result<Answer, Refusal>);

/// A freeze that is armed or more.
pub struct Hold {
    id: FreezeId,
    guard: Guard,
    phase: Phase,
    freeze_reply: Option<u32>,
    thaw_replies: Vec<u32>,
    acknowledged: bool,
    frozen_at: Option<Moment>,
    pool_started: bool,
    beats_seen: u32,
    beats_seen_ms: u64,
    silent_ticks: u32,
}

/// A freeze that is over.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Its report.
    pub thawed: Thawed,
    /// Why it ended.
    pub end: End,
    /// When everything was frozen, if it ever was.
    pub frozen_at: Option<Moment>,
}

impl Ended {
    /// What a command that came too late is told.
    pub fn refusal(&self) -> Refusal {
        let kind = match self.end {
            End::Ordered => RefusalKind::NotNow,
            end => report::refusal_kind(end, &self.thawed.superblocks),
        };
        let message = match self.end {
            End::Ordered => "this freeze is over: it was thawed as ordered".to_string(),
            _ => self.thawed.gaps.join("; "),
        };
        Refusal { kind, message, superblocks: self.thawed.superblocks.clone() }
    }
}

impl Hold {
    /// Armed, nothing frozen.
    pub fn new(id: FreezeId, guard: Guard) -> Hold {
        let beats_seen = guard.shared.watchdog_beats();
        Hold {
            id,
            guard,
            phase: Phase::Armed,
            freeze_reply: None,
            thaw_replies: Vec::with_capacity(16),
            acknowledged: false,
            frozen_at: None,
            pool_started: false,
            beats_seen,
            beats_seen_ms: kernel::now_ms(),
            silent_ticks: 0,
        }
    }

    /// Which freeze.
    pub fn id(&self) -> FreezeId {
        self.id
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Process of the watchdog, and its notes.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Until the guest thaws by itself, in milliseconds; 0 when not frozen.
    pub fn remaining_ms(&self, now_ms: u64) -> u64 {
        match (self.guard.shared.ended(), self.guard.shared.deadline_ms()) {
            (None, Some(deadline)) => deadline.saturating_sub(now_ms),
            _ => 0,
        }
    }

    /// When [`Hold::advance`] must run next, at the latest, in milliseconds from now.
    pub fn wait_ms(&self, now_ms: u64) -> u64 {
        match self.guard.shared.ended() {
            None => self.guard.shared.deadline_ms().map_or(TICK_MS, |end| end.saturating_sub(now_ms)).min(TICK_MS),
            Some(_) => TICK_MS,
        }
    }

    /// The order to freeze. Its answer comes out of [`Hold::advance`].
    pub fn freeze(&mut self, reply: u32) {
        self.freeze_reply = Some(reply);
        if self.silent_ticks >= SILENT_TICKS_BEFORE_FREEZE {
            self.end(End::WatchdogLost);
            return;
        }
        self.phase = Phase::Freezing;
        self.guard.shared.start(kernel::now_us());
        self.guard.freezer.freeze();
    }

    /// Another lease: milliseconds left, or why it is too late.
    pub fn renew(&self) -> Result<Answer, Refusal> {
        match self.guard.shared.renew(kernel::now_ms()) {
            Ok(remaining_ms) => Ok(Answer::Renewed { remaining_ms }),
            Err(end) => {
                let kind = if end == End::Ordered { RefusalKind::NotNow } else { report::refusal_kind(end, &[]) };
                Err(Refusal { kind, message: report::sentence(end).into(), superblocks: Vec::new() })
            }
        }
    }

    /// The order to thaw. Its answer comes out of [`Hold::advance`].
    pub fn thaw(&mut self, reply: u32) {
        self.thaw_replies.push(reply);
        self.end(End::Ordered);
    }

    /// Ends the freeze for a reason of main's.
    pub fn end(&mut self, end: End) {
        let standing = self.guard.shared.end(end, kernel::now_ms());
        if self.phase == Phase::Frozen && standing == End::Ordered {
            self.phase = Phase::Thawing;
            self.guard.freezer.thaw();
        }
    }

    /// Takes the freeze as far as it can go now. `watchdog_dead`: its pipe hung up. Says how the freeze ended once everything of
    /// ours is thawed; then [`Hold::finish`] is due.
    pub fn advance(&mut self, watchdog_dead: bool, reply: &mut dyn FnMut(Reply)) -> Option<Ended> {
        let now_ms = kernel::now_ms();
        self.guard.shared.main_beat();
        self.count_beats(now_ms);
        if watchdog_dead || self.silent_ticks >= SILENT_TICKS_MAX {
            self.end(End::WatchdogLost);
        }
        let ended = self.guard.shared.check(now_ms);
        match (self.phase, ended) {
            (Phase::Freezing, None) if self.guard.freezer.state() == FreezerState::Frozen => {
                self.phase = Phase::Frozen;
                self.acknowledged = true;
                self.frozen_at = Some(Moment::now());
                if let Some(id) = self.freeze_reply.take() {
                    reply((id, Ok(Answer::Frozen(self.frozen(now_ms)))));
                }
            }
            (Phase::Freezing | Phase::Frozen, Some(end)) => {
                self.phase = Phase::Thawing;
                if end != End::FreezeFailed {
                    self.start_pool();
                }
            }
            (Phase::Armed, Some(end)) => return Some(self.conclude(end, reply)),
            _ => {}
        }
        let end = ended.filter(|_| self.phase == Phase::Thawing)?;
        let late = self.guard.shared.deadline_ms().is_some_and(|deadline| now_ms >= deadline);
        let freezer_back = self.guard.freezer.state() != FreezerState::Working;
        let something_is_left = || self.guard.shared.slots().iter().any(Slot::may_be_frozen);
        if !self.pool_started && (late && !freezer_back || freezer_back && something_is_left()) {
            self.start_pool();
        }
        if freezer_back && self.guard.pool.settled() {
            return Some(self.conclude(end, reply));
        }
        None
    }

    fn start_pool(&mut self) {
        self.pool_started = true;
        self.guard.pool.start();
    }

    fn count_beats(&mut self, now_ms: u64) {
        let beats = self.guard.shared.watchdog_beats();
        if beats != self.beats_seen {
            (self.beats_seen, self.beats_seen_ms, self.silent_ticks) = (beats, now_ms, 0);
        } else if now_ms.saturating_sub(self.beats_seen_ms) >= TICK_MS {
            self.beats_seen_ms = now_ms;
            self.silent_ticks += 1;
        }
    }

    fn frozen(&self, now_ms: u64) -> Frozen {
        let slots = self.guard.targets.iter().zip(self.guard.shared.slots());
        Frozen {
            freeze: self.id,
            superblocks: slots.map(|(target, slot)| (target.superblock, slot.freeze_us())).collect(),
            remaining_ms: self.remaining_ms(now_ms),
        }
    }

    fn conclude(&mut self, end: End, reply: &mut dyn FnMut(Reply)) -> Ended {
        let shared = &self.guard.shared;
        let thawed = report::thawed(self.id, &self.guard.targets, shared, end, self.acknowledged);
        let ended = Ended { thawed, end, frozen_at: self.frozen_at };
        if let Some(id) = self.freeze_reply.take() {
            let kind = report::refusal_kind(end, &ended.thawed.superblocks);
            let message = ended.thawed.gaps.join("; ");
            let superblocks = ended.thawed.superblocks.clone();
            reply((id, Err(Refusal { kind, message, superblocks })));
        }
        for id in self.thaw_replies.drain(..) {
            reply((id, Ok(Answer::Thawed(ended.thawed.clone()))));
        }
        ended
    }

    /// Ends the watchdog, lets the lock go. False where the watchdog is about to kill this process.
    pub fn finish(self) -> bool {
        self.guard.finish()
    }
}
