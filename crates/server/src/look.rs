//! Looks at hypervisor hosts for the VMs they have, through the backup server's own proxy or another that reaches the host.

use crate::instant::us;
use crate::proxies::ProxyLink;
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
    let own = server.proxies.backup_server().ok_or("the backup server has no proxy of its own")?;
    let target = target(qemu_dir, fleecing_dir);
    let why = match list(&own, target.clone()).await {
        Ok(vms) => return Ok(vms),
        Err(why) => why,
    };
    // The host may be within another's reach only.
    let others =
        server.proxies.all().into_iter().filter(|link| link.server.id != own.server.id && link.health().online);
    let ask = |link: Arc<ProxyLink>| {
        let target = target.clone();
        Box::pin(async move { list(&link, target).await })
    };
    let asked: Vec<_> = others.map(ask).collect();
    if asked.is_empty() {
        return Err(why);
    }
    futures::future::select_ok(asked).await.map(|(vms, _)| vms).map_err(|_| why)
}

fn target(qemu_dir: &str, fleecing_dir: &str) -> v1::HypervisorTarget {
    let (sockets_dir, fleecing_dir) = (qemu_dir.to_string(), fleecing_dir.to_string());
    let qemu = v1::QemuTarget { sockets_dir, vm: String::new(), fleecing_dir };
    v1::HypervisorTarget { kind: Some(Kind::Qemu(qemu)) }
}

async fn list(proxy: &ProxyLink, target: v1::HypervisorTarget) -> Result<Vec<SeenVm>, String> {
    let mut client = proxy.client().map_err(|status| status.message().to_string())?;
    match tokio::time::timeout(Duration::from_millis(LOOK_MS_MAX), client.list_vms(target)).await {
        Err(_) => Err(format!("no answer within {} s", LOOK_MS_MAX / 1_000)),
        Ok(Err(status)) => Err(status.message().to_string()),
        Ok(Ok(list)) => Ok(list.into_inner().vms.into_iter().map(seen).collect()),
    }
}

/// From now on proxies are asked which of the stored hosts they reach.
pub async fn ask_proxies(server: &Server) -> Result<(), StoreError> {
    let probe = |host: HostRow| v1::HostProbe {
        id: host.id.to_string(),
        target: Some(target(&host.qemu_dir, &host.fleecing_dir)),
    };
    server.proxies.ask_about(server.store.hosts().await?.into_iter().map(probe).collect());
    Ok(())
}

fn seen(vm: v1::VmEntry) -> SeenVm {
    let state = if vm.error.is_empty() { vm.state } else { format!("unknown: {}", vm.error) };
    SeenVm { name: vm.name, state, disks: vm.disks, addresses: vm.addresses }
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
