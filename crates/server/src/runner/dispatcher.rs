//! Gives waiting tasks to proxies as slots get free. Which task gets which slot is decided by `engine::dispatch`; the
//! reasons that people see come from `engine::selection`.

use super::actions::record;
use super::book::{Happening, OpenTask};
use super::explain::{self, Nobody};
use super::limits::{self, Running};
use crate::infrastructure::{Snapshot, snapshot, snapshot_with};
use crate::server::Server;
use crate::store::StoreError;
use crate::store::sessions::TaskRow;
use futures::future::join_all;
use jiff::Timestamp;
use lull_api::session::EventKind;
use lull_engine::dispatch::{Because, SPILL_AFTER_MS, Situation, WaitingTask, dispatch};
use lull_engine::ids::{JobId, ServerId, TaskId};
use lull_engine::infrastructure::{ManagedServer, Vm};
use lull_engine::selection::{Request, Tier, nobody_without_guest, select};
use lull_engine::session::{TaskEvent, TaskState};
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

/// Longest sleep between two looks at the queue.
const LOOK_MS_MAX: u64 = 30_000;
/// After a look the dispatcher rests so many times as long as it took, at most for so long.
const REST: u32 = 4;
const REST_MAX: Duration = Duration::from_millis(500);
/// Orders that may be on their way at a time, for each processor.
const ON_THE_WAY_PER_CORE: usize = 2;
/// An order counts as on its way for so long.
const ON_THE_WAY: Duration = Duration::from_millis(500);
/// Pause after a failed look.
const AGAIN_MS: u64 = 1_000;

/// Looks at the queue whenever something changed, until the server takes no more work.
pub async fn run(server: &Arc<Server>) {
    gather(server).await;
    let mut told = Told::default();
    while !server.stopping.is_cancelled() {
        let begun = Instant::now();
        let sleep_ms = match look(server, &mut told).await {
            Ok(sleep_ms) => sleep_ms,
            Err(error) => {
                tracing::error!(%error, "the queue cannot be looked at");
                AGAIN_MS
            }
        };
        // What changes meanwhile is looked at together: a long queue must not take the time from its tasks.
        tokio::select! {
            () = server.stopping.cancelled() => {}
            () = tokio::time::sleep((begun.elapsed() * REST).min(REST_MAX)) => {}
        }
        tokio::select! {
            () = server.wake.notified() => {}
            () = server.stopping.cancelled() => {}
            () = tokio::time::sleep(Duration::from_millis(sleep_ms)) => {}
        }
    }
}

/// After a start, known proxies have a while to come back: tasks of before would all go to those who are quick.
async fn gather(server: &Arc<Server>) {
    let back = async {
        for link in server.proxies.all().iter().filter(|link| !link.health().revoked) {
            link.online().await;
        }
    };
    let within = Duration::from_millis(server.pace.gather_ms);
    tokio::select! {
        back = tokio::time::timeout(within, back) => if back.is_err() {
            tracing::warn!("not all proxies came back; tasks go to those who did");
        },
        () = server.stopping.cancelled() => {}
    }
}

/// What people were told once already, and since when limits did not hold a task up.
#[derive(Default)]
struct Told {
    recovering: BTreeSet<Uuid>,
    held_up: BTreeMap<Uuid, Timestamp>,
}

/// A waiting task with what the rules need to know of it.
struct Waiting {
    open: OpenTask,
    vm: Vm,
    since: Timestamp,
    tried: Vec<ServerId>,
}

/// One look; answers how long the next one can wait, in milliseconds.
async fn look(server: &Arc<Server>, told: &mut Told) -> Result<u64, StoreError> {
    let tasks = server.book.open_tasks().await;
    if !tasks.iter().any(|task| matches!(task.row.state, TaskState::Waiting { .. })) {
        return Ok(LOOK_MS_MAX);
    }
    let mut infrastructure = snapshot(server).await?;
    let held: BTreeMap<Uuid, i64> = tasks
        .iter()
        .filter(|task| !matches!(task.row.state, TaskState::Waiting { .. }))
        .map(|task| (task.row.vm, task.row.session))
        .collect();
    let vms: BTreeMap<Uuid, &Vm> = infrastructure.vms.iter().map(|vm| (vm.id.0, vm)).collect();
    let running = Running::count(&tasks, &vms);
    let open_ids: BTreeSet<Uuid> = tasks.iter().map(|open| open.row.id).collect();
    told.held_up.retain(|task, _| open_ids.contains(task));
    told.recovering.retain(|task| open_ids.contains(task));
    let mut queue = Vec::new();
    for open in &tasks {
        let TaskState::Waiting { since, tried, .. } = &open.row.state else { continue };
        if let Some(other) = held.get(&open.row.vm) {
            if told.recovering.insert(open.row.id) {
                tell_waiting(server, open, *other).await;
            }
            continue;
        }
        let Some(vm) = vms.get(&open.row.vm) else {
            nobody(server, open, explain::vm_gone(), None).await;
            continue;
        };
        queue.push(Waiting { open: open.clone(), vm: (*vm).clone(), since: *since, tried: tried.clone() });
    }
    let per_job = running_per_job(&tasks);
    let room = room_on_the_way(&tasks, infrastructure.now);
    Ok(assign(server, &mut infrastructure, &queue, &per_job, &running, room, told).await)
}

/// How many more orders may be on their way. The choice is made when the order can go out, with what is known by then; those who
/// began, and those who let others wait too long, do not count.
fn room_on_the_way(tasks: &[OpenTask], now: Timestamp) -> usize {
    let on_the_way = tasks.iter().filter(|task| match &task.row.state {
        TaskState::Dispatched { hold } => now.duration_since(hold.since).unsigned_abs() < ON_THE_WAY,
        _ => false,
    });
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    (cores * ON_THE_WAY_PER_CORE).saturating_sub(on_the_way.count())
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
    infrastructure: &mut Snapshot,
    queue: &[Waiting],
    running_per_job: &BTreeMap<JobId, u32>,
    running: &Running,
    room: usize,
    told: &mut Told,
) -> u64 {
    let waiting: Vec<WaitingTask> = queue
        .iter()
        .map(|task| WaitingTask {
            task: TaskId(task.open.row.id),
            job: task.open.row.work.job,
            vm: &task.vm,
            credential: task.open.row.work.credential_kind,
            policy: &task.open.row.work.settings.proxies,
            in_guest: task.open.row.work.in_guest(),
            at_hypervisor: task.open.row.work.backup.is_some(),
            repository: limits::repository(&task.open),
            held_up_at: told.held_up.get(&task.open.row.id).copied(),
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
        limits: &infrastructure.limits,
        running_per_host: &running.hosts,
        running_per_repository: &running.repositories,
        spill_after_ms: SPILL_AFTER_MS,
    };
    let plan = dispatch(&situation, &waiting, infrastructure.now);
    let by_id: BTreeMap<Uuid, &Waiting> = queue.iter().map(|task| (task.open.row.id, task)).collect();
    let find = |id: TaskId| by_id.get(&id.0).copied();
    let mut given = Vec::new();
    for assignment in plan.assignments.iter().take(room) {
        let to = infrastructure.servers.iter().position(|s| s.id == assignment.server);
        if let (Some(task), Some(to)) = (find(assignment.task), to) {
            let told = match assignment.tier {
                Some(tier) => chosen(infrastructure, task, &infrastructure.servers[to], tier),
                None => chosen_without_guest(infrastructure, task, &infrastructure.servers[to]),
            };
            given.push(hand_over(server, &task.open, assignment.server, told));
            // The words of the next choice count it, as the plan did.
            infrastructure.servers[to].running_tasks += 1;
        }
    }
    join_all(given).await;
    for task in plan.unservable.iter().filter_map(|id| find(*id)) {
        let request = request(infrastructure, task);
        let work = &task.open.row.work;
        let decision = if work.in_guest() { select(&request) } else { nobody_without_guest(&request) };
        let why = explain::nobody(&decision, task.open.row.session, work.in_guest());
        if work.in_guest() && work.may_leave_alone() {
            leave_guest_alone(server, infrastructure, task, &why.cause).await;
            continue;
        }
        let explanation = explain::kept(&decision, &infrastructure.servers);
        let told = EventKind::ProxyChosen { explanation };
        nobody(server, &task.open, why, Some(told)).await;
    }
    let limited = plan.waiting.iter().filter(|waiting| waiting.because != Because::Slots);
    let limited = limited.filter_map(|waiting| Some((find(waiting.task)?.open.clone(), waiting.because)));
    held_up(server, told, limited.collect(), infrastructure.now).await;
    if plan.assignments.len() > room {
        return ON_THE_WAY.as_millis() as u64;
    }
    // What a limit holds up is looked at when something ends.
    let for_slots = plan.waiting.iter().filter(|waiting| waiting.because == Because::Slots);
    let next = for_slots.map(|waiting| waiting.next_tier_at).min();
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
        at_hypervisor: task.open.row.work.backup.is_some(),
        licence: infrastructure.licence,
        rules: infrastructure.rules,
        servers: &infrastructure.servers,
        failures: &infrastructure.failures,
        tried: &task.tried,
        now: infrastructure.now,
    }
}

fn chosen(infrastructure: &Snapshot, task: &Waiting, to: &ManagedServer, tier: Tier) -> EventKind {
    let decision = select(&request(infrastructure, task));
    let mut explanation = explain::kept(&decision, &infrastructure.servers);
    if decision.chosen.is_none_or(|chosen| chosen.server != to.id) {
        explanation = explain::spilled(explanation, to, tier);
    }
    EventKind::ProxyChosen { explanation }
}

fn chosen_without_guest(infrastructure: &Snapshot, task: &Waiting, to: &ManagedServer) -> EventKind {
    let because = task.open.row.work.left_alone.as_deref().unwrap_or(explain::DISABLED);
    let explanation = explain::without_guest(&request(infrastructure, task), to, because);
    EventKind::ProxyChosen { explanation }
}

/// No proxy can serve the guest, and the backup goes on without it. The next look gives it away, when limits and slots let it.
async fn leave_guest_alone(server: &Arc<Server>, infrastructure: &Snapshot, task: &Waiting, why: &str) {
    if let Err(error) = server.book.leave_guest_alone(task.open.row.id, why, infrastructure.now).await {
        // It waits, and is looked at again.
        tracing::error!(%error, vm = task.open.row.vm_name, "what becomes of the task cannot be recorded");
        return;
    }
    server.wake.notify_one();
}

/// Whether another proxy could take a task over from the one that has it, as things are.
pub async fn another_could(server: &Arc<Server>, task: &TaskRow, proxy: Uuid) -> Result<bool, StoreError> {
    let infrastructure = snapshot_with(server, |vm| vm.id == task.vm).await?;
    let Some(vm) = infrastructure.vms.first() else { return Ok(false) };
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
    let outlives_server = server.proxies.get(proxy).is_some_and(|link| !link.in_process);
    let dispatch = TaskEvent::Dispatch { proxy, partial_file, post_script, left, outlives_server };
    let happening = Happening { told: vec![told], heard: Some(0), ..Happening::event(dispatch) };
    record(server, open.row.id, happening).await;
}

async fn nobody(server: &Arc<Server>, open: &OpenTask, why: Nobody, told: Option<EventKind>) {
    let event = TaskEvent::NoProxy { cause: why.cause, remedy: why.remedy };
    let happening = Happening { told: told.into_iter().collect(), ..Happening::event(event) };
    record(server, open.row.id, happening).await;
}

/// A limit holds these tasks up: people are told so the first time, and their minute for the next tier begins anew.
async fn held_up(server: &Arc<Server>, told: &mut Told, mut limited: Vec<(OpenTask, Because)>, now: Timestamp) {
    limited.retain(|(open, _)| told.held_up.insert(open.row.id, now).is_none());
    if limited.is_empty() {
        return;
    }
    let names = match names(server).await {
        Ok(names) => names,
        Err(error) => {
            tracing::error!(%error, "names of hosts and repositories cannot be read");
            BTreeMap::new()
        }
    };
    let name = |id: Uuid| names.get(&id).cloned().unwrap_or_else(|| id.to_string());
    let told = limited.iter().filter_map(|(open, because)| {
        let sentence = limits::sentence(*because, name)?;
        let told = vec![EventKind::Note { level: "info".into(), text: format!("waits: {sentence}") }];
        Some(record(server, open.row.id, Happening { told, ..Default::default() }))
    });
    join_all(told).await;
}

/// Names of hosts and repositories.
async fn names(server: &Server) -> Result<BTreeMap<Uuid, String>, StoreError> {
    let hosts = server.store.hosts().await?.into_iter().map(|host| (host.id, host.name));
    let repositories = server.store.repositories().await?.into_iter().map(|known| (known.id, known.name));
    Ok(hosts.chain(repositories).collect())
}

async fn tell_waiting(server: &Arc<Server>, open: &OpenTask, other: i64) {
    let text = format!("waits: session {other} on {} is being recovered", open.row.vm_name);
    let told = vec![EventKind::Note { level: "info".into(), text }];
    record(server, open.row.id, Happening { told, ..Default::default() }).await;
}
