//! What goes down to a proxy: put together from the store just before it is sent. Here credentials are opened, and here
//! it is refused to send one that rests.

use super::report::Sent;
use crate::removal::Uses;
use crate::secrets::Secrets;
use crate::store::credentials::CredentialRow;
use crate::store::infrastructure::{HostKeyRow, VmRow};
use crate::store::restore_points::RestorePointRow;
use crate::store::sessions::{BackupPlan, SessionKind, TaskRow, short_id};
use crate::store::{Store, StoreError, json};
use lull_engine::chain::{ChainPoint, NoParent, parent_for};
use lull_engine::failover::FailureClass;
use lull_engine::ids::{CredentialId, SessionId, VmId};
use lull_engine::session::{Hop, TaskFailure};
use lull_engine::timeline::Step;
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::{credential::Login, elevation::Method, hypervisor_target::Kind, task_order::Work};
use secrecy::ExposeSecret;
use std::collections::BTreeMap;

/// Port of SSH.
const SSH_PORT: u16 = 22;

/// Why there is no order.
#[derive(Debug)]
pub enum NoOrder {
    /// The task cannot be done as things are.
    Task(Box<TaskFailure>),
    /// The database failed.
    Store(StoreError),
}

impl From<StoreError> for NoOrder {
    fn from(error: StoreError) -> Self {
        NoOrder::Store(error)
    }
}

/// Both ends that a proxy needs for a VM.
pub struct Targets {
    /// How to reach the guest; nothing where the settings want no guest processing.
    pub guest: Option<v1::GuestTarget>,
    /// How to reach the hypervisor.
    pub hypervisor: v1::HypervisorTarget,
    /// Revision of the credential.
    pub credential_revision: u32,
    /// Fingerprint of the pinned host key.
    pub pinned: Option<String>,
}

/// The hypervisor of a task's VM.
pub async fn hypervisor(store: &Store, task: &TaskRow) -> Result<v1::HypervisorTarget, NoOrder> {
    vm_and_hypervisor(store, task).await.map(|(_, hypervisor)| hypervisor)
}

async fn vm_and_hypervisor(store: &Store, task: &TaskRow) -> Result<(VmRow, v1::HypervisorTarget), NoOrder> {
    let gone = |what: String| {
        failure(
            Hop::BackupServer,
            FailureClass::Gone,
            format!("{what} is no longer in the infrastructure"),
            "add it again, or take the VM out of the job".into(),
        )
    };
    let vms = store.vms().await?;
    let vm = vms.iter().find(|vm| vm.id == task.vm).ok_or_else(|| gone(format!("VM {}", task.vm_name)))?.clone();
    let hosts = store.hosts().await?;
    let host = hosts.into_iter().find(|host| host.id == vm.host);
    let host = host.ok_or_else(|| gone(format!("host {}", vm.host_name)))?;
    let qemu = v1::QemuTarget { sockets_dir: host.qemu_dir, vm: vm.name.clone(), fleecing_dir: host.fleecing_dir };
    Ok((vm, v1::HypervisorTarget { kind: Some(Kind::Qemu(qemu)) }))
}

/// Where the guest and the hypervisor of a task's VM are.
pub async fn targets(store: &Store, secrets: &Secrets, task: &TaskRow) -> Result<Targets, NoOrder> {
    let (vm, hypervisor) = vm_and_hypervisor(store, task).await?;
    let pinned = store.host_keys(vm.id).await?.0;
    let fingerprint = pinned.as_ref().map(|key| key.fingerprint.clone());
    if !task.work.in_guest() {
        return Ok(Targets { guest: None, hypervisor, credential_revision: 0, pinned: fingerprint });
    }
    let (credential, credential_revision) = match task.work.credential {
        None => (None, 0),
        Some(id) => {
            let row = usable(store, task, id).await?;
            (Some(opened(secrets, &row)?), row.revision)
        }
    };
    let guest = Some(v1::GuestTarget {
        endpoints: endpoints(&vm),
        credential,
        host_keys: pinned.into_iter().map(host_key).collect(),
    });
    Ok(Targets { guest, hypervisor, credential_revision, pinned: fingerprint })
}

/// The credential, unless it rests.
async fn usable(store: &Store, task: &TaskRow, id: CredentialId) -> Result<CredentialRow, NoOrder> {
    let row = store.credentials().await?.into_iter().find(|row| row.id == id.0).ok_or_else(|| {
        failure(
            Hop::Login,
            FailureClass::Gone,
            format!("the credential for {} no longer exists", task.vm_name),
            format!("give the VM another: lull vm set {} --credential NAME", task.vm_name),
        )
    })?;
    let sessions = match task.work.kind {
        SessionKind::Test => vec![None],
        // What was refused in the run is not tried by a further attempt at it either.
        _ => store.attempts(task.session).await?.into_iter().map(|id| Some(SessionId(id))).collect(),
    };
    let refusals = store.refusals().await?;
    let rests = sessions.into_iter().try_for_each(|session| refusals.may_try(id, row.revision, VmId(task.vm), session));
    rests.map_err(|resting| {
        failure(
            Hop::Login,
            FailureClass::RefusedCredential,
            format!("credential {} (account {}) was not tried: {resting}", row.name, row.user),
            format!("correct it: lull credential set {}", row.name),
        )
    })?;
    Ok(row)
}

/// A credential with its secrets in the clear, for one order.
fn opened(secrets: &Secrets, row: &CredentialRow) -> Result<v1::Credential, NoOrder> {
    let open = |field: &'static str, sealed: &Option<Vec<u8>>| match sealed {
        None => Ok(String::new()),
        Some(sealed) => secrets.open(row.id, field, sealed).map(|s| s.expose_secret().to_string()).map_err(|error| {
            let remedy = format!("enter it again: lull credential set {}", row.name);
            failure(Hop::BackupServer, FailureClass::Internal, error.to_string(), remedy)
        }),
    };
    let login = if row.private_key.is_some() {
        Login::PrivateKey(v1::PrivateKey {
            pem: open("private_key", &row.private_key)?,
            passphrase: open("passphrase", &row.passphrase)?,
        })
    } else {
        Login::Password(open("password", &row.password)?)
    };
    let password = open("password", &row.password)?;
    let extra = open("elevation_password", &row.elevation_password)?;
    let (method, password) = match row.elevation.as_str() {
        // sudo asks for the account's own password unless another was given.
        "sudo" if extra.is_empty() => (Method::Sudo, password),
        "sudo" => (Method::Sudo, extra),
        "sudo-nopasswd" => (Method::Sudo, String::new()),
        "su" => (Method::Su, extra),
        _ => (Method::None, String::new()),
    };
    Ok(v1::Credential {
        id: row.id.to_string(),
        name: row.name.clone(),
        user: row.user.clone(),
        elevation: Some(v1::Elevation { method: method.into(), password }),
        login: Some(login),
    })
}

/// Where to connect: what was set for the VM, else its addresses.
fn endpoints(vm: &VmRow) -> Vec<v1::Endpoint> {
    if let Some((host, port)) = vm.connect.as_deref().and_then(split_endpoint) {
        return vec![v1::Endpoint { host, port: port.into() }];
    }
    // A name is resolved where the guest is reached from.
    let known = if vm.addresses.is_empty() { &vm.agent_addresses } else { &vm.addresses };
    known.iter().map(|host| v1::Endpoint { host: host.clone(), port: SSH_PORT.into() }).collect()
}

/// `HOST:PORT`, where HOST may be an IPv6 address in brackets.
pub fn split_endpoint(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').filter(|v6| v6.parse::<std::net::Ipv6Addr>().is_ok())?,
        None if host.contains(':') => return None,
        None => host,
    };
    let port = port.parse().ok().filter(|port| *port > 0)?;
    (!host.is_empty() && !host.contains(char::is_whitespace)).then(|| (host.to_string(), port))
}

fn host_key(key: HostKeyRow) -> v1::HostKey {
    v1::HostKey { algorithm: key.algorithm, fingerprint: key.fingerprint, public_key: key.public_key }
}

/// Restore points whose bitmaps must stay: the newest of the VM in each repository.
pub async fn bitmaps_owed(store: &Store, task: &TaskRow) -> Result<Vec<String>, StoreError> {
    let mut newest = BTreeMap::new();
    for point in store
        .restore_points(Some(task.vm))
        .await?
        .into_iter()
        .filter(|point| !point.bitmap.is_empty() && !point.removing)
    {
        newest.entry(point.repository).or_insert(short_id(point.id));
    }
    Ok(newest.into_values().collect())
}

/// What the next backup of a task's VM builds on, or why on nothing.
async fn parent(
    store: &Store,
    uses: &Uses,
    task: &TaskRow,
    backup: &BackupPlan,
) -> Result<Result<RestorePointRow, NoParent>, StoreError> {
    let mut points = store.restore_points(Some(task.vm)).await?;
    // One that is being removed is as good as gone: who removes it looked for open tasks before this one was there.
    let goes = |point: &RestorePointRow| point.removing || uses.is_being_removed(point.id);
    points.retain(|point| point.repository == backup.repository.0 && !goes(point));
    let chain: Vec<ChainPoint> = points.iter().map(RestorePointRow::chain_point).collect();
    let chosen = parent_for(&chain, backup.full_every);
    Ok(chosen.and_then(|id| points.into_iter().find(|point| point.id == id.0).ok_or(NoParent::First)))
}

/// What went out with the order of this dispatch, as far as it can be told afterwards.
pub async fn was_sent(store: &Store, task: &TaskRow, epoch: u64) -> Result<Sent, StoreError> {
    let backup = task.work.backup.as_ref();
    Ok(Sent {
        epoch,
        guest: task.work.in_guest(),
        hypervisor: backup.is_some(),
        pinned: store.host_keys(task.vm).await?.0.map(|key| key.fingerprint),
        job_name: store.session(task.session).await?.and_then(|session| session.job_name),
        parent: backup.and_then(|backup| backup.parent),
    })
}

/// The order for a task that is not a test, and what to remember of it. `last_proxy`: no other can take it over.
pub async fn task_order(
    store: &Store,
    uses: &Uses,
    task: &TaskRow,
    epoch: u64,
    targets: Targets,
    last_proxy: bool,
) -> Result<(v1::TaskOrder, Sent), NoOrder> {
    let job_name = store.session(task.session).await?.and_then(|session| session.job_name);
    let mut parent_id = None;
    let work = match (&task.work.backup, task.work.kind) {
        (Some(backup), _) => {
            let (parent, full_because) = match parent(store, uses, task, backup).await? {
                Ok(point) => {
                    parent_id = Some(point.id);
                    let restore_point_id = short_id(point.id);
                    (Some(v1::ParentPoint { restore_point_id, directory: point.directory }), String::new())
                }
                Err(why) => (None, why.to_string()),
            };
            let restore_point_id = backup.restore_point.0.to_string();
            Work::Backup(v1::BackupWork {
                repository_dir: backup.repository_dir.clone(),
                restore_point_id: backup.short_id(),
                speed_limit_bytes_per_s: backup.copy_limit_bytes_per_s,
                bitmaps_owed: bitmaps_owed(store, task).await?,
                parent,
                full_because,
                origin: Some(v1::PointOrigin { restore_point_id, job_name: job_name.clone().unwrap_or_default() }),
            })
        }
        (None, SessionKind::Quiesce) => Work::Hold(v1::HoldWork {}),
        (None, _) => Work::Rehearse(v1::RehearseWork {}),
    };
    // A hold leaves the hypervisor's socket to the caller's own tool; a rehearsal does not need it.
    let hypervisor = Some(targets.hypervisor).filter(|_| task.work.backup.is_some());
    let sent = Sent {
        epoch,
        guest: targets.guest.is_some(),
        hypervisor: hypervisor.is_some(),
        pinned: targets.pinned,
        job_name,
        parent: parent_id,
    };
    let order = v1::TaskOrder {
        task_id: task.id.to_string(),
        session_id: task.session,
        epoch,
        vm_id: task.vm.to_string(),
        vm_name: task.vm_name.clone(),
        guest: targets.guest,
        hypervisor,
        settings_json: json(&task.work.settings),
        work: Some(work),
        last_proxy,
        left_alone_because: task.work.left_alone.clone().unwrap_or_default(),
        fence: store.next_fence().await?,
    };
    Ok((order, sent))
}

fn failure(hop: Hop, class: FailureClass, cause: String, remedy: String) -> NoOrder {
    NoOrder::Task(Box::new(TaskFailure { step: Some(Step::Connect), hop, cause, remedy, class }))
}

#[cfg(test)]
mod tests {
    use super::split_endpoint;

    #[test]
    fn endpoints_are_host_and_port() {
        let check = |text: &str, expect: Option<(&str, u16)>| {
            assert_eq!(split_endpoint(text), expect.map(|(h, p)| (h.to_string(), p)), "{text}");
        };
        check("127.0.0.1:2222", Some(("127.0.0.1", 2222)));
        check("db1.example:22", Some(("db1.example", 22)));
        check("[fe80::1]:22", Some(("fe80::1", 22)));
        for wrong in ["", "host", ":22", "host:", "host:0", "host:65536", "fe80::1:22", "[nonsense]:22", "a b:22"] {
            check(wrong, None);
        }
    }
}
