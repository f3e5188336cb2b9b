//! A proxy: its tasks, their leases, and what it tells of them until it is heard. A task outlives the line to the server; before it acts,
//! the proxy looks at its lease. Knows nothing of other proxies.

use crate::site::Who;
use crate::wire::{Said, ToProxy, ToServer};
use crate::{Event, Rule, World};
use lull_engine::failover::FailureClass;
use lull_engine::session::{Ending, FinalAccount, Hop, ProxyReport, TaskFailure};
use lull_engine::task_lease::{ASK_EVERY_MS, FIRST_GRANT_MS_MAX, Holder, May};
use lull_engine::timeline::Step;
use std::collections::BTreeMap;

mod steps;

const HEARTBEAT_MS: u64 = 2_000;
/// What was not heard is said again.
const AGAIN_MS: u64 = 3_000;
/// The lease is looked at this often, whatever the task is at.
const LOOK_MS: u64 = 5_000;
/// Events that are under way at once.
const UNHEARD_MAX: usize = 8;

/// A task by its number and its dispatch.
pub(crate) type Key = (usize, u64);

/// What is due in a proxy.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Due {
    Heartbeat,
    Step(Key),
    Ask(Key),
    Look(Key),
    Renew(Key, u64),
    Tell(Key),
    NotGranted(Key),
}

/// A task that it has.
pub(crate) struct Job {
    pub(crate) who: Who,
    pub(crate) vm: usize,
    holder: Holder,
    begun: bool,
    over: bool,
    cancelled: bool,
    step: Step,
    in_guest: bool,
    freeze_id: Option<u64>,
    inside: bool,
    made_file: bool,
    tries: u32,
    said: Vec<Said>,
    heard: usize,
    /// The start of the server that heard it.
    start: u64,
}

pub(crate) struct Proxy {
    pub(crate) up: bool,
    /// Counts its processes.
    pub(crate) incarnation: u64,
    /// It does nothing until then.
    pub(crate) stalled_ms: u64,
    pub(crate) skew_ms: u64,
    pub(crate) jobs: BTreeMap<Key, Job>,
}

impl Proxy {
    pub(crate) fn new(skew_ms: u64) -> Self {
        Self { up: true, incarnation: 1, stalled_ms: 0, skew_ms, jobs: BTreeMap::new() }
    }
}

impl World {
    pub(crate) fn proxy_is_due(&mut self, proxy: usize, incarnation: u64, due: Due) {
        let Proxy { up, incarnation: now, stalled_ms, .. } = self.proxies[proxy];
        if !up || now != incarnation {
            return;
        }
        if self.now_ms < stalled_ms {
            return self.after(stalled_ms - self.now_ms, Event::Proxy(proxy, incarnation, due));
        }
        match due {
            Due::Heartbeat => {
                self.up(proxy, ToServer::Heartbeat(proxy, incarnation));
                self.due(proxy, HEARTBEAT_MS, Due::Heartbeat);
            }
            Due::Step(key) => self.step(proxy, key),
            Due::Ask(key) => self.ask(proxy, key),
            Due::Look(key) => {
                if self.may_go_on(proxy, key) {
                    self.due(proxy, LOOK_MS, Due::Look(key));
                }
            }
            Due::Renew(key, freeze_id) => self.renew(proxy, key, freeze_id),
            Due::Tell(key) => self.tell_server(proxy, key, true),
            Due::NotGranted(key) => {
                if self.proxies[proxy].jobs.get(&key).is_some_and(|job| !job.begun) {
                    self.proxies[proxy].jobs.remove(&key);
                }
            }
        }
    }

    pub(crate) fn due(&mut self, proxy: usize, ms: u64, due: Due) {
        let incarnation = self.proxies[proxy].incarnation;
        self.after(ms, Event::Proxy(proxy, incarnation, due));
    }

    pub(crate) fn proxy_hears(&mut self, proxy: usize, message: ToProxy) {
        let Proxy { up, incarnation, stalled_ms, .. } = self.proxies[proxy];
        if !up {
            return;
        }
        if self.now_ms < stalled_ms {
            return self.after(stalled_ms - self.now_ms, Event::AtProxy(proxy, message));
        }
        match message {
            // An order to another process was on another connection.
            ToProxy::Order(who, start) if who.incarnation == incarnation => self.takes(proxy, who, start),
            ToProxy::Order(..) => {}
            ToProxy::Attach(who, start) => {
                let key = (who.task, who.epoch);
                if self.proxies[proxy].jobs.contains_key(&key) {
                    // The server may have forgotten what it heard.
                    self.with(proxy, key, |job| {
                        if job.start < start {
                            (job.start, job.heard) = (start, 0);
                        }
                    });
                    self.ask_once(proxy, key);
                    self.tell_server(proxy, key, false);
                } else {
                    self.up(proxy, ToServer::NotFound(who));
                }
            }
            ToProxy::Grant(who, number, lease_ms) => self.is_granted(proxy, (who.task, who.epoch), number, lease_ms),
            ToProxy::Heard(who, heard, start) => self.is_heard(proxy, (who.task, who.epoch), heard, start),
            ToProxy::Cancel(who) => self.with(proxy, (who.task, who.epoch), |job| job.cancelled = true),
            ToProxy::Recover(who, part, call) => self.proxy_recovers(who, part, call),
        }
    }

    fn with(&mut self, proxy: usize, key: Key, change: impl FnOnce(&mut Job)) {
        if let Some(job) = self.proxies[proxy].jobs.get_mut(&key) {
            change(job);
        }
    }

    fn takes(&mut self, proxy: usize, who: Who, start: u64) {
        let key = (who.task, who.epoch);
        if self.proxies[proxy].jobs.contains_key(&key) {
            return;
        }
        let job = Job {
            who,
            vm: self.vm_of_task(who.task),
            holder: Holder::default(),
            begun: false,
            over: false,
            cancelled: false,
            step: Step::Connect,
            in_guest: false,
            freeze_id: None,
            inside: false,
            made_file: false,
            tries: 0,
            said: vec![Said::Report(ProxyReport::Accepted)],
            heard: 0,
            start,
        };
        self.proxies[proxy].jobs.insert(key, job);
        self.ask(proxy, key);
        self.tell_server(proxy, key, true);
        self.due(proxy, FIRST_GRANT_MS_MAX, Due::NotGranted(key));
    }

    fn ask(&mut self, proxy: usize, key: Key) {
        let Some(job) = self.proxies[proxy].jobs.get(&key).filter(|job| !job.over) else { return };
        // The first one is asked for again and again.
        let next_ms = if job.begun { ASK_EVERY_MS } else { 5_000 };
        self.ask_once(proxy, key);
        self.due(proxy, next_ms, Due::Ask(key));
    }

    fn ask_once(&mut self, proxy: usize, key: Key) {
        let clock_ms = self.proxy_clock_ms(proxy);
        let Some(job) = self.proxies[proxy].jobs.get_mut(&key) else { return };
        let (who, number, start) = (job.who, job.holder.ask(clock_ms), job.start);
        self.up(proxy, ToServer::Ask(who, number, start));
    }

    fn is_granted(&mut self, proxy: usize, key: Key, number: u64, lease_ms: u64) {
        let Some(job) = self.proxies[proxy].jobs.get_mut(&key) else { return };
        job.holder.granted(number, lease_ms);
        if !job.begun && job.holder.end_ms().is_some() {
            job.begun = true;
            self.due(proxy, 1, Due::Step(key));
            self.due(proxy, LOOK_MS, Due::Look(key));
        }
    }

    fn is_heard(&mut self, proxy: usize, key: Key, heard: usize, start: u64) {
        // What an earlier start of the server heard, this one may have forgotten.
        let job = self.proxies[proxy].jobs.get_mut(&key).filter(|job| heard == usize::MAX || job.start == start);
        let Some(job) = job else { return };
        job.heard = job.heard.max(heard.min(job.said.len()));
        if (job.over && job.heard == job.said.len()) || (heard == usize::MAX && !job.begun) {
            self.proxies[proxy].jobs.remove(&key);
        }
    }

    /// Says what was not heard yet.
    fn tell_server(&mut self, proxy: usize, key: Key, again: bool) {
        let Some(job) = self.proxies[proxy].jobs.get(&key) else { return };
        let unheard = job.said.iter().cloned().enumerate().skip(job.heard).take(UNHEARD_MAX);
        let messages: Vec<_> = unheard.map(|(index, said)| ToServer::Said(job.who, index + 1, said)).collect();
        for message in messages {
            self.up(proxy, message);
        }
        if again {
            self.due(proxy, AGAIN_MS, Due::Tell(key));
        }
    }

    pub(crate) fn say(&mut self, proxy: usize, key: Key, said: Said) {
        let Some(job) = self.proxies[proxy].jobs.get_mut(&key) else { return };
        job.said.push(said.clone());
        let (who, number) = (job.who, job.said.len());
        self.up(proxy, ToServer::Said(who, number, said));
    }

    /// Looks at the lease, and undoes the task where it runs out or was cancelled.
    fn may_go_on(&mut self, proxy: usize, key: Key) -> bool {
        let clock_ms = self.proxy_clock_ms(proxy);
        let broken = self.broken == Some(Rule::Lease);
        let Some(job) = self.proxies[proxy].jobs.get(&key).filter(|job| !job.over) else { return false };
        match job.holder.may(clock_ms) {
            _ if broken => true,
            May::Work if job.cancelled => {
                self.undoes(proxy, key, Ending::Cancelled);
                false
            }
            May::Work => true,
            May::Wait => false,
            May::Undo => {
                self.undoes(proxy, key, failed(FailureClass::ProxyLost, "the lease ran out"));
                false
            }
            // Somebody else's by now.
            May::Nothing => {
                let (who, vm) = (job.who, job.vm);
                self.hypervisors[vm].disconnect(who);
                self.ends(proxy, key, failed(FailureClass::ProxyLost, "the lease is over"), FinalAccount::default());
                false
            }
        }
    }

    fn ends(&mut self, proxy: usize, key: Key, ending: Ending, account: FinalAccount) {
        self.with(proxy, key, |job| job.over = true);
        self.say(proxy, key, Said::Finished(ending, account));
    }

    pub(crate) fn proxy_dies(&mut self, proxy: usize) {
        if !self.proxies[proxy].up {
            return;
        }
        self.totals.crashes += 1;
        self.tell(|| format!("proxy {proxy} dies"));
        self.proxies[proxy].up = false;
        for (_, job) in std::mem::take(&mut self.proxies[proxy].jobs) {
            self.hypervisors[job.vm].disconnect(job.who);
            // The guest's end of the channel hears of it, or notices the silence.
            let ms = if self.reaches_guest(proxy, job.vm) { 500 } else { 90_000 };
            self.after(ms, Event::GuestIsSilent(job.vm, job.who));
        }
    }

    pub(crate) fn proxy_starts(&mut self, proxy: usize) {
        if self.proxies[proxy].up {
            return;
        }
        let one = &mut self.proxies[proxy];
        (one.up, one.incarnation, one.stalled_ms) = (true, one.incarnation + 1, 0);
        self.tell(|| format!("proxy {proxy} starts"));
        self.due(proxy, 1, Due::Heartbeat);
    }
}

fn failed(class: FailureClass, cause: &str) -> Ending {
    let (cause, remedy) = (cause.to_owned(), "none".to_owned());
    Ending::Failed { failure: TaskFailure { step: None, hop: Hop::ProxyToGuest, cause, remedy, class } }
}
