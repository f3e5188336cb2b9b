//! A fleet that is simulated: a backup server, its proxies, guests and hypervisors, over a network and clocks of their own, all from one
//! seed. The decisions are the real ones: `engine`'s selection, dispatch, session, failover memory and task lease, and the
//! arithmetic of a freeze from `guest-wire`. What is simulated is everything else, after docs/decisions/0010.
//!
//! ```text
//!  faults ──► who is up, stalled, cut off
//!  server ◄── network: delay, loss, doubles, other order ──► proxy ──► site: guest, hypervisor
//!                   after every step: check
//! ```
//!
//! One step is one event. Nothing reads a clock or a source of chance but the seed's, so a seed replays exactly. A [`Rule`] can be
//! broken on purpose, to see that the checks notice.
//!
//! Suggested reading order: [`site`], [`wire`], `proxy`, `server`, `check`, `faults`.

use jiff::{SignedDuration, Timestamp};
use lull_engine::infrastructure::{ManagedServer, Vm};
use lull_guest_wire::lease::Lease;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

mod chance;
mod check;
mod faults;
mod fleet;
mod proxy;
mod recover;
mod server;
pub mod site;
pub mod wire;

use chance::Chance;
use proxy::Proxy;
use server::Server;
use site::{Guest, Hypervisor, Who};
use wire::{ToProxy, ToServer};

/// How large a fleet is simulated, and how much happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fleet {
    /// VMs.
    pub vms: usize,
    /// Proxies, the backup server's own among them.
    pub proxies: usize,
    /// Networks, each with hosts of its own.
    pub sites: usize,
    /// How often each VM is backed up, one after the other.
    pub rounds: usize,
    /// Things that go wrong, most of them within the first minutes.
    pub faults: usize,
}

impl Fleet {
    /// The one of CI.
    pub const SMALL: Fleet = Fleet { vms: 24, proxies: 7, sites: 3, rounds: 2, faults: 10 };
    /// Ten thousand VMs.
    pub const LARGE: Fleet = Fleet { vms: 10_000, proxies: 200, sites: 20, rounds: 1, faults: 300 };
}

/// A rule that is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// A proxy looks at its lease before it acts.
    Lease,
    /// The guest's lock says which fence holds it.
    Fence,
    /// A frozen guest thaws by itself.
    Thaw,
    /// What an older dispatch reports changes nothing.
    Epoch,
    /// A proxy enters guest and hypervisor only under a fresh grant.
    Entry,
    /// A task that waited goes on waiting when the server starts again.
    Waiting,
}

impl Rule {
    /// All.
    pub const ALL: [Rule; 6] = [Rule::Lease, Rule::Fence, Rule::Thaw, Rule::Epoch, Rule::Entry, Rule::Waiting];

    /// As the command line names it.
    pub fn name(self) -> &'static str {
        match self {
            Rule::Lease => "lease",
            Rule::Fence => "fence",
            Rule::Thaw => "thaw",
            Rule::Epoch => "epoch",
            Rule::Entry => "entry",
            Rule::Waiting => "waiting",
        }
    }
}

/// What was seen in one simulation, or in many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Events.
    pub steps: u64,
    /// Tasks that ended.
    pub tasks: u64,
    /// Of those, with a restore point.
    pub restore_points: u64,
    /// Orders that were given to proxies.
    pub dispatches: u64,
    /// Tasks that were taken from one proxy and given to another.
    pub failovers: u64,
    /// Proxies that died, were stopped or paused.
    pub crashes: u64,
    /// Starts of the backup server after its first.
    pub restarts: u64,
    /// Lines that were cut.
    pub partitions: u64,
    /// Guests that thawed by themselves.
    pub own_thaws: u64,
}

impl Totals {
    /// Both together.
    pub fn plus(self, other: Totals) -> Totals {
        Totals {
            steps: self.steps + other.steps,
            tasks: self.tasks + other.tasks,
            restore_points: self.restore_points + other.restore_points,
            dispatches: self.dispatches + other.dispatches,
            failovers: self.failovers + other.failovers,
            crashes: self.crashes + other.crashes,
            restarts: self.restarts + other.restarts,
            partitions: self.partitions + other.partitions,
            own_thaws: self.own_thaws + other.own_thaws,
        }
    }
}

/// How a simulation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What was seen.
    pub totals: Totals,
    /// What was wrong, in words; `None`: nothing.
    pub violation: Option<String>,
    /// The last things that happened before the end; empty unless asked for.
    pub trace: Vec<String>,
    /// Of every event with its time: two runs of one seed have the same.
    pub digest: u64,
}

/// Lines of a trace that are kept.
const TRACE_LINES: usize = 100_000;
/// Nothing of a simulation takes longer, in its own time.
const END_MS: u64 = 6 * 60 * 60 * 1_000;

/// What happens at an instant.
#[derive(Debug, Clone)]
enum Event {
    ServerLooks,
    AtServer(ToServer),
    AtProxy(usize, ToProxy),
    Recovery(recover::Due, u64),
    Proxy(usize, u64, proxy::Due),
    GuestLooks(usize),
    GuestIsSilent(usize, Who),
    Fault(faults::Fault),
}

struct Scheduled(u64, u64, Event);

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// Everything there is.
struct World {
    fleet: Fleet,
    broken: Option<Rule>,
    now_ms: u64,
    chance: Chance,
    queue: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    server: Server,
    proxies: Vec<Proxy>,
    /// The proxies as the administrator added them; what changes is filled in for each dispatch.
    listed: Vec<ManagedServer>,
    vms: Vec<Vm>,
    guests: Vec<Guest>,
    hypervisors: Vec<Hypervisor>,
    /// Until when a proxy's line to the server is cut, and to a guest's site.
    server_cut_ms: Vec<u64>,
    site_cut_ms: BTreeMap<(usize, usize), u64>,
    loss_per_mille: u64,
    /// Nobody stands still any more.
    calm_ms: u64,
    freeze_lease: Lease,
    check: check::Ledger,
    totals: Totals,
    violation: Option<String>,
    trace: Option<VecDeque<String>>,
    digest: u64,
}

/// Simulates one seed.
pub fn run(seed: u64, fleet: Fleet, broken: Option<Rule>, traced: bool) -> Outcome {
    let mut world = fleet::build(seed, fleet, broken);
    world.trace = traced.then(VecDeque::new);
    world.begin();
    while world.violation.is_none() {
        let Some(Reverse(Scheduled(at_ms, number, event))) = world.queue.pop() else { break };
        world.now_ms = at_ms;
        world.totals.steps += 1;
        world.digest = (world.digest ^ at_ms ^ (number << 32)).wrapping_mul(0x0100_0000_01b3);
        world.happen(event);
        world.check_after_step();
        if world.server.is_over() && at_ms > world.server.over_ms().max(world.calm_ms) + check::QUIET_MS {
            break;
        }
        if at_ms > END_MS {
            let open = world.server.open().map(|(task, state)| format!("{task} {}", state.name())).collect::<Vec<_>>();
            world.wrong(format!("no end: still open are {}", open.join(", ")));
        }
    }
    world.check_at_the_end();
    Outcome {
        totals: world.totals,
        violation: world.violation,
        trace: world.trace.into_iter().flatten().collect(),
        digest: world.digest,
    }
}

impl World {
    fn begin(&mut self) {
        self.after(0, Event::ServerLooks);
        for proxy in 0..self.proxies.len() {
            let incarnation = self.proxies[proxy].incarnation;
            self.after(proxy as u64 * 7, Event::Proxy(proxy, incarnation, proxy::Due::Heartbeat));
        }
        self.plan_faults();
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::ServerLooks => self.server_looks(),
            Event::AtServer(message) => self.server_hears(message),
            Event::AtProxy(proxy, message) => self.proxy_hears(proxy, message),
            Event::Recovery(due, generation) => self.recovery_is_due(due, generation),
            Event::Proxy(proxy, incarnation, due) => self.proxy_is_due(proxy, incarnation, due),
            Event::GuestLooks(vm) => self.guest_looks(vm),
            Event::GuestIsSilent(vm, who) => self.guests[vm].leave(who),
            Event::Fault(fault) => self.strike(fault),
        }
    }

    /// A guest's watchdog wakes.
    fn guest_looks(&mut self, vm: usize) {
        if self.broken == Some(Rule::Thaw) {
            return;
        }
        let frozen = |guest: &Guest| guest.components.iter().filter(|component| component.frozen.is_some()).count();
        let before = frozen(&self.guests[vm]);
        self.guests[vm].look(self.now_ms, self.freeze_lease);
        let thawed = before - frozen(&self.guests[vm]);
        if thawed > 0 {
            self.totals.own_thaws += thawed as u64;
            self.tell(|| format!("guest {vm} thaws by itself"));
        }
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.scheduled += 1;
        self.queue.push(Reverse(Scheduled(self.now_ms + ms, self.scheduled, event)));
    }

    fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            if trace.len() == TRACE_LINES {
                trace.pop_front();
            }
            trace.push_back(format!("{:>10.3} s  {}", self.now_ms as f64 / 1_000.0, line()));
        }
    }

    fn wrong(&mut self, what: String) {
        self.tell(|| format!("WRONG: {what}"));
        self.violation.get_or_insert(what);
    }

    /// The backup server's clock.
    fn server_time(&self) -> Timestamp {
        // The year 2030; which does not matter.
        let begin = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1_893_456_000);
        begin
            + SignedDuration::from_millis(i64::try_from(self.now_ms).unwrap_or(i64::MAX))
            + SignedDuration::from_secs(self.server.clock_set_s)
    }

    /// A proxy's monotonic clock.
    fn proxy_clock_ms(&self, proxy: usize) -> u64 {
        self.now_ms + self.proxies[proxy].skew_ms
    }
}
