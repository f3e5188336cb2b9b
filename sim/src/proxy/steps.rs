//! The steps of a backup, one event each. Every one that touches guest or hypervisor is first held against the lease, and told to the check.

use super::{Due, Key, failed};
use crate::site::Freeze;
use crate::wire::Said;
use crate::{Event, Rule, World};
use lull_engine::failover::FailureClass;
use lull_engine::session::{Ending, FinalAccount, ProxyReport};
use lull_engine::timeline::Step;
use lull_guest_wire::lease::RENEW_EVERY_MS;

/// A guest that does not answer is waited for so long, twice.
const CONNECT_MS_MAX: u64 = 20_000;
/// Without a fresh grant a step waits so long.
const ENTER_AGAIN_MS: u64 = 2_000;
/// A monitor that has another client is asked again so often.
const MONITOR_TRIES_MAX: u32 = 5;

impl World {
    pub(super) fn step(&mut self, proxy: usize, key: Key) {
        if !self.may_go_on(proxy, key) {
            return;
        }
        let Some(job) = self.proxies[proxy].jobs.get(&key) else { return };
        let (who, vm, step) = (job.who, job.vm, job.step);
        if job.tries == 0 {
            self.say(proxy, key, Said::Report(ProxyReport::StepStarted { step }));
        }
        self.tell(|| format!("proxy {proxy}: task {} epoch {}: {step}", who.task, who.epoch));
        let reached = self.reaches_guest(proxy, vm);
        match step {
            Step::Connect if reached => self.next(proxy, key, Step::Deploy, 100, 3_000),
            Step::Connect => {
                let job = self.proxies[proxy].jobs.get_mut(&key);
                let tries = job.map_or(0, |job| {
                    job.tries += 1;
                    job.tries
                });
                if tries <= 2 {
                    return self.due(proxy, CONNECT_MS_MAX, Due::Step(key));
                }
                let ending = failed(FailureClass::GuestUnreachable, "no route");
                self.ends(proxy, key, ending, FinalAccount::default());
            }
            Step::Deploy => {
                if !reached {
                    return self.undoes(proxy, key, failed(FailureClass::GuestUnreachable, "no route"));
                }
                if !self.may_enter(proxy, key) {
                    return;
                }
                self.check_enters(who, "enters the guest");
                if self.guests[vm].enter(who, self.broken).is_err() {
                    return self.undoes(proxy, key, failed(FailureClass::GuestSide, "a newer one holds the guest"));
                }
                self.check_guest(vm);
                self.with(proxy, key, |job| job.in_guest = true);
                self.next(proxy, key, Step::Inventory, 100, 1_000);
            }
            Step::Inventory => {
                if !self.may_enter(proxy, key) {
                    return;
                }
                self.check_enters(who, "connects to the monitor");
                if !self.hypervisors[vm].connect(who) {
                    let tries = self.proxies[proxy].jobs.get(&key).map_or(0, |job| job.tries);
                    if tries == MONITOR_TRIES_MAX {
                        return self.undoes(proxy, key, failed(FailureClass::Hypervisor, "the monitor is in use"));
                    }
                    self.with(proxy, key, |job| job.tries += 1);
                    return self.due(proxy, 2_000, Due::Step(key));
                }
                // Whatever an earlier task left there goes.
                self.hypervisors[vm].left.clear();
                self.next(proxy, key, Step::Freeze, 100, 5_000);
            }
            Step::Freeze => {
                let freeze = Freeze { id: who.fence, first_ms: self.now_ms, renewed_ms: self.now_ms };
                let Some(component) = self.guests[vm].of(who).filter(|_| reached) else {
                    return self.undoes(proxy, key, failed(FailureClass::GuestSide, "the component is gone"));
                };
                component.frozen = Some(freeze);
                self.check_acts(who, "freezes");
                self.check.frozen.insert(vm);
                self.with(proxy, key, |job| job.freeze_id = Some(freeze.id));
                self.after(self.freeze_lease.lease_ms, Event::GuestLooks(vm));
                self.after(self.freeze_lease.budget_ms, Event::GuestLooks(vm));
                self.due(proxy, RENEW_EVERY_MS, Due::Renew(key, freeze.id));
                self.say(proxy, key, Said::Report(ProxyReport::Frozen { freeze_id: freeze.id }));
                self.next(proxy, key, Step::Snapshot, 10, 300);
            }
            Step::Snapshot => {
                self.check_acts(who, "takes the snapshot");
                if self.hypervisors[vm].files.contains_key(&who.task) {
                    return self.undoes(proxy, key, failed(FailureClass::Repository, "the folder is there already"));
                }
                self.hypervisors[vm].files.insert(who.task, (who.epoch, false));
                self.hypervisors[vm].left.insert(key);
                let inside = self.guests[vm].of(who).is_some_and(|component| component.frozen.is_some());
                self.with(proxy, key, |job| (job.made_file, job.inside) = (true, inside));
                self.say(proxy, key, Said::Report(ProxyReport::FileStarted { path: who.task.to_string() }));
                // Once in a while it takes longer than the freeze may.
                let ms = if self.chance.per_mille(20) { 40_000 } else { 2_000 };
                self.next(proxy, key, Step::Thaw, 10, ms);
            }
            Step::Thaw => {
                let freeze_id = self.proxies[proxy].jobs.get(&key).and_then(|job| job.freeze_id);
                let component = self.guests[vm].of(who).filter(|_| reached);
                let frozen = component.and_then(|component| component.frozen.take()).map(|freeze| freeze.id);
                self.with(proxy, key, |job| job.freeze_id = None);
                if frozen.is_none() || frozen != freeze_id {
                    return self.undoes(proxy, key, failed(FailureClass::FileSystem, "it thawed before the snapshot"));
                }
                self.say(proxy, key, Said::Report(ProxyReport::Thawed { freeze_id: who.fence }));
                self.next(proxy, key, Step::Copy, 10, 20);
            }
            Step::Copy => {
                let ms = if self.chance.per_mille(50) { 500_000 } else { 40_000 };
                self.next(proxy, key, Step::Verify, 2_000, ms);
            }
            Step::Verify => {
                self.check_acts(who, "writes the restore point");
                let Some(file) = self.hypervisors[vm].files.get_mut(&who.task).filter(|file| file.0 == who.epoch)
                else {
                    return self.undoes(proxy, key, failed(FailureClass::Repository, "the files are gone"));
                };
                file.1 = true;
                let inside = self.proxies[proxy].jobs.get(&key).is_some_and(|job| job.inside);
                // From now on it stays.
                self.with(proxy, key, |job| job.made_file = false);
                self.say(proxy, key, Said::RestorePoint(inside));
                self.next(proxy, key, Step::Remove, 50, 500);
            }
            _ => self.undoes(proxy, key, Ending::Success),
        }
    }

    /// Whether the grant is fresh; if not, one is asked for and the step is tried again.
    fn may_enter(&mut self, proxy: usize, key: Key) -> bool {
        let clock_ms = self.proxy_clock_ms(proxy);
        let fresh = self.proxies[proxy].jobs.get(&key).is_some_and(|job| job.holder.may_enter(clock_ms));
        if fresh || self.broken == Some(Rule::Entry) {
            return true;
        }
        self.ask_once(proxy, key);
        self.due(proxy, ENTER_AGAIN_MS, Due::Step(key));
        false
    }

    fn next(&mut self, proxy: usize, key: Key, step: Step, from_ms: u64, to_ms: u64) {
        self.with(proxy, key, |job| (job.step, job.tries) = (step, 0));
        let ms = self.chance.between(from_ms, to_ms);
        self.due(proxy, ms, Due::Step(key));
    }

    pub(super) fn renew(&mut self, proxy: usize, key: Key, freeze_id: u64) {
        let Some(job) = self.proxies[proxy].jobs.get(&key).filter(|job| job.freeze_id == Some(freeze_id)) else {
            return;
        };
        let (who, vm) = (job.who, job.vm);
        if self.reaches_guest(proxy, vm) {
            let now_ms = self.now_ms;
            let component = self.guests[vm].of(who);
            if let Some(freeze) = component.and_then(|component| component.frozen.as_mut()) {
                freeze.renewed_ms = now_ms;
                self.after(self.freeze_lease.lease_ms, Event::GuestLooks(vm));
            }
        }
        self.due(proxy, RENEW_EVERY_MS, Due::Renew(key, freeze_id));
    }

    /// Thaws, leaves the guest, leaves the hypervisor, removes a file that is no restore point; then says how the task ended.
    pub(super) fn undoes(&mut self, proxy: usize, key: Key, ending: Ending) {
        let Some(job) = self.proxies[proxy].jobs.get(&key) else { return };
        let (who, vm, in_guest, made_file) = (job.who, job.vm, job.in_guest, job.made_file);
        self.check_acts(who, "undoes");
        let guest_clean = !in_guest || self.reaches_guest(proxy, vm);
        if in_guest && guest_clean {
            self.guests[vm].leave(who);
        }
        let hypervisor = &mut self.hypervisors[vm];
        let connected = hypervisor.client == Some(who);
        if connected {
            hypervisor.left.remove(&key);
            if made_file && hypervisor.files.get(&who.task).is_some_and(|file| file.0 == who.epoch) {
                hypervisor.files.remove(&who.task);
            }
            hypervisor.disconnect(who);
        }
        let hypervisor_clean = connected || !made_file;
        self.with(proxy, key, |job| job.freeze_id = None);
        let account = FinalAccount { guest_clean, hypervisor_clean, thaw_confirmed: guest_clean };
        self.ends(proxy, key, ending, account);
    }
}
