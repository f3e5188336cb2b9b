//! What an administrator says about the load of servers, hosts and repositories: who takes tasks, and how many at once.

use super::{Store, StoreError};
use lull_engine::infrastructure::{ManagedServer, ServerState};
use sqlx::Row;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

/// So many backups run at once on a hypervisor host unless told otherwise: each keeps a snapshot that makes the guest's writes
/// dearer, and they share its disks.
pub const HOST_TASKS_MAX: u32 = 4;
/// So many backups are written into a repository at once unless told otherwise.
pub const REPOSITORY_TASKS_MAX: u32 = 16;

/// Whether a managed server takes tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Duty {
    /// It does.
    #[default]
    Enabled,
    /// It finishes those that it has.
    Draining,
    /// It is out of use.
    Disabled,
}

impl fmt::Display for Duty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enabled => "enabled",
            Self::Draining => "draining",
            Self::Disabled => "disabled",
        })
    }
}

impl FromStr for Duty {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Enabled, Self::Draining, Self::Disabled]
            .into_iter()
            .find(|duty| duty.to_string() == text)
            .ok_or_else(|| format!("\"{text}\" must be enabled, draining or disabled"))
    }
}

/// What an administrator says about a managed server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServerDuty {
    /// Whether it takes tasks.
    pub duty: Duty,
    /// Its task slots; `None`: as many as its proxy says.
    pub slots: Option<u32>,
}

impl ServerDuty {
    /// The server as the rules of selection are to see it.
    pub fn apply(&self, server: &mut ManagedServer) {
        server.slots = self.slots.unwrap_or(server.slots);
        match (self.duty, &server.state) {
            // What it takes to come back says more.
            (_, ServerState::Revoked) => {}
            (Duty::Disabled, _) => server.state = ServerState::Disabled,
            (Duty::Draining, ServerState::Online) => server.state = ServerState::Draining,
            (Duty::Enabled | Duty::Draining, _) => {}
        }
    }
}

/// How many backups may run at once, by host and by repository; 0: as many as there are slots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskLimits {
    /// By host.
    pub hosts: BTreeMap<Uuid, u32>,
    /// By repository.
    pub repositories: BTreeMap<Uuid, u32>,
}

impl Store {
    /// What is said of each managed server.
    pub async fn server_duties(&self) -> Result<BTreeMap<Uuid, ServerDuty>, StoreError> {
        let sql = "SELECT id, duty, slots_max FROM managed_servers";
        let rows = sqlx::query(sql).fetch_all(&self.readers).await;
        let rows = rows.map_err(|e| self.failed("reading what managed servers may do", e))?;
        rows.iter()
            .map(|row| {
                let duty = self.word("what a managed server may do", row.get(1))?;
                Ok((self.id(row, 0)?, ServerDuty { duty, slots: row.get(2) }))
            })
            .collect()
    }

    /// Says it of one.
    pub async fn set_server_duty(&self, server: Uuid, said: ServerDuty) -> Result<(), StoreError> {
        let done = sqlx::query("UPDATE managed_servers SET duty = $2, slots_max = $3 WHERE id = $1")
            .bind(server.to_string())
            .bind(said.duty.to_string())
            .bind(said.slots)
            .execute(&self.writer)
            .await;
        self.removed("managed server", done)
    }

    /// How many backups may run at once, of every host and repository.
    pub async fn task_limits(&self) -> Result<TaskLimits, StoreError> {
        let read = async |sql: &'static str, default: u32| {
            let rows = sqlx::query(sql).fetch_all(&self.readers).await;
            let rows = rows.map_err(|e| self.failed("reading limits of tasks", e))?;
            let limit = |row| Ok((self.id(row, 0)?, row.get::<Option<u32>, _>(1).unwrap_or(default)));
            rows.iter().map(limit).collect::<Result<BTreeMap<Uuid, u32>, StoreError>>()
        };
        Ok(TaskLimits {
            hosts: read("SELECT id, tasks_max FROM hosts", HOST_TASKS_MAX).await?,
            repositories: read("SELECT id, tasks_max FROM repositories", REPOSITORY_TASKS_MAX).await?,
        })
    }

    /// Sets the limit of a host.
    pub async fn set_host_limit(&self, host: Uuid, tasks_max: u32) -> Result<(), StoreError> {
        let sql = "UPDATE hosts SET tasks_max = $2 WHERE id = $1";
        let done = sqlx::query(sql).bind(host.to_string()).bind(tasks_max).execute(&self.writer).await;
        self.removed("host", done)
    }

    /// Sets the limit of a repository.
    pub async fn set_repository_limit(&self, repository: Uuid, tasks_max: u32) -> Result<(), StoreError> {
        let sql = "UPDATE repositories SET tasks_max = $2 WHERE id = $1";
        let done = sqlx::query(sql).bind(repository.to_string()).bind(tasks_max).execute(&self.writer).await;
        self.removed("repository", done)
    }
}
