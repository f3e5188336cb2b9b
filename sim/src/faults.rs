//! What goes wrong, and when: planned from the seed before anything begins. Knows who is hit, not what follows.

use crate::{Event, World};

/// How long things go wrong; some do later.
const TROUBLED_MS: u64 = 600_000;
/// A process that does nothing for so long is killed by its parent.
const WATCHED_MS: u64 = 20_000;

/// One thing.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    ProxyDies(usize),
    ProxyStarts(usize),
    /// Its process stands still; its parent kills it.
    Stalls(usize, u64),
    /// Its machine stands still, its clock does not.
    Pauses(usize, u64),
    /// From the server.
    CutOff(usize, u64),
    /// From a site's guests.
    CutFromSite(usize, usize, u64),
    ServerDies,
    ServerStarts,
    Cancelled(usize),
    /// The server's clock, in seconds.
    ClockSet(i64),
}

impl World {
    pub(crate) fn plan_faults(&mut self) {
        for _ in 0..self.fleet.faults {
            let at_ms = self.chance.between(0, TROUBLED_MS);
            // The server's own proxy goes with the server.
            let proxy = 1 + self.chance.index(self.fleet.proxies - 1);
            let long_ms = self.chance.between(1_000, 400_000);
            let (fault, then) = match self.chance.between(0, 100) {
                0..25 => (Fault::ProxyDies(proxy), Some((long_ms / 3, Fault::ProxyStarts(proxy)))),
                25..35 => (Fault::Stalls(proxy, long_ms / 8), None),
                35..45 => (Fault::Pauses(proxy, 2 * long_ms), None),
                45..65 => (Fault::CutOff(proxy, long_ms), None),
                65..82 => {
                    let site = self.chance.index(self.fleet.sites);
                    let both = self.chance.per_mille(300);
                    let cut = Fault::CutFromSite(proxy, site, long_ms);
                    (cut, both.then_some((0, Fault::CutOff(proxy, long_ms))))
                }
                82..92 => (Fault::ServerDies, Some((long_ms, Fault::ServerStarts))),
                92..95 => {
                    let by_s = [-86_400, -600, 600, 86_400][self.chance.index(4)];
                    (Fault::ClockSet(by_s), None)
                }
                _ => {
                    let task = self.chance.index(self.fleet.vms * self.fleet.rounds);
                    (Fault::Cancelled(task), None)
                }
            };
            self.after(at_ms, Event::Fault(fault));
            if let Some((ms, fault)) = then {
                self.after(at_ms + ms, Event::Fault(fault));
            }
        }
    }

    pub(crate) fn strike(&mut self, fault: Fault) {
        self.tell(|| format!("fault: {fault:?}"));
        let now_ms = self.now_ms;
        match fault {
            Fault::ProxyDies(proxy) => self.proxy_dies(proxy),
            Fault::ProxyStarts(proxy) => self.proxy_starts(proxy),
            Fault::Stalls(proxy, ms) if ms >= WATCHED_MS => {
                self.totals.crashes += 1;
                self.proxies[proxy].stalled_ms = now_ms + ms;
                self.after(WATCHED_MS, Event::Fault(Fault::ProxyDies(proxy)));
                self.after(WATCHED_MS + 1_000, Event::Fault(Fault::ProxyStarts(proxy)));
            }
            Fault::Stalls(proxy, ms) | Fault::Pauses(proxy, ms) => {
                self.totals.crashes += 1;
                let stalled_ms = &mut self.proxies[proxy].stalled_ms;
                *stalled_ms = (*stalled_ms).max(now_ms + ms);
                self.calm_ms = self.calm_ms.max(*stalled_ms);
            }
            Fault::CutOff(proxy, ms) => {
                self.totals.partitions += 1;
                self.server_cut_ms[proxy] = self.server_cut_ms[proxy].max(now_ms + ms);
            }
            Fault::CutFromSite(proxy, site, ms) => {
                self.totals.partitions += 1;
                let until_ms = self.site_cut_ms.entry((proxy, site)).or_default();
                *until_ms = (*until_ms).max(now_ms + ms);
            }
            Fault::ServerDies if self.server.up => self.server_dies(),
            Fault::ServerStarts if !self.server.up => self.server_starts(),
            Fault::ServerDies | Fault::ServerStarts => {}
            Fault::ClockSet(by_s) => self.server.clock_set_s += by_s,
            Fault::Cancelled(task) => self.cancels(task),
        }
    }
}
