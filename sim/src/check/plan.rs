//! Whether one plan of the dispatcher's is as it must be. Knows nothing of other plans.
//!
//! Looked at: each waiting task is planned once, and nobody else's; who gets a task can serve it and has a slot; limits of hosts and
//! repositories hold; who is called unservable has nobody, who waits for a limit finds it full. Where slots are unlimited, the choice
//! is greedy: each task goes to the best tier and there to a server that runs no more than any other at that moment, the tasks given
//! away before it in this plan counted. So where the servers of a tier are equally loaded at first, one plan loads them to within one
//! of even. How even the load is *over time* does not follow: tasks end when they end.

use jiff::Timestamp;
use lull_engine::dispatch::{Because, Plan, Situation, WaitingTask};
use lull_engine::ids::TaskId;
use lull_engine::infrastructure::ManagedServer;
use lull_engine::selection::{Request, choose, feasible, feasible_as_fallback, rank};
use std::collections::{BTreeMap, BTreeSet};

/// The first thing that is wrong with the plan.
pub(crate) fn fault(
    situation: &Situation,
    queue: &[WaitingTask],
    plan: &Plan,
    now: Timestamp,
    unlimited: bool,
) -> Option<String> {
    check(situation, queue, plan, now, unlimited).err()
}

fn check(
    situation: &Situation,
    queue: &[WaitingTask],
    plan: &Plan,
    now: Timestamp,
    unlimited: bool,
) -> Result<(), String> {
    let by_id: BTreeMap<TaskId, &WaitingTask> = queue.iter().map(|waiting| (waiting.task, waiting)).collect();
    let planned = plan.assignments.iter().map(|assignment| assignment.task);
    let planned = planned.chain(plan.waiting.iter().map(|waiting| waiting.task)).chain(plan.unservable.iter().copied());
    let mut seen = BTreeSet::new();
    for task in planned {
        if !by_id.contains_key(&task) {
            return Err(format!("task {task} is planned and does not wait"));
        }
        if !seen.insert(task) {
            return Err(format!("task {task} is planned twice"));
        }
    }
    if let Some(lost) = by_id.keys().find(|task| !seen.contains(task)) {
        return Err(format!("task {lost} waits and is not in the plan"));
    }

    let mut servers = situation.servers.to_vec();
    let (mut hosts, mut into) = (situation.running_per_host.clone(), situation.running_per_repository.clone());
    for assignment in &plan.assignments {
        let (task, waiting) = (assignment.task, by_id[&assignment.task]);
        let host = waiting.vm.host;
        let at_host = hosts.entry(host).or_default();
        *at_host += u32::from(waiting.at_hypervisor);
        if situation.limits.at_host(host).is_some_and(|tasks_max| waiting.at_hypervisor && *at_host > tasks_max) {
            return Err(format!("{at_host} tasks at once at host {host}"));
        }
        if let Some(repository) = waiting.repository {
            let written = into.entry(repository).or_default();
            *written += 1;
            if situation.limits.into_repository(repository).is_some_and(|tasks_max| *written > tasks_max) {
                return Err(format!("{written} tasks at once into repository {repository}"));
            }
        }
        let Some(to) = servers.iter().position(|server| server.id == assignment.server) else {
            return Err(format!("task {task} goes to {}, which is no server", assignment.server));
        };
        let asked = request(situation, waiting, &servers, now);
        let (server, runs) = (&servers[to], servers[to].running_tasks);
        if feasible(server, &asked).is_err() && feasible_as_fallback(server, &asked).is_err() {
            return Err(format!("task {task} goes to {}, which cannot serve it", server.name));
        }
        if runs >= server.slots {
            return Err(format!("task {task} goes to {}, which has no free slot", server.name));
        }
        let own = rank(server, &asked);
        if (assignment.tier, assignment.recently_failed) != (Some(own.tier()), own.recently_failed) {
            return Err(format!("task {task} goes to {} as of another tier than it is", server.name));
        }
        // Where slots are limited, a better one may be full.
        if unlimited
            && let Some((_, best)) = choose(&asked)
            && (best.recently_failed, best.tier(), best.running_tasks) != (own.recently_failed, own.tier(), runs)
        {
            let fewest = best.running_tasks;
            return Err(format!(
                "{} runs {runs} tasks and gets one more, another {fewest} in {}",
                server.name,
                best.tier()
            ));
        }
        servers[to].running_tasks += 1;
    }

    for task in &plan.unservable {
        if let Some((able, _)) = choose(&request(situation, by_id[task], &servers, now)) {
            return Err(format!("task {task} is called unservable, and {} can serve it", servers[able].name));
        }
    }
    for waiting in &plan.waiting {
        let full = match waiting.because {
            Because::Slots => !unlimited,
            Because::HostLimit { host, tasks_max } => hosts.get(&host).copied().unwrap_or(0) >= tasks_max,
            Because::RepositoryLimit { repository, tasks_max } => {
                into.get(&repository).copied().unwrap_or(0) >= tasks_max
            }
        };
        if !full {
            return Err(format!("task {} waits, and there is room: {:?}", waiting.task, waiting.because));
        }
    }
    Ok(())
}

fn request<'a>(
    situation: &Situation<'a>,
    waiting: &WaitingTask<'a>,
    servers: &'a [ManagedServer],
    now: Timestamp,
) -> Request<'a> {
    Request {
        vm: waiting.vm,
        credential: waiting.credential,
        policy: waiting.policy,
        at_hypervisor: waiting.at_hypervisor,
        licence: situation.licence,
        rules: situation.rules,
        servers,
        failures: situation.failures,
        tried: waiting.tried,
        now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Fleet;
    use crate::fleet::{build, job_of, server_id, task_id};
    use lull_engine::dispatch::{Assignment, Limits, SPILL_AFTER_MS, StillWaiting, dispatch};
    use lull_engine::failover::FailureMemory;
    use lull_engine::ids::{HostId, RepositoryId};
    use lull_engine::infrastructure::{CredentialKind, ServerState};
    use lull_engine::licence::Licence;
    use lull_engine::selection::{SelectionRules, Tier};
    use lull_engine::settings::ProxyPolicy;

    /// A change of the dispatcher's plan; the host is the first task's.
    type Change<'a> = &'a dyn Fn(&mut Plan, HostId);

    /// What is found where two tasks wait, one host takes one task, and the dispatcher's plan is changed so.
    fn found(servers: &dyn Fn(&mut Vec<ManagedServer>), change: Change) -> Option<String> {
        let world = build(1, Fleet { vms: 2, proxies: 3, sites: 1, rounds: 1, faults: 0 }, None);
        let mut listed = world.listed;
        for server in &mut listed {
            server.slots = u32::MAX;
        }
        servers(&mut listed);
        let host = world.vms[0].host;
        let now = Timestamp::UNIX_EPOCH;
        let queue: Vec<WaitingTask> = world
            .vms
            .iter()
            .enumerate()
            .map(|(n, vm)| WaitingTask {
                task: task_id(n),
                job: job_of(n),
                vm,
                credential: Some(CredentialKind::SshKey),
                policy: &ProxyPolicy::Automatic,
                in_guest: true,
                at_hypervisor: true,
                repository: Some(RepositoryId(uuid::Uuid::nil())),
                tried: &[],
                waiting_since: now,
                held_up_at: None,
            })
            .collect();
        let limits = Limits { per_host: Some(1), per_repository: Some(2), ..Limits::default() };
        let situation = Situation {
            servers: &listed,
            licence: Licence::Universal,
            rules: SelectionRules::default(),
            failures: &FailureMemory::default(),
            running_per_job: &BTreeMap::new(),
            limits: &limits,
            running_per_host: &BTreeMap::new(),
            running_per_repository: &BTreeMap::new(),
            spill_after_ms: SPILL_AFTER_MS,
        };
        let mut plan = dispatch(&situation, &queue, now);
        assert_eq!(plan.assignments.len(), 2, "{plan:?}");
        change(&mut plan, host);
        fault(&situation, &queue, &plan, now, true)
    }

    #[test]
    fn whatever_is_wrong_with_a_plan_is_found() {
        let as_it_is = |_: &mut Vec<ManagedServer>| {};
        assert_eq!(found(&as_it_is, &|_, _| {}), None);
        let wrong: [(&str, Change); 8] = [
            ("does not wait", &|plan, _| plan.assignments[0].task = task_id(9)),
            ("planned twice", &|plan, _| plan.assignments[1] = plan.assignments[0]),
            ("is not in the plan", &|plan, _| plan.assignments.truncate(1)),
            ("is no server", &|plan, _| plan.assignments[0].server = server_id(9)),
            ("another tier", &|plan, _| plan.assignments[0].tier = Some(Tier::RemoteProxy)),
            ("and gets one more", &|plan, _| plan.assignments[1].server = plan.assignments[0].server),
            ("is called unservable", &|plan, _| {
                let Assignment { task, .. } = plan.assignments.remove(1);
                plan.unservable.push(task);
            }),
            ("there is room", &|plan, host| {
                let Assignment { task, .. } = plan.assignments.remove(0);
                let because = Because::HostLimit { host, tasks_max: 1 };
                let next_tier_at = Timestamp::UNIX_EPOCH;
                plan.waiting.push(StillWaiting { task, spilled: 0, next_tier_at, because });
            }),
        ];
        for (words, change) in wrong {
            let said = found(&as_it_is, change).unwrap_or_else(|| panic!("nothing is found: {words}"));
            assert!(said.contains(words), "{words}: {said}");
        }
        let away = |servers: &mut Vec<ManagedServer>| servers[1].state = ServerState::Draining;
        let to_who_is_away = |plan: &mut Plan, _| plan.assignments[0].server = server_id(1);
        let said = found(&away, &to_who_is_away).unwrap();
        assert!(said.contains("cannot serve it"), "{said}");
    }
}
