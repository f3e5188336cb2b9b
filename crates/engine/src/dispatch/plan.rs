//! The plan itself: fair order over the jobs, and for each task the best free slot its waiting time opens.
//! Judges no feasibility; that is in the fleet's kinds.

use super::fleet::{Fleet, Kind};
use super::limits::Room;
use super::{Assignment, Because, Plan, Situation, StillWaiting, WaitingTask};
use crate::ids::{JobId, TaskId};
use crate::instant::{after_ms, elapsed_ms};
use crate::selection::Tier;
use jiff::Timestamp;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

/// Tiers of servers that did not fail lately, then those of servers that did.
const GROUPS: usize = 2 * Tier::ALL.len();

/// Which waiting tasks get which free slots at `now`.
pub fn dispatch(situation: &Situation, queue: &[WaitingTask], now: Timestamp) -> Plan {
    let mut fleet = Fleet::new(situation.servers);
    let mut jobs: BTreeMap<JobId, VecDeque<&WaitingTask>> = BTreeMap::new();
    let mut by_age: Vec<&WaitingTask> = queue.iter().collect();
    by_age.sort_by_key(|task| (task.waiting_since, task.task));
    for task in by_age {
        jobs.entry(task.job).or_default().push_back(task);
    }
    let mut turns: BinaryHeap<Reverse<(u32, Timestamp, TaskId, JobId)>> = BinaryHeap::new();
    for (job, tasks) in &jobs {
        let running = situation.running_per_job.get(job).copied().unwrap_or(0);
        if let Some(head) = tasks.front() {
            turns.push(Reverse((running, head.waiting_since, head.task, *job)));
        }
    }

    let mut room = Room::new(situation);
    let mut plan = Plan::default();
    while let Some(Reverse((mut running, _, _, job))) = turns.pop() {
        let Some(tasks) = jobs.get_mut(&job) else {
            continue;
        };
        let Some(task) = tasks.pop_front() else {
            continue;
        };
        match pick(&mut fleet, &room, situation, task, now) {
            Pick::Slot { server, group } => {
                fleet.load[server] += 1;
                room.take(task);
                running += 1;
                plan.assignments.push(Assignment {
                    task: task.task,
                    server: fleet.servers[server].id,
                    tier: task.in_guest.then_some(Tier::ALL[group % Tier::ALL.len()]),
                    recently_failed: group >= Tier::ALL.len(),
                });
            }
            Pick::Wait(because) => plan.waiting.push(still_waiting(situation, task, because, now)),
            Pick::Nobody => plan.unservable.push(task.task),
        }
        if let Some(next) = tasks.front() {
            turns.push(Reverse((running, next.waiting_since, next.task, job)));
        }
    }
    plan
}

enum Pick {
    Slot { server: usize, group: usize },
    Wait(Because),
    Nobody,
}

/// What a scan found about one group of servers.
#[derive(Clone, Copy, Default)]
struct Group {
    exists: bool,
    /// The free server with the fewest running tasks, the smaller id first.
    best_free: Option<(u32, usize)>,
}

fn pick<'a>(fleet: &mut Fleet<'a>, room: &Room, situation: &Situation, task: &WaitingTask<'a>, now: Timestamp) -> Pick {
    let kind_index = fleet.kind(task, situation, now);
    let kind = &fleet.kinds[kind_index];
    let open_groups = 1 + spilled(situation, task, now) as usize;
    let untried = |server: &usize| !task.tried.contains(&fleet.servers[*server].id);
    let stands_in = !kind.members.iter().any(untried);
    let fallback = kind.fallback.iter().copied().filter(untried);
    if stands_in && fallback.clone().next().is_none() {
        return Pick::Nobody;
    }
    if let Some(because) = room.full_for(task) {
        return Pick::Wait(because);
    }
    // The usual task while the fleet is busy: nothing to look at.
    if kind.full && !stands_in {
        return Pick::Wait(Because::Slots);
    }

    // Where the guest is left alone, neither its network nor who failed to reach it matters.
    let local = if task.in_guest { fleet.local_to(task.vm) } else { Vec::new() };
    let may_have_failed = task.in_guest && situation.failures.any_of(task.vm.id);
    let scan = Scan { fleet, situation, task, now, local: &local, may_have_failed };
    let groups = if stands_in {
        scan.over(fallback)
    } else {
        let near = scan.over(members_among(kind, &local).filter(untried));
        // Far servers matter only where the near ones leave a tier open.
        let near_tiers = near[..2].iter().filter(|group| group.exists).count();
        if near_tiers >= open_groups { near } else { scan.over(kind.members.iter().copied().filter(untried)) }
    };
    let found = groups
        .iter()
        .enumerate()
        .filter(|(_, group)| group.exists)
        .take(open_groups)
        .find_map(|(group, found)| Some((group, found.best_free?.1)));
    match found {
        Some((group, server)) => Pick::Slot { server, group },
        None => {
            // Without members a stand-in serves this kind, and its slots are not counted here.
            let full = !kind.members.is_empty() && !kind.members.iter().any(|server| fleet.has_free_slot(*server));
            fleet.kinds[kind_index].full = full;
            Pick::Wait(Because::Slots)
        }
    }
}

fn members_among<'k>(kind: &'k Kind, local: &'k [usize]) -> impl Iterator<Item = usize> + 'k {
    local.iter().copied().filter(|server| kind.feasible[*server])
}

/// What a scan over servers compares them by.
struct Scan<'s, 'a> {
    fleet: &'s Fleet<'a>,
    situation: &'s Situation<'s>,
    task: &'s WaitingTask<'a>,
    now: Timestamp,
    local: &'s [usize],
    may_have_failed: bool,
}

impl Scan<'_, '_> {
    fn over(&self, servers: impl Iterator<Item = usize>) -> [Group; GROUPS] {
        let mut groups = [Group::default(); GROUPS];
        for index in servers {
            let server = self.fleet.servers[index];
            let near = !self.local.is_empty() && self.local.binary_search(&index).is_ok();
            let failed =
                self.may_have_failed && self.situation.failures.recent(self.task.vm.id, server.id, self.now).is_some();
            let tier = match self.task.in_guest {
                true => Tier::of(near, server.is_backup_server) as usize,
                // The backup server first, then the others.
                false => usize::from(!server.is_backup_server),
            };
            let group = &mut groups[tier + if failed { Tier::ALL.len() } else { 0 }];
            group.exists = true;
            let load = self.fleet.load[index];
            if load < server.slots && group.best_free.is_none_or(|best| (load, index) < best) {
                group.best_free = Some((load, index));
            }
        }
        groups
    }
}

/// How many tiers after the best one its waiting time has opened.
fn spilled(situation: &Situation, task: &WaitingTask, now: Timestamp) -> u32 {
    let waited_ms = elapsed_ms(slot_since(task), now);
    let tiers = waited_ms / situation.spill_after_ms.max(1);
    u32::try_from(tiers).unwrap_or(u32::MAX).min(GROUPS as u32)
}

/// Since when it waits for a slot, and not for a limit.
fn slot_since(task: &WaitingTask) -> Timestamp {
    task.held_up_at.map_or(task.waiting_since, |held_up_at| held_up_at.max(task.waiting_since))
}

fn still_waiting(situation: &Situation, task: &WaitingTask, because: Because, now: Timestamp) -> StillWaiting {
    let (since, spilled) = match because {
        Because::Slots => (slot_since(task), spilled(situation, task, now)),
        // It spills only once it waits for a slot.
        Because::HostLimit { .. } | Because::RepositoryLimit { .. } => (now, 0),
    };
    let next_tier_at = after_ms(since, situation.spill_after_ms.saturating_mul(u64::from(spilled) + 1));
    StillWaiting { task: task.task, spilled, next_tier_at, because }
}
