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
    for (thaw, slot) in superblocks.iter().zip(shared.slots().iter().rev()) {
        let place = format!("{} ({})", thaw.mount_point, thaw.superblock);
        match &thaw.result {
            ThawResult::Thawed if slot.freeze_result() == Some(Ok(())) => {}
            ThawResult::Thawed => gaps.push(format!("{place} was thawed before its freeze was acknowledged")),
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
        End::Evicted => "a newer task's component came, so everything was thawed at once",
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
        End::Channel | End::MainDied | End::Evicted => RefusalKind::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lull_guest_wire::{Lease, Superblock};
    use proptest::prelude::*;

    /// What one superblock went through: `FIFREEZE`, then each `FITHAW`.
    type Story = (Option<Result<(), i32>>, Vec<Result<(), i32>>);

    fn any_result() -> impl Strategy<Value = Result<(), i32>> {
        proptest::sample::select(vec![Ok(()), Ok(()), Err(libc::EINVAL), Err(libc::EBUSY), Err(libc::EIO)])
    }

    fn told(stories: &[Story], end: End, acknowledged: bool) -> Thawed {
        let shared = Shared::new(stories.len(), Lease::default()).unwrap();
        shared.start(1_000);
        let target = |minor| Target { superblock: Superblock { major: 8, minor }, mount_point: format!("/{minor}") };
        let targets: Vec<Target> = (0..stories.len() as u32).map(target).collect();
        for (slot, (freeze, thaws)) in shared.slots().iter().zip(stories) {
            if let Some(result) = freeze {
                slot.begin();
                slot.returned(*result, 5);
            }
            thaws.iter().for_each(|result| slot.thaw_returned(*result, 9_000));
        }
        thawed(FreezeId(1), &targets, &shared, end, acknowledged)
    }

    #[test]
    fn a_whole_freeze_has_no_gap() {
        let whole = told(&[(Some(Ok(())), vec![Ok(())]), (Some(Ok(())), vec![Ok(())])], End::Ordered, true);
        assert!(whole.no_gap && whole.gaps.is_empty());
        assert_eq!((whole.frozen_us, whole.superblocks[0].mount_point.as_str()), (8_000, "/1"));
    }

    #[test]
    fn each_gap_is_named() {
        let of = |story: Story| told(&[story], End::Ordered, true).gaps.join("; ");
        assert_eq!(of((Some(Ok(())), vec![Err(libc::EINVAL)])), "somebody else had thawed /0 (8:0) before");
        assert_eq!(of((Some(Err(libc::EBUSY)), vec![])), "/0 (8:0) is frozen by somebody else");
        assert_eq!(of((None, vec![])), "/0 (8:0) was never frozen");
        assert!(
            of((Some(Err(libc::EIO)), vec![Err(libc::EINVAL)]))
                .starts_with("/0 (8:0) could not be frozen: Input/output error")
        );
        assert!(
            of((Some(Ok(())), vec![Err(libc::EIO)])).starts_with("/0 (8:0) could not be thawed: Input/output error")
        );
    }

    #[test]
    fn only_a_thaw_that_failed_to_the_end_may_leave_something_frozen() {
        let check = |frozen: bool, thaws: &[Result<(), i32>], expect: bool| {
            let shared = Shared::new(1, Lease::default()).unwrap();
            let slot = &shared.slots()[0];
            if frozen {
                slot.begin();
                slot.returned(Ok(()), 5);
            }
            thaws.iter().for_each(|result| slot.thaw_returned(*result, 9_000));
            assert_eq!(slot.may_be_frozen(), expect, "{frozen} {thaws:?}");
        };
        check(false, &[], false);
        check(true, &[], true);
        check(true, &[Err(libc::EIO)], true);
        check(true, &[Err(libc::EIO), Ok(())], false);
        check(true, &[Err(libc::EIO), Err(libc::EINVAL)], false);
    }

    proptest! {
        #[test]
        fn no_gap_means_that_all_of_it_was_ours_to_the_end(
            stories in proptest::collection::vec((proptest::option::of(any_result()), proptest::collection::vec(any_result(), 0..3)), 1..5),
            ordered: bool,
            acknowledged: bool,
        ) {
            let end = if ordered { End::Ordered } else { End::Lease };
            let report = told(&stories, end, acknowledged);
            let ours = stories.iter().all(|(freeze, thaws)| *freeze == Some(Ok(())) && thaws.contains(&Ok(())));
            prop_assert_eq!(report.no_gap, ours && ordered && acknowledged);
            prop_assert_eq!(report.no_gap, report.gaps.is_empty());
            prop_assert_eq!(report.superblocks.len(), stories.len());
        }
    }
}
