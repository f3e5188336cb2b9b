//! How the server pays a task's debts: through a proxy, one call for each half, with an end. A call that is over begins nothing any more.

use crate::site::Who;
use crate::wire::{ToProxy, ToServer};
use crate::{Event, World};
use lull_engine::failover::FailureClass;
use lull_engine::session::{RecoveryPart, TaskEvent, TaskState};

/// A call for a recovery is given up after so long.
const CALL_MS_MAX: u64 = 30_000;

/// What of a recovery is due.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Due {
    /// The task, the half, the recovery, who had the task.
    Begin(usize, RecoveryPart, u64, usize),
    /// The call.
    GivenUp(u64),
}

impl World {
    pub(crate) fn recovery_is_due(&mut self, due: Due, generation: u64) {
        if !self.server.up || generation != self.server.generation {
            return;
        }
        match due {
            Due::Begin(task, part, epoch, last) => {
                let recovering = match &self.server.tasks[task].state {
                    Some(TaskState::Recovering { hold, .. }) => hold.epoch == epoch,
                    _ => false,
                };
                if !recovering {
                    return;
                }
                let proxy = if self.server.hears(last, self.now_ms) { last } else { 0 };
                let fence = self.server.next_fence();
                let who = Who { task, epoch, fence, proxy, incarnation: self.proxies[proxy].incarnation };
                // A fence is as good as any number.
                self.server.recoveries.insert(fence, (task, part, epoch));
                self.down(proxy, ToProxy::Recover(who, part, fence));
                self.after(CALL_MS_MAX, Event::Recovery(Due::GivenUp(fence), generation));
            }
            Due::GivenUp(call) => self.recovery_ends(call, false),
        }
    }

    pub(crate) fn recovered(&mut self, _: Who, _: RecoveryPart, call: u64, well: bool) {
        self.recovery_ends(call, well);
    }

    fn recovery_ends(&mut self, call: u64, well: bool) {
        let Some((task, part, epoch)) = self.server.recoveries.remove(&call) else { return };
        let event = match (part, well) {
            (RecoveryPart::Guest, true) => TaskEvent::GuestRecovered { epoch },
            (RecoveryPart::Hypervisor, true) => TaskEvent::HypervisorSwept { epoch },
            (_, false) => {
                TaskEvent::RecoveryFailed { epoch, part, class: FailureClass::GuestUnreachable, cause: "no".into() }
            }
        };
        self.happens(task, event);
    }

    /// A proxy does what it was asked, unless nobody waits for it any more.
    pub(crate) fn proxy_recovers(&mut self, who: Who, part: RecoveryPart, call: u64) {
        let open = self.server.up && self.server.recoveries.contains_key(&call);
        if !open || who.incarnation != self.proxies[who.proxy].incarnation {
            return;
        }
        let vm = self.vm_of_task(who.task);
        let well = match part {
            RecoveryPart::Guest => {
                let entered = self.reaches_guest(who.proxy, vm) && self.guests[vm].enter(who, self.broken).is_ok();
                self.guests[vm].leave(who);
                entered
            }
            RecoveryPart::Hypervisor => {
                let connected = self.hypervisors[vm].connect(who);
                if connected {
                    let keeps_file = !self.server.tasks[who.task].recorded.is_empty();
                    self.hypervisors[vm].sweep(who.task, keeps_file);
                    self.hypervisors[vm].disconnect(who);
                }
                connected
            }
        };
        self.tell(|| format!("proxy {} recovers {part:?} of task {}: {well}", who.proxy, who.task));
        self.up(who.proxy, ToServer::Recovered(who, part, call, well));
    }
}
