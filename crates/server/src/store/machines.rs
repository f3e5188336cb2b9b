//! The machines on which Lull installed a proxy: how to come there again, without any credential.

use super::{Store, StoreError, json};
use lull_api::managed::Machine;
use sqlx::Row;
use std::collections::BTreeMap;
use uuid::Uuid;

/// What is kept of a managed server's machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineRow {
    /// `linux` or `windows`.
    pub kind: String,
    /// Nothing: it joined by hand, or is the backup server.
    pub machine: Option<Machine>,
}

impl Store {
    /// Of every managed server.
    pub async fn machines(&self) -> Result<BTreeMap<Uuid, MachineRow>, StoreError> {
        let rows = sqlx::query("SELECT id, kind, machine FROM managed_servers").fetch_all(&self.readers).await;
        let rows = rows.map_err(|e| self.failed("reading machines", e))?;
        rows.iter()
            .map(|row| {
                let machine = row.get::<Option<&str>, _>(2);
                let machine = machine.map(|doc| self.document("the machine of a managed server", doc)).transpose()?;
                Ok((self.id(row, 0)?, MachineRow { kind: row.get(1), machine }))
            })
            .collect()
    }

    /// Lull installed, or changed, the proxy of this managed server.
    pub async fn set_machine(&self, server: Uuid, machine: &Machine) -> Result<(), StoreError> {
        let sql = "UPDATE managed_servers SET kind = 'linux', machine = $2 WHERE id = $1 AND is_backup_server = 0";
        let done = sqlx::query(sql).bind(server.to_string()).bind(json(machine)).execute(&self.writer).await;
        self.removed("managed server", done)
    }
}
