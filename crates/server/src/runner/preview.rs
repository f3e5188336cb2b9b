//! What would become of a job's VMs if it ran now and nothing else did: the dispatcher's own plan, asked turn by turn. Runs nothing.
//!
//! In each turn the free slots are given away as [`lull_engine::dispatch`] does it; then all tasks of that turn end at once. So the first
//! turn is what would happen, and the later ones show how the rest would be shared out among proxies of different sizes.

use super::{explain, limits};
use crate::infrastructure::Snapshot;
use lull_api::proxy_tier::{JobPreview, ProxyShare, VmPreview};
use lull_engine::dispatch::{Because, Limits, SPILL_AFTER_MS, Situation, WaitingTask, dispatch};
use lull_engine::ids::{RepositoryId, ServerId, SessionId, TaskId, VmId};
use lull_engine::infrastructure::{ManagedServer, ServerState, Vm};
use lull_engine::job::{BackupAction, Job, TaskSpec, plan};
use lull_engine::selection::{Request, Tier, feasible, feasible_as_fallback, select};
use lull_engine::settings::ApplicationAware;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// After so many turns the rest is shared out at once: a preview of very many VMs behind few slots must not take minutes.
const TURNS_MAX: u32 = 64;
/// For so many VMs that nobody can serve the reason against each server is told.
const EXPLAINED_MAX: usize = 100;

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

    let (alone, in_guest): (Vec<&TaskSpec>, Vec<&TaskSpec>) =
        planned.tasks.iter().partition(|task| task.settings.application_aware == ApplicationAware::Disabled);
    for task in alone {
        found.insert(task.id, shares.without_guest(task, "guest processing is disabled"));
    }
    let mut waiting: Vec<&TaskSpec> = in_guest;
    let mut explained = 0;
    for turn in 1.. {
        let Some(served) = one_turn(turn, &waiting, &vms, infrastructure, &mut shares, &mut explained) else { break };
        if served.is_empty() {
            // Nobody is left, or nobody has a slot.
            break;
        }
        let done: BTreeSet<TaskId> = served.iter().map(|(task, _)| *task).collect();
        waiting.retain(|task| !done.contains(&task.id));
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

    fn give(&mut self, server: ServerId, tier: Option<Tier>, turn: u32) {
        let given = self.given.entry(server).or_default();
        given.tasks += 1;
        given.at_once += u32::from(turn == 1);
        if let Some(tier) = tier {
            given.by_tier[usize::from(tier.number() - 1)] += 1;
        }
    }

    /// A backup that leaves the guest alone is the backup server's, which needs no way there.
    fn without_guest(&mut self, task: &TaskSpec, because: &str) -> VmPreview {
        let own = self.servers.iter_mut().find(|server| server.is_backup_server);
        let Some(own) = own.filter(|own| own.state == ServerState::Online && own.slots > 0) else {
            let why = format!("{because}, and the backup server's own proxy takes no tasks");
            return nobody(task, why, Vec::new());
        };
        let turn = 1 + own.running_tasks / own.slots;
        own.running_tasks += 1;
        let (id, name) = (own.id, own.name.clone());
        self.give(id, None, turn);
        VmPreview {
            vm: task.vm_name.clone(),
            proxy: Some(name),
            tier: None,
            channel: None,
            turn,
            why: format!("no proxy is needed to reach the guest: {because}"),
            reasons: Vec::new(),
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

/// One turn: who begins now, and who can never begin. `None` once nobody waits.
fn one_turn(
    turn: u32,
    waiting: &[&TaskSpec],
    vms: &BTreeMap<VmId, &Vm>,
    infrastructure: &Snapshot,
    shares: &mut Shares,
    explained: &mut usize,
) -> Option<Vec<(TaskId, VmPreview)>> {
    if waiting.is_empty() {
        return None;
    }
    if turn > 1 {
        // What ran before is over; at the end, what each had already counts, and slots no longer do.
        for server in &mut shares.servers {
            server.running_tasks = 0;
            if turn > TURNS_MAX && server.slots > 0 {
                server.running_tasks = shares.given.get(&server.id).map_or(0, |given| given.tasks);
                server.slots = u32::MAX;
            }
        }
    }
    let queue: Vec<WaitingTask> = waiting
        .iter()
        .filter_map(|task| {
            Some(WaitingTask {
                task: task.id,
                job: task.job,
                vm: vms.get(&task.vm)?,
                credential: task.credential_kind,
                policy: &task.settings.proxies,
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
        running_per_host: &BTreeMap::new(),
        running_per_repository: &BTreeMap::new(),
        spill_after_ms: SPILL_AFTER_MS,
    };
    let plan = dispatch(&situation, &queue, infrastructure.now);
    for waiting in &plan.waiting {
        if waiting.because != Because::Slots && !shares.held_up.contains(&waiting.because) {
            shares.held_up.push(waiting.because);
        }
    }
    let by_id: BTreeMap<TaskId, &TaskSpec> = waiting.iter().map(|task| (task.id, *task)).collect();
    let mut served = Vec::new();
    for assignment in &plan.assignments {
        let (Some(task), Some(server)) = (by_id.get(&assignment.task), shares.server(assignment.server)) else {
            continue;
        };
        let Some(vm) = vms.get(&task.vm) else { continue };
        let request = request(task, vm, infrastructure, &servers);
        let own = feasible(server, &request);
        let stood_in = own.is_err();
        let channel = own.or_else(|_| feasible_as_fallback(server, &request)).ok();
        let mut why = explain::words(assignment.tier);
        if stood_in {
            why.push_str("; none of the preferred servers can serve it, so the backup server takes over");
        }
        if assignment.recently_failed {
            why.push_str("; it failed with this VM lately, and nobody else is better");
        }
        let preview = VmPreview {
            vm: task.vm_name.clone(),
            proxy: Some(server.name.clone()),
            tier: Some(assignment.tier.number()),
            channel: channel.map(|channel| channel.to_string()),
            turn,
            why,
            reasons: Vec::new(),
        };
        shares.give(assignment.server, Some(assignment.tier), turn);
        served.push((assignment.task, preview));
    }
    for id in &plan.unservable {
        let Some(task) = by_id.get(id) else { continue };
        if task.settings.application_aware == ApplicationAware::Try {
            let because = "no guest interaction proxy can serve it, and the job tries and ignores failures";
            served.push((*id, shares.without_guest(task, because)));
            continue;
        }
        *explained += 1;
        let reasons = match vms.get(&task.vm).filter(|_| *explained <= EXPLAINED_MAX) {
            Some(vm) => reasons(&request(task, vm, infrastructure, &servers)),
            None => Vec::new(),
        };
        served.push((*id, nobody(task, "no server can serve it".into(), reasons)));
    }
    Some(served)
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

fn reasons(request: &Request) -> Vec<String> {
    let kept = explain::kept(&select(request), request.servers);
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
