//! How many backups run at once at each hypervisor host and into each repository, and how many may. Gives nothing away.

use super::book::OpenTask;
use crate::store::duties::TaskLimits;
use lull_engine::dispatch::{Because, Limits};
use lull_engine::ids::{HostId, RepositoryId};
use lull_engine::infrastructure::Vm;
use lull_engine::session::TaskState;
use std::collections::BTreeMap;
use uuid::Uuid;

/// The limits in the engine's words; there 0 is none at all, and here it is no limit.
pub fn limits(stored: &TaskLimits) -> Limits {
    fn set<I: Ord>(all: &BTreeMap<Uuid, u32>, id: fn(Uuid) -> I) -> BTreeMap<I, u32> {
        all.iter().filter(|(_, limit)| **limit > 0).map(|(known, limit)| (id(*known), *limit)).collect()
    }
    Limits {
        of_host: set(&stored.hosts, HostId),
        of_repository: set(&stored.repositories, RepositoryId),
        ..Limits::default()
    }
}

/// What runs where.
#[derive(Debug, Default)]
pub struct Running {
    /// Backups by host.
    pub hosts: BTreeMap<HostId, u32>,
    /// Backups by repository.
    pub repositories: BTreeMap<RepositoryId, u32>,
}

impl Running {
    /// As the open tasks say.
    pub fn count(tasks: &[OpenTask], vms: &BTreeMap<Uuid, &Vm>) -> Self {
        let mut running = Running::default();
        for task in tasks {
            if matches!(task.row.state, TaskState::Dispatched { .. } | TaskState::Running { .. }) {
                running.take(vms.get(&task.row.vm).map(|vm| vm.host), repository(task));
            }
        }
        running
    }

    /// One more.
    pub fn take(&mut self, host: Option<HostId>, repository: Option<RepositoryId>) {
        let Some(repository) = repository else { return };
        *self.repositories.entry(repository).or_default() += 1;
        if let Some(host) = host {
            *self.hosts.entry(host).or_default() += 1;
        }
    }
}

/// Where a backup goes; other work is not counted.
pub fn repository(task: &OpenTask) -> Option<RepositoryId> {
    task.row.work.backup.as_ref().map(|backup| backup.repository)
}

/// What people are told about a task that a limit holds up; nothing where it waits for a slot.
pub fn sentence(because: Because, name: impl Fn(Uuid) -> String) -> Option<String> {
    let (what, set, id, tasks_max) = match because {
        Because::Slots => return None,
        Because::HostLimit { host, tasks_max } => ("on hypervisor host", "host", host.0, tasks_max),
        Because::RepositoryLimit { repository, tasks_max } => {
            ("into repository", "repository", repository.0, tasks_max)
        }
    };
    let name = name(id);
    Some(format!(
        "{what} {name} at most {tasks_max} backups run at once: lull {set} set {name} --max-tasks N changes it"
    ))
}
