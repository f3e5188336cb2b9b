//! `lull doctor`: what would keep the next job from succeeding, as far as it can be seen without touching a guest.

use super::answer::Answer;
use super::repositories::problem;
use crate::addresses;
use crate::catalog::sentence;
use crate::disk::free_bytes;
use crate::instant::to_the_second;
use crate::server::Server;
use axum::Json;
use axum::extract::State;
use lull_api::infrastructure::Finding;
use std::sync::Arc;

/// Less free space than this under the state folder is an error, in bytes.
const STATE_FREE_MIN: u64 = 256 << 20;
/// Less free space than this in a repository is a warning, in bytes.
const REPOSITORY_FREE_MIN: u64 = 1 << 30;

/// What was found, errors and all that is in order.
#[utoipa::path(get, path = "/doctor", tag = "server", responses((status = 200, body = Vec<Finding>)))]
pub async fn doctor(State(server): State<Arc<Server>>) -> Answer<Json<Vec<Finding>>> {
    let mut findings = vec![state_folder(&server), licence(&server)];
    findings.extend(proxies(&server));
    findings.extend(hosts(&server).await?);
    findings.extend(vms(&server).await?);
    findings.extend(repositories(&server).await?);
    findings.extend(catalog(&server).await);
    findings.extend(open_tasks(&server).await);
    Ok(Json(findings))
}

fn finding(subject: String, state: &str, text: impl Into<String>, remedy: Option<&str>) -> Finding {
    Finding { subject, state: state.into(), text: text.into(), remedy: remedy.map(str::to_string) }
}

fn state_folder(server: &Server) -> Finding {
    let folder = server.state_dir.display().to_string();
    let subject = format!("state folder {folder}");
    match free_bytes(&folder) {
        Some(free) if free < STATE_FREE_MIN => finding(
            subject,
            "error",
            format!("{} MiB free", free >> 20),
            Some("make room: progress cannot be recorded"),
        ),
        Some(free) => finding(subject, "ok", format!("{} MiB free", free >> 20), None),
        None => finding(subject, "error", "its free space cannot be found out", Some("see whether the disk is there")),
    }
}

fn licence(server: &Server) -> Finding {
    let status = server.licence.status(server.clock.now());
    let subject = "licence".to_string();
    let state = match status.state.as_str() {
        "expired" | "unusable" => "error",
        _ if status.warning.is_some() => "warning",
        _ => "ok",
    };
    match status.warning {
        Some(warning) => finding(subject, state, warning, Some("lull license install FILE")),
        None => finding(subject, state, format!("{}, {}", status.kind, status.state), None),
    }
}

fn proxies(server: &Server) -> Vec<Finding> {
    let one = |link: &crate::proxies::ProxyLink| {
        let subject = format!("proxy {}", link.server.name);
        let health = link.health();
        if let Some(trouble) = health.trouble {
            return finding(subject, "error", trouble, None);
        }
        if health.revoked {
            return finding(subject, "ok", "revoked", None);
        }
        if !health.online {
            let text = match health.last_heard {
                Some(at) => format!("offline; last heard of at {}", to_the_second(at)),
                None if health.never_connected() => "it has not connected yet".to_string(),
                None => "offline; it has not connected since the backup server started".to_string(),
            };
            return finding(subject, "error", text, Some("see whether it runs and reaches the backup server"));
        }
        let known = health.last_known;
        let text = format!("online, {} slots, channels: {}", known.slots, known.channels.join(", "));
        finding(subject, "ok", text, None)
    };
    server.proxies.all().iter().map(|link| one(link)).collect()
}

async fn hosts(server: &Server) -> Answer<Vec<Finding>> {
    let hosts = server.store.hosts().await?;
    if hosts.is_empty() {
        let subject = "hypervisor hosts".to_string();
        return Ok(vec![finding(subject, "warning", "there is none", Some("lull host add NAME --qemu DIR"))]);
    }
    Ok(hosts
        .into_iter()
        .map(|host| {
            let subject = format!("host {}", host.name);
            match host.problem {
                Some(text) => finding(subject, "error", text, Some("lull host rescan, once the folder is there")),
                None => finding(subject, "ok", format!("its folder {} can be read", host.qemu_dir), None),
            }
        })
        .collect())
}

async fn vms(server: &Server) -> Answer<Vec<Finding>> {
    let jobs = server.store.jobs().await?;
    let refusals = server.store.refusals().await?;
    let credentials = server.store.credentials().await?;
    let mut findings = Vec::new();
    let vms = server.store.vms().await?;
    server.resolver.freshen(addresses::names(vms.iter())).await;
    for vm in vms.iter() {
        let subject = format!("VM {}", vm.name);
        let in_scope = jobs.iter().any(|job| job.job.vms.iter().any(|id| id.0 == vm.id));
        let problems = addresses::known(vm, &server.resolver).problems;
        if !problems.is_empty() && in_scope {
            let remedy = "see whether the name is right and this server's DNS answers: lull vm show VM";
            findings.push(finding(subject.clone(), "warning", problems.join("; "), Some(remedy)));
        }
        if vm.addresses.is_empty() && vm.agent_addresses.is_empty() && vm.connect.is_none() && in_scope {
            let remedy = "lull vm set VM --address IP";
            findings.push(finding(subject.clone(), "error", "it has no address to connect to", Some(remedy)));
        }
        if vm.credential.is_none() && in_scope {
            let remedy = "lull vm set VM --credential NAME";
            findings.push(finding(subject.clone(), "error", "it has no credential", Some(remedy)));
        }
        for refusal in refusals.iter().filter(|refusal| refusal.vm.0 == vm.id) {
            let known = credentials.iter().find(|c| c.id == refusal.credential.0 && c.revision == refusal.revision);
            if let Some(credential) = known {
                let text = format!("refused credential {} at {}: {}", credential.name, refusal.at, refusal.cause);
                let remedy = "correct it: lull credential set NAME; or try it again: lull credential release NAME";
                findings.push(finding(subject.clone(), "error", text, Some(remedy)));
            }
        }
        if let (Some(_), Some(seen)) = server.store.host_keys(vm.id).await? {
            let text = format!("its guest showed another host key, {}, and was not contacted", seen.fingerprint);
            let remedy = "compare it with the guest's own, then: lull vm accept-host-key VM --fingerprint FINGERPRINT";
            findings.push(finding(subject, "error", text, Some(remedy)));
        }
    }
    Ok(findings)
}

async fn repositories(server: &Server) -> Answer<Vec<Finding>> {
    let one = |row: crate::store::infrastructure::RepositoryRow| {
        let subject = format!("repository {}", row.name);
        if let Some(problem) = problem(&row.path) {
            return finding(subject, "error", problem, Some("mount or create the folder"));
        }
        match free_bytes(&row.path) {
            Some(free) if free < REPOSITORY_FREE_MIN => {
                finding(subject, "warning", format!("only {} MiB free", free >> 20), Some("make room"))
            }
            free => finding(subject, "ok", format!("{} MiB free", free.unwrap_or(0) >> 20), None),
        }
    };
    Ok(server.store.repositories().await?.into_iter().map(one).collect())
}

/// Listings that cannot be taken in, and tables that were damaged.
async fn catalog(server: &Server) -> Vec<Finding> {
    let mut findings = Vec::new();
    let subject = || "catalog".to_string();
    match server.catalog.pending() {
        Ok(waiting) => findings.extend(waiting.into_iter().filter_map(|waiting| {
            let text = format!("restore point {} is not in it: {}", waiting.restore_point, waiting.trouble?);
            Some(finding(
                subject(),
                "error",
                text,
                Some("put that right: it is tried again, and at once when the server starts"),
            ))
        })),
        Err(error) => findings.push(finding(subject(), "error", error.to_string(), Some("see the state folder"))),
    }
    let recorded = match server.store.restore_points(None).await {
        Ok(recorded) => recorded,
        Err(error) => {
            findings.push(finding(subject(), "error", error.to_string(), Some("see the state folder")));
            Vec::new()
        }
    };
    // What became of a listing is forgotten at the next look at the queue, which may be after its restore point went.
    let given_up = server.catalog.given_up().into_iter().filter(|(id, _)| recorded.iter().any(|point| point.id == *id));
    findings.extend(given_up.map(|(point, why)| {
        let text = format!("the files of restore point {point} are not in it: {why}");
        finding(
            subject(),
            "warning",
            text,
            Some("put that right for the next backups; this restore point stays without"),
        )
    }));
    let aside = server.catalog.ask(|tables| {
        let vms = tables.folders()?;
        vms.into_iter().map(|vm| tables.damaged_tables(vm)).collect::<Result<Vec<_>, _>>()
    });
    match aside.await {
        Ok(aside) => findings.extend(aside.into_iter().flatten().map(|table| {
            let text = format!("a table was damaged and set aside as {}", table.display());
            let remedy =
                "the history of this VM's files begins anew with its next backup; remove the file after a look";
            finding(subject(), "warning", text, Some(remedy))
        })),
        Err(error) => findings.push(finding(subject(), "error", sentence(&error), Some("see the state folder"))),
    }
    if findings.is_empty() {
        findings.push(finding(subject(), "ok", "every listing that came in is in it", None));
    }
    findings
}

async fn open_tasks(server: &Server) -> Vec<Finding> {
    let open = server.book.open_tasks().await;
    let recovering = open.into_iter().filter(|task| task.row.state.name() == "recovering");
    recovering
        .map(|task| {
            let subject = format!("VM {}", task.row.vm_name);
            let text = format!("session {} is being recovered: {}", task.row.session, task.row.state.owed());
            finding(subject, "warning", text, Some("see how far it is: lull session show NUMBER"))
        })
        .collect()
}
