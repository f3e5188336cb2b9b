//! What stands in a site: guests with their components, and the hypervisor's monitors and files. Does what it is told, by its own rules
//! alone: a guest thaws by itself, a monitor admits one client, a file is created once.

use crate::Rule;
use lull_guest_wire::lease::{Lease, LeaseState};
use std::collections::BTreeSet;

/// Who acts: an order of the server's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Who {
    /// The task.
    pub task: usize,
    /// The dispatch or recovery.
    pub epoch: u64,
    /// The order's fence.
    pub fence: u64,
    /// The proxy and which of its processes.
    pub proxy: usize,
    /// See `proxy`.
    pub incarnation: u64,
}

/// A runtime component in a guest.
#[derive(Debug, Clone)]
pub struct Component {
    /// Whose.
    pub who: Who,
    /// The freeze that it holds.
    pub frozen: Option<Freeze>,
}

/// A freeze, in true milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Freeze {
    /// Its number.
    pub id: u64,
    /// When it began.
    pub first_ms: u64,
    /// When it was renewed last.
    pub renewed_ms: u64,
}

/// A guest.
#[derive(Debug, Clone, Default)]
pub struct Guest {
    /// Components that could act. The lock sees to it that there is at most one.
    pub components: Vec<Component>,
    /// Its monotonic clock is ahead by this.
    pub skew_ms: u64,
}

impl Guest {
    /// A component comes: a newer one that is there refuses it, older ones go.
    pub fn enter(&mut self, who: Who, broken: Option<Rule>) -> Result<(), u64> {
        if broken != Some(Rule::Fence) {
            if let Some(newer) = self.components.iter().find(|other| other.who.fence > who.fence) {
                return Err(newer.who.fence);
            }
            // Who is evicted thaws first.
            self.components.clear();
        }
        self.components.push(Component { who, frozen: None });
        Ok(())
    }

    /// The component of this order, where it is still there.
    pub fn of(&mut self, who: Who) -> Option<&mut Component> {
        self.components.iter_mut().find(|component| component.who == who)
    }

    /// The component ends, by itself or because it was told to; it thaws before.
    pub fn leave(&mut self, who: Who) {
        self.components.retain(|component| component.who != who);
    }

    /// The watchdog looks at its clock.
    pub fn look(&mut self, now_ms: u64, lease: Lease) {
        let skew_ms = self.skew_ms;
        for component in &mut self.components {
            if let Some(freeze) = component.frozen {
                let (first, renewed) = (freeze.first_ms + skew_ms, freeze.renewed_ms + skew_ms);
                if !matches!(lease.state(now_ms + skew_ms, renewed, Some(first)), LeaseState::Holds { .. }) {
                    component.frozen = None;
                }
            }
        }
    }
}

/// What a VM's hypervisor holds of ours.
#[derive(Debug, Clone, Default)]
pub struct Hypervisor {
    /// The one client of its monitor.
    pub client: Option<Who>,
    /// Jobs, nodes and filters, by the task and the dispatch that made them.
    pub left: BTreeSet<(usize, u64)>,
    /// Files of restore points, by task; whose, and whether whole.
    pub files: std::collections::BTreeMap<usize, (u64, bool)>,
}

impl Hypervisor {
    /// Connects; false where somebody else is connected.
    pub fn connect(&mut self, who: Who) -> bool {
        let free = self.client.is_none_or(|client| client == who);
        if free {
            self.client = Some(who);
        }
        free
    }

    /// The connection of this client ends.
    pub fn disconnect(&mut self, who: Who) {
        if self.client == Some(who) {
            self.client = None;
        }
    }

    /// Removes what is left of ours, and the task's file but where that is recorded. The monitor must be the caller's.
    pub fn sweep(&mut self, task: usize, keeps_file: bool) {
        self.left.clear();
        if !keeps_file {
            self.files.remove(&task);
        }
    }
}
