//! Late binding of waiting tasks to free slots.

use crate::world::{
    any_credential, any_failures, any_licence, any_policy, any_rules, any_servers, any_vm, at_ms, backup_server,
    failure, host_id, job_id, now, proxy, repository_id, server_id, task_id, vm,
};
use jiff::Timestamp;
use lull_engine::dispatch::{Because, Limits, Plan, SPILL_AFTER_MS, Situation, WaitingTask, dispatch};
use lull_engine::failover::FailureMemory;
use lull_engine::ids::{HostId, JobId, RepositoryId, ServerId, TaskId};
use lull_engine::infrastructure::{CredentialKind, ManagedServer, Platform, ServerState, Vm};
use lull_engine::licence::{Edition, Licence};
use lull_engine::selection::{Request, SelectionRules, Tier, able_without_guest, select};
use lull_engine::settings::ProxyPolicy;
use proptest::prelude::*;
use proptest::sample::subsequence;
use std::collections::BTreeMap;

mod without_guest;

/// A waiting task with everything it borrows.
#[derive(Debug, Clone)]
struct Entry {
    task: TaskId,
    job: JobId,
    vm: Vm,
    credential: Option<CredentialKind>,
    policy: ProxyPolicy,
    in_guest: bool,
    at_hypervisor: bool,
    repository: Option<RepositoryId>,
    held_up_at: Option<Timestamp>,
    tried: Vec<ServerId>,
    waiting_since: Timestamp,
}

#[derive(Debug, Clone)]
struct Queue {
    servers: Vec<ManagedServer>,
    licence: Licence,
    rules: SelectionRules,
    failures: FailureMemory,
    running_per_job: BTreeMap<JobId, u32>,
    limits: Limits,
    running_per_host: BTreeMap<HostId, u32>,
    running_per_repository: BTreeMap<RepositoryId, u32>,
    entries: Vec<Entry>,
}

impl Queue {
    fn new(servers: Vec<ManagedServer>) -> Self {
        Self {
            servers,
            licence: Licence::Universal,
            rules: SelectionRules::default(),
            failures: FailureMemory::default(),
            running_per_job: BTreeMap::new(),
            limits: Limits::default(),
            running_per_host: BTreeMap::new(),
            running_per_repository: BTreeMap::new(),
            entries: Vec::new(),
        }
    }

    /// A task of a job for a Linux VM in network `net` that waits for so long.
    fn waits(mut self, task: u128, job: u128, net: u8, waited_ms: i64) -> Self {
        self.entries.push(Entry {
            task: task_id(task),
            job: job_id(job),
            vm: vm(task, net),
            credential: Some(CredentialKind::SshKey),
            policy: ProxyPolicy::Automatic,
            in_guest: true,
            at_hypervisor: true,
            repository: Some(repository_id(0)),
            held_up_at: None,
            tried: Vec::new(),
            waiting_since: at_ms(-waited_ms),
        });
        self
    }

    fn plan(&self) -> Plan {
        let situation = Situation {
            servers: &self.servers,
            licence: self.licence,
            rules: self.rules,
            failures: &self.failures,
            running_per_job: &self.running_per_job,
            limits: &self.limits,
            running_per_host: &self.running_per_host,
            running_per_repository: &self.running_per_repository,
            spill_after_ms: SPILL_AFTER_MS,
        };
        let waiting: Vec<WaitingTask> = self
            .entries
            .iter()
            .map(|entry| WaitingTask {
                task: entry.task,
                job: entry.job,
                vm: &entry.vm,
                credential: entry.credential,
                policy: &entry.policy,
                in_guest: entry.in_guest,
                at_hypervisor: entry.at_hypervisor,
                repository: entry.repository,
                held_up_at: entry.held_up_at,
                tried: &entry.tried,
                waiting_since: entry.waiting_since,
            })
            .collect();
        dispatch(&situation, &waiting, now())
    }

    fn request<'a>(&'a self, entry: &'a Entry, servers: &'a [ManagedServer]) -> Request<'a> {
        Request {
            vm: &entry.vm,
            credential: entry.credential,
            policy: &entry.policy,
            at_hypervisor: entry.at_hypervisor,
            licence: self.licence,
            rules: self.rules,
            servers,
            failures: &self.failures,
            tried: &entry.tried,
            now: now(),
        }
    }
}

/// The plan must give these tasks to these servers, in this order, and let these wait.
fn check(queue: &Queue, assigned: &[(u128, u128)], waiting: &[u128]) {
    let plan = queue.plan();
    let got: Vec<_> = plan.assignments.iter().map(|a| (a.task, a.server)).collect();
    let expected: Vec<_> = assigned.iter().map(|(task, server)| (task_id(*task), server_id(*server))).collect();
    assert_eq!(got, expected);
    let got: Vec<_> = plan.waiting.iter().map(|w| w.task).collect();
    assert_eq!(got, waiting.iter().map(|task| task_id(*task)).collect::<Vec<_>>());
    assert_eq!(plan.unservable, []);
}

fn with_slots(n: u8, slots: u32) -> ManagedServer {
    ManagedServer { slots, ..proxy(n, Platform::Linux) }
}

#[test]
fn tasks_go_to_their_own_network_and_spread_over_it() {
    let neighbour = ManagedServer { networks: with_slots(1, 2).networks, ..with_slots(3, 2) };
    let queue = Queue::new(vec![with_slots(1, 2), with_slots(2, 2), neighbour])
        .waits(1, 1, 1, 0)
        .waits(2, 1, 1, 0)
        .waits(3, 1, 1, 0)
        .waits(4, 1, 2, 0);
    check(&queue, &[(1, 1), (2, 3), (3, 1), (4, 2)], &[]);
}

#[test]
fn a_task_waits_a_minute_for_its_best_tier_before_the_next_may_take_it() {
    let servers = || vec![with_slots(1, 0), ManagedServer { running_tasks: 1, ..with_slots(1, 1) }, with_slots(2, 1)];
    let full_local = servers().split_off(1);
    let fresh = Queue::new(full_local.clone()).waits(1, 1, 1, 59_999);
    check(&fresh, &[], &[1]);
    assert_eq!(fresh.plan().waiting[0].next_tier_at, at_ms(1));
    check(&Queue::new(full_local).waits(1, 1, 1, 60_000), &[(1, 2)], &[]);
}

#[test]
fn each_minute_opens_one_tier_more() {
    let full = |server: ManagedServer| ManagedServer { running_tasks: server.slots, ..server };
    // Tier 1 and 3 are full; the backup server in tier 4 has a slot.
    let servers = vec![full(with_slots(1, 1)), full(with_slots(2, 1)), backup_server()];
    for (waited_ms, expected) in [(0, None), (60_000, None), (119_999, None), (120_000, Some(server_id(0)))] {
        let plan = Queue::new(servers.clone()).waits(1, 1, 1, waited_ms).plan();
        assert_eq!(plan.assignments.first().map(|a| a.server), expected, "after {waited_ms} ms");
    }
}

#[test]
fn a_server_that_failed_with_the_vm_is_the_last_tier() {
    let mut queue = Queue::new(vec![with_slots(1, 1), backup_server()]).waits(1, 1, 1, 0);
    queue.failures.remember(failure(queue.entries[0].vm.id, server_id(1), at_ms(-1_000)));
    check(&queue, &[(1, 0)], &[]);
    assert_eq!(queue.plan().assignments[0].tier, Some(Tier::RemoteBackupServer));
    queue.servers[1].running_tasks = 4;
    check(&queue, &[], &[1]);
    queue.entries[0].waiting_since = at_ms(-60_000);
    check(&queue, &[(1, 1)], &[]);
    assert!(queue.plan().assignments[0].recently_failed);
}

#[test]
fn jobs_share_the_slots_however_long_their_queues_are() {
    let queue = Queue::new(vec![with_slots(1, 4)])
        .waits(1, 1, 1, 9_000)
        .waits(2, 1, 1, 8_000)
        .waits(3, 1, 1, 7_000)
        .waits(4, 1, 1, 6_000)
        .waits(5, 2, 1, 10)
        .waits(6, 2, 1, 5);
    check(&queue, &[(1, 1), (5, 1), (2, 1), (6, 1)], &[3, 4]);
}

#[test]
fn a_job_that_runs_tasks_already_comes_after_one_that_runs_none() {
    let mut queue = Queue::new(vec![with_slots(1, 2)]).waits(1, 1, 1, 9_000).waits(2, 2, 1, 0).waits(3, 2, 1, 0);
    queue.running_per_job.insert(job_id(1), 2);
    check(&queue, &[(2, 1), (3, 1)], &[1]);
}

#[test]
fn a_task_whose_proxies_are_full_does_not_block_the_rest_of_its_job() {
    let full = ManagedServer { running_tasks: 1, ..with_slots(1, 1) };
    let queue = Queue::new(vec![full, with_slots(2, 1)]).waits(1, 1, 1, 100).waits(2, 1, 2, 50);
    check(&queue, &[(2, 2)], &[1]);
}

#[test]
fn a_full_host_holds_up_its_own_tasks_alone_and_they_do_not_spill() {
    let mut queue = Queue::new(vec![with_slots(1, 9), with_slots(2, 9)])
        .waits(1, 1, 1, 500_000)
        .waits(2, 1, 1, 400_000)
        .waits(3, 1, 1, 300_000)
        .waits(4, 2, 1, 0);
    queue.limits.of_host.insert(host_id(0), 2);
    queue.running_per_host.insert(host_id(0), 1);
    queue.entries[2].vm.host = host_id(1);
    queue.servers[0].hosts_reached.push(host_id(1));
    // Job 2 has its turn at the host before job 1 has a second one; the other host's task passes by.
    check(&queue, &[(1, 1), (3, 1)], &[4, 2]);
    let because = Because::HostLimit { host: host_id(0), tasks_max: 2 };
    for waiting in queue.plan().waiting {
        assert_eq!((waiting.because, waiting.spilled, waiting.next_tier_at), (because, 0, at_ms(60_000)));
    }
    // A task that stays in the guest does not pile up snapshots.
    queue.entries[3].at_hypervisor = false;
    check(&queue, &[(1, 1), (4, 1), (3, 1)], &[2]);
}

#[test]
fn a_full_repository_holds_up_who_writes_there() {
    let mut queue = Queue::new(vec![with_slots(1, 9)]).waits(1, 1, 1, 3).waits(2, 1, 1, 2).waits(3, 1, 1, 1);
    queue.limits.per_repository = Some(1);
    queue.entries[2].repository = Some(repository_id(1));
    check(&queue, &[(1, 1), (3, 1)], &[2]);
    let because = Because::RepositoryLimit { repository: repository_id(0), tasks_max: 1 };
    assert_eq!(queue.plan().waiting[0].because, because);
    queue.limits.of_repository.insert(repository_id(0), 2);
    check(&queue, &[(1, 1), (2, 1), (3, 1)], &[]);
}

#[test]
fn who_was_held_up_by_a_limit_waits_for_its_local_proxy_like_everybody_else() {
    let full = ManagedServer { running_tasks: 1, ..with_slots(1, 1) };
    let mut queue = Queue::new(vec![full, with_slots(2, 1)]).waits(1, 1, 1, 600_000);
    queue.entries[0].held_up_at = Some(at_ms(-59_999));
    check(&queue, &[], &[1]);
    assert_eq!((queue.plan().waiting[0].because, queue.plan().waiting[0].next_tier_at), (Because::Slots, at_ms(1)));
    queue.entries[0].held_up_at = Some(at_ms(-60_000));
    check(&queue, &[(1, 2)], &[]);
}

#[test]
fn a_task_that_nobody_can_serve_is_told_so_even_where_a_limit_is_full() {
    let mut queue = Queue::new(vec![with_slots(1, 1)]).waits(1, 1, 1, 0);
    queue.limits.per_host = Some(0);
    queue.entries[0].tried = vec![server_id(1)];
    assert_eq!(queue.plan().unservable, [task_id(1)]);
}

#[test]
fn a_task_that_nobody_can_serve_is_told_apart_from_one_that_waits() {
    let mut queue = Queue::new(vec![with_slots(1, 1)]).waits(1, 1, 1, 0);
    queue.entries[0].tried = vec![server_id(1)];
    let plan = queue.plan();
    assert_eq!((plan.unservable, plan.waiting), (vec![task_id(1)], vec![]));
}

prop_compose! {
    fn any_limits()(
        per_host in prop::option::weighted(0.3, 1u32..5),
        of_host in prop::collection::btree_map((0u128..2).prop_map(host_id), 0u32..5, 0..2),
        per_repository in prop::option::weighted(0.3, 1u32..5),
        of_repository in prop::collection::btree_map((0u128..2).prop_map(repository_id), 0u32..5, 0..2),
    ) -> Limits {
        Limits { per_host, of_host, per_repository, of_repository }
    }
}

prop_compose! {
    fn any_entry(n: u128)(
        vm in any_vm(n % 4),
        job in 0u128..3,
        credential in any_credential(),
        policy in any_policy(),
        in_guest in prop::bool::weighted(0.7),
        at_hypervisor in any::<bool>(),
        repository in prop::option::of((0u128..2).prop_map(repository_id)),
        held_up_ms in prop::option::of(0i64..400_000),
        tried in prop_oneof![3 => Just(Vec::new()), 1 => subsequence((0..7).map(server_id).collect::<Vec<_>>(), 0..3)],
        waited_ms in 0i64..400_000,
    ) -> Entry {
        Entry {
            task: task_id(n),
            job: job_id(job),
            vm,
            credential,
            policy,
            in_guest,
            at_hypervisor: at_hypervisor || !in_guest,
            repository,
            held_up_at: held_up_ms.map(|ms| at_ms(-ms)),
            tried,
            waiting_since: at_ms(-waited_ms),
        }
    }
}

prop_compose! {
    fn any_queue(tasks: usize)(
        servers in any_servers(),
        licence in any_licence(),
        rules in any_rules(),
        failures in any_failures(),
        running in prop::collection::btree_map((0u128..3).prop_map(job_id), 0u32..3, 0..3),
        limits in any_limits(),
        at_hosts in prop::collection::btree_map((0u128..2).prop_map(host_id), 0u32..3, 0..2),
        into in prop::collection::btree_map((0u128..2).prop_map(repository_id), 0u32..3, 0..2),
        entries in (0..tasks as u128).map(any_entry).collect::<Vec<_>>(),
    ) -> Queue {
        Queue {
            servers,
            licence,
            rules,
            failures,
            running_per_job: running,
            limits,
            running_per_host: at_hosts,
            running_per_repository: into,
            entries,
        }
    }
}

/// The servers as they are after the first `assignments` of a plan.
fn loaded(queue: &Queue, plan: &Plan, assignments: usize) -> Vec<ManagedServer> {
    let mut servers = queue.servers.clone();
    for assignment in &plan.assignments[..assignments] {
        for server in servers.iter_mut().filter(|server| server.id == assignment.server) {
            server.running_tasks += 1;
        }
    }
    servers
}

/// The rule for a backup that leaves its guest alone, told once more as naively as possible: the backup server, then the others, with
/// the fewest tasks first.
fn without_guest(queue: &Queue, entry: &Entry, servers: &[ManagedServer]) -> Vec<(Group, Vec<ServerId>)> {
    let standard = queue.licence == Licence::Socket { edition: Edition::Standard };
    let admitted = |server: &ManagedServer| match &entry.policy {
        _ if server.is_backup_server => true,
        _ if standard => false,
        ProxyPolicy::Prefer { servers, .. } => servers.contains(&server.id),
        ProxyPolicy::Automatic => true,
    };
    let able = |server: &&ManagedServer| {
        let ready = server.role_enabled && server.state == ServerState::Online && server.slots > 0;
        let reaches = server.hosts_reached.contains(&entry.vm.host);
        ready && reaches && admitted(server) && !entry.tried.contains(&server.id)
    };
    let mut able: Vec<&ManagedServer> = servers.iter().filter(able).collect();
    able.sort_by_key(|server| (server.running_tasks, server.id));
    let (own, others): (Vec<&ManagedServer>, Vec<_>) = able.into_iter().partition(|server| server.is_backup_server);
    let groups = [own, others].into_iter().filter(|group| !group.is_empty());
    groups.map(|group| ((false, None), group.into_iter().map(|server| server.id).collect())).collect()
}

type Group = (bool, Option<Tier>);

/// The groups of servers that may take the task, best first, told by asking `select` again and again.
fn groups(queue: &Queue, entry: &Entry, servers: &[ManagedServer]) -> Vec<(Group, Vec<ServerId>)> {
    if !entry.in_guest {
        return without_guest(queue, entry, servers);
    }
    let mut groups: Vec<(Group, Vec<ServerId>)> = Vec::new();
    let mut entry = entry.clone();
    // While a preferred server is left, the fallback does not count; so only the first pool is asked.
    let preferred = |id: &ServerId| match &entry.policy {
        ProxyPolicy::Prefer { servers, .. } if queue.licence.admits_proxies() => servers.contains(id),
        _ => true,
    };
    let mut first_pool = None;
    let mut order = Vec::new();
    let mut tried = entry.tried.clone();
    for _ in servers {
        let probe = Entry { tried: tried.clone(), ..entry.clone() };
        let Some(chosen) = select(&queue.request(&probe, servers)).chosen else { break };
        if *first_pool.get_or_insert(preferred(&chosen.server)) != preferred(&chosen.server) {
            break;
        }
        tried.push(chosen.server);
        order.push(chosen);
    }
    for chosen in order {
        let key = (chosen.recently_failed, Some(chosen.tier));
        match groups.last_mut() {
            Some((last, members)) if *last == key => members.push(chosen.server),
            _ => groups.push((key, vec![chosen.server])),
        }
    }
    entry.tried = tried;
    groups
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn a_single_task_with_a_free_best_server_gets_the_one_selection_names(mut queue in any_queue(1)) {
        for server in &mut queue.servers {
            server.slots = server.slots.min(1) * (server.running_tasks + 1);
        }
        queue.limits = Limits::default();
        queue.entries[0].in_guest = false;
        let able = able_without_guest(&queue.request(&queue.entries[0], &queue.servers));
        prop_assert_eq!(queue.plan().assignments.first().map(|a| a.server), able.first().map(|server| server.id));
        queue.entries[0].in_guest = true;
        let plan = queue.plan();
        let chosen = select(&queue.request(&queue.entries[0], &queue.servers)).chosen;
        prop_assert_eq!(plan.assignments.first().map(|a| (a.server, a.tier)), chosen.map(|c| (c.server, Some(c.tier))));
    }

    #[test]
    fn every_task_is_planned_once_and_no_slot_is_given_twice(queue in any_queue(14)) {
        let plan = queue.plan();
        let mut planned: Vec<TaskId> = plan.assignments.iter().map(|a| a.task)
            .chain(plan.waiting.iter().map(|w| w.task))
            .chain(plan.unservable.iter().copied())
            .collect();
        planned.sort();
        let mut all: Vec<TaskId> = queue.entries.iter().map(|entry| entry.task).collect();
        all.sort();
        prop_assert_eq!(planned, all);
        let after = loaded(&queue, &plan, plan.assignments.len());
        for (before, after) in queue.servers.iter().zip(after) {
            prop_assert!(after.running_tasks <= after.slots.max(before.running_tasks), "{} overloaded", after.name);
        }
    }

    #[test]
    fn each_assignment_is_the_best_free_server_its_waiting_time_opened(queue in any_queue(10)) {
        let plan = queue.plan();
        for (index, assignment) in plan.assignments.iter().enumerate() {
            let servers = loaded(&queue, &plan, index);
            let entry = queue.entries.iter().find(|e| e.task == assignment.task).expect("its entry");
            let since = entry.waiting_since.max(entry.held_up_at.unwrap_or(entry.waiting_since));
            let open = 1 + now().duration_since(since).as_millis() as usize / SPILL_AFTER_MS as usize;
            // Within a group `select` orders by load and id, so the first free one is the right one.
            let free = |id: &ServerId| servers.iter().any(|s| s.id == *id && s.running_tasks < s.slots);
            let expected = groups(&queue, entry, &servers).into_iter().take(open)
                .find_map(|(key, members)| members.into_iter().find(|id| free(id)).map(|id| (key, id)));
            prop_assert_eq!(
                Some(((assignment.recently_failed, assignment.tier), assignment.server)), expected
            );
        }
    }

    #[test]
    fn who_waits_has_no_free_slot_in_the_tiers_open_to_it(queue in any_queue(14)) {
        let plan = queue.plan();
        let servers = loaded(&queue, &plan, plan.assignments.len());
        for waiting in &plan.waiting {
            let entry = queue.entries.iter().find(|e| e.task == waiting.task).expect("its entry");
            let groups = groups(&queue, entry, &servers);
            prop_assert!(!groups.is_empty(), "nobody can serve it: it does not wait");
            prop_assert!(waiting.next_tier_at > now());
            if waiting.because != Because::Slots {
                prop_assert_eq!(waiting.spilled, 0);
                continue;
            }
            for (_, members) in groups.into_iter().take(1 + waiting.spilled as usize) {
                for id in members {
                    let server = servers.iter().find(|s| s.id == id).expect("a server");
                    prop_assert!(server.running_tasks >= server.slots, "{} has a free slot", server.name);
                }
            }
        }
        for task in &plan.unservable {
            let entry = queue.entries.iter().find(|e| e.task == *task).expect("its entry");
            prop_assert_eq!(groups(&queue, entry, &servers), []);
        }
    }

    #[test]
    fn limits_are_never_exceeded_and_hold_nobody_up_who_has_room(queue in any_queue(14)) {
        let plan = queue.plan();
        let entry_of = |task| queue.entries.iter().find(|e| e.task == task).expect("its entry");
        let (mut hosts, mut repositories) = (queue.running_per_host.clone(), queue.running_per_repository.clone());
        for assignment in &plan.assignments {
            let entry = entry_of(assignment.task);
            if entry.at_hypervisor {
                *hosts.entry(entry.vm.host).or_default() += 1;
                let tasks_max = queue.limits.at_host(entry.vm.host).unwrap_or(u32::MAX);
                prop_assert!(hosts[&entry.vm.host] <= tasks_max);
            }
            if let Some(repository) = entry.repository {
                *repositories.entry(repository).or_default() += 1;
                prop_assert!(repositories[&repository] <= queue.limits.into_repository(repository).unwrap_or(u32::MAX));
            }
        }
        for waiting in &plan.waiting {
            let entry = entry_of(waiting.task);
            let full = match waiting.because {
                Because::Slots => continue,
                Because::HostLimit { host, tasks_max } => {
                    prop_assert!(entry.at_hypervisor && entry.vm.host == host);
                    prop_assert_eq!(queue.limits.at_host(host), Some(tasks_max));
                    hosts.get(&host).copied().unwrap_or(0) >= tasks_max
                }
                Because::RepositoryLimit { repository, tasks_max } => {
                    prop_assert_eq!(entry.repository, Some(repository));
                    prop_assert_eq!(queue.limits.into_repository(repository), Some(tasks_max));
                    repositories.get(&repository).copied().unwrap_or(0) >= tasks_max
                }
            };
            prop_assert!(full, "{:?} has room", waiting.because);
        }
    }

    #[test]
    fn the_plan_does_not_depend_on_the_order_of_its_input(queue in any_queue(12)) {
        let mut reversed = queue.clone();
        reversed.servers.reverse();
        reversed.entries.reverse();
        prop_assert_eq!(queue.plan(), reversed.plan());
    }

    #[test]
    fn no_job_gets_two_slots_more_than_another_that_could_have_used_them(
        slots in 1u32..9,
        lengths in prop::collection::vec(0usize..8, 1..4),
    ) {
        let mut queue = Queue::new(vec![with_slots(1, slots)]);
        let mut task = 0;
        for (job, length) in lengths.iter().enumerate() {
            for _ in 0..*length {
                task += 1;
                queue = queue.waits(task, job as u128, 1, 1_000 - task as i64);
            }
        }
        let plan = queue.plan();
        let got = |job: usize| plan.assignments.iter().filter(|a| {
            queue.entries.iter().any(|e| e.task == a.task && e.job == job_id(job as u128))
        }).count();
        for (job, length) in lengths.iter().enumerate() {
            for other in 0..lengths.len() {
                prop_assert!(got(job) == *length || got(other) <= got(job) + 1);
            }
        }
    }
}
