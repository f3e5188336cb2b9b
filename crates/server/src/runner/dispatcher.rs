//! Gives waiting tasks to proxies as slots get free. Which task gets which slot is decided by `engine::dispatch`; the
//! reasons that people see come from `engine::selection`.

use super::actions::record;
use super::book::{Happening, OpenTask};
use super::explain;
use crate::infrastructure::{Snapshot, snapshot};
use crate::server::Server;
use crate::store::StoreError;
use crate::store::sessions::TaskRow;
use jiff::Timestamp;
use lull_api::session::EventKind;
use lull_engine::dispatch::{SPILL_AFTER_MS, Situation, WaitingTask, dispatch};
use lull_engine::ids::{JobId, ServerId, TaskId};
use lull_engine::infrastructure::{ManagedServer, ServerState, Vm};
use lull_engine::selection::{Request, Tier, select};
use lull_engine::session::{TaskEvent, TaskState};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Longest sleep between two looks at the queue.
const LOOK_MS_MAX: u64 = 30_000;
/// Pause after a failed look.
const AGAIN_MS: u64 = 1_000;

/// Looks at the queue whenever something changed, until the server takes no more work.
pub async fn run(server: &Arc<Server>) {
    let mut told = BTreeSet::new();
    while !server.stopping.is_cancelled() {
        let sleep_ms = match look(server, &mut told).await {
            Ok(sleep_ms) => sleep_ms,
            Err(error) => {
                tracing::error!(%error, "the queue cannot be looked at");
                AGAIN_MS
            }
        };
        tokio::select! {
            () = server.wake.notified() => {}
            () = server.stopping.cancelled() => {}
            () = tokio::time::sleep(Duration::from_millis(sleep_ms)) => {}
        }
    }
}

/// A waiting task with what the rules need to know of it.
struct Waiting {
    open: OpenTask,
    vm: Vm,
    since: Timestamp,
    tried: Vec<ServerId>,
}

/// One look; answers how long the next one can wait, in milliseconds.
async fn look(server: &Arc<Server>, told: &mut BTreeSet<Uuid>) -> Result<u64, StoreError> {
    let tasks = server.book.open_tasks().await;
    if !tasks.iter().any(|task| matches!(task.row.state, TaskState::Waiting { .. })) {
        return Ok(LOOK_MS_MAX);
    }
    let infrastructure = snapshot(server).await?;
    let held: BTreeMap<Uuid, i64> = tasks
        .iter()
        .filter(|task| !matches!(task.row.state, TaskState::Waiting { .. }))
        .map(|task| (task.row.vm, task.row.session))
        .collect();
    let vms: BTreeMap<Uuid, &Vm> = infrastructure.vms.iter().map(|vm| (vm.id.0, vm)).collect();
    let mut queue = Vec::new();
    for open in &tasks {
        let TaskState::Waiting { since, tried, .. } = &open.row.state else { continue };
        if let Some(other) = held.get(&open.row.vm) {
            if told.insert(open.row.id) {
                tell_waiting(server, open, *other).await;
            }
            continue;
        }
        let Some(vm) = vms.get(&open.row.vm) else {
            nobody(server, open, "the VM is no longer in the infrastructure".into(), None).await;
            continue;
        };
        let task = Waiting { open: open.clone(), vm: (*vm).clone(), since: *since, tried: tried.clone() };
        if open.row.work.in_guest() {
            queue.push(task);
        } else {
            without_guest(server, &infrastructure, &task).await;
        }
    }
    let running = running_per_job(&tasks);
    Ok(assign(server, &infrastructure, &queue, &running).await)
}

fn running_per_job(tasks: &[OpenTask]) -> BTreeMap<JobId, u32> {
    let mut running = BTreeMap::new();
    for task in tasks {
        if matches!(task.row.state, TaskState::Dispatched { .. } | TaskState::Running { .. }) {
            *running.entry(task.row.work.job).or_default() += 1;
        }
    }
    running
}

async fn assign(
    server: &Arc<Server>,
    infrastructure: &Snapshot,
    queue: &[Waiting],
    running_per_job: &BTreeMap<JobId, u32>,
) -> u64 {
    let waiting: Vec<WaitingTask> = queue
        .iter()
        .map(|task| WaitingTask {
            task: TaskId(task.open.row.id),
            job: task.open.row.work.job,
            vm: &task.vm,
            credential: task.open.row.work.credential_kind,
            policy: &task.open.row.work.settings.proxies,
            tried: &task.tried,
            waiting_since: task.since,
        })
        .collect();
    let situation = Situation {
        servers: &infrastructure.servers,
        licence: infrastructure.licence,
        rules: infrastructure.rules,
        failures: &infrastructure.failures,
        running_per_job,
        spill_after_ms: SPILL_AFTER_MS,
    };
    let plan = dispatch(&situation, &waiting, infrastructure.now);
    let by_id: BTreeMap<Uuid, &Waiting> = queue.iter().map(|task| (task.open.row.id, task)).collect();
    let find = |id: TaskId| by_id.get(&id.0).copied();
    for assignment in &plan.assignments {
        let to = infrastructure.servers.iter().find(|s| s.id == assignment.server);
        if let (Some(task), Some(to)) = (find(assignment.task), to) {
            give(server, infrastructure, task, to, assignment.tier).await;
        }
    }
    for task in plan.unservable.iter().filter_map(|id| find(*id)) {
        let decision = select(&request(infrastructure, task));
        if task.open.row.work.may_leave_alone() {
            without_guest_after_all(server, infrastructure, task, &decision.to_string()).await;
            continue;
        }
        let explanation = explain::explanation(&decision, &infrastructure.servers);
        let told = EventKind::ProxyChosen { explanation };
        nobody(server, &task.open, decision.to_string(), Some(told)).await;
    }
    let next = plan.waiting.iter().map(|task| task.next_tier_at).min();
    next.map_or(LOOK_MS_MAX, |at| {
        let ms = at.duration_since(infrastructure.now).as_millis().clamp(1, i128::from(LOOK_MS_MAX));
        u64::try_from(ms).unwrap_or(LOOK_MS_MAX)
    })
}

fn request<'a>(infrastructure: &'a Snapshot, task: &'a Waiting) -> Request<'a> {
    Request {
        vm: &task.vm,
        credential: task.open.row.work.credential_kind,
        policy: &task.open.row.work.settings.proxies,
        licence: infrastructure.licence,
        rules: infrastructure.rules,
        servers: &infrastructure.servers,
        failures: &infrastructure.failures,
        tried: &task.tried,
        now: infrastructure.now,
    }
}

async fn give(server: &Arc<Server>, infrastructure: &Snapshot, task: &Waiting, to: &ManagedServer, tier: Tier) {
    let decision = select(&request(infrastructure, task));
    let mut explanation = explain::explanation(&decision, &infrastructure.servers);
    if decision.chosen.is_none_or(|chosen| chosen.server != to.id) {
        explanation = explain::spilled(explanation, to, tier);
    }
    hand_over(server, &task.open, to.id, EventKind::ProxyChosen { explanation }).await;
}

/// A backup without guest processing goes to the backup server as soon as that has a free slot.
async fn without_guest(server: &Arc<Server>, infrastructure: &Snapshot, task: &Waiting) {
    let Some(to) = infrastructure.servers.iter().find(|server| server.is_backup_server) else { return };
    let explanation = explain::without_guest(&task.vm.name, to, task.open.row.work.left_alone.as_deref());
    if task.tried.contains(&to.id) || to.state != ServerState::Online {
        let cause = "the backup server's own proxy is not online or has failed".to_string();
        return nobody(server, &task.open, cause, None).await;
    }
    // Counted anew: tasks given away in this look take slots too.
    if server.proxies.running(to.id.0) < to.slots {
        hand_over(server, &task.open, to.id, EventKind::ProxyChosen { explanation }).await;
    }
}

/// No proxy can serve the guest, and the backup goes on without it: the backup server's own proxy needs no way there.
async fn without_guest_after_all(server: &Arc<Server>, infrastructure: &Snapshot, task: &Waiting, why: &str) {
    let why: Vec<&str> = why.lines().map(str::trim).collect();
    let because = format!("no guest interaction proxy can serve the VM: {}", why.join("; "));
    if let Err(error) = server.book.leave_guest_alone(task.open.row.id, &because, infrastructure.now).await {
        // It waits, and is looked at again.
        tracing::error!(%error, vm = task.open.row.vm_name, "what becomes of the task cannot be recorded");
        return;
    }
    let Some(open) = server.book.open_task(task.open.row.id).await else { return };
    let task = Waiting { open, vm: task.vm.clone(), since: task.since, tried: task.tried.clone() };
    without_guest(server, infrastructure, &task).await;
}

/// Whether another proxy could take a task over from the one that has it, as things are.
pub async fn another_could(server: &Arc<Server>, task: &TaskRow, proxy: Uuid) -> Result<bool, StoreError> {
    let infrastructure = snapshot(server).await?;
    let Some(vm) = infrastructure.vms.iter().find(|vm| vm.id.0 == task.vm) else { return Ok(false) };
    let Some(open) = server.book.open_task(task.id).await else { return Ok(false) };
    let mut tried = match &open.row.state {
        TaskState::Dispatched { hold } | TaskState::Running { hold, .. } => hold.tried.clone(),
        TaskState::Waiting { .. } | TaskState::Recovering { .. } | TaskState::Finished { .. } => Vec::new(),
    };
    tried.push(ServerId(proxy));
    let task = Waiting { vm: vm.clone(), since: infrastructure.now, tried, open };
    Ok(select(&request(&infrastructure, &task)).chosen.is_some())
}

async fn hand_over(server: &Arc<Server>, open: &OpenTask, proxy: ServerId, told: EventKind) {
    let work = &open.row.work;
    let left = if work.in_guest() { server.store.left_in_guest(open.row.vm).await } else { Ok(None) };
    let left = match left {
        Ok(left) => left,
        Err(error) => {
            tracing::error!(%error, vm = open.row.vm_name, "the task waits, since its VM's last one cannot be read");
            return;
        }
    };
    let told = match &left {
        Some(left) if left.is_due(&open.row.state) => {
            let text = format!("an earlier task on this VM left something, which is seen to first: {}", left.owed);
            EventKind::Note { level: "warning".into(), text }
        }
        _ => told,
    };
    let partial_file = work.backup.as_ref().map(|backup| backup.repository_dir.clone());
    let post_script = work.post_script().map(|_| TaskId(open.row.id));
    let dispatch = TaskEvent::Dispatch { proxy, partial_file, post_script, left };
    record(server, open.row.id, Happening { told: vec![told], ..Happening::event(dispatch) }).await;
}

async fn nobody(server: &Arc<Server>, open: &OpenTask, cause: String, told: Option<EventKind>) {
    let happening = Happening { told: told.into_iter().collect(), ..Happening::event(TaskEvent::NoProxy { cause }) };
    record(server, open.row.id, happening).await;
}

async fn tell_waiting(server: &Arc<Server>, open: &OpenTask, other: i64) {
    let text = format!("waits: session {other} on {} is being recovered", open.row.vm_name);
    let told = vec![EventKind::Note { level: "info".into(), text }];
    record(server, open.row.id, Happening { told, ..Default::default() }).await;
}
