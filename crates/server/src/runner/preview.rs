//! What would become of a job's VMs if it ran now and nothing else did: the dispatcher's own plan, asked turn by turn. Runs nothing.
//!
//! In each turn the free slots are given away as [`lull_engine::dispatch`] does it; then all tasks of that turn end at once. So the first
//! turn is what would happen, and the later ones show how the rest would be shared out among proxies of different sizes.

use super::explain;
use super::limits::{self, Running};
use crate::infrastructure::Snapshot;
use lull_api::proxy_tier::{JobPreview, ProxyShare, VmPreview};
use lull_engine::dispatch::{Because, Limits, SPILL_AFTER_MS, Situation, WaitingTask, dispatch};
use lull_engine::ids::{RepositoryId, ServerId, SessionId, TaskId, VmId};
use lull_engine::infrastructure::{ChannelKind, ManagedServer, ServerState, Vm};
use lull_engine::job::{BackupAction, Job, TaskSpec, plan};
use lull_engine::selection::{Request, Tier, feasible, feasible_as_fallback, nobody_without_guest, select};
use lull_engine::settings::ApplicationAware;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// After so many turns the rest is shared out at once: a preview of very many VMs behind few slots must not take minutes.
const TURNS_MAX: u32 = 64;
/// For so many VMs that nobody can serve the reason against each server is told.
const EXPLAINED_MAX: usize = 100;
/// Why the guest of a VM that nobody can serve is left alone.
const TRIED: &str = "no guest interaction proxy can serve it, and the job tries and ignores failures";

/// The preview of a job. `notes` are put before its own; `name` says how a host or a repository is called.
pub fn preview(job: &Job, infrastructure: &Snapshot, notes: Vec<String>, name: impl Fn(Uuid) -> String) -> JobPreview {
    let mut number = 0;
    let planned = plan(job, SessionId(1), &infrastructure.vms, &infrastructure.credentials, || {
        number += 1;
        TaskId(Uuid::from_u128(number))
    });
    let vms: BTreeMap<VmId, &Vm> = infrastructure.vms.iter().map(|vm| (vm.id, vm)).collect();
    let idle = infrastructure.servers.iter().cloned().map(|server| ManagedServer { running_tasks: 0, ..server });
    let mut shares = Shares { servers: idle.collect(), given: BTreeMap::new(), held_up: Vec::new() };
    let mut found: BTreeMap<TaskId, VmPreview> = BTreeMap::new();

    let alone = |task: &TaskSpec| task.settings.application_aware == ApplicationAware::Disabled;
    let waits = |task| Waits { task, left_alone: alone(task).then_some(explain::DISABLED) };
    let mut waiting: Vec<Waits> = planned.tasks.iter().map(waits).collect();
    let mut explained = 0;
    for turn in 1.. {
        if waiting.is_empty() {
            break;
        }
        shares.begin(turn);
        let mut running = Running::default();
        let mut served = one_look(turn, &mut waiting, &vms, infrastructure, &mut shares, &mut running, &mut explained);
        if waiting.iter().any(|waits| waits.left_alone == Some(TRIED)) {
            // Whose guest is left alone from now on gets what the others left, as by the dispatcher's next look.
            served.extend(one_look(
                turn,
                &mut waiting,
                &vms,
                infrastructure,
                &mut shares,
                &mut running,
                &mut explained,
            ));
        }
        if served.is_empty() {
            // Nobody is left, or nobody has a slot.
            break;
        }
        found.extend(served);
    }

    let mut notes = notes;
    if !planned.gone.is_empty() {
        let gone: Vec<String> = planned.gone.iter().map(VmId::to_string).collect();
        notes.push(format!("no longer in the infrastructure, and not protected: {}", gone.join(", ")));
    }
    let later = found.values().filter(|vm| vm.turn > 1).count();
    if later > 0 {
        notes.push(format!(
            "{later} VMs wait at first. A task that waited {} s for a slot may go to a server of its next tier, which is not \
             foreseen here",
            SPILL_AFTER_MS / 1_000
        ));
    }
    notes.extend(shares.held_up.iter().filter_map(|because| limits::sentence(*because, &name)));
    let vms = planned.tasks.iter().filter_map(|task| found.remove(&task.id)).collect();
    JobPreview { job: job.name.clone(), vms, proxies: shares.shown(), notes }
}

/// A task that is not given away yet.
#[derive(Clone, Copy)]
struct Waits<'a> {
    task: &'a TaskSpec,
    /// Nothing is done in its guest, and why.
    left_alone: Option<&'static str>,
}

/// Who gets what.
struct Shares {
    /// With what the plan so far has given them, as long as that counts.
    servers: Vec<ManagedServer>,
    given: BTreeMap<ServerId, Given>,
    /// Limits that held tasks up.
    held_up: Vec<Because>,
}

#[derive(Default)]
struct Given {
    tasks: u32,
    at_once: u32,
    by_tier: [u32; 4],
}

impl Shares {
    fn server(&self, id: ServerId) -> Option<&ManagedServer> {
        self.servers.iter().find(|server| server.id == id)
    }

    /// What ran in the turn before is over; at the end, what each had already counts, and slots no longer do.
    fn begin(&mut self, turn: u32) {
        for server in &mut self.servers {
            server.running_tasks = 0;
            if turn > TURNS_MAX && server.slots > 0 {
                server.running_tasks = self.given.get(&server.id).map_or(0, |given| given.tasks);
                server.slots = u32::MAX;
            }
        }
    }

    fn give(&mut self, server: ServerId, tier: Option<Tier>, turn: u32) {
        let given = self.given.entry(server).or_default();
        given.tasks += 1;
        given.at_once += u32::from(turn == 1);
        for known in self.servers.iter_mut().filter(|known| known.id == server) {
            known.running_tasks += 1;
        }
        if let Some(tier) = tier {
            given.by_tier[usize::from(tier.number() - 1)] += 1;
        }
    }

    fn shown(mut self) -> Vec<ProxyShare> {
        let mut shares: Vec<ProxyShare> = Vec::new();
        for server in &self.servers {
            let Given { tasks, at_once, by_tier } = self.given.remove(&server.id).unwrap_or_default();
            shares.push(ProxyShare {
                proxy: server.name.clone(),
                state: state(server).into(),
                tasks,
                at_once,
                slots: server.slots,
                by_tier: by_tier.to_vec(),
            });
        }
        shares.sort_by(|a, b| b.tasks.cmp(&a.tasks).then_with(|| a.proxy.cmp(&b.proxy)));
        shares
    }
}

/// One look of the dispatcher's: who begins now, and who can never begin; neither waits any more.
fn one_look(
    turn: u32,
    waiting: &mut Vec<Waits>,
    vms: &BTreeMap<VmId, &Vm>,
    infrastructure: &Snapshot,
    shares: &mut Shares,
    running: &mut Running,
    explained: &mut usize,
) -> Vec<(TaskId, VmPreview)> {
    let queue: Vec<WaitingTask> = waiting
        .iter()
        .filter_map(|Waits { task, left_alone }| {
            Some(WaitingTask {
                task: task.id,
                job: task.job,
                vm: vms.get(&task.vm)?,
                credential: task.credential_kind,
                policy: &task.settings.proxies,
                in_guest: left_alone.is_none(),
                at_hypervisor: true,
                repository: repository(task),
                tried: &[],
                waiting_since: infrastructure.now,
                held_up_at: None,
            })
        })
        .collect();
    let servers = shares.servers.clone();
    let unlimited = Limits::default();
    let situation = Situation {
        servers: &servers,
        licence: infrastructure.licence,
        rules: infrastructure.rules,
        failures: &infrastructure.failures,
        running_per_job: &BTreeMap::new(),
        // In the last turn of all the rest is shared out as if there were room.
        limits: if turn > TURNS_MAX { &unlimited } else { &infrastructure.limits },
        running_per_host: &running.hosts,
        running_per_repository: &running.repositories,
        spill_after_ms: SPILL_AFTER_MS,
    };
    let plan = dispatch(&situation, &queue, infrastructure.now);
    for waiting in &plan.waiting {
        if waiting.because != Because::Slots && !shares.held_up.contains(&waiting.because) {
            shares.held_up.push(waiting.because);
        }
    }
    let by_id: BTreeMap<TaskId, Waits> = waiting.iter().map(|waits| (waits.task.id, *waits)).collect();
    let mut served = BTreeMap::new();
    for assignment in &plan.assignments {
        let Some(Waits { task, left_alone }) = by_id.get(&assignment.task) else { continue };
        let (Some(vm), Some(server)) = (vms.get(&task.vm), shares.server(assignment.server)) else { continue };
        let request = request(task, vm, infrastructure, &servers);
        let (why, channel) = match (assignment.tier, left_alone) {
            (Some(tier), _) => why(server, &request, tier, assignment.recently_failed),
            (None, because) => (explain::why_without_guest(&request, server, because.unwrap_or_default()), None),
        };
        let preview = VmPreview {
            vm: task.vm_name.clone(),
            proxy: Some(server.name.clone()),
            tier: assignment.tier.map(Tier::number),
            channel: channel.map(|channel| channel.to_string()),
            turn,
            why,
            reasons: Vec::new(),
        };
        shares.give(assignment.server, assignment.tier, turn);
        running.take(Some(vm.host), repository(task));
        served.insert(assignment.task, preview);
    }
    let mut left_alone = BTreeSet::new();
    for id in &plan.unservable {
        let Some(waits) = by_id.get(id) else { continue };
        let task = waits.task;
        if waits.left_alone.is_none() && task.settings.application_aware == ApplicationAware::Try {
            left_alone.insert(*id);
            continue;
        }
        *explained += 1;
        let reasons = match vms.get(&task.vm).filter(|_| *explained <= EXPLAINED_MAX) {
            Some(vm) => reasons(&request(task, vm, infrastructure, &servers), waits.left_alone.is_none()),
            None => Vec::new(),
        };
        let why = match waits.left_alone {
            None => "no server can serve it".into(),
            Some(because) => format!("{because}, and no server can make the backup"),
        };
        served.insert(*id, nobody(task, why, reasons));
    }
    waiting.retain(|waits| !served.contains_key(&waits.task.id));
    for waits in waiting.iter_mut().filter(|waits| left_alone.contains(&waits.task.id)) {
        waits.left_alone = Some(TRIED);
    }
    served.into_iter().collect()
}

/// Why this server, and over which channel.
fn why(server: &ManagedServer, request: &Request, tier: Tier, recently_failed: bool) -> (String, Option<ChannelKind>) {
    let own = feasible(server, request);
    let mut why = explain::words(tier);
    if own.is_err() {
        why.push_str("; none of the preferred servers can serve it, so the backup server takes over");
    }
    if recently_failed {
        why.push_str("; it failed with this VM lately, and nobody else is better");
    }
    (why, own.or_else(|_| feasible_as_fallback(server, request)).ok())
}

fn request<'a>(
    task: &'a TaskSpec,
    vm: &'a Vm,
    infrastructure: &'a Snapshot,
    servers: &'a [ManagedServer],
) -> Request<'a> {
    Request {
        vm,
        credential: task.credential_kind,
        policy: &task.settings.proxies,
        at_hypervisor: true,
        licence: infrastructure.licence,
        rules: infrastructure.rules,
        servers,
        failures: &infrastructure.failures,
        tried: &[],
        now: infrastructure.now,
    }
}

fn reasons(request: &Request, in_guest: bool) -> Vec<String> {
    let decision = if in_guest { select(request) } else { nobody_without_guest(request) };
    let kept = explain::kept(&decision, request.servers);
    let listed = kept.candidates.into_iter().map(|candidate| format!("{}: {}", candidate.name, candidate.reason));
    let more = kept.more.into_iter().map(|more| format!("{} more: {}", more.servers, more.reason));
    listed.chain(more).collect()
}

fn nobody(task: &TaskSpec, why: String, reasons: Vec<String>) -> VmPreview {
    VmPreview { vm: task.vm_name.clone(), proxy: None, tier: None, channel: None, turn: 0, why, reasons }
}

fn repository(task: &TaskSpec) -> Option<RepositoryId> {
    match task.action {
        BackupAction::Backup { repository, .. } => Some(repository),
        BackupAction::Command { .. } => None,
    }
}

/// A server's state in one word.
pub fn state(server: &ManagedServer) -> &'static str {
    match server.state {
        _ if !server.role_enabled => "disabled",
        ServerState::Online => "online",
        ServerState::Offline { .. } | ServerState::NeverConnected => "offline",
        ServerState::Draining => "draining",
        ServerState::Disabled => "disabled",
        ServerState::Incompatible { .. } => "incompatible",
        ServerState::Revoked => "revoked",
    }
}
