//! What must never be, looked at after every step; and what must be so at the end. Changes nothing. Plans are [`plan`]'s.

use crate::site::Who;
use crate::{Rule, World};
use lull_engine::session::{Owed, TaskState};
use lull_engine::task_lease::{Grants, TASK_LEASE_MS};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) mod plan;

/// So long after the last task's end everything that is on its way has arrived, and every lease is over.
pub(crate) const QUIET_MS: u64 = 2 * TASK_LEASE_MS;

/// A restore point that was recorded.
pub(crate) struct Done {
    pub(crate) task: usize,
    /// The snapshot was taken while the guest was frozen.
    pub(crate) inside: bool,
}

/// What the check remembers.
#[derive(Default)]
pub(crate) struct Ledger {
    grants: BTreeMap<(usize, u64), Grants>,
    /// VMs whose guests may be frozen.
    pub(crate) frozen: BTreeSet<usize>,
    pub(crate) done: Vec<Done>,
}

impl Ledger {
    pub(crate) fn granted(&mut self, who: Who, now_ms: u64) {
        self.grants.entry((who.task, who.epoch)).or_default().grant(now_ms, TASK_LEASE_MS);
    }
}

impl World {
    /// Somebody acts for an order: the server must believe that it may.
    pub(crate) fn check_acts(&mut self, who: Who, what: &str) {
        let holds = self.check.grants.get(&(who.task, who.epoch)).is_some_and(|grants| grants.holds(self.now_ms));
        if !holds {
            let Who { task, epoch, proxy, .. } = who;
            self.wrong(format!("proxy {proxy} {what} for task {task}, dispatch {epoch}, after its lease"));
        }
    }

    /// Somebody takes hold of a guest or a monitor: the task must not be anybody else's by now.
    pub(crate) fn check_enters(&mut self, who: Who, what: &str) {
        self.check_acts(who, what);
        if self.server.epoch_held(who.task) != Some(who.epoch) {
            let Who { task, epoch, proxy, .. } = who;
            self.wrong(format!("proxy {proxy} {what} for task {task}, dispatch {epoch}, which was taken from it"));
        }
    }

    /// Somebody came into a guest.
    pub(crate) fn check_guest(&mut self, vm: usize) {
        let epochs: Vec<_> = self.guests[vm].components.iter().map(|c| (c.who.task, c.who.epoch)).collect();
        if epochs.len() > 1 {
            self.wrong(format!("guest {vm} is held by several at once: (task, epoch) {epochs:?}"));
        }
    }

    pub(crate) fn check_after_step(&mut self) {
        let (now_ms, lease) = (self.now_ms, self.freeze_lease);
        let mut overdue = Vec::new();
        let guests = &self.guests;
        self.check.frozen.retain(|vm| {
            let mut freezes = guests[*vm].components.iter().filter_map(|component| component.frozen).peekable();
            let frozen = freezes.peek().is_some();
            if freezes.any(|f| now_ms > f.renewed_ms + lease.lease_ms || now_ms > f.first_ms + lease.budget_ms) {
                overdue.push(*vm);
            }
            frozen
        });
        for vm in overdue {
            self.wrong(format!("guest {vm} is frozen past its lease"));
        }
        for Done { task, inside } in std::mem::take(&mut self.check.done) {
            if !inside {
                self.wrong(format!("task {task}: the snapshot of its restore point was not inside the freeze"));
            }
            if self.server.tasks[task].recorded.len() > 1 {
                self.wrong(format!("task {task} was done twice: dispatches {:?}", self.server.tasks[task].recorded));
            }
            self.check_file(task);
        }
    }

    fn check_file(&mut self, task: usize) {
        let Some(epoch) = self.server.tasks[task].recorded.first().copied() else { return };
        if self.hypervisors[self.vm_of_task(task)].files.get(&task) != Some(&(epoch, true)) {
            self.wrong(format!("the files of task {task}'s restore point are gone"));
        }
    }

    pub(crate) fn check_at_the_end(&mut self) {
        for vm in 0..self.fleet.vms {
            let mut owed = Owed::default();
            for round in 0..self.fleet.rounds {
                let task = vm + round * self.fleet.vms;
                let row = &self.server.tasks[task];
                if row.closed != 1 {
                    let closed = row.closed;
                    return self.wrong(format!("task {task} ended {closed} times"));
                }
                if let Some(TaskState::Finished { still_owed, .. }) = &row.state {
                    owed.guest |= still_owed.guest || still_owed.frozen;
                    owed.hypervisor |= still_owed.hypervisor || still_owed.partial_file.is_some();
                }
                self.check_file(task);
            }
            let (guest, hypervisor) = (&self.guests[vm], &self.hypervisors[vm]);
            let unknown =
                hypervisor.files.iter().find(|(task, file)| !self.server.tasks[**task].recorded.contains(&file.0));
            let left = if !guest.components.is_empty() && !owed.guest {
                Some(format!("a component in guest {vm}"))
            } else if hypervisor.client.is_some() {
                Some(format!("a client of monitor {vm}"))
            } else if !hypervisor.left.is_empty() && !owed.hypervisor {
                Some(format!("jobs in hypervisor {vm}"))
            } else {
                unknown
                    .filter(|_| !owed.hypervisor)
                    .map(|(task, _)| format!("files of task {task} that nobody recorded"))
            };
            if let Some(left) = left.filter(|_| self.broken != Some(Rule::Fence)) {
                self.wrong(format!("at the end there is still {left}"));
            }
        }
    }
}
