//! What is owed to a guest and to the hypervisor after a task was interrupted: a proxy is asked to see to it, and the
//! state machine is told how that went. How often and when is its decision.
//!
//! At start, every task that an earlier run of the server left open goes this way before it is closed.

use super::actions::record;
use super::book::{Happening, OpenTask, thaw_by_hand};
use super::order::{self, NoOrder};
use super::report;
use crate::infrastructure::snapshot;
use crate::proxies::ProxyLink;
use crate::server::Server;
use crate::store::StoreError;
use crate::store::sessions::{SessionKind, TaskOutcome};
use jiff::Timestamp;
use lull_api::session::EventKind;
use lull_engine::failover::FailureClass;
use lull_engine::ids::ServerId;
use lull_engine::infrastructure::ServerState;
use lull_engine::session::{Hold, RecoveryPart, TaskEvent, TaskFailure, TaskState};
use lull_engine::timeline::Step;
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::task_event::Event;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// One attempt may take so long, beside an owed script; a proxy bounds each of its own steps.
const ATTEMPT_MS_MAX: u64 = 600_000;

/// Proxies that try in one attempt.
const PROXIES_TRIED_MAX: usize = 3;

/// Why a half is not paid yet.
struct NotYet {
    class: FailureClass,
    cause: String,
    /// Nothing was sent to the guest.
    nothing_sent: bool,
}

impl NotYet {
    fn new(class: FailureClass, cause: impl Into<String>) -> Self {
        NotYet { class, cause: cause.into(), nothing_sent: false }
    }
}

impl From<NoOrder> for NotYet {
    fn from(no_order: NoOrder) -> Self {
        let not_yet = match no_order {
            NoOrder::Task(failure) => NotYet::new(failure.class, format!("{}; {}", failure.cause, failure.remedy)),
            NoOrder::Store(error) => NotYet::new(FailureClass::Internal, error.to_string()),
        };
        NotYet { nothing_sent: true, ..not_yet }
    }
}

/// Opens every session that an earlier run left open and tells its tasks; answers how many are being recovered.
pub async fn reopen(server: &Arc<Server>) -> Result<u32, StoreError> {
    let now = Timestamp::now();
    let sessions = server.store.open_sessions().await?;
    for session in &sessions {
        server.book.open(*session).await?;
        let text = "the backup server was stopped during this session and has started again".to_string();
        server.book.tell(*session, EventKind::Note { level: "warning".into(), text }, now).await?;
    }
    for open in server.book.open_tasks().await {
        // Whoever waits for a test or a hold went with the server.
        let waiting_goes_on = open.row.work.kind == SessionKind::Backup;
        record(server, open.row.id, Happening::event(TaskEvent::ServerRestarted { waiting_goes_on })).await;
    }
    for session in sessions {
        server.book.close_if_done(session, now).await?;
    }
    let open = server.book.open_tasks().await;
    let recovering = open.iter().filter(|open| matches!(open.row.state, TaskState::Recovering { .. })).count();
    Ok(u32::try_from(recovering).unwrap_or(u32::MAX))
}

/// Sees to it that the guest is thawed and swept, and that a post-thaw script that is owed runs.
pub async fn recover_guest(server: &Arc<Server>, task: Uuid, epoch: u64, last_proxy: ServerId, after_ms: u64) {
    tokio::time::sleep(Duration::from_millis(after_ms)).await;
    let Some((open, hold)) = still_recovering(server, task, epoch).await else { return };
    let result = see_to_guest(server, &open, &hold, epoch, last_proxy).await;
    let part = RecoveryPart::Guest;
    conclude(server, &open, &hold, epoch, part, result).await;
}

async fn see_to_guest(
    server: &Arc<Server>,
    open: &OpenTask,
    hold: &Hold,
    epoch: u64,
    last_proxy: ServerId,
) -> Result<Option<v1::Receipt>, NotYet> {
    let targets = order::targets(&server.store, &server.secrets, &open.row).await?;
    // Without guest processing nothing of ours was ever in the guest.
    let Some(guest) = targets.guest else { return Ok(None) };
    if let Some(cause) = hold.cut_at.and_then(|step| unanswered(&guest, step)) {
        return Err(NotYet { nothing_sent: true, ..NotYet::new(FailureClass::RefusedCredential, cause) });
    }
    let order = v1::RecoverOrder {
        guest: Some(guest),
        maybe_frozen: hold.owed.frozen,
        excluded_mount_points: excluded(open, hold),
        post_script: owed_script(server, hold).await?,
        ..empty_order(open, epoch)
    };
    server.book.sends_credential(open.row.id, targets.credential_revision).await;
    let receipt = attempt(server, open, last_proxy, order, targets.pinned.as_deref()).await?;
    let not_yet = |cause: String| Err(NotYet::new(FailureClass::GuestSide, cause));
    let script_is_owed = |hold: Hold| hold.owed.post_script.is_some();
    if !receipt.guest_checked {
        not_yet("the proxy could not look into the guest".into())
    } else if !receipt.left_in_guest.is_empty() {
        not_yet(format!("still in the guest: {}", receipt.left_in_guest.join(", ")))
    } else if still_recovering(server, open.row.id, epoch).await.is_some_and(|(_, hold)| script_is_owed(hold)) {
        not_yet("the proxy did not run the post-thaw script".into())
    } else {
        Ok(Some(receipt))
    }
}

/// What this task did not freeze. What an earlier one may have left frozen was planned by other settings: then a thaw by
/// hand spares nothing.
fn excluded(open: &OpenTask, hold: &Hold) -> Vec<String> {
    if hold.paid_for.is_some() { Vec::new() } else { open.row.work.settings.excluded_mount_points.clone() }
}

/// The password whose answer nobody heard, because the server was stopped at this step: one that was refused must not be
/// sent a second time, and this early nothing that lives longer than its connection was begun in the guest.
fn unanswered(guest: &v1::GuestTarget, cut_at: Step) -> Option<String> {
    use v1::credential::Login;
    let credential = guest.credential.as_ref()?;
    let elevation = credential.elevation.as_ref().is_some_and(|elevation| !elevation.password.is_empty());
    let password = match credential.login {
        Some(Login::Password(_)) if cut_at <= Step::Connect => "its password",
        _ if elevation && cut_at <= Step::Deploy => "its password for root's rights",
        _ => return None,
    };
    let v1::Credential { name, user, .. } = credential;
    Some(format!(
        "the backup server was stopped while credential {name} (account {user}) was being tried, so nobody knows whether \
         {password} was refused; only the next task sends it again"
    ))
}

/// The post-thaw script of the task whose pre-freeze script ran: this one, or the last one on this VM.
async fn owed_script(server: &Arc<Server>, hold: &Hold) -> Result<Option<v1::OwedScript>, NotYet> {
    let Some(task) = hold.owed.post_script else { return Ok(None) };
    let gone = |what: &str| NotYet::new(FailureClass::Gone, format!("{what} is not recorded any more"));
    let task = server.store.task(task.0).await.map_err(NoOrder::from)?;
    let work = task.map(|task| task.work).ok_or_else(|| gone("the task whose post-thaw script is owed"))?;
    let body = work.post_script().ok_or_else(|| gone("the post-thaw script that is owed"))?;
    Ok(Some(v1::OwedScript { body: body.to_string(), timeout_ms: work.settings.scripts.linux.timeout_ms }))
}

/// Sweeps the hypervisor and removes the partial file.
pub async fn sweep_hypervisor(server: &Arc<Server>, task: Uuid, epoch: u64, after_ms: u64) {
    tokio::time::sleep(Duration::from_millis(after_ms)).await;
    let Some((open, hold)) = still_recovering(server, task, epoch).await else { return };
    let result = sweep(server, &open, &hold, epoch).await;
    conclude(server, &open, &hold, epoch, RecoveryPart::Hypervisor, result).await;
}

async fn sweep(server: &Arc<Server>, open: &OpenTask, hold: &Hold, epoch: u64) -> Result<Option<v1::Receipt>, NotYet> {
    // Only a backup touches the hypervisor.
    let Some(backup) = &open.row.work.backup else { return Ok(None) };
    let hypervisor = order::hypervisor(&server.store, &open.row).await?;
    let bitmaps_owed = order::bitmaps_owed(&server.store, &open.row).await;
    let bitmaps_owed = bitmaps_owed.map_err(NoOrder::from)?;
    let order = v1::RecoverOrder {
        hypervisor: Some(hypervisor),
        repository_dir: backup.repository_dir.clone(),
        // A recorded restore point keeps its files.
        restore_point_id: match hold.restore_point {
            Some(_) => String::new(),
            None => backup.short_id(),
        },
        bitmaps_owed,
        ..empty_order(open, epoch)
    };
    let receipt = attempt(server, open, hold.proxy, order, None).await?;
    if receipt.hypervisor_checked && receipt.left_in_hypervisor.is_empty() {
        Ok(Some(receipt))
    } else if receipt.hypervisor_checked {
        let left = receipt.left_in_hypervisor.join(", ");
        Err(NotYet::new(FailureClass::Hypervisor, format!("still in the hypervisor: {left}")))
    } else {
        Err(NotYet::new(FailureClass::Hypervisor, "the proxy could not look into the hypervisor"))
    }
}

fn empty_order(open: &OpenTask, epoch: u64) -> v1::RecoverOrder {
    v1::RecoverOrder {
        task_id: open.row.id.to_string(),
        epoch,
        vm_name: open.row.vm_name.clone(),
        session_id: open.row.session,
        ..Default::default()
    }
}

async fn still_recovering(server: &Arc<Server>, task: Uuid, epoch: u64) -> Option<(OpenTask, Hold)> {
    let open = server.book.open_task(task).await?;
    match open.row.state.clone() {
        TaskState::Recovering { hold, .. } if hold.epoch == epoch => Some((open, hold)),
        _ => None,
    }
}

/// One call; answers the receipt, or why there is none.
async fn attempt(
    server: &Arc<Server>,
    open: &OpenTask,
    last_proxy: ServerId,
    order: v1::RecoverOrder,
    pinned: Option<&str>,
) -> Result<v1::Receipt, NotYet> {
    let lost = |cause: String| NotYet::new(FailureClass::ProxyLost, cause);
    let limit_ms = ATTEMPT_MS_MAX + order.post_script.as_ref().map_or(0, |script| script.timeout_ms);
    let mut result = Err(NotYet::new(FailureClass::ProxyUnreachable, "no proxy that could is online"));
    for link in by_whom(server, open, last_proxy, order.hypervisor.is_some()).await? {
        // Each attempt of another proxy evicts what an earlier one may have left running.
        let fence = server.store.next_fence().await.map_err(NoOrder::from)?;
        let call = hear(server, open, &link, v1::RecoverOrder { fence, ..order.clone() }, pinned);
        result = tokio::select! {
            result = tokio::time::timeout(Duration::from_millis(limit_ms), call) => {
                result.unwrap_or_else(|_| Err(lost(format!("it took longer than {} s", limit_ms / 1_000))))
            }
            () = link.offline() => Err(lost(format!("the heartbeat of {} stopped", link.server.name))),
        };
        // Only where it is the way there that fails, another may have a better one.
        let of_the_way = |not_yet: &NotYet| {
            matches!(
                not_yet.class,
                FailureClass::GuestUnreachable | FailureClass::ProxyLost | FailureClass::ProxyUnreachable
            )
        };
        if !result.as_ref().is_err_and(of_the_way) {
            break;
        }
    }
    result
}

/// Proxies that may see to what is owed, the most promising first: the one that had the task, then by the VM's network.
async fn by_whom(
    server: &Arc<Server>,
    open: &OpenTask,
    last_proxy: ServerId,
    at_hypervisor: bool,
) -> Result<Vec<Arc<ProxyLink>>, NotYet> {
    let infrastructure = snapshot(server).await.map_err(NoOrder::from)?;
    let vm = infrastructure.vms.iter().find(|vm| vm.id.0 == open.row.vm);
    let mut able: Vec<_> = infrastructure
        .servers
        .iter()
        .filter(|managed| managed.state == ServerState::Online || managed.state == ServerState::Draining)
        .filter(|managed| !at_hypervisor || vm.is_none_or(|vm| managed.hosts_reached.contains(&vm.host)))
        .collect();
    able.sort_by_key(|managed| {
        let near = vm.is_some_and(|vm| managed.shares_network_with(vm));
        (managed.id != last_proxy, !near, !managed.is_backup_server, managed.running_tasks, managed.id)
    });
    Ok(able.into_iter().take(PROXIES_TRIED_MAX).filter_map(|managed| server.proxies.get(managed.id)).collect())
}

async fn hear(
    server: &Arc<Server>,
    open: &OpenTask,
    link: &ProxyLink,
    order: v1::RecoverOrder,
    pinned: Option<&str>,
) -> Result<v1::Receipt, NotYet> {
    let lost = |cause: String| NotYet::new(FailureClass::ProxyLost, cause);
    let broke = |status: tonic::Status| lost(format!("{}: {}", link.server.name, status.message()));
    let mut pinned = pinned.map(str::to_string);
    let epoch = order.epoch;
    let mut stream = link.client().map_err(broke)?.recover(order).await.map_err(broke)?.into_inner();
    loop {
        let mut events = Vec::new();
        let told = match stream.message().await.map_err(broke)?.and_then(|message| message.event) {
            None => return Err(lost(format!("{} ended the recovery without saying how", link.server.name))),
            Some(Event::Finished(end)) => return finished(end),
            Some(Event::StepStarted(v1::StepStarted { step, detail })) => EventKind::StepStarted { step, detail },
            Some(Event::StepEnded(ended)) => {
                let v1::StepEnded { step, outcome: state, detail, took_us } = ended;
                // One that could not be run at all is still owed.
                if step == Step::PostScript.name() && matches!(state.as_str(), "ok" | "warning") {
                    events.push(TaskEvent::PostScriptRan { epoch });
                }
                EventKind::StepEnded { step, state, detail, took_us }
            }
            Some(Event::Note(v1::Note { level, text })) => EventKind::Note { level, text },
            Some(Event::Thawed(thawed)) => EventKind::Thawed { window_us: thawed.window_us, no_gap: thawed.no_gap },
            Some(Event::HostKeySeen(seen)) => {
                // A changed key must be known, or nobody could accept it.
                let fingerprint = seen.key.as_ref().map(|key| key.fingerprint.clone());
                record(server, open.row.id, report::host_key(open.row.vm, pinned.as_deref(), seen)).await;
                pinned = pinned.or(fingerprint);
                continue;
            }
            Some(Event::Progress(_) | Event::HoldReady(_) | Event::Frozen(_) | Event::LeaseAsked(_)) => continue,
            // Nothing is listed or backed up in a recovery.
            Some(Event::IndexFrame(_) | Event::IndexEnded(_)) => continue,
            Some(Event::RestorePointDone(_) | Event::GuestLeftAlone(_)) => continue,
        };
        record(server, open.row.id, Happening { events, told: vec![told], ..Default::default() }).await;
    }
}

fn finished(end: v1::Finished) -> Result<v1::Receipt, NotYet> {
    let internal = |cause: String| NotYet::new(FailureClass::Internal, cause);
    match end.outcome.as_str() {
        "success" | "warning" => end.receipt.ok_or_else(|| internal("the proxy sent no receipt".into())),
        _ => Err(match serde_json::from_str::<TaskFailure>(&end.failure_json) {
            Ok(failure) => NotYet::new(failure.class, failure.to_string()),
            Err(_) => internal(format!("the proxy's recovery ended as {}", end.outcome)),
        }),
    }
}

/// Tells the state machine and the people who follow.
async fn conclude(
    server: &Arc<Server>,
    open: &OpenTask,
    hold: &Hold,
    epoch: u64,
    part: RecoveryPart,
    result: Result<Option<v1::Receipt>, NotYet>,
) {
    let (words, done) = match part {
        RecoveryPart::Guest => ("the guest is thawed and swept", TaskEvent::GuestRecovered { epoch }),
        RecoveryPart::Hypervisor => ("the hypervisor is swept", TaskEvent::HypervisorSwept { epoch }),
    };
    let note = |level: &str, text: String| EventKind::Note { level: level.into(), text };
    let happening = match result {
        // There was nothing to do, so there is nothing to tell.
        Ok(None) => Happening::event(done),
        Ok(Some(receipt)) => {
            // Read anew: the other half may have concluded meanwhile.
            let known = server.book.open_task(open.row.id).await.map(|open| open.row.outcome.clone());
            let outcome = Some(merged(known.unwrap_or_default(), part, receipt));
            Happening { told: vec![note("info", words.into())], outcome, ..Happening::event(done) }
        }
        Err(NotYet { class, cause, nothing_sent }) => {
            // A credential that was refused is not sent again: this was the last word on it.
            let not = if class == FailureClass::RefusedCredential { "not, and not tried again" } else { "not yet" };
            let mut told = vec![note("warning", format!("{not}: {words}: {cause}"))];
            if part == RecoveryPart::Guest && hold.owed.frozen {
                told.push(note("warning", thaw_by_hand(&open.row.vm_name)));
            }
            let failed = TaskEvent::RecoveryFailed { epoch, part, class, cause };
            Happening { told, nothing_sent, ..Happening::event(failed) }
        }
    };
    record(server, open.row.id, happening).await;
}

/// The half of the receipt that this recovery looked at.
fn merged(mut outcome: TaskOutcome, part: RecoveryPart, receipt: v1::Receipt) -> TaskOutcome {
    let known = outcome.receipt.get_or_insert_default();
    match part {
        RecoveryPart::Guest => {
            known.guest_checked = receipt.guest_checked;
            known.left_in_guest = receipt.left_in_guest;
            known.rightly_remains = receipt.rightly_remains;
        }
        RecoveryPart::Hypervisor => {
            known.hypervisor_checked = receipt.hypervisor_checked;
            known.left_in_hypervisor = receipt.left_in_hypervisor;
        }
    }
    outcome
}
