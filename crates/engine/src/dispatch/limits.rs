//! How many tasks may run at once at one hypervisor host and into one repository. Counts while a plan is made; picks no server.

use super::{Because, Situation, WaitingTask};
use crate::ids::{HostId, RepositoryId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// Tasks that may run at once. The default is: as many as there are slots.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// At each hypervisor host that is not named below; `None`: any number.
    pub per_host: Option<u32>,
    /// At these hosts.
    pub of_host: BTreeMap<HostId, u32>,
    /// Into each repository that is not named below; `None`: any number.
    pub per_repository: Option<u32>,
    /// Into these repositories.
    pub of_repository: BTreeMap<RepositoryId, u32>,
}

impl Limits {
    /// Tasks that may run at this host at once, if that is limited.
    pub fn at_host(&self, host: HostId) -> Option<u32> {
        self.of_host.get(&host).copied().or(self.per_host)
    }

    /// Tasks that may write to this repository at once, if that is limited.
    pub fn into_repository(&self, repository: RepositoryId) -> Option<u32> {
        self.of_repository.get(&repository).copied().or(self.per_repository)
    }
}

/// What runs where, the assignments of this plan among it. Holds only what is limited.
pub(super) struct Room<'a> {
    limits: &'a Limits,
    hosts: HashMap<HostId, u32>,
    repositories: HashMap<RepositoryId, u32>,
}

impl<'a> Room<'a> {
    pub(super) fn new(situation: &Situation<'a>) -> Self {
        Self {
            limits: situation.limits,
            hosts: situation.running_per_host.iter().map(|(host, tasks)| (*host, *tasks)).collect(),
            repositories: situation.running_per_repository.iter().map(|(id, tasks)| (*id, *tasks)).collect(),
        }
    }

    /// Which limit holds the task up now.
    pub(super) fn full_for(&self, task: &WaitingTask) -> Option<Because> {
        let host = task.vm.host;
        if let Some(tasks_max) = self.limits.at_host(host).filter(|_| task.at_hypervisor)
            && self.hosts.get(&host).copied().unwrap_or(0) >= tasks_max
        {
            return Some(Because::HostLimit { host, tasks_max });
        }
        let repository = task.repository?;
        let tasks_max = self.limits.into_repository(repository)?;
        let full = self.repositories.get(&repository).copied().unwrap_or(0) >= tasks_max;
        full.then_some(Because::RepositoryLimit { repository, tasks_max })
    }

    /// The task was given away.
    pub(super) fn take(&mut self, task: &WaitingTask) {
        if task.at_hypervisor {
            *self.hosts.entry(task.vm.host).or_default() += 1;
        }
        if let Some(repository) = task.repository {
            *self.repositories.entry(repository).or_default() += 1;
        }
    }
}
