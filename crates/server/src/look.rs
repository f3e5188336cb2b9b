//! Looks at hypervisor hosts for the VMs they have, through the backup server's own proxy.

use crate::instant::us;
use crate::server::Server;
use crate::store::StoreError;
use crate::store::infrastructure::{HostRow, SeenVm};
use jiff::Timestamp;
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::hypervisor_target::Kind;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Longest look at one host.
const LOOK_MS_MAX: u64 = 30_000;
/// What is shown of VMs may be so old.
const FRESH_MS: i64 = 30_000;
/// Whoever asks for VMs waits so long for a fresh look; it goes on without him.
const WAIT_MS_MAX: u64 = 3_000;

/// The VMs of a host, or why they are not known.
pub async fn ask(server: &Server, qemu_dir: &str, fleecing_dir: &str) -> Result<Vec<SeenVm>, String> {
    let proxy = server.proxies.backup_server().ok_or("the backup server has no proxy of its own")?;
    let target = v1::HypervisorTarget {
        kind: Some(Kind::Qemu(v1::QemuTarget {
            sockets_dir: qemu_dir.to_string(),
            vm: String::new(),
            fleecing_dir: fleecing_dir.to_string(),
        })),
    };
    let mut client = proxy.client();
    let answer = tokio::time::timeout(Duration::from_millis(LOOK_MS_MAX), client.list_vms(target));
    match answer.await {
        Err(_) => Err(format!("no answer within {} s", LOOK_MS_MAX / 1_000)),
        Ok(Err(status)) => Err(status.message().to_string()),
        Ok(Ok(list)) => Ok(list.into_inner().vms.into_iter().map(seen).collect()),
    }
}

fn seen(vm: v1::VmEntry) -> SeenVm {
    let state = if vm.error.is_empty() { vm.state } else { format!("unknown: {}", vm.error) };
    SeenVm { name: vm.name, state, disks: vm.disks }
}

/// Looks at a host and stores what was found, a failure too.
pub async fn look(server: &Server, host: &HostRow) -> Result<(), StoreError> {
    let found = ask(server, &host.qemu_dir, &host.fleecing_dir).await;
    let now = us(Timestamp::now());
    match found {
        Ok(vms) => server.store.record_look(host.id, &vms, now).await,
        Err(problem) => server.store.record_failed_look(host.id, &problem, now).await,
    }
}

/// Sees to it that what is known of VMs is not too old. A host with a running task is left alone, since a VM's socket
/// takes one caller at a time.
pub async fn freshen(server: &Arc<Server>) -> Result<(), StoreError> {
    let old = us(Timestamp::now()) - FRESH_MS * 1_000;
    let open = server.book.open_tasks().await;
    let busy: Vec<_> = open.iter().map(|task| task.row.vm).collect();
    let vms = server.store.vms().await?;
    let mut looks = Vec::new();
    for host in server.store.hosts().await?.into_iter().filter(|host| host.looked_us.is_none_or(|at| at < old)) {
        if vms.iter().any(|vm| vm.host == host.id && busy.contains(&vm.id)) {
            continue;
        }
        // A host that does not answer is looked at by one, however many ask.
        if !server.looking.lock().unwrap_or_else(PoisonError::into_inner).insert(host.id) {
            continue;
        }
        let server = server.clone();
        looks.push(tokio::spawn(async move {
            if let Err(error) = look(&server, &host).await {
                tracing::error!(host = host.name, %error, "a look at the host cannot be stored");
            }
            server.looking.lock().unwrap_or_else(PoisonError::into_inner).remove(&host.id);
        }));
    }
    let all = futures::future::join_all(looks);
    // Past this, the caller gets what was known before.
    let _ = tokio::time::timeout(Duration::from_millis(WAIT_MS_MAX), all).await;
    Ok(())
}
