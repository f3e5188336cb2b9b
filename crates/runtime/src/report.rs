//! How a freeze is reported: what became of each superblock, whether there was a gap, and why it ended.
//!
//! Pure: reads the shared slots, writes sentences. Knows nothing of threads or of the channel.

use crate::guard::Target;
use crate::kernel;
use crate::shared::{End, Shared, Slot};
use lull_guest_wire::{FreezeId, RefusalKind, SuperblockThaw, ThawResult, Thawed};

/// What became of each superblock, in the order of thawing.
pub fn superblocks(targets: &[Target], slots: &[Slot]) -> Vec<SuperblockThaw> {
    let each = targets.iter().zip(slots).rev();
    each.map(|(target, slot)| SuperblockThaw {
        superblock: target.superblock,
        mount_point: target.mount_point.clone(),
        result: result(slot),
    })
    .collect()
}

fn result(slot: &Slot) -> ThawResult {
    let (thaws, error) = slot.thaw_results();
    match (slot.freeze_result(), thaws, error) {
        (Some(Err(libc::EBUSY)), ..) => ThawResult::SomebodyElse,
        (Some(Err(errno)), ..) => ThawResult::FreezeFailed(kernel::describe(errno)),
        (_, 1.., _) => ThawResult::Thawed,
        (None, 0, _) => ThawResult::NotFrozen,
        (Some(Ok(())), 0, Some(libc::EINVAL) | None) => ThawResult::WasThawed,
        (Some(Ok(())), 0, Some(errno)) => ThawResult::Failed(kernel::describe(errno)),
    }
}

/// Everything about the end of a freeze. `acknowledged`: the proxy was told that everything is frozen.
pub fn thawed(freeze: FreezeId, targets: &[Target], shared: &Shared, end: End, acknowledged: bool) -> Thawed {
    let superblocks = superblocks(targets, shared.slots());
    let mut gaps = Vec::new();
    if end != End::Ordered {
        gaps.push(sentence(end).to_string());
    } else if !acknowledged {
        gaps.push("the thaw was ordered before everything was frozen".into());
    }
    for thaw in &superblocks {
        let place = format!("{} ({})", thaw.mount_point, thaw.superblock);
        match &thaw.result {
            ThawResult::Thawed => {}
            ThawResult::NotFrozen => gaps.push(format!("{place} was never frozen")),
            ThawResult::WasThawed => gaps.push(format!("somebody else had thawed {place} before")),
            ThawResult::SomebodyElse => gaps.push(format!("{place} is frozen by somebody else")),
            ThawResult::FreezeFailed(e) => gaps.push(format!("{place} could not be frozen: {e}")),
            ThawResult::Failed(e) => gaps.push(format!("{place} could not be thawed: {e}")),
        }
    }
    let last_us = shared.slots().iter().map(Slot::thawed_us).max().unwrap_or(0);
    let frozen_us = last_us.saturating_sub(shared.first_freeze_us());
    Thawed { freeze, no_gap: gaps.is_empty(), gaps, superblocks, frozen_us }
}

/// Why a freeze ended, for people.
pub fn sentence(end: End) -> &'static str {
    match end {
        End::Ordered => "the thaw was ordered",
        End::Lease => "the lease was not renewed in time, so the guest thawed by itself",
        End::Budget => "the freeze budget was used up, so the guest thawed by itself",
        End::Channel => "the channel to the proxy closed, so the guest thawed by itself",
        End::MainDied => "the component's main process died, so its watchdog thawed",
        End::WatchdogLost => "the watchdog died or stood still, so everything was thawed at once",
        End::FreezeFailed => "a file system could not be frozen, so everything was thawed again",
    }
}

/// The kind of refusal that tells of this end.
pub fn refusal_kind(end: End, superblocks: &[SuperblockThaw]) -> RefusalKind {
    match end {
        End::Lease | End::Budget => RefusalKind::Expired,
        End::WatchdogLost => RefusalKind::WatchdogLost,
        End::FreezeFailed if superblocks.iter().any(|thaw| thaw.result == ThawResult::SomebodyElse) => {
            RefusalKind::SomebodyElse
        }
        End::FreezeFailed | End::Ordered => RefusalKind::FreezeFailed,
        End::Channel | End::MainDied => RefusalKind::Failed,
    }
}
