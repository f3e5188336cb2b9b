//! Managed servers, hosts, VMs with their host keys, and repositories.

use super::{Store, StoreError, json};
use lull_engine::infrastructure::Platform;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use uuid::Uuid;

/// A managed server as stored; whether it is online is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerRow {
    /// Id.
    pub id: Uuid,
    /// Unique name.
    pub name: String,
    /// Whether it is the backup server.
    pub is_backup_server: bool,
    /// Whether it has the role *guest interaction proxy*.
    pub role_enabled: bool,
}

/// A hypervisor host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRow {
    /// Id.
    pub id: Uuid,
    /// Unique name.
    pub name: String,
    /// Folder of sockets.
    pub qemu_dir: String,
    /// Folder for fleecing images.
    pub fleecing_dir: String,
    /// Why the last look at it failed.
    pub problem: Option<String>,
    /// When it was last looked at.
    pub looked_us: Option<i64>,
}

/// A VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmRow {
    /// Id.
    pub id: Uuid,
    /// Its host.
    pub host: Uuid,
    /// Its host's name.
    pub host_name: String,
    /// Name on its host.
    pub name: String,
    /// OS family of its guest, where set.
    pub guest_os: Option<Platform>,
    /// Addresses and DNS names of its guest, as an administrator said.
    pub addresses: Vec<String>,
    /// Addresses of its guest, as its guest agent said last.
    pub agent_addresses: Vec<String>,
    /// `HOST:PORT` to connect to instead.
    pub connect: Option<String>,
    /// Credential for its guest.
    pub credential: Option<Uuid>,
    /// State in the hypervisor at the last look.
    pub state: String,
    /// Its disks at the last look.
    pub disks: Vec<String>,
}

/// A VM as a look at its host found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenVm {
    /// Name on its host.
    pub name: String,
    /// State, or why it is not known.
    pub state: String,
    /// Disks.
    pub disks: Vec<String>,
    /// Addresses of its guest; none where no guest agent said any.
    pub addresses: Vec<String>,
}

/// An SSH host key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostKeyRow {
    /// `ssh-ed25519`, …
    pub algorithm: String,
    /// `SHA256:…`
    pub fingerprint: String,
    /// OpenSSH line.
    pub public_key: String,
}

/// A repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryRow {
    /// Id.
    pub id: Uuid,
    /// Unique name.
    pub name: String,
    /// Folder, absolute.
    pub path: String,
}

/// All VMs, and how many changes there had been.
pub type KnownVms = Option<(i64, Arc<[VmRow]>)>;

const VMS: &str = "SELECT vms.id, vms.host, hosts.name, vms.name, vms.guest_os, vms.addresses, vms.connect, \
                   vms.credential, vms.state, vms.disks, vms.agent_addresses FROM vms JOIN hosts ON hosts.id = vms.host \
                   ORDER BY hosts.name, vms.name";

impl Store {
    /// The managed server of this name; added where it is missing.
    pub async fn ensure_server(
        &self,
        name: &str,
        is_backup_server: bool,
        now_us: i64,
    ) -> Result<ServerRow, StoreError> {
        let doing = "storing a managed server";
        sqlx::query(
            "INSERT INTO managed_servers (id, name, is_backup_server, role_enabled, added_us) VALUES ($1, $2, $3, 1, $4) \
             ON CONFLICT (name) DO UPDATE SET is_backup_server = $3",
        )
        .bind(Uuid::now_v7().to_string())
        .bind(name)
        .bind(is_backup_server)
        .bind(now_us)
        .execute(&self.writer)
        .await
        .map_err(|e| self.failed(doing, e))?;
        let servers = self.servers().await?;
        servers.into_iter().find(|s| s.name == name).ok_or(StoreError::Missing { kind: "managed server" })
    }

    /// All managed servers, by name.
    pub async fn servers(&self) -> Result<Vec<ServerRow>, StoreError> {
        let sql = "SELECT id, name, is_backup_server, role_enabled FROM managed_servers ORDER BY name";
        let rows = sqlx::query(sql).fetch_all(&self.readers).await;
        let rows = rows.map_err(|e| self.failed("reading managed servers", e))?;
        rows.iter()
            .map(|row| {
                Ok(ServerRow {
                    id: self.id(row, 0)?,
                    name: row.get(1),
                    is_backup_server: row.get(2),
                    role_enabled: row.get(3),
                })
            })
            .collect()
    }

    /// Adds a host.
    pub async fn add_host(&self, host: &HostRow) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO hosts (id, name, qemu_dir, fleecing_dir) VALUES ($1, $2, $3, $4)")
            .bind(host.id.to_string())
            .bind(&host.name)
            .bind(&host.qemu_dir)
            .bind(&host.fleecing_dir)
            .execute(&self.writer)
            .await
            .map(drop)
            .map_err(|e| self.refused("host", "storing a host", e))
    }

    /// All hosts, by name.
    pub async fn hosts(&self) -> Result<Vec<HostRow>, StoreError> {
        let sql = "SELECT id, name, qemu_dir, fleecing_dir, problem, looked_us FROM hosts ORDER BY name";
        let rows = sqlx::query(sql).fetch_all(&self.readers).await.map_err(|e| self.failed("reading hosts", e))?;
        rows.iter()
            .map(|row| {
                Ok(HostRow {
                    id: self.id(row, 0)?,
                    name: row.get(1),
                    qemu_dir: row.get(2),
                    fleecing_dir: row.get(3),
                    problem: row.get(4),
                    looked_us: row.get(5),
                })
            })
            .collect()
    }

    /// Removes a host and its VMs; refused while a job has one of them in scope.
    pub async fn remove_host(&self, host: Uuid) -> Result<(), StoreError> {
        let done = sqlx::query("DELETE FROM hosts WHERE id = $1").bind(host.to_string()).execute(&self.writer).await;
        self.removed("host", done)
    }

    /// What a look at a host found: new VMs are added; known ones that are missing stay, with that as their state,
    /// since settings, jobs and restore points belong to them.
    pub async fn record_look(&self, host: Uuid, seen: &[SeenVm], now_us: i64) -> Result<(), StoreError> {
        let doing = "storing a host's VMs";
        let mut tx = self.begin(doing).await?;
        sqlx::query("UPDATE vms SET state = 'not found on its host' WHERE host = $1")
            .bind(host.to_string())
            .execute(&mut *tx)
            .await
            .map_err(|e| self.failed(doing, e))?;
        for vm in seen {
            sqlx::query(
                "INSERT INTO vms (id, host, name, addresses, state, disks, agent_addresses) \
                 VALUES ($1, $2, $3, '[]', $4, $5, $6) ON CONFLICT (host, name) DO UPDATE SET state = $4, \
                 disks = CASE WHEN $5 = '[]' THEN disks ELSE $5 END, \
                 agent_addresses = CASE WHEN $6 = '[]' THEN agent_addresses ELSE $6 END",
            )
            .bind(Uuid::now_v7().to_string())
            .bind(host.to_string())
            .bind(&vm.name)
            .bind(&vm.state)
            .bind(json(&vm.disks))
            .bind(json(&vm.addresses))
            .execute(&mut *tx)
            .await
            .map_err(|e| self.failed(doing, e))?;
        }
        sqlx::query("UPDATE hosts SET problem = NULL, looked_us = $2 WHERE id = $1")
            .bind(host.to_string())
            .bind(now_us)
            .execute(&mut *tx)
            .await
            .map_err(|e| self.failed(doing, e))?;
        self.commit_tx(tx, doing).await
    }

    /// A look at a host failed: its VMs' states are not known.
    pub async fn record_failed_look(&self, host: Uuid, problem: &str, now_us: i64) -> Result<(), StoreError> {
        let doing = "storing a host's problem";
        let mut tx = self.begin(doing).await?;
        sqlx::query("UPDATE vms SET state = 'unknown: ' || $2 WHERE host = $1")
            .bind(host.to_string())
            .bind(problem)
            .execute(&mut *tx)
            .await
            .map_err(|e| self.failed(doing, e))?;
        sqlx::query("UPDATE hosts SET problem = $2, looked_us = $3 WHERE id = $1")
            .bind(host.to_string())
            .bind(problem)
            .bind(now_us)
            .execute(&mut *tx)
            .await
            .map_err(|e| self.failed(doing, e))?;
        self.commit_tx(tx, doing).await
    }

    /// All VMs, by host and name. Read anew only after a change, which the database itself counts.
    pub async fn vms(&self) -> Result<Arc<[VmRow]>, StoreError> {
        let failed = |e| self.failed("reading VMs", e);
        // Before the rows: whatever changes in between is read again next time.
        let changes: i64 = sqlx::query_scalar("SELECT value FROM counters WHERE name = 'vms'")
            .fetch_one(&self.readers)
            .await
            .map_err(failed)?;
        let known = self.vms.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, rows)) = known.filter(|(of, _)| *of == changes) {
            return Ok(rows);
        }
        let rows = sqlx::query(VMS).fetch_all(&self.readers).await.map_err(failed)?;
        let rows: Arc<[VmRow]> = rows.iter().map(|row| self.vm_row(row)).collect::<Result<_, _>>()?;
        *self.vms.lock().unwrap_or_else(PoisonError::into_inner) = Some((changes, rows.clone()));
        Ok(rows)
    }

    /// Stores what an administrator may change about a VM.
    pub async fn update_vm(&self, vm: &VmRow) -> Result<(), StoreError> {
        let os = vm.guest_os.map(|os| if os == Platform::Linux { "linux" } else { "windows" });
        let done =
            sqlx::query("UPDATE vms SET guest_os = $2, addresses = $3, connect = $4, credential = $5 WHERE id = $1")
                .bind(vm.id.to_string())
                .bind(os)
                .bind(json(&vm.addresses))
                .bind(&vm.connect)
                .bind(vm.credential.map(|id| id.to_string()))
                .execute(&self.writer)
                .await;
        self.removed("VM", done)
    }

    /// The pinned host key of a VM, and the last one that was refused.
    pub async fn host_keys(&self, vm: Uuid) -> Result<(Option<HostKeyRow>, Option<HostKeyRow>), StoreError> {
        let sql = "SELECT pinned, algorithm, fingerprint, public_key FROM host_keys WHERE vm = $1";
        let rows = sqlx::query(sql).bind(vm.to_string()).fetch_all(&self.readers).await;
        let rows = rows.map_err(|e| self.failed("reading host keys", e))?;
        let of = |pinned: bool| {
            rows.iter().find(|row| row.get::<bool, _>(0) == pinned).map(|row| HostKeyRow {
                algorithm: row.get(1),
                fingerprint: row.get(2),
                public_key: row.get(3),
            })
        };
        Ok((of(true), of(false)))
    }

    /// Fingerprint of every pinned host key, or of every one that was refused last, by VM.
    pub async fn fingerprints(&self, pinned: bool) -> Result<BTreeMap<Uuid, String>, StoreError> {
        let sql = "SELECT vm, fingerprint FROM host_keys WHERE pinned = $1";
        let rows = sqlx::query(sql).bind(pinned).fetch_all(&self.readers).await;
        let rows = rows.map_err(|e| self.failed("reading host keys", e))?;
        rows.iter().map(|row| Ok((self.id(row, 0)?, row.get(1)))).collect()
    }

    /// A person accepts the key that was refused: it replaces the pinned one.
    pub async fn accept_host_key(&self, vm: Uuid) -> Result<(), StoreError> {
        let doing = "storing a host key";
        let mut tx = self.begin(doing).await?;
        for sql in [
            "DELETE FROM host_keys WHERE vm = $1 AND pinned = 1 AND EXISTS \
             (SELECT 1 FROM host_keys AS seen WHERE seen.vm = $1 AND seen.pinned = 0)",
            "UPDATE host_keys SET pinned = 1 WHERE vm = $1 AND pinned = 0",
        ] {
            sqlx::query(sql).bind(vm.to_string()).execute(&mut *tx).await.map_err(|e| self.failed(doing, e))?;
        }
        self.commit_tx(tx, doing).await
    }

    /// Adds a repository.
    pub async fn add_repository(&self, repository: &RepositoryRow) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO repositories (id, name, path) VALUES ($1, $2, $3)")
            .bind(repository.id.to_string())
            .bind(&repository.name)
            .bind(&repository.path)
            .execute(&self.writer)
            .await
            .map(drop)
            .map_err(|e| self.refused("repository", "storing a repository", e))
    }

    /// All repositories, by name.
    pub async fn repositories(&self) -> Result<Vec<RepositoryRow>, StoreError> {
        let rows = sqlx::query("SELECT id, name, path FROM repositories ORDER BY name").fetch_all(&self.readers).await;
        let rows = rows.map_err(|e| self.failed("reading repositories", e))?;
        rows.iter().map(|row| Ok(RepositoryRow { id: self.id(row, 0)?, name: row.get(1), path: row.get(2) })).collect()
    }

    /// Removes a repository; refused while a job or a restore point uses it.
    pub async fn remove_repository(&self, repository: Uuid) -> Result<(), StoreError> {
        let sql = "DELETE FROM repositories WHERE id = $1";
        let done = sqlx::query(sql).bind(repository.to_string()).execute(&self.writer).await;
        self.removed("repository", done)
    }

    fn vm_row(&self, row: &SqliteRow) -> Result<VmRow, StoreError> {
        let name: String = row.get(3);
        let what = format!("VM {name}");
        let guest_os = match row.get::<Option<&str>, _>(4) {
            None => None,
            Some("linux") => Some(Platform::Linux),
            Some("windows") => Some(Platform::Windows),
            Some(other) => return Err(self.unreadable(&what, format!("guest OS {other}"))),
        };
        Ok(VmRow {
            id: self.id(row, 0)?,
            host: self.id(row, 1)?,
            host_name: row.get(2),
            guest_os,
            addresses: self.document(&what, row.get(5))?,
            connect: row.get(6),
            credential: row.get::<Option<&str>, _>(7).map(|id| self.word(&what, id)).transpose()?,
            state: row.get(8),
            disks: self.document(&what, row.get(9))?,
            agent_addresses: self.document(&what, row.get(10))?,
            name,
        })
    }

    pub(super) fn id(&self, row: &SqliteRow, column: usize) -> Result<Uuid, StoreError> {
        self.word("an id", row.get(column))
    }

    /// Outcome of a `DELETE` or `UPDATE` of one row.
    pub(super) fn removed(
        &self,
        kind: &'static str,
        done: Result<sqlx::sqlite::SqliteQueryResult, sqlx::Error>,
    ) -> Result<(), StoreError> {
        match done {
            Ok(done) if done.rows_affected() == 0 => Err(StoreError::Missing { kind }),
            Ok(_) => Ok(()),
            Err(source) => Err(self.refused(kind, "changing or removing a row", source)),
        }
    }
}
