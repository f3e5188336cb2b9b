//! The backup server: what it stores, what it knows only while it runs, and how it hears its proxies. The next state of a task comes
//! from `engine::session` alone, who gets it from `engine::dispatch`. Knows no guest and no hypervisor.

use crate::check::{Done, plan as planned};
use crate::fleet::{job_of, proxy_of, server_id, task_id};
use crate::recover;
use crate::site::Who;
use crate::wire::{Said, ToProxy, ToServer};
use crate::{Event, Fleet, Rule, World};
use jiff::Timestamp;
use lull_engine::dispatch::{Because, Limits, SPILL_AFTER_MS, Situation, WaitingTask, dispatch};
use lull_engine::failover::{FailureMemory, RememberedFailure};
use lull_engine::ids::{HostId, RepositoryId, RestorePointId};
use lull_engine::infrastructure::{CredentialKind, ManagedServer, SILENT_AFTER_MS, ServerState};
use lull_engine::instant::after_ms;
use lull_engine::licence::Licence;
use lull_engine::selection::SelectionRules;
use lull_engine::session::{
    Action, Ending, Hold, Left, ProxyReport, RecoveryPart, TaskEvent, TaskState, advance, owed_after_finish,
};
use lull_engine::settings::ProxyPolicy;
use lull_engine::task_lease::TASK_LEASE_MS;
use std::collections::BTreeMap;
use uuid::Uuid;

const LOOK_EVERY_MS: u64 = 1_000;
/// A proxy whose line broke is waited for so long.
const RETURN_WITHIN_MS: u64 = 60_000;
/// An order that was not asked for within this time was not taken.
const TAKEN_WITHIN_MS: u64 = 40_000;
/// A proxy asks for its lease every minute: one that says nothing of a task for so long has forgotten it, or hangs.
const SILENT_ON_TASK_MS: u64 = 200_000;

/// A task as it is stored.
pub(crate) struct Task {
    pub(crate) state: Option<TaskState>,
    /// Ends that were counted.
    pub(crate) closed: u32,
    /// Restore points that were recorded, by the dispatch that made them.
    pub(crate) recorded: Vec<u64>,
    held_up_at: Option<Timestamp>,
}

impl Task {
    pub(crate) fn begin(&mut self, now: Timestamp) {
        self.state = Some(TaskState::new(now));
    }
}

/// What the running server knows of a task that a proxy has.
#[derive(Debug, Clone, Copy)]
struct Call {
    who: Who,
    /// The number of the last event that was heard.
    heard: usize,
    heard_ms: u64,
    began_ms: u64,
    broken_ms: Option<u64>,
    attach: bool,
}

/// What it knows of a proxy: when it was heard of, and which of its processes.
type Link = Option<(u64, u64)>;

pub(crate) struct Server {
    pub(crate) up: bool,
    /// Counts its starts: what an earlier one had begun is nobody's.
    pub(crate) generation: u64,
    // stored
    pub(crate) tasks: Vec<Task>,
    fence: u64,
    failures: FailureMemory,
    limits: Limits,
    pub(crate) unlimited: bool,
    ended: usize,
    over_ms: u64,
    /// Its clock was set by so much since the beginning.
    pub(crate) clock_set_s: i64,
    // of this start
    calls: BTreeMap<usize, Call>,
    links: Vec<Link>,
    waiting: bool,
    started_ms: u64,
    pub(crate) recoveries: BTreeMap<u64, (usize, RecoveryPart, u64)>,
}

impl Server {
    pub(crate) fn new(fleet: Fleet, limits: Limits, unlimited: bool) -> Self {
        let task = || Task { state: None, closed: 0, recorded: Vec::new(), held_up_at: None };
        Self {
            up: true,
            generation: 1,
            tasks: (0..fleet.vms * fleet.rounds).map(|_| task()).collect(),
            fence: 0,
            failures: FailureMemory::default(),
            limits,
            unlimited,
            ended: 0,
            over_ms: 0,
            clock_set_s: 0,
            calls: BTreeMap::new(),
            links: vec![None; fleet.proxies],
            waiting: true,
            started_ms: 0,
            recoveries: BTreeMap::new(),
        }
    }

    /// Every task ended.
    pub(crate) fn is_over(&self) -> bool {
        self.ended == self.tasks.len()
    }

    pub(crate) fn over_ms(&self) -> u64 {
        self.over_ms
    }

    pub(crate) fn open(&self) -> impl Iterator<Item = (usize, &TaskState)> {
        let begun = self.tasks.iter().enumerate().filter_map(|(task, row)| Some((task, row.state.as_ref()?)));
        begun.filter(|(_, state)| !matches!(state, TaskState::Finished { .. }))
    }

    fn hold(&self, task: usize) -> Option<&Hold> {
        match self.tasks[task].state.as_ref()? {
            TaskState::Dispatched { hold } | TaskState::Running { hold, .. } => Some(hold),
            _ => None,
        }
    }

    /// The dispatch under which a proxy has the task, as it is stored.
    pub(crate) fn epoch_held(&self, task: usize) -> Option<u64> {
        self.hold(task).map(|hold| hold.epoch)
    }

    pub(crate) fn next_fence(&mut self) -> u64 {
        self.fence += 1;
        self.fence
    }

    /// Whether it heard of the proxy lately.
    pub(crate) fn hears(&self, proxy: usize, now_ms: u64) -> bool {
        self.links[proxy].is_some_and(|(heard_ms, _)| now_ms.saturating_sub(heard_ms) <= SILENT_AFTER_MS)
    }
}

impl World {
    pub(crate) fn server_looks(&mut self) {
        self.after(LOOK_EVERY_MS, Event::ServerLooks);
        if !self.server.up {
            return;
        }
        let calls: Vec<(usize, Call)> = self.server.calls.iter().map(|(task, call)| (*task, *call)).collect();
        for (task, call) in calls {
            self.look_after(task, call);
        }
        // Who was not heard of since the start is not offline yet.
        if self.server.waiting && self.now_ms - self.server.started_ms > SILENT_AFTER_MS {
            self.dispatch();
        }
    }

    fn look_after(&mut self, task: usize, mut call: Call) {
        let now_ms = self.now_ms;
        if self.server.hears(call.who.proxy, now_ms) {
            if call.attach || call.broken_ms.take().is_some() {
                // Again and again until it answers.
                call.attach = true;
                self.down(call.who.proxy, ToProxy::Attach(call.who, self.server.generation));
            }
        } else {
            call.broken_ms.get_or_insert(now_ms);
        }
        self.server.calls.insert(task, call);
        let granted = self.server.hold(task).is_some_and(|hold| hold.lease_until.is_some());
        if call.broken_ms.is_some_and(|broken_ms| now_ms - broken_ms > RETURN_WITHIN_MS) {
            self.lost(task, call.who.epoch, "it does not return");
        } else if !granted && now_ms - call.began_ms > TAKEN_WITHIN_MS {
            self.lost(task, call.who.epoch, "it did not take the task");
        } else if now_ms - call.heard_ms > SILENT_ON_TASK_MS {
            self.lost(task, call.who.epoch, "it says nothing of the task");
        }
    }

    fn lost(&mut self, task: usize, epoch: u64, cause: &str) {
        self.happens(task, TaskEvent::ProxyLost { epoch, cause: cause.to_owned() });
    }

    pub(crate) fn server_hears(&mut self, message: ToServer) {
        if !self.server.up {
            return;
        }
        match message {
            ToServer::Heartbeat(proxy, incarnation) => self.hears_of(proxy, incarnation),
            ToServer::Ask(who, number, start) => {
                if !self.is_current(who) {
                    return;
                }
                let generation = self.server.generation;
                if let Some(call) = self.server.calls.get_mut(&who.task).filter(|_| start == generation) {
                    call.attach = false;
                }
                let until = after_ms(self.server_time(), TASK_LEASE_MS);
                self.happens(who.task, TaskEvent::LeaseGranted { epoch: who.epoch, until });
                self.check.granted(who, self.now_ms);
                self.down(who.proxy, ToProxy::Grant(who, number, TASK_LEASE_MS));
            }
            ToServer::Said(who, number, said) => self.hears_out(who, number, said),
            ToServer::NotFound(who) => {
                if self.is_current(who) {
                    self.lost(who.task, who.epoch, "it has lost the task");
                }
            }
            ToServer::Recovered(who, part, call, well) => self.recovered(who, part, call, well),
        }
    }

    /// Whether the task is with this proxy under this number.
    fn is_current(&mut self, who: Who) -> bool {
        let now_ms = self.now_ms;
        let current = self.server.hold(who.task).is_some_and(|hold| hold.epoch == who.epoch);
        match self.server.calls.get_mut(&who.task).filter(|call| current && call.who.epoch == who.epoch) {
            Some(call) => {
                (call.heard_ms, call.who) = (now_ms, who);
                true
            }
            None => false,
        }
    }

    fn hears_of(&mut self, proxy: usize, incarnation: u64) {
        // A heartbeat that was under way for long says nothing about another process.
        if self.server.links[proxy].is_some_and(|(_, known)| known > incarnation) {
            return;
        }
        self.server.links[proxy] = Some((self.now_ms, incarnation));
        let gone: Vec<(usize, u64)> = self
            .server
            .calls
            .values()
            .filter(|call| call.who.proxy == proxy && call.who.incarnation < incarnation && !call.attach)
            .map(|call| (call.who.task, call.who.epoch))
            .collect();
        for (task, epoch) in gone {
            self.lost(task, epoch, "it is another process");
        }
    }

    fn hears_out(&mut self, who: Who, number: usize, said: Said) {
        let broken = self.broken == Some(Rule::Epoch);
        if !self.is_current(who) && !broken {
            // Nobody asks for it any more: it need not be told again.
            return self.down(who.proxy, ToProxy::Heard(who, usize::MAX, self.server.generation));
        }
        let Some(call) = self.server.calls.get_mut(&who.task) else {
            if broken && let Said::RestorePoint(inside) = said {
                self.records(who, inside);
            }
            return;
        };
        if number <= call.heard {
            let heard = call.heard;
            return self.down(who.proxy, ToProxy::Heard(who, heard, self.server.generation));
        }
        if number != call.heard + 1 {
            return;
        }
        call.heard = number;
        let epoch = who.epoch;
        match said {
            Said::Report(report) => self.happens(who.task, TaskEvent::Report { epoch, report }),
            Said::RestorePoint(inside) => self.records(who, inside),
            Said::Finished(ending, account) => {
                let Some(state) = &self.server.tasks[who.task].state else { return };
                let report = ProxyReport::Finished { ending, owed: owed_after_finish(state, &account) };
                self.happens(who.task, TaskEvent::Report { epoch, report });
            }
        }
        self.down(who.proxy, ToProxy::Heard(who, number, self.server.generation));
    }

    fn records(&mut self, who: Who, inside: bool) {
        let row = &mut self.server.tasks[who.task];
        if !row.recorded.contains(&who.epoch) {
            row.recorded.push(who.epoch);
            self.totals.restore_points += 1;
            self.check.done.push(Done { task: who.task, inside });
        }
        if self.broken != Some(Rule::Epoch) {
            let restore_point = RestorePointId(Uuid::from_u128(who.task as u128));
            self.happens(who.task, TaskEvent::RestorePointRecorded { epoch: who.epoch, restore_point });
        }
    }

    /// What happened to a task, and what follows.
    pub(crate) fn happens(&mut self, task: usize, event: TaskEvent) {
        let now = self.server_time();
        let Some(state) = &self.server.tasks[task].state else { return };
        let waited = matches!(state, TaskState::Waiting { .. });
        let transition = match advance(state, &event, now) {
            Ok(transition) => transition,
            Err(error) => return self.wrong(format!("task {task}: {error}: {event:?}")),
        };
        if transition.ignored.is_some() {
            return;
        }
        self.tell(|| format!("task {task}: {event:?} -> {}", transition.state.name()));
        if matches!(transition.state, TaskState::Waiting { .. }) && !waited {
            self.totals.failovers += 1;
        }
        if let (TaskEvent::ServerRestarted { .. }, TaskState::Finished { ending: Ending::Failed { .. }, .. }) =
            (&event, &transition.state)
        {
            self.wrong(format!("task {task} was lost when the server started again"));
        }
        let held = matches!(transition.state, TaskState::Dispatched { .. } | TaskState::Running { .. });
        self.server.tasks[task].state = Some(transition.state);
        if !held {
            self.server.calls.remove(&task);
        }
        for action in transition.actions {
            self.perform(task, action);
        }
    }

    fn perform(&mut self, task: usize, action: Action) {
        match action {
            Action::SendTask { proxy, epoch } => {
                let proxy = proxy_of(proxy);
                let fence = self.server.next_fence();
                let incarnation = self.server.links[proxy].map_or(0, |(_, incarnation)| incarnation);
                let who = Who { task, epoch, fence, proxy, incarnation };
                self.totals.dispatches += 1;
                self.calls(who, false);
                self.down(proxy, ToProxy::Order(who, self.server.generation));
            }
            Action::AttachTask { proxy, epoch } => {
                let who = Who { task, epoch, fence: 0, proxy: proxy_of(proxy), incarnation: 0 };
                self.calls(who, true);
            }
            Action::CancelOnProxy { .. } => {
                if let Some(call) = self.server.calls.get(&task) {
                    let who = call.who;
                    self.down(who.proxy, ToProxy::Cancel(who));
                }
            }
            Action::RecoverGuest { epoch, last_proxy, after_ms } => {
                let due = recover::Due::Begin(task, RecoveryPart::Guest, epoch, proxy_of(last_proxy));
                self.after(after_ms, Event::Recovery(due, self.server.generation));
            }
            Action::SweepHypervisor { epoch, after_ms, .. } => {
                let due = recover::Due::Begin(task, RecoveryPart::Hypervisor, epoch, 0);
                self.after(after_ms, Event::Recovery(due, self.server.generation));
            }
            Action::RememberFailure { proxy, class, cause } => {
                let (vm, at) = (self.vms[self.vm_of_task(task)].id, self.server_time());
                self.server.failures.remember(RememberedFailure { vm, server: proxy, at, class, cause });
            }
            Action::ForgiveProxy { proxy } => {
                let vm = self.vms[self.vm_of_task(task)].id;
                self.server.failures.forgive(vm, proxy);
            }
            Action::RestCredential { .. } => {}
            Action::Requeue => self.server.waiting = true,
            Action::TaskClosed => self.closed(task),
        }
    }

    fn calls(&mut self, who: Who, attach: bool) {
        let now_ms = self.now_ms;
        // A proxy that was not heard of yet is waited for from now on.
        let broken_ms = attach.then_some(now_ms);
        let call = Call { who, heard: 0, heard_ms: now_ms, began_ms: now_ms, broken_ms, attach };
        self.server.calls.insert(who.task, call);
    }

    fn closed(&mut self, task: usize) {
        self.server.tasks[task].closed += 1;
        self.server.ended += 1;
        self.server.over_ms = self.now_ms;
        self.server.waiting = true;
        self.totals.tasks += 1;
        let next = task + self.fleet.vms;
        let now = self.server_time();
        if let Some(next) = self.server.tasks.get_mut(next) {
            next.begin(now);
        }
    }

    /// The VM's last task left this.
    fn left_in_guest(&self, task: usize) -> Option<Left> {
        let last = task.checked_sub(self.fleet.vms)?;
        Left::of(task_id(last), &self.server.tasks[last].state.as_ref()?.owed())
    }

    /// As the rules of selection see the proxies now.
    fn managed(&self) -> Vec<ManagedServer> {
        let mut listed = self.listed.clone();
        for (proxy, server) in listed.iter_mut().enumerate() {
            server.running_tasks = 0;
            if !self.server.hears(proxy, self.now_ms) {
                server.state = ServerState::Offline { since: Some(self.server_time()) };
            }
        }
        for (task, _) in self.server.open() {
            if let Some(hold) = self.server.hold(task) {
                listed[proxy_of(hold.proxy)].running_tasks += 1;
            }
        }
        listed
    }

    fn dispatch(&mut self) {
        let now = self.server_time();
        let servers = self.managed();
        let repository = RepositoryId(Uuid::nil());
        let (mut per_job, mut per_host, mut into) = (BTreeMap::new(), BTreeMap::<HostId, u32>::new(), BTreeMap::new());
        for (task, _) in self.server.open() {
            if self.server.hold(task).is_some() {
                let vm = self.vm_of_task(task);
                *per_job.entry(job_of(vm)).or_default() += 1;
                *per_host.entry(self.vms[vm].host).or_default() += 1;
                *into.entry(repository).or_default() += 1;
            }
        }
        let queue: Vec<WaitingTask> = self
            .server
            .open()
            .filter_map(|(task, state)| match state {
                TaskState::Waiting { since, tried, .. } => Some(WaitingTask {
                    task: task_id(task),
                    job: job_of(self.vm_of_task(task)),
                    vm: &self.vms[self.vm_of_task(task)],
                    credential: Some(CredentialKind::SshKey),
                    policy: &ProxyPolicy::Automatic,
                    in_guest: true,
                    at_hypervisor: true,
                    repository: Some(repository),
                    tried,
                    waiting_since: *since,
                    held_up_at: self.server.tasks[task].held_up_at,
                }),
                _ => None,
            })
            .collect();
        let situation = Situation {
            servers: &servers,
            licence: Licence::Universal,
            rules: SelectionRules::default(),
            failures: &self.server.failures,
            running_per_job: &per_job,
            limits: &self.server.limits,
            running_per_host: &per_host,
            running_per_repository: &into,
            spill_after_ms: SPILL_AFTER_MS,
        };
        let plan = dispatch(&situation, &queue, now);
        let wrong = planned::fault(&situation, &queue, &plan, now, self.server.unlimited);
        drop(queue);
        self.server.waiting = !plan.waiting.is_empty();
        for waiting in &plan.waiting {
            if waiting.because != Because::Slots {
                self.server.tasks[waiting.task.0.as_u128() as usize].held_up_at = Some(now);
            }
        }
        for assignment in &plan.assignments {
            let task = assignment.task.0.as_u128() as usize;
            let event = TaskEvent::Dispatch {
                proxy: assignment.server,
                partial_file: Some(format!("{task}")),
                post_script: None,
                left: self.left_in_guest(task),
                outlives_server: assignment.server != server_id(0),
            };
            self.happens(task, event);
        }
        for task in &plan.unservable {
            let cause = "nobody can".to_owned();
            self.happens(task.0.as_u128() as usize, TaskEvent::NoProxy { cause });
        }
        if let Some(wrong) = wrong {
            self.wrong(wrong);
        }
    }

    /// The server dies, and its own proxy with it.
    pub(crate) fn server_dies(&mut self) {
        self.tell(|| "the server dies".to_owned());
        self.server.up = false;
        self.server.calls.clear();
        self.server.recoveries.clear();
        self.server.links.fill(None);
        self.proxy_dies(0);
    }

    /// It starts again from what it stored.
    pub(crate) fn server_starts(&mut self) {
        self.tell(|| "the server starts".to_owned());
        self.totals.restarts += 1;
        self.server.up = true;
        self.server.generation += 1;
        self.server.started_ms = self.now_ms;
        self.server.waiting = true;
        self.proxy_starts(0);
        let waiting_goes_on = self.broken != Some(Rule::Waiting);
        let mut unread = None;
        let open: Vec<usize> = self.server.open().map(|(task, _)| task).collect();
        for task in open {
            let stored = self.server.tasks[task].state.as_ref().map(serde_json::to_string);
            match stored.and_then(Result::ok).map(|text| serde_json::from_str(&text)) {
                Some(Ok(read)) => self.server.tasks[task].state = Some(read),
                _ => unread = Some(task),
            }
            self.happens(task, TaskEvent::ServerRestarted { waiting_goes_on });
        }
        if let Some(task) = unread {
            self.wrong(format!("task {task} cannot be read again"));
        }
    }

    /// A person cancels a task.
    pub(crate) fn cancels(&mut self, task: usize) {
        if self.server.up {
            self.happens(task, TaskEvent::CancelRequested);
        }
    }
}
